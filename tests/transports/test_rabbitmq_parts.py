"""The parts of the RabbitMQ transport that decide, and what its messages look like; no broker is needed."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime

import aiormq.exceptions
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands as spec
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

from tidewire.errors import ConfigurationError, TransportRefused, TransportUnavailable
from tidewire.model import InboxChannel, Message, Topic
from tidewire.transports.rabbitmq.dealing import dealt, tier_for
from tidewire.transports.rabbitmq.errors import FOREIGN, TABLE, translated
from tidewire.transports.rabbitmq.frames import Parcel, ack_frames, publish_frames
from tidewire.transports.rabbitmq.gossip import Circle, Word, heard
from tidewire.transports.rabbitmq.lanes import Lane
from tidewire.transports.rabbitmq.names import dead_queue, inbox_queue, lane_of, lane_queue, token_queue
from tidewire.transports.rabbitmq.settings import settings_of
from tidewire.transports.rabbitmq.tokens import Note, Token
from tidewire.transports.rabbitmq.wire import Read, message_properties, read_message

NAME = "1700000000000000.abc"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HEADERS = st.dictionaries(
    TEXTS
    | st.sampled_from(
        ["ce-id", "ce-type", "content-type", "x-death", "timestamp_in_ms", "CC", "tw-at", "ce_id", "cloudEvents_id"]
    ),
    TEXTS,
    max_size=8,
)


def frames_of(data: bytes) -> list[object]:
    """Return the frames in *data*, as the library reads them."""
    found: list[object] = []
    while data:
        used, channel, frame = unmarshal(data)
        assert 3 == channel
        found.append(frame)
        data = data[used:]
    return found


def travelled(message: Message, **told: bool | int) -> Read:
    """Return *message* as it is read after it was written."""
    encoded = message_properties(message, NAME, **told)  # type: ignore[arg-type]  # each is named where it is used
    _, header, *bodies = frames_of(publish_frames(3, [Parcel("e", "k", encoded, message.body, NAME)], 100))
    assert isinstance(header, ContentHeader)
    body = b"".join(getattr(one, "value", b"") for one in bodies)
    return read_message(message.to, header.properties, body)


# --- messages -------------------------------------------------------------------------------------------------


@given(HEADERS, TEXTS | st.none(), TEXTS, st.binary(max_size=300))
def test_a_message_comes_back_as_it_went(headers: dict[str, str], key: str | None, id_: str, body: bytes) -> None:
    """Headers of any name and order, a key or none, an id and a body of any bytes survive the way."""
    message = Message(InboxChannel("a", "b"), id_, "s", key, headers, body, 5)
    read = travelled(message)
    assert message == read.message
    assert list(headers.items()) == list(read.message.headers.items())
    assert (NAME, 0, 0, 1_700_000_000_000_000) == (read.name, read.count, read.spent, read.stored_at)


def test_attributes_travel_as_others_know_them() -> None:
    """An attribute is a header cloudEvents_…, the media type a property, and the message survives a restart."""
    message = Message(Topic("a"), "1", "s", None, {"ce-id": "1", "content-type": "application/json"}, b"{}")
    publish, header, body = frames_of(
        publish_frames(3, [Parcel("a", "7", message_properties(message, NAME), b"{}", NAME)], 1000)
    )
    assert isinstance(publish, spec.Basic.Publish)
    assert ("a", "7", True) == (publish.exchange, publish.routing_key, publish.mandatory)
    assert isinstance(header, ContentHeader)
    told = header.properties
    assert (2, "application/json", "1") == (told.delivery_mode, told.content_type, told.message_id)
    assert {"cloudEvents_id": "1", "tw-at": NAME, "tw-source": "s"} == told.headers
    assert b"{}" == getattr(body, "value", b"")


def test_a_message_of_somebody_else_is_read_whatever_it_holds() -> None:
    """Attributes in each spelling, values of each type, and properties where no header has their name; bytes that are
    no text are kept beside."""
    when = datetime(2026, 1, 2, tzinfo=UTC)
    told = spec.Basic.Properties(
        timestamp=when,
        message_id="m",
        correlation_id="c",
        message_type="t",
        app_id="till",
        headers={
            "cloudEvents:id": "1", "ce_type": "a.b", "ce-source": "s", "n": 5, "yes": True, "none": None, "at": when,
            "app-id": "a header",
            "list": [1, "a"], "raw": b"\xff\xfe", "x-death": [{"count": 1}], "x-delivery-count": 3,
            "x-acquired-count": 4, "x-routed-by": "rabbit@one", "timestamp_in_ms": 1_767_312_000_000,
        },
    )  # fmt: skip
    read = read_message(Topic("a"), told, b"x", routing_key="o-1")
    assert {
        "message-id": "m", "correlation-id": "c", "type": "t", "app-id": "a header", "routing-key": "o-1",
        "ce-id": "1", "ce-type": "a.b", "ce-source": "s", "n": "5", "yes": "true", "none": "",
        "at": "2026-01-02T00:00:00Z", "list": '[1,"a"]',
    } == read.message.headers  # fmt: skip
    assert ({"raw": b"\xff\xfe"}, 3, "1", "s") == (read.foreign, read.count, read.message.id, read.message.source)
    assert 1_767_312_000_000_000 == read.stored_at


@given(TEXTS, st.integers(1, 64))
def test_the_lane_of_a_key_is_what_the_docs_say(key: str, lanes: int) -> None:
    """A foreign producer may choose lanes as we do, by the CRC-32 of the key in UTF-8: it has to stay so."""
    assert zlib.crc32(key.encode()) % lanes == lane_of(key, lanes)


def test_what_waits_for_the_topic_in_the_inbox_comes_as_of_the_topic() -> None:
    """A message whose delay goes on in the inbox channel belongs to its topic when it is handed out."""
    message = Message(InboxChannel("a", "b"), "1", "s", None, {}, b"", 9)
    encoded = message_properties(message, NAME, spent=2, of_topic=True)
    _, header = frames_of(publish_frames(3, [Parcel("", "q", encoded, b"", NAME)], 100))
    assert isinstance(header, ContentHeader)
    read = read_message(message.to, header.properties, b"", topic=Topic("a"))
    assert (Topic("a"), 2) == (read.message.to, read.spent)


@pytest.mark.parametrize("headers", [{"x" * 300: ""}, {"\ud800": ""}, {"a": "\ud800"}])
def test_a_header_that_cannot_travel_is_said_so(headers: dict[str, str]) -> None:
    """A name that is too long, and text that is none, are errors before anything is sent."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says is shown in the receipt
        message_properties(Message(Topic("a"), "1", "s", None, headers, b""), NAME)


