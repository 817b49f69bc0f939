"""The parts of the Kafka transport that need no broker: books, records, positions, settings, errors."""

from __future__ import annotations

from datetime import timedelta

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, murmur2
from hypothesis import given
from hypothesis import strategies as st

from tidewire.errors import ConfigurationError, TransportRefused, TransportUnavailable
from tidewire.model import DeadChannel, InboxChannel, Message, Topic
from tidewire.transports.kafka import errors
from tidewire.transports.kafka.asking import Record
from tidewire.transports.kafka.merging import before, in_order, positions_in
from tidewire.transports.kafka.names import address_of, lane_name, log_of, partition_of
from tidewire.transports.kafka.progress import METADATA_MAX, WINDOW, Progress, Saved, read_saved
from tidewire.transports.kafka.settings import (
    admin_conf,
    client_is_modern,
    fetcher_conf,
    member_conf,
    producer_conf,
    settings_of,
)
from tidewire.transports.kafka.wire import Read, read_record, record_headers

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAME = st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True)


# --- the books of a partition -----------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 40), st.lists(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_what_was_settled_in_any_order_survives_a_crash(start: int, settled: list[int], failed: set[int]) -> None:
    """After any settles and failures the next owner knows exactly what is settled and how often the rest has failed."""
    books = Progress(start, Saved())
    for offset in failed:
        books.failed(start + offset, counted=True, due=0)
    for offset in settled:
        books.settle([start + offset])
    low, metadata = books.saved(7, open_=False, slack=0)
    after = Progress(low, read_saved(metadata))
    assert len(metadata) <= METADATA_MAX
    for offset in range(62):
        assert after.is_settled(start + offset) == (offset in settled)
        if offset not in settled:
            assert after.attempt(start + offset) == 1 + (offset in failed)
            assert not after.suspect(start + offset)
    assert after.low == min(start + offset for offset in range(63) if offset not in settled)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20)), min_size=1, max_size=6))
def test_every_death_of_an_owner_counts_for_what_it_may_have_had(lives: list[tuple[int, int]]) -> None:
    """Each owner that vanishes adds one attempt to what lay below its ceiling, and to nothing else."""
    low, metadata = 100, ""
    ceilings: list[int] = []
    for handed, slack in lives:
        books = Progress(low, read_saved(metadata))
        books.high = low + handed
        ceilings.append(books.high + slack)
        low, metadata = books.saved(1, open_=True, slack=slack)
    last = Progress(low, read_saved(metadata))
    for offset in range(100, 160):
        assert 1 + sum(offset < ceiling for ceiling in ceilings) == last.attempt(offset)
        assert last.suspect(offset) == any(offset < ceiling for ceiling in ceilings)


def test_a_full_window_fits_into_the_metadata() -> None:
    """With every second offset of a window settled the broker's 4096 bytes are enough, and nothing is forgotten."""
    books = Progress(1_000_000, Saved())
    odd = range(1_000_001, 1_000_000 + WINDOW, 2)
    for offset in odd:
        books.settle([offset])
    for offset in range(1_000_000, 1_000_020, 2):
        books.failed(offset, counted=True, due=1_800_000_000_000_000)
    low, metadata = books.saved(1_800_000_000_000_000, open_=True, slack=256)
    assert 1_000_000 == low
    assert len(metadata) <= METADATA_MAX
    after = Progress(low, read_saved(metadata))
    assert set(odd) == after.settled
    assert 1_800_000_000_000_000 == after.due(1_000_018)


def test_what_does_not_fit_comes_again_and_is_never_lost() -> None:
    """Books that are too large drop counts first, then what is settled furthest ahead; never an unsettled offset."""
    books = Progress(0, Saved())
    for offset in range(1, 4 * WINDOW, 3):
        books.settle([offset])
        books.failed(offset + 1, counted=True, due=0)
    low, metadata = books.saved(1, open_=True, slack=1)
    after = Progress(low, read_saved(metadata))
    assert (0, True) == (low, len(metadata) <= METADATA_MAX)
    assert after.settled <= books.settled
    assert 1 in after.settled


@pytest.mark.parametrize("metadata", [None, "", "NONE", "{", '{"e":"x"}', '{"b":"!!!"}', '{"b":"AAAA"}', "{" * 5000])
def test_the_metadata_of_somebody_else_means_nothing(metadata: str | None) -> None:
    """Commits of other tools, or damaged ones, say where the group is and nothing more."""
    books = Progress(5, read_saved(metadata))
    assert (5, set(), {}, []) == (books.low, books.settled, books.marks, books.crashes)


# --- records and places -----------------------------------------------------------------------------------------------


