"""Section D: settle, redelivery, attempts."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

import asyncio
from datetime import timedelta

import msgspec

from tidewire.model import Delivery, LaneEvent, Move, Release
from tidewire.testing.transports.bench import LEASE, Bench, Reader, consume_all, eventually, ids

SECOND = timedelta(seconds=1)


async def test_ack_prevents_redelivery_after_kill(bench: Bench) -> None:
    """CF-44: what was settled before the member was killed is not seen again."""
    await bench.provision()
    await bench.publish(bench.messages(5, keys=["a", "b"]))
    client = await bench.spawn()
    await client.join(bench.subscription())
    await Reader(client).consume(5)
    await client.kill()
    async with bench.member() as reader:
        await reader.until_owner(4)
        await reader.silence(0.1)


async def test_unsettled_is_redelivered_after_lease(bench: Bench) -> None:
    """CF-45: what a member that stands still has not settled comes back to another one after its lease."""
    bench.need(lease=bench.capabilities.lease)
    await bench.provision()
    messages = bench.messages(3)
    await bench.publish(messages)
    client = await bench.spawn()
    await client.join(bench.subscription())
    await Reader(client).take(3)
    client.pause()
    async with bench.member() as reader:
        found = await reader.consume(3)
    assert ids(messages) == ids(found)


async def test_lease_keeper_keeps_ownership_for_5_leases(bench: Bench) -> None:
    """CF-46: a member that is alive keeps its unsettled deliveries for five leases, with nothing asked of it."""
    await bench.provision(lanes=1)
    await bench.publish(bench.messages(2))
    async with bench.member() as reader:
        found = await reader.take(2)
        async with bench.member(transport=await bench.open()) as other:
            await other.silence(5 * LEASE.total_seconds())
        assert {1} == {one.attempt for one in found}
        await reader.ack(found)
    async with bench.member() as reader:
        await reader.silence(0.1)


async def test_lease_keeper_reports_lost(bench: Bench) -> None:
    """CF-47: a member that lost its lanes while it stood still hears which ones, before anything else of them."""
    bench.need(lease=bench.capabilities.lease)
    await bench.provision(lanes=2)
    await bench.publish(bench.messages(4, keys=["a", "b", "c", "d"]))
    client = await bench.spawn()
    await client.join(bench.subscription())
    paused = Reader(client)
    await paused.take(4)
    mine = set(paused.lanes)
    client.pause()
    async with bench.member() as reader:
        await reader.take(4)
        client.resume()
        events = [one for one in await client.receive(0, 5 * SECOND) if isinstance(one, LaneEvent)]
        for _ in range(20):
            if mine <= {one.lane for one in events if one.kind == "lost"}:
                break
            found = await client.receive(0, timedelta(milliseconds=200))
            events += [one for one in found if isinstance(one, LaneEvent)]
    assert mine == {one.lane for one in events if one.kind == "lost"}


async def test_stale_settle_is_lost_not_stolen(bench: Bench) -> None:
    """CF-48: a zombie's ack after the takeover is reported as lost; the new owner keeps the delivery."""
    bench.need(lease=bench.capabilities.lease)
    await bench.provision(lanes=1)
    messages = bench.messages(2)
    await bench.publish(messages)
    client = await bench.spawn()
    await client.join(bench.subscription())
    stale = await Reader(client).take(2)
    client.pause()
    async with bench.member() as reader:
        fresh = await reader.take(2)
        client.resume()
        settlements = await client.settle(ack=stale)
        assert ["lost", "lost"] == [one.status for one in settlements]
        await reader.release(fresh, counted=False)
        assert ids(messages) == ids(await reader.consume(2))