def test_acks_of_the_front_are_one_frame() -> None:
    """Everything up to a tag is acked at once, others one by one."""
    upto, single = frames_of(ack_frames(3, 5, [9]))
    assert isinstance(upto, spec.Basic.Ack)
    assert isinstance(single, spec.Basic.Ack)
    assert [(5, True), (9, False)] == [(upto.delivery_tag, upto.multiple), (single.delivery_tag, single.multiple)]


# --- who has what ---------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 12))
def test_lanes_are_dealt_evenly_and_few_move(lanes: int, members: int) -> None:
    """Shares differ by one at most; who comes last takes only its own share, and nothing else moves."""
    names = [f"m{number:02d}" for number in range(members)]
    owners = dealt(lanes, names)
    shares = [list(owners.values()).count(name) for name in names]
    assert (lanes, True) == (sum(shares), max(shares) - min(shares) <= 1)
    before = dealt(lanes, names[:-1])
    moved = {lane for lane in owners if before.get(lane) != owners[lane]}
    assert moved == {lane for lane, owner in owners.items() if owner == names[-1]}


def test_nobody_has_no_lanes() -> None:
    """Without members no lane has an owner."""
    assert {} == dealt(4, [])


@given(st.integers(0, 10**14))
def test_a_tier_is_never_too_long(wait: int) -> None:
    """A message does not wait in a tier for longer than it is to wait; what is short needs none."""
    tier = tier_for(wait)
    assert (tier is None) == (wait < 250_000)
    assert tier is None or tier * 1000 <= wait


def test_members_learn_of_each_other_and_of_the_end() -> None:
    """Who is heard of is known until it is said to be gone, and that is for good."""
    circle = Circle("m2", ["a"])
    assert circle.next() is None
    assert circle.hear(Word(known={"m1": ["a"], "m3": ["b"]}))
    assert not circle.hear(Word(known={"m1": ["a"]}))
    assert ["m1", "m2"] == circle.readers("a")
    assert "m3" == circle.next()
    assert circle.lose(["m3"])
    assert not circle.hear(Word(known={"m3": ["b"]}, gone=["m2"]))
    assert "m1" == circle.next()


def test_what_nobody_of_ours_has_said_is_not_heard() -> None:
    """A message that is no word of ours changes nothing, and a damaged token is the least of all."""
    word = Word(known={"m1": ["a"]}, asks="q")
    assert word == heard(word.encoded())
    assert heard(b"\xff{") is None
    assert Token(0) == Token.decoded(b"[]")


# --- a lane in memory -----------------------------------------------------------------------------------------


def a_read(number: int, count: int = 0) -> Read:
    """Return a message as it is read."""
    return Read(Message(Topic("a"), str(number), "s", "k", {}, b""), None, f"{number}.x", count, 0, number)


def a_lane(notes: dict[str, Note] | None = None) -> Lane:
    """Return a lane that is owned."""
    lane = Lane("a", 0)
    lane.epoch = 7
    lane.notes = notes or {}
    return lane


