"""The health probe, asked by a client that we did not write: it tells what the subscriptions say of themselves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping

import httpx
import pytest

from tidewire.errors import ConfigurationError
from tidewire.runtime.probe import open_probe
from tidewire.runtime.subscriber import Health


def health(*, ready: bool) -> Callable[[], Mapping[str, Health]]:
    """Return what says of one subscription how it is."""
    one = Health(ready=ready, why="" if ready else "stuck", rebuilds=0, progress=3, waiting=1)
    return lambda: {"0": one}


def ask(method: str, path: str, *, ready: bool = True) -> httpx.Response:
    """Return the answer to one request."""

    async def scenario() -> httpx.Response:
        async with open_probe(health(ready=ready), host="127.0.0.1", port=0) as port, httpx.AsyncClient() as client:
            return await client.request(method, f"http://127.0.0.1:{port}{path}")

    return asyncio.run(scenario())


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
def test_ready_is_what_the_subscriptions_say(ready: bool, status: int) -> None:
    """C19: never ready while deaf, and the reason is in the body."""
    answer = ask("GET", "/readyz", ready=ready)
    assert status == answer.status_code
    assert ready == answer.json()["0"]["ready"]
    assert ("" if ready else "stuck") == answer.json()["0"]["why"]


def test_a_deaf_process_is_alive() -> None:
    """Waiting for a database that is down is no reason to be killed."""
    assert 200 == ask("GET", "/livez", ready=False).status_code


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/readyz/more", 404), ("POST", "/readyz", 405), ("HEAD", "/readyz?x=1", 200)],
)
def test_other_requests_are_answered_by_their_status(method: str, path: str, status: int) -> None:
    """A wrong path or method hears so; HEAD has no body."""
    answer = ask(method, path)
    assert status == answer.status_code
    assert method != "HEAD" or b"" == answer.content


@pytest.mark.parametrize("noise", [b"", b"\x00\xff\r\n\r\n", b"GET /livez HTTP/1.1\r\n" + b"x" * 20_000, b"GET"])
def test_whoever_speaks_no_http_harms_nobody(noise: bytes) -> None:
    """Garbage, an endless head and a client that leaves are closed, and the next one is answered."""

    async def scenario() -> int:
        async with open_probe(health(ready=True), host="127.0.0.1", port=0) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise)
            writer.write_eof()
            await reader.read()
            writer.close()
            async with httpx.AsyncClient() as client:
                return (await client.get(f"http://127.0.0.1:{port}/livez")).status_code

    assert 200 == asyncio.run(scenario())


def test_an_address_in_use_is_named() -> None:
    """The error says which address, and how to say another."""

    async def scenario(port: int) -> None:
        async with open_probe(health(ready=True), host="127.0.0.1", port=port):
            raise AssertionError("it listens where somebody else does")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}") as refused:
            asyncio.run(scenario(port))
    assert "--probe" in refused.value.hint
