"""Messages that nobody in his right mind would send, made from a seed: every header, id, key, stamp and body."""

from __future__ import annotations

import json
import random
from typing import Any

from tidewire.model import InboxChannel, Message, Topic

TOPICS = ("shop.order", "shop.page")
GROUP = "billing"
TYPES = ("shop.order.placed", "shop.page.viewed")
TEXTS = (
    "", " ", "0", "-1", "x", "\0", "a\0b", "\r\nce-type: other", "\u202e\u2066", "\ufeff", "ß" * 300, "😀" * 100,
    "'; DROP TABLE log; --", "../../etc/passwd", "%00%ff", "{}", "[]", "null", "NaN", "1" * 5_000, "e" * 70_000,
    "\ud800", "lone \udfff surrogate", "\uff11", "true", "=?utf-8?q?x?=", "\x7f\x80\x9f",
)  # fmt: skip
TIMES = (
    "", "now", "0000-00-00T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "2016-12-31T23:59:60Z",
    "2026-02-30T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00+99:99", "-1", "1e400", "10000-01-01T00:00:00Z",
)  # fmt: skip
NUMBERS = (
    "0", "-0", "1e400", "-1e400", "9" * 400, "1" * 4_301, "0x10", "1_000", "NaN", "Infinity", "-", "+1", "1.", ".5",
    "9007199254740993", "-9223372036854775809", "18446744073709551616", "1e-400", "true", "null", '"1"', "[1]", "{}",
)  # fmt: skip
FAILURES = (
    "", "{", "null", "[]", '{"failures":-1}', '{"failures":1e30}', '{"failures":99999999999999999999}',
    '{"failures":3,"last_error":"' + "x" * 60_000 + '"}', '{"failures":2,"first_at":-99999999999999999}',
    '{"failures":5,"starts":7,"counts":{"' + "y" * 1_000 + '":1}}', "[" * 5_000, '{"failures":"3"}',
    '{"failures":4,"first_at":9223372036854775807,"last_at":9223372036854775807}',
)  # fmt: skip
CONTENT_TYPES = (
    "application/json", "application/cloudevents+json", "APPLICATION/CLOUDEVENTS+JSON; charset=utf-16", "", ";",
    "text/xml",
    "application/cloudevents-batch+json", "application/octet-stream", "multipart/form-data; boundary=", "\0",
)  # fmt: skip