def test_what_was_released_comes_first_and_counted() -> None:
    """A released message is handed out again before later ones, one attempt later."""
    lane = a_lane()
    for number in (1, 2):
        lane.arrived(number, a_read(number), inbox=False, far=False)
    first = lane.next(0)
    assert first is not None
    held = lane.holds(first)
    assert held is not None
    lane.give_back(held, counted=True)
    again, second = lane.next(0), lane.next(0)
    assert again is not None
    assert second is not None
    assert [("1", 2), ("2", 1)] == [(one.message.id, one.attempt) for one in (again, second)]


@pytest.mark.parametrize("counted", [0, 1])
def test_a_hand_over_is_nobodys_failure_whatever_the_broker_counts(counted: int) -> None:
    """After a hand-over the attempt is what it was, and a crash after that is seen, on brokers of either kind."""
    lane = a_lane()
    lane.arrived(1, a_read(1), inbox=False, far=False)
    assert lane.explain()
    heir = a_lane(dict(lane.notes))
    heir.arrived(1, a_read(1, counted), inbox=False, far=False)
    found = heir.next(0)
    assert found is not None
    assert (1, False) == (found.attempt, found.suspect)
    assert heir.explain()
    notes = {"1.x": msgspec.structs.replace(heir.notes["1.x"], floor=counted)}  # as the heir has left it behind
    crashed = a_lane(notes)
    crashed.arrived(1, a_read(1, counted + 1), inbox=False, far=False)
    found = crashed.next(0)
    assert found is not None
    assert (2, True) == (found.attempt, found.suspect)


def test_settling_forgets_and_acks_the_front_at_once() -> None:
    """Tags at the front become one ack, others one each; what is settled is not held any more."""
    lane = a_lane()
    for number in (1, 2, 3, 4):
        lane.arrived(number, a_read(number), inbox=False, far=False)
    found = [lane.next(0) for _ in range(4)]
    upto, single = frames_of(lane.settle({1, 2, 4}, 3))
    assert [(2, True), (4, False)] == [
        (getattr(one, "delivery_tag", 0), getattr(one, "multiple", None)) for one in (upto, single)
    ]
    assert [3] == list(lane.unacked)
    assert [False, False, True, False] == [one is not None and lane.holds(one) is not None for one in found]


# --- names, settings, errors ----------------------------------------------------------------------------------


def test_names_of_queues_differ_whatever_topics_and_groups_are_called() -> None:
    """Names that differ only in where a dot stands do not meet."""
    names = [
        name
        for topic, group in (("a", "b.0"), ("a.b", "0"), ("a", "b"))
        for name in (lane_queue(topic, group, 1), inbox_queue(topic, group, 1), token_queue(topic, group, 1))
    ] + [dead_queue("a", "b"), dead_queue("a.b", "c")]
    assert len(names) == len(set(names))


def test_a_url_says_everything() -> None:
    """Hosts, ports, user, vhost and settings come from the URL; what is shown holds no password."""
    settings = settings_of("amqps://anna:s%40cret@one,two:5700/shop%2Fx?timeout=3&replicas=5&message_bytes_max=2048")
    assert (("one", 5671), ("two", 5700)) == settings.servers
    assert ("anna", "s@cret", "shop/x") == (settings.user, settings.password, settings.vhost)
    assert (True, 3.0, 5, 2048) == (settings.tls, settings.timeout, settings.replicas, settings.message_bytes_max)
    assert "amqps://one:5671,two:5700/shop%2Fx" == settings.what
    assert ("guest", "/") == (settings_of("amqp://h").user, settings_of("amqp://h/").vhost)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://", "amqp:///vhost", "amqp://h:port", "amqp://h?colour=red", "amqp://h?timeout=0", "amqp://h?replicas=0",
        "amqp://h?ca=/x", "amqp://h?message_bytes_max=1",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_is_refused(url: str) -> None:
    """No broker, an unknown setting and an impossible value are errors that say so."""
    with pytest.raises(ConfigurationError):
        settings_of(url)


def test_a_certificate_that_cannot_be_read_is_refused() -> None:
    """A file that is not there is an error of the setting, before anything is connected."""
    with pytest.raises(ConfigurationError, match="cannot be used"):
        settings_of("amqps://h?ca=/nowhere.pem").context()


def test_every_error_of_the_library_is_in_the_table() -> None:
    """A class of the client's errors that a new version adds is noticed here."""
    theirs = {
        value
        for value in vars(aiormq.exceptions).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == "aiormq.exceptions"
    }
    assert set() == theirs - set(TABLE)
    assert all(issubclass(kind, FOREIGN) for kind in theirs)


def test_errors_say_who_can_cure_them() -> None:
    """A password is a person's to change, a lost connection is not; the broker's own words are kept."""
    refused = translated(aiormq.exceptions.ProbableAuthenticationError("ACCESS_REFUSED"), "amqp://h")
    assert isinstance(refused, TransportRefused)
    assert "ACCESS_REFUSED" in str(refused)
    assert isinstance(translated(ConnectionResetError(104, "reset"), "amqp://h"), TransportUnavailable)
