"""Section D: versions. A newer producer and an older one do no harm, and what is wrong is named with its place."""

from __future__ import annotations

from decimal import Decimal

from tidewire.errors import DecodeError
from tidewire.testing.codecs.bench import Site
from tidewire.testing.codecs.events import Changed, Demanding, Newer, Older, Part, WrongPart, WrongParts
from tidewire.testing.transports.bench import raises

NEWER = Newer("1", 3, "fragile", True, [Part("a", Decimal("1.5"))])


def test_unknown_fields_are_ignored(site: Site) -> None:
    """DEP-10: an older class reads what a newer one wrote, nested values included."""
    site.need(evolves=site.evolves)
    assert Older("1", 3) == site.decode(Older, site.codec(Newer).encode(NEWER))


def test_missing_fields_have_their_defaults(site: Site) -> None:
    """A newer class reads what an older one wrote: what was not there is at its default."""
    site.need(evolves=site.evolves)
    assert Newer("1", 3) == site.decode(Newer, site.codec(Older).encode(Older("1", 3)))


def test_missing_required_field_is_a_decode_error(site: Site) -> None:
    """What has no default must be there: it is not made up."""
    site.need(evolves=site.evolves)

    with raises(DecodeError) as refused:
        site.codec(Demanding).decode(site.codec(Older).encode(Older("1")))
    assert "part" in str(refused.error)


def test_changed_type_is_a_decode_error(site: Site) -> None:
    """A number where a list was, and a text where a number was, is not converted."""
    site.need(evolves=site.evolves)

    with raises(DecodeError):
        site.codec(Changed).decode(site.codec(Older).encode(Older("1", 3)))
    with raises(DecodeError):
        site.codec(Older).decode(site.codec(Changed).encode(Changed([1], "3")))


def test_error_names_its_place(site: Site) -> None:
    """The error says in which field of which item it is."""
    site.need(evolves=site.evolves)

    with raises(DecodeError) as refused:
        site.codec(Newer).decode(site.codec(WrongParts).encode(WrongParts("1", [WrongPart("a", ["1"])])))
    error = refused.error
    assert isinstance(error, DecodeError)
    assert "parts" in error.path
    assert "price" in error.path