@given(
    to=st.sampled_from([Topic("a.b"), InboxChannel("a.b", "c"), DeadChannel("a", "b.c")]),
    names=st.tuples(TEXT, TEXT, st.none() | TEXT),
    headers=st.dictionaries(
        TEXT | st.sampled_from(["ce-id", "ce_id", "tw-id", "tw-h-x", "tw-due", "tw-removed"]), TEXT
    ),
    body=st.binary(max_size=20),
    due=st.none() | st.integers(0, 10**18 - 1),
)
def test_every_message_is_the_same_after_the_wire(
    to: Topic | InboxChannel | DeadChannel,
    names: tuple[str, str, str | None],
    headers: dict[str, str],
    body: bytes,
    due: int | None,
) -> None:
    """Address, id, source, key, headers in their order, body and time come back as they were, whatever they hold."""
    message = Message(to, names[0], names[1], names[2], headers, body, due)
    key = b"own" if isinstance(to, DeadChannel) else None if message.key is None else message.key.encode()
    read = read_record(to, key, value=body, headers=record_headers(message, 5_000_123), ms=5_000)
    assert message == read.message
    assert list(headers.items()) == list(read.message.headers.items())
    assert (None, 5_000_123) == (read.foreign, read.stored_at)


def test_a_record_of_somebody_else_is_read_whatever_it_holds() -> None:
    """No key, no body, headers twice, without value or not UTF-8: what is not text is kept as bytes."""
    headers = [("x", b"1"), ("x", b"2"), ("n", None), ("b", b"\xff\xfe"), ("ce_type", b"a.b"), ("tw-at", b"soon")]
    read = read_record(Topic("a"), b"\xff", value=None, headers=headers, ms=7)
    assert {"x": "2", "n": "", "ce-type": "a.b"} == read.message.headers
    assert {"b": b"\xff\xfe"} == read.foreign
    assert (b"", 7_000) == (read.message.body, read.stored_at)
    assert b"\xff" == (read.message.key or "").encode("utf-8", "surrogateescape")


@given(NAME, NAME)
def test_no_two_addresses_share_a_log(topic: str, group: str) -> None:
    """A log says which address it is; topics of others and names with upper case are none of ours."""
    for address in (Topic(topic), InboxChannel(topic, group), DeadChannel(topic, group)):
        assert address == address_of(log_of(address))
    assert (topic, 7) == partition_of(lane_name(topic, 7))
    assert [None, None, None] == [address_of(name) for name in ("__consumer_offsets", f"{topic}.INBOX.", "Orders")]


@pytest.mark.parametrize(
    ("key", "hashed"),
    [("21", -973932308), ("foobar", -790332482), ("a-little-bit-long-string", -985981536), ("abc", 479470107)],
)
def test_a_key_has_the_partition_that_java_gives_it(key: str, hashed: int) -> None:
    """The values are those of Java's own tests of its murmur2; its partitioner takes them without their sign."""
    assert [(hashed & 0x7FFFFFFF) % lanes for lanes in (1, 8, 13)] == [
        murmur2(key.encode(), lanes) for lanes in (1, 8, 13)
    ]


@given(st.lists(st.lists(st.integers(0, 50), max_size=6).map(sorted), min_size=1, max_size=4))
def test_browsing_goes_on_behind_any_position(lanes: list[list[int]]) -> None:
    """Beginning behind the position of any message shows exactly what came after it, once, in the same order; beginning
    behind the one before shows that message first."""

    def records(starts: list[int]) -> list[list[Record]]:
        message = Message(Topic("a"), "", "", None, {}, b"")
        return [
            [
                Record(offset, Read(message, None, at, at), None, None)
                for offset, at in enumerate(lane)
                if offset >= starts[number]
            ]
            for number, lane in enumerate(lanes)
        ]

    begin = [0] * len(lanes)
    whole = list(in_order(records(begin), begin))
    for place, (_, _, position) in enumerate(whole):
        starts = positions_in(position, len(lanes), behind=True)
        rest = [(partition, record.offset) for partition, record, _ in in_order(records(starts), starts)]
        assert [(partition, record.offset) for partition, record, _ in whole[place + 1 :]] == rest
        one_before = before(position)
        starts = begin if one_before is None else positions_in(one_before, len(lanes), behind=True)
        with_it = [(partition, record.offset) for partition, record, _ in in_order(records(starts), starts)]
        assert [(partition, record.offset) for partition, record, _ in whole[place:]] == with_it


# --- settings and errors ----------------------------------------------------------------------------------------------


def test_a_url_says_how_to_get_in() -> None:
    """User and password mean SCRAM over TLS unless the URL says something else; escapes are undone."""
    settings = settings_of("kafka://a%40b:p%3Aw@h1,h2:9093?ca=/c.pem&compression=zstd&timeout=2.5&client.linger.ms=5")
    assert "h1:9092,h2:9093" == settings.servers
    assert {
        "security.protocol": "sasl_ssl",
        "sasl.mechanisms": "SCRAM-SHA-512",
        "sasl.username": "a@b",
        "sasl.password": "p:w",
        "ssl.ca.location": "/c.pem",
    } == dict(settings.security)
    assert ("zstd", 2.5, {"linger.ms": "5"}) == (settings.compression, settings.timeout, dict(settings.client))
    assert "p:w" not in settings.what
    assert {"security.protocol": "plaintext"} == dict(settings_of("kafka://h:1").security)