async def test_stale_settle_of_a_lane_that_came_back_is_lost(bench: Bench) -> None:
    """CF-48: what a member had of a lane before it lost it cannot be settled when it has that lane again."""
    bench.need(lease=bench.capabilities.lease)
    await bench.provision(lanes=1)
    messages = bench.messages(3)
    await bench.publish(messages)
    client = await bench.spawn()
    await client.join(bench.subscription())
    returned = Reader(client)
    stale = await returned.take(3)
    client.pause()
    async with bench.member() as reader:
        await reader.ack((await reader.take(3))[:1])
    client.resume()
    returned.unsettled.clear()
    fresh = await returned.take(2)
    assert ids(messages[1:]) == ids(fresh)
    assert ["lost"] * 3 == [one.status for one in await client.settle(ack=stale)]
    await client.kill()
    async with bench.member() as reader:
        assert ids(messages[1:]) == ids(await reader.consume(2))


async def test_double_ack_is_harmless(bench: Bench) -> None:
    """CF-49: settling twice, in one call or two, in the same way or another, has no error and no effect."""
    await bench.provision()
    await bench.publish(bench.messages(2, keys=["a"]))
    async with bench.member() as reader:
        first, second = await reader.take(2)
        await reader.receiver.settle(ack=[first, first])
        settlements = await reader.receiver.settle(ack=[first], move=[Move(first, bench.messages(1))])
        assert ["settled"] * 2 == [one.status for one in settlements]
        await reader.ack([second])
        await reader.silence(0.1)


async def test_ack_after_close_is_lost_not_error(bench: Bench) -> None:
    """CF-50: an ack that comes after the member has left is reported as lost."""
    await bench.provision()
    messages = bench.messages(1)
    await bench.publish(messages)
    async with bench.member() as reader:
        found = await reader.take(1)
    settlements = await reader.receiver.settle(ack=found)
    assert ["lost"] == [one.status for one in settlements]
    async with bench.member() as other:
        assert ids(messages) == ids(await other.consume(1))


async def test_attempt_starts_at_1_and_counts_each_failure(bench: Bench) -> None:
    """CF-51: the attempt is 1, and one more after each counted release."""
    await bench.provision()
    await bench.publish(bench.messages(1))
    attempts: list[int] = []
    async with bench.member() as reader:
        for _ in range(4):
            (found,) = await reader.take(1)
            attempts.append(found.attempt)
            await reader.release([found])
        (found,) = await reader.take(1)
        assert not found.suspect
    assert [1, 2, 3, 4] == attempts


async def test_attempt_survives_a_handover(bench: Bench) -> None:
    """CF-51: the next owner knows how often a message has failed."""
    await bench.provision()
    await bench.publish(bench.messages(1))
    async with bench.member() as reader:
        await reader.release(await reader.take(1))
        await reader.release(await reader.take(1))
    async with bench.member(transport=await bench.open()) as reader:
        assert [3] == [one.attempt for one in await reader.consume(1)]


async def test_attempt_counts_crashes(bench: Bench) -> None:
    """CF-52: a message whose member was killed three times comes as attempt 4, suspect."""
    bench.need(lease=bench.capabilities.lease)
    await bench.provision(lanes=1)
    await bench.publish(bench.messages(1))
    for attempt in (1, 2, 3):
        client = await bench.spawn()
        await client.join(bench.subscription())
        found = await Reader(client).take(1)
        assert [(attempt, attempt > 1)] == [(one.attempt, one.suspect) for one in found]
        await client.kill()
    async with bench.member() as reader:
        (last,) = await reader.consume(1)
    assert (4, True) == (last.attempt, last.suspect)


async def test_release_uncounted_keeps_attempt(bench: Bench) -> None:
    """CF-53: an uncounted release spends no attempt and makes no suspect."""
    await bench.provision()
    await bench.publish(bench.messages(1))
    async with bench.member() as reader:
        for _ in range(3):
            (found,) = await reader.take(1)
            assert (1, False) == (found.attempt, found.suspect)
            await reader.release([found], counted=False)


async def test_native_limit_never_fires_before_core_limit(bench: Bench) -> None:
    """CF-55: no limit of the broker's own takes a message away, however often it fails."""
    await bench.provision()
    await bench.publish(bench.messages(1))
    async with bench.member() as reader:
        for attempt in range(1, 31):
            (found,) = await reader.take(1)
            assert attempt == found.attempt
            await reader.release([found])
        assert 1 == len(await reader.consume(1))


