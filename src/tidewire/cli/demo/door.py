"""The door: orders come in over HTTP, one or many at a time, and each is answered with what became of it.

``POST /orders`` takes an order as JSON, a CloudEvent whose data is an order (binary or structured mode), or lines
of orders (``application/x-ndjson``). 202 accepted · 200 repeated · 409 conflict · 422 malformed. Handing in again,
after a lost reply or a crash, changes nothing: a line keeps its first verdict (header ``x-line`` names it).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from tidewire.chance import UUID7Ids
from tidewire.cli.demo.orders import Order, accepted, digest, read_order
from tidewire.errors import DecodeError, MissingExtra, StoreUnavailable
from tidewire.protocols import Store
from tidewire.rules.cloudevents import from_http
from tidewire.runtime.producer import Publisher, transaction

__all__ = ["Door", "serve_door"]

_STATUS = {"accepted": 202, "repeated": 200, "conflict": 409, "malformed": 422}
_BODY_BYTES_MAX = 32 << 20


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
            return [await self._take_one(tx, name or self._ids.event_id(), text) for name, text in lines]

    async def _take_one(self, tx: Any, name: str, text: bytes) -> Answer:
        earlier = await tx.fetchone("SELECT verdict, reason FROM lines WHERE line = ?", (name,))
        if earlier is not None:
            return Answer(earlier[0], earlier[1])
        order = read_order(text)
        answer = Answer("malformed", order) if isinstance(order, str) else await self._order(tx, name, order, text)
        await tx.execute("INSERT INTO lines (line, verdict, reason) VALUES (?, ?, ?)", (name, *answer))
        return answer

    async def _order(self, tx: Any, name: str, order: Order, text: bytes) -> Answer:
        content = digest(order)
        known = await tx.fetchval("SELECT digest FROM orders WHERE order_id = ?", (order.order_id,))
        if known is not None:
            if known == content:
                return Answer("repeated", f"{order.order_id} is known, with the same content")
            return Answer("conflict", f"{order.order_id} is known, with other content")
        written = await tx.execute(
            "INSERT INTO orders (order_id, customer_id, digest, line, content) VALUES (?, ?, ?, ?, ?)",
            (order.order_id, order.customer_id, content, name, text.decode()),
        )
        await self._publisher.publish(accepted(order, written.lastrowid), tx=tx)
        return Answer("accepted", "")


async def serve_door(door: Door, port: int, stopped: asyncio.Event) -> None:
    """Serve the door on loopback until *stopped*.

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
        body = await request.body()
        if len(body) > _BODY_BYTES_MAX:
            return JSONResponse({"verdict": "malformed", "reason": "body too large"}, 413)
        content_type = request.headers.get("content-type", "application/json")
        line = request.headers.get("x-line", "")
        try:
            if content_type.startswith("application/x-ndjson"):
                answers = await door.take(list(_numbered(line, body)))
                return JSONResponse([answer._asdict() for answer in answers])
            event = from_http(dict(request.headers), body)
            (answer,) = await door.take([(line, body if event is None else event[1])])
        except DecodeError as error:
            return JSONResponse({"verdict": "malformed", "reason": str(error)}, 422)
        except StoreUnavailable as error:
            return JSONResponse({"error": error.message}, 503, headers={"retry-after": "1"})
        return JSONResponse(answer._asdict(), _STATUS[answer.verdict])

    async def ready(request: Request) -> Response:
        return JSONResponse({"ready": True})

    app = Starlette(routes=[Route("/orders", post, methods=["POST"]), Route("/readyz", ready)])
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off", access_log=False)

    class Server(uvicorn.Server):
        """Leaves signals to the service it belongs to."""

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None]:
            yield

    server = Server(config)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve())
        waiting = tasks.create_task(stopped.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        waiting.cancel()


def _numbered(first: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """Split lines; ``x-line: orders.jsonl:17`` names the first, the others follow."""
    name, _, number = first.rpartition(":")
    start = int(number) if name and number.isdigit() else None
    for offset, text in enumerate(body.split(b"\n")):
        if text.strip():
            yield ("" if start is None else f"{name}:{start + offset}"), text
