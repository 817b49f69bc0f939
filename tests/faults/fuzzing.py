"""Fuzzing what reads foreign bytes, with atheris: `python tests/faults/fuzzing.py TARGET SECONDS SEED`.

Each target lets through the one error that its reader promises and nothing else; a crash ends the process.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from fault_rounds import NotPossible, Round

SECONDS_EACH = 15
_DONE = re.compile(r"Done (\d+) runs")


def targets() -> Mapping[str, Callable[[bytes], object]]:
    """Return the readers; imported when they are wanted, so that atheris can instrument them before."""
    from hostile import OrderPlaced

    from tidewire.codecs.json import json_codec
    from tidewire.errors import DecodeError
    from tidewire.operations.letter_files import _letter, line_of
    from tidewire.rules.cloudevents import envelope_of, from_http, from_structured
    from tidewire.rules.letters import FAILURE, failure_in

    codec = json_codec(OrderPlaced)

    def headers_of(data: bytes) -> dict[str, str]:
        parts = data.decode("utf-8", "surrogateescape").split("\n")
        return dict(zip(parts[::2], parts[1::2], strict=False))

    def body(data: bytes) -> None:
        with suppress(DecodeError):
            codec.decode(data)

    def structured(data: bytes) -> None:
        with suppress(DecodeError):
            envelope_of(from_structured(data)[0])

    def envelope(data: bytes) -> None:
        with suppress(DecodeError):
            envelope_of(headers_of(data))

    def http(data: bytes) -> None:
        with suppress(DecodeError):
            from_http(headers_of(data), data)

    def letter(data: bytes) -> None:
        with suppress(ValueError):
            line_of(_letter(data))

    def failure(data: bytes) -> None:
        failure_in({FAILURE: data.decode("utf-8", "surrogateescape")})

    return {one.__name__: one for one in (body, structured, envelope, http, letter, failure)}


SEEDS = {
    "body": b'{"order_id":"1","total":"1.5","number":1,"at":"2026-01-01T00:00:00Z","lines":[{"sku":"a","n":1}]}',
    "structured": json.dumps(
        {"specversion": "1.0", "id": "1", "source": "s", "type": "a.b", "time": "2026-01-01T00:00:00Z", "data": {}}
    ).encode(),
    "envelope": b"ce-id\n1\nce-source\ns\nce-type\na.b\nce-time\n2026-01-01T00:00:00Z\nce-specversion\n1.0",
    "http": b"content-type\napplication/json\nce-id\n1\nce-source\ns\nce-type\na.b\nce-specversion\n1.0",
    "letter": b'{"format":1,"topic":"t","group":"g","id":"1","source":"s","key":null,"headers":{},'
    b'"body":"","digest":""}',
    "failure": b'{"failures":1,"first_error":"A","first_at":1,"last_at":2,"counts":{"A":1}}',
}


def one_round(seed: int) -> Round:
    """Fuzz every reader for a while; for `make faults`."""
    if importlib.util.find_spec("atheris") is None:
        raise NotPossible("atheris is not installed; pip install 'tidewire[fuzz]', on a Python that has a wheel of it")
    done = Round(Counter())
    for name in SEEDS:
        command = [sys.executable, __file__, name, str(SECONDS_EACH), str(seed)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_EACH * 10 + 60, check=False)
        found = _DONE.search(ran.stderr)
        done.figures["fuzz executions"] += int(found.group(1)) if found else 0
        if ran.returncode or found is None:
            done.violations.append(f"fuzz {name} seed {seed}: {(ran.stdout + ran.stderr)[-1_500:]}")
    return done


def main(argv: list[str]) -> None:
    """Fuzz one reader."""
    import atheris

    name, seconds, seed = argv
    with atheris.instrument_imports(include=["tidewire"]):
        target = targets()[name]
    with tempfile.TemporaryDirectory(prefix="tidewire-fuzz-") as directory:
        corpus = Path(directory, "corpus")
        corpus.mkdir()
        (corpus / "seed").write_bytes(SEEDS[name])
        options = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=4096", f"-artifact_prefix={directory}/"]
        atheris.Setup([__file__, *options, str(corpus)], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