async def test_release_storm_does_not_lose(bench: Bench) -> None:
    """CF-56: three members release a hundred messages each time they see them first; then all are consumed."""
    await bench.provision(lanes=6)
    messages = bench.messages(100, keys=[f"k{number}" for number in range(100)])
    await bench.publish(messages)
    readers = await bench.lives(3)
    released: set[tuple[str, int]] = set()
    while len(released) < 200:
        for reader in readers:
            batch = await reader.poll(100)
            again = [one for one in batch if one.attempt <= 2]
            released |= {(one.message.id, one.attempt) for one in again}
            # What failed twice goes back too, so that its key's order is not the storm's business.
            await reader.release(again)
            await reader.release([one for one in batch if one.attempt > 2], counted=False)
    shares = await consume_all(readers, 100)
    assert sorted(ids(messages)) == sorted(ids(one for share in shares for one in share))


async def test_close_mid_batch_redelivers_rest(bench: Bench) -> None:
    """CF-57: a member that leaves in the middle of a batch loses nothing of the rest."""
    await bench.provision()
    messages = bench.messages(10)
    await bench.publish(messages)
    async with bench.member() as reader:
        await reader.ack((await reader.take(10))[:4])
    async with bench.member() as reader:
        assert ids(messages[4:]) == ids(await reader.consume(6))


async def test_settle_large_batch_mixed_ack_release(bench: Bench) -> None:
    """CF-58: in one call with three hundred acks, releases and moves each has its own outcome."""
    await bench.provision()
    messages = bench.messages(300, keys=[f"k{number}" for number in range(300)])
    await bench.publish(messages)
    wanted = msgspec.structs.replace(bench.subscription(), prefetch=300)
    async with bench.member(subscription=wanted) as reader:
        found = await reader.take(300)
        moved = bench.messages(100, keys=["moved"])
        settlements = await reader.receiver.settle(
            ack=found[:100],
            release=[Release(one) for one in found[100:200]],
            move=[Move(one, [message]) for one, message in zip(found[200:], moved, strict=True)],
        )
        assert [(one.message.id, "settled") for one in found] == [
            (one.delivery.message.id, one.status) for one in settlements
        ]
        reader.unsettled.clear()
        rest = await reader.consume(200)
    assert sorted(ids(found[100:200]) + ids(moved)) == sorted(ids(rest))


async def test_what_is_settled_frees_the_prefetch(bench: Bench) -> None:
    """CF-77: a receive that waits because too much is unsettled goes on when something is settled."""
    await bench.provision(lanes=1)
    await bench.publish(bench.messages(3, keys=["a", "b", "c"]))
    async with bench.member(subscription=bench.subscription(prefetch=2)) as reader:
        found = await reader.take(2)
        assert [] == await reader.poll(10, 0.05)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(reader.poll(10, 5.0))
            await asyncio.sleep(0.05)
            await reader.receiver.settle(ack=found[:1])
        assert [b"2"] == [one.message.body for one in waiting.result()]


async def test_paused_member_recovers(bench: Bench) -> None:
    """CF-90: a member that lost its lanes while it stood still works again when it goes on."""
    bench.need(lease=bench.capabilities.lease, lanes=bench.capabilities.lanes)
    await bench.provision(lanes=2)
    client = await bench.spawn()
    await client.join(bench.subscription())
    paused = Reader(client)
    await paused.until_owner(2)
    client.pause()
    async with bench.member() as other:
        await other.until_owner(2)
    client.resume()
    paused.lanes.clear()
    messages = bench.messages(4, keys=["a", "b", "c", "d"])
    await bench.publish(messages)
    found: list[Delivery] = []

    async def complete() -> bool:
        found.extend(await paused.poll(10))
        return len(found) >= 4

    await eventually(complete, "the member has what was published after its pause")
    assert sorted(ids(messages)) == sorted(ids(found))
