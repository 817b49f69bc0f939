"""The door: orders come in over HTTP, one or many at a time, and each is answered with what became of it.

``POST /orders`` takes an order as JSON, a CloudEvent whose data is an order (binary or structured mode), or lines
of orders (``application/x-ndjson``). 202 accepted · 200 repeated · 409 conflict · 422 malformed. Handing in again,
after a lost reply or a crash, changes nothing: a line keeps its first verdict (header ``x-line`` names it).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator, Sequence
from typing import Any, Literal, NamedTuple

from tidewire.chance import UUID7Ids
from tidewire.cli.demo.orders import LINE_BYTES_MAX, Order, accepted, digest, read_order
from tidewire.errors import DecodeError, MissingExtra, StoreUnavailable, TransactionLost
from tidewire.protocols import Store
from tidewire.rules.cloudevents import from_http
from tidewire.runtime.producer import Publisher, transaction

__all__ = ["Door", "serve_door"]

_STATUS = {"accepted": 202, "repeated": 200, "conflict": 409, "malformed": 422}
_BODY_BYTES_MAX, _LINES_MAX = 32 << 20, 10_000


class Answer(NamedTuple):
    """What became of one line, and why."""

    verdict: Literal["accepted", "repeated", "conflict", "malformed"]
    reason: str


class Door:
    """Takes lines in. One transaction for all of a call: orders, verdicts and outgoing events."""

    def __init__(self, store: Store, publisher: Publisher) -> None:
        self._store = store
        self._publisher = publisher
        self._ids = UUID7Ids()

    async def take(self, lines: Sequence[tuple[str, bytes]]) -> list[Answer]:
        """Take in (name, text) pairs in order and answer each."""
        async with transaction(self._store) as tx:
            # One at a time, so that orders are numbered in the order in which they leave; the first to touch this row
            # holds it to its commit. On SQLite a transaction that writes has the turn in any case.
            await tx.execute("UPDATE door SET calls = calls + 1")
            return [await self._take_one(tx, name or self._ids.event_id(), text) for name, text in lines]

    async def _take_one(self, tx: Any, name: str, text: bytes) -> Answer:
        earlier = await tx.fetchone("SELECT verdict, reason FROM lines WHERE line = $1", (name,))
        if earlier is not None:
            return Answer(earlier[0], earlier[1])
        order = read_order(text)
        answer = Answer("malformed", order) if isinstance(order, str) else await self._order(tx, name, order, text)
        await tx.execute("INSERT INTO lines (line, verdict, reason) VALUES ($1, $2, $3)", (name, *answer))
        return answer

    async def _order(self, tx: Any, name: str, order: Order, text: bytes) -> Answer:
        content = digest(order)
        known = await tx.fetchval("SELECT digest FROM orders WHERE order_id = $1", (order.order_id,))
        if known is not None:
            if known == content:
                return Answer("repeated", f"{order.order_id} is known, with the same content")
            return Answer("conflict", f"{order.order_id} is known, with other content")
        number = await tx.fetchval(
            "INSERT INTO orders (order_id, customer_id, digest, line, content) VALUES ($1, $2, $3, $4, $5) "
            "RETURNING number",
            (order.order_id, order.customer_id, content, name, text.decode()),
        )
        await self._publisher.publish(accepted(order, number), tx=tx)
        return Answer("accepted", "")


async def serve_door(door: Door, listener: socket.socket, stopped: asyncio.Event) -> None:
    """Serve the door on *listener* until *stopped*.

    Raises:
        MissingExtra: starlette or uvicorn is not installed.
    """
    try:
        import uvicorn
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtra(
            f"the demo's door needs {error.name}", hint='pip install "tidewire[demo]" brings what it needs'
        ) from error

    async def post(request: Request) -> Response:
        content_type = request.headers.get("content-type", "application/json")
        line = request.headers.get("x-line", "")
        try:
            if content_type.startswith("application/x-ndjson"):
                answers = await door.take(_numbered(line, await _lines(request.stream())))
                return JSONResponse([answer._asdict() for answer in answers])
            body = b"".join([part async for part in _start(request.stream())])
            event = from_http(dict(request.headers), body)
            (answer,) = await door.take([(line, body if event is None else event[1])])
        except DecodeError as error:
            return JSONResponse({"verdict": "malformed", "reason": str(error)}, 422)
        except (StoreUnavailable, TransactionLost) as error:
            return JSONResponse({"error": error.message}, 503, headers={"retry-after": "1"})
        return JSONResponse(answer._asdict(), _STATUS[answer.verdict])

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": True})

    app = Starlette(routes=[Route("/orders", post, methods=["POST"]), Route("/readyz", ready)])
    config = uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False)

    class Server(uvicorn.Server):
        """Leaves signals to the service it belongs to."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

    server = Server(config)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve([listener]))
        waiting = tasks.create_task(stopped.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        waiting.cancel()


async def _lines(stream: AsyncIterator[bytes]) -> list[bytes]:
    """Split a body into lines; of one that is too long to be an order no more is kept than shows that.

    Raises:
        DecodeError: more lines, or more of them, than one call may hand in.
    """
    lines, kept = [bytearray()], 0
    async for part in stream:
        first, *others = part.split(b"\n")
        for number, text in enumerate([first, *others]):
            if number:
                lines.append(bytearray())
            text = text[: max(0, LINE_BYTES_MAX + 1 - len(lines[-1]))]
            lines[-1] += text
            kept += len(text)
        if len(lines) > _LINES_MAX or kept > _BODY_BYTES_MAX:
            raise DecodeError(f"too much in one call: hand in at most {_LINES_MAX} lines, {_BODY_BYTES_MAX} bytes")
    return [bytes(line) for line in lines]


async def _start(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass on the parts of a body as far as an order can reach, in a CloudEvent around it; the rest is not kept."""
    size = 0
    async for part in stream:
        if size <= 2 * LINE_BYTES_MAX:
            yield part
        size += len(part)


def _numbered(first: str, lines: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Name lines: ``x-line: orders.jsonl:17`` names the first, the others follow; blank ones are passed over."""
    name, _, number = first.rpartition(":")
    start = int(number) if name and number.isdecimal() and len(number) < 16 else None
    return [
        ("" if start is None else f"{name}:{start + offset}", text) for offset, text in enumerate(lines) if text.strip()
    ]
