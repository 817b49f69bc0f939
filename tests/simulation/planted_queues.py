"""Bugs on purpose in the adapters to brokers of queues: each forgets something that the adapter has to pay for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from planting import patch, plant

from tidewire.model import Move, Settlement
from tidewire.runtime import holds
from tidewire.testing.simulation.models import intake
from tidewire.testing.simulation.models.amqp import lanes, receiver, server, topology, transport
from tidewire.testing.simulation.models.sqs import receiver as sqs_receiver
from tidewire.testing.simulation.models.sqs import sending
from tidewire.testing.simulation.models.sqs import topology as topology_of_sqs


def without_limit(member: Any) -> None:
    """Let a receive of a *member* have no end: whatever there is comes, and is handed out."""
    take: Any = member._fetch

    async def fetch(self: Any, limit: int) -> Any:
        asked = self._subscription
        self._subscription = msgspec.structs.replace(asked, prefetch=10_000)
        found = await take(self, limit + 5)
        self._subscription = asked
        return found

    def ready(self: Any, limit: int) -> Any:
        found = [*self.events, *self.kept]
        self.events.clear()
        self.kept.clear()
        return found

    patch(member, "_fetch", fetch)
    patch(intake.Intake, "_ready", ready)


# --- AMQP-like ------------------------------------------------------------------------------------------------


@plant("BA-4 RA", ground="amqp")
def amqp_ack_before_the_confirm() -> None:
    """A move acks, and then publishes."""

    async def acked_first(self: Any, moves: Sequence[Move]) -> list[Settlement]:
        settled: list[Settlement] = await self._acked([one.delivery for one in moves])
        await self._client.send(
            [server.Copy(self._client.name(), message) for one in moves for message in one.messages]
        )
        return settled

    patch(receiver.AmqpReceiver, "_moved", acked_first)


@plant("BA-23 C17", ground="amqp")
def amqp_prefetch_without_limit() -> None:
    """A receive has no end: everything is pushed, and handed out."""
    without_limit(receiver.AmqpReceiver)


@plant("BA-2 RA", ground="amqp")
def amqp_requeued_behind() -> None:
    """What a channel had comes back behind what is new, as from a queue without a delivery limit."""

    def give_back(self: Any, queue: Any, batch: Any) -> None:
        queue.unacked -= len(batch)
        for stored in batch:
            stored.count += 1
            queue.ready.append(stored)
        queue.tell()

    patch(server.AmqpServer, "give_back", give_back)


@plant("BA-8 BA-7 RA2", ground="amqp")
def amqp_nack_counts_as_stored() -> None:
    """What the broker has refused is reported as stored."""

    async def receipt(self: Any, message: Any, confirm: Any) -> Any:
        return transport.Receipt(message.id, "stored")

    patch(transport.AmqpTransport, "_receipt", receipt)


@plant("BA-30 RA", ground="amqp")
def amqp_delivery_limit_drops() -> None:
    """The broker's own limit is left at one return, and what reaches it is dropped."""
    declare: Any = server.AmqpServer.declare_queue

    def declared(self: Any, name: str, arguments: Any, owner: Any = None) -> Any:
        if arguments.delivery_limit is not None:
            arguments = msgspec.structs.replace(arguments, delivery_limit=1, dead_letters_to=None)
        return declare(self, name, arguments, owner)

    patch(server.AmqpServer, "declare_queue", declared)


@plant("R3 C9 C13", ground="amqp")
def amqp_epoch_does_not_grow() -> None:
    """The next owner of a lane takes the token as it is."""
    write: Any = lanes.Membership.write

    async def kept(self: Any, owned: Any, epochs: dict[str, int]) -> None:
        for name in epochs:
            epochs[name] = 1
        await write(self, owned, epochs)

    patch(lanes.Membership, "write", kept)


@plant("BA-18 BA-20", ground="amqp")
def amqp_ghost_of_a_member() -> None:
    """A member shows that it is there by the same queue each time, which its lost connection takes with it."""
    present: Any = topology.present

    def named(group: str, name: str) -> str:
        return str(present(group, "always"))

    def declare(self: Any, name: str, arguments: Any, owner: Any = None) -> Any:
        if name in self.queues and self.queues[name].owner is not owner:
            return False
        return declared(self, name, arguments, owner)

    declared = patch(server.AmqpServer, "declare_queue", declare)
    patch(topology, "present", named)


# --- SQS-like -------------------------------------------------------------------------------------------------


@plant("BA-4 RA", ground="sqs")
def sqs_delete_before_the_send() -> None:
    """A move deletes, and then sends."""

    async def deleted_first(self: Any, moves: Sequence[Move]) -> list[Settlement]:
        settled: list[Settlement] = await self._acked([one.delivery for one in moves])
        sender = self._place.sender
        await sender.send([sending.Copy(message, sender.name()) for one in moves for message in one.messages])
        return settled

    patch(sqs_receiver.SqsReceiver, "_moved", deleted_first)


@plant("SQ dedup 12.4", ground="sqs")
def sqs_retries_have_the_event_s_id() -> None:
    """What goes to the inbox channel is recognised by the event's id: a second retry within minutes is dropped."""
    plain: Any = sending.Sender._plain

    def by_event(self: Any, message: Any, body: str, name: str) -> Any:
        return plain(self, message, body, topology_of_sqs.digest("event", message.source, message.id))

    patch(sending.Sender, "_plain", by_event)


@plant("BA-23 C17", ground="sqs")
def sqs_prefetch_without_limit() -> None:
    """A receive has no end: everything is received, and handed out."""
    without_limit(sqs_receiver.SqsReceiver)


@plant("RL-4 RT9", ground="sqs")
def held_keys_of_others_are_not_learned() -> None:
    """A member without lanes of its own does not ask what the others hold."""

    async def nothing(self: Any, works: Any) -> None:
        """Ask nobody."""

    patch(holds.Holds, "refresh", nothing)
