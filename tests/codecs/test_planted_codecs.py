"""The codec suite bites: every codec that is broken on purpose is caught by the case that is named."""

from __future__ import annotations

import planted_codecs as planted
import pytest
from planted_codecs import Planted

from tidewire.errors import DecodeError
from tidewire.testing.codecs import CodecConformance, Site

CAUGHT: list[tuple[type[Planted], str]] = [
    (planted.RaisesItsLibrarysErrors, "test_noise_is_a_decode_error"),
    (planted.RaisesItsLibrarysErrors, "test_any_bytes_are_an_event_or_a_decode_error"),
    (planted.CatchesValueErrors, "test_noise_is_a_decode_error"),
    (planted.CatchesValueErrors, "test_bombs_are_decode_errors"),
    (planted.WritesNull, "test_what_is_no_number_is_refused_or_kept"),
    (planted.TakesAmountsForFloats, "test_decimals_keep_every_digit"),
    (planted.DropsMicroseconds, "test_any_event_round_trips"),
    (planted.TakesLocalTimesForUtc, "test_time_without_a_zone_is_refused_or_kept"),
    (planted.DropsMicroseconds, "test_times_keep_their_instant"),
    (planted.ComposesLetters, "test_texts_are_not_changed"),
    (planted.LeavesOutWhatIsEmpty, "test_nothing_and_empty_are_told_apart"),
    (planted.SaltsItsBodies, "test_equal_events_have_equal_bytes"),
    (planted.OrdersByHash, "test_processes_write_the_same_bytes"),
    (planted.RemembersBodies, "test_decoding_leaves_nothing_shared"),
    (planted.StumblesAfterAnError, "test_good_event_after_a_bad_one"),
    (planted.TakesOtherClasses, "test_bodies_of_other_classes_are_an_event_or_a_decode_error"),
    (planted.TakesOtherClasses, "test_any_change_to_a_body_is_an_event_or_a_decode_error"),
    (planted.RefusesUnknownFields, "test_unknown_fields_are_ignored"),
    (planted.MakesUpWhatIsMissing, "test_missing_required_field_is_a_decode_error"),
    (planted.HidesThePlace, "test_error_names_its_place"),
    (planted.AsksAtTheFirstEvent, "test_class_that_cannot_travel_is_refused_at_once"),
]


class Suite(CodecConformance):
    """The suite at a codec that is given at run time. Not collected: its name does not begin with Test."""

    def __init__(self, codec: type[Planted]) -> None:
        self.codec = codec

    def site(self) -> Site:
        """Return the planted format."""
        return self.codec.site()


@pytest.mark.parametrize(("codec", "case"), CAUGHT, ids=lambda value: getattr(value, "__name__", value))
def test_broken_codec_is_caught(codec: type[Planted], case: str) -> None:
    """A codec with this defect fails the case that is there to find it."""
    with pytest.raises((AssertionError, DecodeError)):
        getattr(Suite(codec), case)()


@pytest.mark.parametrize("case", sorted({case for _, case in CAUGHT}))
def test_sound_codec_passes(case: str) -> None:
    """The same cases pass on a codec that only stands in the way: it is the defect that is caught."""
    getattr(Suite(Planted), case)()
