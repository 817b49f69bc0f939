"""Log lines in production: an event name and its fields, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys

from tidewire.cli.logs import JsonLines, TextLines


def record(**fields: object) -> logging.LogRecord:
    """Return the record that ``log.warning("tidewire.x.y", extra=fields)`` makes."""
    return logging.getLogger("tidewire").makeRecord(
        "tidewire", logging.WARNING, __file__, 1, "tidewire.relay.refused", (), None, extra=fields
    )


def test_a_json_line_is_one_object_with_the_fields() -> None:
    """Time, level, event and process stand first, then the record's own fields; nothing else of the record."""
    line = JsonLines().format(record(row=7, topic="shop.order"))
    read = json.loads(line)
    assert "\n" not in line
    assert ["time", "level", "event", "process", "row", "topic"] == list(read)
    assert ("warning", "tidewire.relay.refused", 7) == (read["level"], read["event"], read["row"])
    assert read["time"].endswith("+00:00")


def test_what_json_cannot_hold_is_written_as_text() -> None:
    """A field of an odd type never costs the log line."""
    assert "{1, 2}" in json.loads(JsonLines().format(record(odd={1, 2})))["odd"]


def test_a_text_line_is_readable_and_can_be_split_again() -> None:
    """Fields follow the event as name=value; values with spaces, quotes or nothing in them are quoted."""
    line = TextLines().format(record(row=7, detail='no "room"', empty=""))
    assert line.endswith('WARNING tidewire.relay.refused row=7 detail="no \\"room\\"" empty=""')


def test_a_traceback_is_kept_in_both_forms() -> None:
    """The traceback of an error is a field of the JSON line, and follows the text line."""
    try:
        raise ValueError("no")
    except ValueError:
        failed = record()
        failed.exc_info = sys.exc_info()
    assert "ValueError: no" in json.loads(JsonLines().format(failed))["traceback"]
    assert TextLines().format(failed).endswith("ValueError: no")