class Hostile:
    """A source of messages. The same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._seed = seed
        self._count = 0
        self._ids: list[str] = []

    def message(self) -> Message:
        """Return the next message."""
        self._count += 1
        chance = self._chance
        event_id, source = self._id(), self._text("shop", 0.85)
        headers = self._headers(event_id, source)
        key = chance.choice([None, None, f"k{chance.randrange(9)}", self._text("k", 0.5)])
        topic = chance.choice(TOPICS)
        to: Any = InboxChannel(topic, GROUP) if chance.random() < 0.1 else Topic(topic)
        due = chance.choice([None] * 12 + [0, -1, -(2**63), 1, 2**40])
        return Message(to, event_id, source, key, headers, self._body(headers), due)

    def foreign(self) -> dict[str, bytes] | None:
        """Return header values that are no text, now and then."""
        if self._chance.random() < 0.7:
            return None
        return {f"x-{number}": self._chance.randbytes(self._chance.choice([0, 1, 40, 3_000])) for number in range(3)}

    def _id(self) -> str:
        chance = self._chance
        if self._ids and chance.random() < 0.05:
            return chance.choice(self._ids)
        event_id = f"{self._seed}-{self._count}" if chance.random() < 0.8 else chance.choice(TEXTS)
        if len(self._ids) < 1_000:
            self._ids.append(event_id)
        return event_id

    def _text(self, usual: str, often: float) -> str:
        return usual if self._chance.random() < often else self._chance.choice(TEXTS)

    def _headers(self, event_id: str, source: str) -> dict[str, str]:
        chance = self._chance
        headers = {
            "ce-specversion": self._text("1.0", 0.9),
            "ce-id": self._text(event_id, 0.9),
            "ce-source": self._text(source, 0.9),
            "ce-type": chance.choice(TYPES) if chance.random() < 0.75 else self._type(),
            "ce-time": chance.choice(TIMES) if chance.random() < 0.3 else "2026-11-27T10:00:00Z",
            "ce-schemaversion": "1" if chance.random() < 0.8 else chance.choice((*TEXTS, *NUMBERS, "99", "2")),
            "content-type": chance.choice(CONTENT_TYPES) if chance.random() < 0.4 else "application/json",
        }
        extra = {
            "traceparent": lambda: chance.choice(("00-" + "0" * 32 + "-" + "0" * 16 + "-00", "ff-x", *TEXTS)),
            "tracestate": lambda: chance.choice(("a=" + "b" * 9_000, *TEXTS)),
            "tw-failure": lambda: chance.choice(FAILURES),
            "tw-redriven": lambda: chance.choice(("9" * 5_000, "²", "-1", *TEXTS)),
            "tw-discarded": lambda: chance.choice(TEXTS),
            "dl-reason": lambda: chance.choice(TEXTS),
            "dl-topic": lambda: chance.choice(TEXTS),
            "ce-partitionkey": lambda: chance.choice(TEXTS),
            "ce-dataschema": lambda: chance.choice(("file:///etc/passwd", "http://127.0.0.1:1/", *TEXTS)),
            "ce-correlationid": lambda: chance.choice(TEXTS),
            "ce-data": lambda: "{}",
            chance.choice(("", " ", "\0", "A" * 300, "x\r\ny", "é", "ce-", "dl-", "tw-")): lambda: chance.choice(TEXTS),
        }
        for name, value in extra.items():
            if chance.random() < 0.12:
                headers[name] = value()
        for name in list(headers):
            if chance.random() < 0.03:
                del headers[name]
        if chance.random() < 0.01:
            headers |= {f"h{number}": "v" * chance.choice((0, 1, 50)) for number in range(400)}
        return headers

    def _type(self) -> str:
        known = self._chance.choice(TYPES)
        return self._chance.choice((known.upper(), known + ".", known + "\0", "shop.order.cancelled", *TEXTS))

    # --- bodies -----------------------------------------------------------------------------------------------

    def _body(self, headers: dict[str, str]) -> bytes:
        chance = self._chance
        if "cloudevents+json" in headers.get("content-type", "").lower() and chance.random() < 0.8:
            body = self._structured()
        elif chance.random() < 0.3:
            body = self._nearly_good()
        else:
            body = chance.choice((self._document, self._noise, self._bomb))()
        return self._damaged(body) if chance.random() < 0.15 else body

    def _nearly_good(self) -> bytes:
        chance = self._chance
        note = chance.choice(TEXTS).encode("utf-8", "ignore").decode()
        number = chance.choice((0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63), 2**63))
        return json.dumps({"order_id": f"o{self._count}", "total": "1.50", "number": number, "note": note}).encode()

    def _document(self) -> bytes:
        fields = ("order_id", "total", "number", "at", "note", "lines", "extra", "order_id")
        members = [f'"{name}":{self._value()}' for name in fields if self._chance.random() < 0.6]
        return ("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass")

    def _value(self) -> str:
        chance = self._chance
        kind = chance.randrange(6)
        if kind == 0:
            return chance.choice(NUMBERS)
        if kind == 1:
            return json.dumps(chance.choice(TIMES))
        if kind == 2:
            return json.dumps(chance.choice(TEXTS), ensure_ascii=chance.random() < 0.5)
        if kind == 3:
            return '"\\ud83d' + chance.choice(("", "x", "\\ud83d", "\\u0000")) + '"'
        if kind == 4:
            return "[" * chance.choice((1, 50, 2_000)) + "1"
        return chance.choice(('"o1"', "1", "[]", "{}", '[{"sku":"a","n":1}]', '"1.5"'))

    def _noise(self) -> bytes:
        chance = self._chance
        size = chance.choice((0, 0, 1, 2, 16, 300, 9_000))
        return chance.choice(
            (chance.randbytes(size), b"\0" * size, b"\xff" * size, b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0")
        )

    def _bomb(self) -> bytes:
        chance = self._chance
        large = 200_000 if chance.random() < 0.1 else 3_000
        return chance.choice(
            (
                b"[" * large,
                b'{"lines":' * (large // 9),
                b'{"number":' + b"9" * large + b"}",
                b'{"order_id":"' + b"x" * large + b'","total":"1"}',
                b'{"order_id":"a","total":"' + b"9" * large + b'"}',
                b'{"order_id":"a","total":"1e999999999"}',
                b'{"order_id":"a","total":"1","lines":['
                + b'{"sku":"a","n":1},' * (large // 20)
                + b'{"sku":"b","n":2}]}',
                b"{" + b'"a":1,' * (large // 6) + b'"b":2}',
                b'"' + b"\\u0000" * (large // 6) + b'"',
            )
        )

    def _structured(self) -> bytes:
        chance = self._chance
        document: dict[str, Any] = {
            "specversion": "1.0",
            "id": f"{self._seed}-s{self._count}",
            "source": "shop",
            "type": chance.choice(TYPES),
            "time": chance.choice(TIMES),
            "data": {"order_id": "o", "total": "2"},
        }
        for name in list(document):
            draw = chance.random()
            if draw < 0.1:
                del document[name]
            elif draw < 0.25:
                document[name] = chance.choice((None, 1, [], {}, True, *TEXTS))
        if chance.random() < 0.2:
            document["data_base64"] = chance.choice(("", "!!!", "e30=", "e30", 7, "A" * 5_001))
        if chance.random() < 0.2:
            document[chance.choice(("X" * 50, "é", "tw-failure", "partitionkey", ""))] = chance.choice((*TEXTS, 2**80))
        return json.dumps(document).encode("utf-8", "surrogatepass")

    def _damaged(self, body: bytes) -> bytes:
        chance = self._chance
        if not body:
            return chance.randbytes(3)
        at = chance.randrange(len(body))
        match chance.randrange(3):
            case 0:
                return body[:at]
            case 1:
                return body[:at] + bytes([body[at] ^ (1 << chance.randrange(8))]) + body[at + 1 :]
            case _:
                return body[:at] + body[at : at + 40] * 3 + body[at:]
