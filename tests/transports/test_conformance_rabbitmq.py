"""The RabbitMQ transport passes the conformance suite on a real broker; its clients die in processes of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import ClassVar

import aiormq
import pytest
from kafka_proxy import Proxy, proxy

from tidewire.model import InboxChannel, Topic
from tidewire.protocols import Transport
from tidewire.testing.servers.rabbitmq import LIMITED, RabbitServer
from tidewire.testing.transports import Faults, Site, TransportConformance, spawn_client
from tidewire.transports.rabbitmq import open_rabbit_transport
from tidewire.transports.rabbitmq.names import dead_queue, inbox_queue, lane_queue, tier_of, token_queue

OPENER = "tidewire.transports.rabbitmq:open_rabbit_transport"

ON_CI = frozenset(
    (
        "test_publish_returns_receipt_per_message_in_order",
        "test_publish_unknown_topic_is_rejected_not_lost",
        "test_publish_before_any_consumer_is_delivered_later",
        "test_publish_stored_survives_process_kill",
        "test_publish_concurrent_1000_tasks",
        "test_publish_binary_body_all_bytes",
        "test_single_consumer_gets_all",
        "test_two_groups_each_get_all",
        "test_competing_consumers_share",
        "test_consumer_joins_late_and_lanes_rebalance",
        "test_consumer_killed_takeover",
        "test_key_order_four_consumers",
        "test_key_order_across_consumer_kill",
        "test_key_order_across_graceful_handover",
        "test_key_order_with_publisher_retry",
        "test_out_of_order_settle_within_lane",
        "test_topic_and_inbox_copies_of_a_key_share_a_member",
        "test_ack_prevents_redelivery_after_kill",
        "test_stale_settle_is_lost_not_stolen",
        "test_attempt_starts_at_1_and_counts_each_failure",
        "test_attempt_survives_a_handover",
        "test_attempt_counts_crashes",
        "test_release_uncounted_keeps_attempt",
        "test_release_storm_does_not_lose",
        "test_close_mid_batch_redelivers_rest",
        "test_inbox_reaches_only_its_group",
        "test_retry_comes_back_through_the_inbox_only_here",
        "test_dead_letter_publish_failure_keeps_message",
        "test_dead_envelope_complete",
        "test_redrive_all",
        "test_redrive_keeps_key_order",
        "test_revocation_has_a_deadline_and_drained_ends_it",
        "test_steer_pause_others_flow",
        "test_cancel_receive_never_loses",
        "test_provision_conflict_detected",
        "test_two_event_loops_two_threads",
    )
)
"""The cases that CI runs: what a broker is for, and clients that are killed. Those that restart it take minutes."""


async def sweep(server: RabbitServer, swept: set[str]) -> None:
    """Delete the queues of topics that were made since: after thousands of them a restart would take minutes."""
    async with open_rabbit_transport(server.url) as transport:
        await transport.topics()
        groups = [pair for pair in transport._catalogue.groups if pair[0] not in swept]
        topics, tiers = transport._catalogue.topics, transport._catalogue.tiers
    connection = await aiormq.connect(server.url)
    names: list[str] = []
    for topic, group in groups:
        swept.add(topic)
        tos: list[Topic | InboxChannel] = [Topic(topic), InboxChannel(topic, group)]
        names.append(dead_queue(topic, group))
        names += [name(topic, group, number) for name in (lane_queue, inbox_queue, token_queue)
                  for number in range(topics[topic].lanes)]  # fmt: skip
        names += [tier_of(to, tier) for to in tos for tier in tiers.get((topic, getattr(to, "group", "")), ())]

    async def delete(share: list[str]) -> None:
        channel = await connection.channel()
        for name in share:
            await channel.queue_delete(name)

    await asyncio.gather(*(delete(names[start::4]) for start in range(4)))
    await connection.close()


async def delete_all(server: RabbitServer, topic: str) -> None:
    """Delete a topic's exchange and all its queues behind everybody's back."""
    queues = await asyncio.to_thread(server.control, "list_queues", "name", "--no-table-headers")
    connection = await aiormq.connect(server.url)
    channel = await connection.channel()
    for queue in queues.split():
        if queue.startswith(topic):
            await channel.queue_delete(queue)
    await channel.exchange_delete(topic)
    await connection.close()


class TestRabbitTransport(TransportConformance):
    """What RabbitMQ promises through its adapter, it keeps."""

    server: RabbitServer
    proxy: Proxy
    options: ClassVar[str] = "timeout=6"
    swept: ClassVar[set[str]] = set()

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _proxied(cls, request: pytest.FixtureRequest) -> Iterator[None]:
        server: RabbitServer = request.getfixturevalue("rabbitmq_server")
        cls.server = server
        with proxy(0, server.port) as cls.proxy:
            yield

    @pytest.fixture(autouse=True)
    def _swept(self, request: pytest.FixtureRequest) -> Iterator[None]:
        if os.environ.get("CI") and request.node.name not in ON_CI:
            pytest.skip("not proven: CI runs a part of the RabbitMQ suite; make test runs all of it")
        yield
        asyncio.run(sweep(self.server, self.swept))

    def site(self, directory: Path) -> Site:
        """Return the broker that all cases share, behind a proxy."""
        server = self.server
        url = f"{server.url_of('worker', server.password, port=self.proxy.port)}?{self.options}"

        def crash() -> None:
            server.write_down()
            server.kill()

        async def restart() -> None:
            crash()
            server.start()  # in this thread: the broker ends with the one that started it

        @asynccontextmanager
        async def outage() -> AsyncGenerator[None]:
            crash()
            try:
                yield
            finally:
                server.start()

        @asynccontextmanager
        async def hang() -> AsyncGenerator[None]:
            server.pause()
            try:
                yield
            finally:
                server.resume()

        async def cut() -> None:
            self.proxy.say("cut")

        async def destroy(topic: str) -> None:
            await delete_all(server, topic)

        def user(name: str, password: str) -> Callable[[], AbstractAsyncContextManager[Transport]]:
            return lambda: open_rabbit_transport(f"{server.url_of(name, password)}?{self.options}")

        def limited() -> AbstractAsyncContextManager[Transport]:
            # It may make the queue by which a member is there while it is there, and nothing else. A broker that is
            # started anew has its rights from its definitions.
            server.control("set_permissions", LIMITED[0], r"^tidewire\.MEMBER\.", ".*", ".*")
            return user(*LIMITED)()

        return Site(
            open=lambda: open_rabbit_transport(url),
            faults=Faults(
                spawn=lambda: spawn_client(OPENER, url),
                restart=restart,
                outage=outage,
                hang=hang,
                cut=cut,
                destroy=destroy,
                stranger=user("worker", "wrong"),
                limited=limited,
            ),
            patience=20.0,
        )


def test_what_ci_runs_is_there() -> None:
    """A case that was renamed does not fall out of what CI runs."""
    assert [] == [name for name in sorted(ON_CI) if not hasattr(TestRabbitTransport, name)]