@pytest.mark.parametrize(
    "url",
    [
        "kafka://",
        "kafka://h/topic",
        "kafka://h?acks=1",
        "kafka://h?client.acks=1",
        "kafka://h?client.enable.idempotence=false",
        "kafka://h?timeout=soon",
        "kafka://h?timeout=0",
        "kafka://h?protocol=new",
        "kafka://h?sasl=PLAIN",
    ],
)
def test_a_url_that_would_break_a_promise_is_refused(url: str) -> None:
    """Unknown settings, impossible values, and librdkafka's that the promises stand on are refused by name."""
    with pytest.raises(ConfigurationError):
        settings_of(url)


def test_the_promises_stand_in_every_configuration() -> None:
    """Whatever the URL hands on to librdkafka: all replicas, idempotent, nothing committed or reset by itself."""
    settings = settings_of("kafka://h?client.queue.buffering.max.ms=50&timeout=9")
    producer = producer_conf(settings, "p")
    assert ("all", True, 9000) == (producer["acks"], producer["enable.idempotence"], producer["message.timeout.ms"])
    assert "transactional.id" not in producer
    for modern in (True, False):
        member = member_conf(settings, "m", group="g", ordering="key", lease=timedelta(seconds=30), modern=modern)
        for conf in (member, fetcher_conf(settings, "f", group="g")):
            assert (False, False) == (conf["enable.auto.commit"], conf["enable.auto.offset.store"])
    assert ("error", "read_committed") == (conf["auto.offset.reset"], conf["isolation.level"])
    assert 30_000 == member["session.timeout.ms"]
    assert "50" == admin_conf(settings, "a")["queue.buffering.max.ms"]
    assert [False, True] == [client_is_modern(version) for version in ((2, 14, 9), (2, 15, 0))]


def test_a_short_lease_is_a_session_that_heartbeats_can_keep() -> None:
    """The older protocol's client beats once a second at best: a session that it could not keep is never asked for."""
    settings = settings_of("kafka://h")
    short, long = (
        member_conf(settings, "m", group="g", ordering="key", lease=timedelta(seconds=lease), modern=False)
        for lease in (0.4, 6)
    )
    assert (3_000, 6_000) == (short["session.timeout.ms"], long["session.timeout.ms"])


def test_two_members_of_a_named_process_have_names_of_their_own() -> None:
    """A process with topics in order and topics without has two members in its group; both keep their names."""
    settings = settings_of("kafka://h?instance=billing-0")
    lease = timedelta(seconds=30)
    names = [
        member_conf(settings, "m", group="g", ordering=ordering, lease=lease, modern=True)["group.instance.id"]
        for ordering in ("key", "none", "key")
    ]
    assert ["billing-0-key", "billing-0-none", "billing-0-key"] == names


def test_librdkafka_takes_every_setting_that_we_make() -> None:
    """No name and no value of ours is refused by the library that is installed."""
    settings = settings_of("kafka://u:p@127.0.0.1:1?tls=false&sasl=PLAIN&compression=lz4")
    producer = Producer(producer_conf(settings, "p"))
    producer.close()
    with pytest.raises(KafkaException) as caught:
        Producer({**producer_conf(settings, "p"), "no.such.setting": "1"})
    assert isinstance(errors.translated(caught.value, "x"), TransportRefused)


def test_every_error_of_the_library_becomes_one_of_ours() -> None:
    """Each code is refused where a person must act, else unavailable; what may be stored is never called rejected."""
    codes = errors.names_of_errors()
    assert len(codes) > 150
    refused = {name for code, name in codes.items() if isinstance(_translated(code), TransportRefused)}
    assert {name for name in codes.values() if "AUTHORIZATION" in name or "AUTHENTICATION" in name} <= refused
    assert not {"_TRANSPORT", "_TIMED_OUT", "_ALL_BROKERS_DOWN", "COORDINATOR_NOT_AVAILABLE", "_RESOLVE"} & refused
    for code in codes:
        assert isinstance(_translated(code), (TransportRefused, TransportUnavailable))
    for name in ("_MSG_TIMED_OUT", "_TIMED_OUT", "_TRANSPORT", "REQUEST_TIMED_OUT", "NOT_ENOUGH_REPLICAS_AFTER_APPEND"):
        assert (False, "") == errors.publish_verdict(KafkaError(getattr(KafkaError, name)))
    assert (True, "unknown_topic") == errors.publish_verdict(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))


def _translated(code: int) -> TransportRefused | TransportUnavailable:
    error = errors.translated(KafkaException(KafkaError(code)), "somewhere")
    assert isinstance(error, (TransportRefused, TransportUnavailable))
    return error
