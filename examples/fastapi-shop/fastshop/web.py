"""The door: ``uvicorn fastshop.web:app``. An order's row and its event are one transaction of the session."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fastshop.events import OrderPlaced
from fastshop.tables import Base, Order, Payment, engine_from_environment
from tidewire import Publisher, open_publisher
from tidewire.config import open_store_on, open_transport, settings_from


class NewOrder(BaseModel):
    """What a customer sends."""

    order_id: str
    total: Decimal


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Open what requests need: sessions, and a publisher that empties the outbox of their database."""
    engine = engine_from_environment()
    async with (
        open_transport(settings_from().broker) as broker,
        open_store_on(engine, provision=True) as store,
        open_publisher("fastshop", transport=broker, store=store) as publisher,
    ):
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
        app.state.publisher = publisher
        yield
    await engine.dispose()


async def session_of(request: Request) -> AsyncIterator[AsyncSession]:
    """Give a request its session. The route begins and commits: what comes behind a ``yield`` here may run only
    when the answer has been sent."""
    async with request.app.state.sessions() as session:
        yield session


def publisher_of(request: Request) -> Publisher:
    """Give a request the publisher of the process."""
    publisher: Publisher = request.app.state.publisher
    return publisher


Database = Annotated[AsyncSession, Depends(session_of)]
Events = Annotated[Publisher, Depends(publisher_of)]
app = FastAPI(title="fastapi-shop", lifespan=lifespan)


@app.post("/orders", status_code=202)
async def place(order: NewOrder, session: Database, publisher: Events) -> NewOrder:
    """Take an order. One that is refused leaves neither a row nor an event."""
    try:
        async with session.begin():
            session.add(Order(order_id=order.order_id, total=order.total))
            await publisher.publish(OrderPlaced(order_id=order.order_id, total=order.total), tx=session)
    except IntegrityError as error:
        raise HTTPException(409, "this order is known") from error
    return order


@app.get("/books")
async def books(session: Database) -> dict[str, int]:
    """How many orders there are, how many payments, and how many orders are paid."""
    orders = await session.scalar(select(func.count()).select_from(Order))
    payments = await session.scalar(select(func.count()).select_from(Payment))
    paid = await session.scalar(select(func.count(Payment.order_id.distinct())))
    return {"orders": orders or 0, "payments": payments or 0, "paid": paid or 0}
