"""Hands lines in at the door, in order, and again until each has its answer."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from tidewire.errors import ConfigurationError

__all__ = ["Feeder", "chunked", "post"]

_CHUNK, _CHUNK_BYTES = 50, 1 << 20
_PAUSE = 0.1
_REPLY_MAX = 30.0
_PATIENCE = 90.0


class Feeder:
    """Feeds numbered lines in chunks; *seconds* spreads them over that long (0: as fast as they are taken)."""

    def __init__(self, name: str, lines: Sequence[tuple[int, bytes]], *, port: int, seconds: float) -> None:
        self.name = quote(name)
        self._lines = lines
        self._port = port
        self._pause = 0.0 if not lines else seconds * _CHUNK / len(lines)
        self.answers: Counter[str] = Counter()
        self.handed_in = 0
        self.retries = 0

    async def run(self, deadline: float) -> None:
        """Hand in every line, or those there is time for: none is begun after *deadline* (loop time).

        Raises:
            ConfigurationError: the door takes in nothing any more.
        """
        loop = asyncio.get_running_loop()
        due = loop.time()
        for chunk in chunked(self._lines):
            if loop.time() >= deadline:
                return
            await self._hand_in(chunk)
            self.handed_in += len(chunk)
            due += self._pause * len(chunk) / _CHUNK
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _hand_in(self, chunk: Sequence[tuple[int, bytes]]) -> None:
        """Post until there is an answer; the names of the lines make the repeat harmless."""
        # Lines keep their number in the file, blank ones included, so that a person finds them again.
        first = chunk[0][0]
        body: list[bytes] = []
        for number, text in chunk:
            body += [b""] * (number - first - len(body))
            body.append(text)
        headers = {"content-type": "application/x-ndjson", "x-line": f"{self.name}:{first}"}
        now = asyncio.get_running_loop().time
        give_up_at = now() + _PATIENCE
        while True:
            try:
                status, reply = await post(self._port, "/orders", b"\n".join(body), headers)
            except (OSError, EOFError, TimeoutError, ValueError):
                status, reply = 0, b""
            if status == 200:
                self.answers.update(answer["verdict"] for answer in json.loads(reply))
                return
            if status not in (0, 503) or now() > give_up_at:
                what = f"answers {status}" if status else f"has not answered for {_PATIENCE:g} s"
                raise ConfigurationError(f"lines {first} to {chunk[-1][0]} cannot be handed in: the door {what}")
            self.retries += 1
            await asyncio.sleep(_PAUSE)


def chunked(lines: Sequence[tuple[int, bytes]]) -> Iterator[Sequence[tuple[int, bytes]]]:
    """Split numbered lines into what is handed in together: bounded in lines, gaps included, and in bytes."""
    start, size = 0, 0
    for index, (number, text) in enumerate(lines):
        if index > start and (number - lines[start][0] >= _CHUNK or size + len(text) > _CHUNK_BYTES):
            yield lines[start:index]
            start, size = index, 0
        size += len(text)
    if lines:
        yield lines[start:]


async def post(port: int, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Post *body* to the door on loopback and return status and reply.

    Raises:
        OSError, EOFError, TimeoutError: no complete reply came; what was asked for may have happened.
        ValueError: the reply is not HTTP.
    """
    async with asyncio.timeout(_REPLY_MAX):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            lines = [f"POST {path} HTTP/1.1", f"host: 127.0.0.1:{port}", f"content-length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode() + body)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next(int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:"))
            return int(head.split(" ", 2)[1]), await reader.readexactly(length)
        except StopIteration:
            raise ValueError("a reply without a length") from None
        finally:
            writer.close()
