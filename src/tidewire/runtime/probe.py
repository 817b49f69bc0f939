"""Health over HTTP, for whoever restarts processes or balances load: ``/livez`` and ``/readyz``.

Smaller than a web framework on purpose: it has to answer while everything else is down, and needs no extra.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import msgspec

from tidewire.errors import ConfigurationError
from tidewire.runtime.subscriber import Health

__all__ = ["open_probe"]

_REQUEST_BYTES_MAX = 8_192
_REQUEST_SECONDS_MAX = 5.0
_OPEN_MAX = 64
_STATUS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@asynccontextmanager
async def open_probe(health: Callable[[], Mapping[str, Health]], *, host: str, port: int) -> AsyncGenerator[int]:
    """Answer probes at *host* and *port* (0: any free one) while the block lasts, and give the port.

    ``GET /livez`` is 200 as long as the event loop turns. ``GET /readyz`` is 200 while every subscription hears, and
    503 while one is deaf; its body is a JSON object of what *health* returns. No payload and no setting is shown.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    open_now = 0

    async def answer(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now <= _OPEN_MAX:
                async with asyncio.timeout(_REQUEST_SECONDS_MAX):
                    request = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response(request, health))
                    await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # whoever asked does not speak HTTP, or is gone
        finally:
            open_now -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    try:
        server = await asyncio.start_server(answer, host, port, limit=_REQUEST_BYTES_MAX)
    except OSError as error:
        raise ConfigurationError(
            f"the probe cannot listen on {host}:{port}: {error.strerror or error}",
            hint="name a free address of this machine: --probe 127.0.0.1:8080",
        ) from error
    async with server:
        yield server.sockets[0].getsockname()[1]


def _response(request: bytes, health: Callable[[], Mapping[str, Health]]) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
    body: object = {}
    if method not in (b"GET", b"HEAD"):
        status = 405
    elif path == b"/livez":
        status = 200
    elif path == b"/readyz":
        body = subscriptions = health()
        status = 200 if all(one.ready for one in subscriptions.values()) else 503
    else:
        status = 404
    content = msgspec.json.encode(body)
    head = (
        f"HTTP/1.1 {status} {_STATUS[status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else content)
