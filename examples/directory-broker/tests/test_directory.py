"""What the suite cannot ask of every broker: the files themselves, what a power loss leaves, and the URL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from directory_broker import DirectoryTransport, open_directory_transport, open_url
from tidewire.errors import ConfigurationError, TransportRefused
from tidewire.model import Delivery, GroupSpec, InboxChannel, Message, Subscription, Topic, TopicSpec

TOPIC = Topic("shop.order")
BILLING = Subscription("billing", ["shop.order"], "one")


def message(number: int, *, to: Topic | InboxChannel = TOPIC) -> Message:
    """Return a message."""
    return Message(to, f"id-{number}", "test", "k", {}, f"body {number}".encode())


def at(root: Path, act: Callable[[DirectoryTransport], Awaitable[None]]) -> None:
    """Open the broker, with its topic and group, for one life of a process."""

    async def live() -> None:
        async with open_directory_transport(root) as transport:
            await transport.provision([TopicSpec("shop.order", 1)], [GroupSpec("billing", ["shop.order"])])
            await act(transport)

    asyncio.run(live())


async def take(transport: DirectoryTransport, number: int) -> list[Delivery]:
    """Ack *number* messages."""
    found: list[Delivery] = []
    async with transport.subscribe(BILLING) as receiver, asyncio.timeout(10):
        while len(found) < number:
            batch = [one for one in await receiver.receive(10, timedelta(seconds=1)) if isinstance(one, Delivery)]
            await receiver.settle(ack=batch)
            found += batch
    return found


def test_a_message_is_a_file_that_people_can_read(tmp_path: Path) -> None:
    """A message is one file: its headers as a line of JSON, its body as it is."""

    async def act(transport: DirectoryTransport) -> None:
        await transport.publish([message(1)])

    at(tmp_path, act)
    (path,) = (tmp_path / "topics/shop.order/messages").iterdir()
    head, _, body = path.read_bytes().partition(b"\n")
    assert b"body 1" == body
    assert b'"id": "id-1"' in head


def test_no_position_is_given_twice_after_a_power_loss(tmp_path: Path) -> None:
    """The counter is not synced: with another boot's counter, or none, positions go on behind all that left a trace."""
    counter = tmp_path / "topics/shop.order/counter"
    positions: list[int | str] = []

    async def act(transport: DirectoryTransport) -> None:
        await transport.publish([message(len(positions))])
        positions.extend(one.position for one in await take(transport, 1))

    at(tmp_path, act)
    counter.write_text("0 another-boot")
    at(tmp_path, act)
    counter.unlink()
    at(tmp_path, act)
    assert [1, 2, 3] == positions


def test_a_torn_owner_file_is_nobody(tmp_path: Path) -> None:
    """What was not synced may be empty after a power loss: the lane is free then and what is unsettled comes."""

    async def publish(transport: DirectoryTransport) -> None:
        await transport.publish([message(1), message(2, to=InboxChannel("shop.order", "billing"))])
        await take(transport, 0)

    async def read(transport: DirectoryTransport) -> None:
        assert [1, 1] == [one.attempt for one in await take(transport, 2)]

    at(tmp_path, publish)
    (owner,) = (tmp_path / "topics/shop.order/groups/billing/lanes").glob("*.owner")
    owner.write_bytes(b"")
    at(tmp_path, read)


def test_a_half_written_file_is_never_seen(tmp_path: Path) -> None:
    """A process that died while it wrote leaves a file without a name, which is neither read nor in the way."""
    (tmp_path / "lock").touch()
    (tmp_path / "new-0").write_bytes(b'{"id": ')

    async def act(transport: DirectoryTransport) -> None:
        await transport.publish([message(1)])
        assert [b"body 1"] == [one.message.body for one in await take(transport, 1)]

    at(tmp_path, act)


@pytest.mark.parametrize("name", ["../shop.order", "shop/order", "", ".", "..", "shop.order/../shop.order", "x\0"])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    """What is not the name of a topic is unknown, and cannot be provisioned."""

    async def act(transport: DirectoryTransport) -> None:
        (receipt,) = await transport.publish([message(1, to=Topic(name))])
        assert ("rejected", "unknown_topic") == (receipt.status, receipt.reason)
        (change,) = await transport.provision([TopicSpec(name)], [])
        assert "conflict" == change.kind

    at(tmp_path, act)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    """A directory that holds other files is not made a broker, and a missing one is not made for who only looks."""
    (tmp_path / "photo.jpg").touch()

    async def act() -> None:
        for path, create in ((tmp_path, True), (tmp_path / "missing", False)):
            with pytest.raises(TransportRefused):
                async with open_directory_transport(path, create=create):
                    pass

    asyncio.run(act())
    assert ["photo.jpg"] == [path.name for path in tmp_path.iterdir()]


def test_urls_name_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes are below the working directory, four begin at the root, and none names nothing."""
    monkeypatch.chdir(tmp_path)

    async def act() -> None:
        for url in ("directory:///data/a%20b", f"directory:///{tmp_path}/other"):
            async with open_url(url):
                pass

    asyncio.run(act())
    assert (tmp_path / "data/a b/lock").exists()
    assert (tmp_path / "other/lock").exists()
    with pytest.raises(ConfigurationError, match="names no directory"):
        open_url("directory://")
