"""`CodecConformance`: every case of the sections, as one class that a codec's test file subclasses."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from tidewire.testing.codecs.bench import Site
from tidewire.testing.codecs.sections import a_round_trips, b_same_bytes, c_hostile_bytes, d_versions

__all__ = ["SECTIONS", "CodecConformance"]

SECTIONS: tuple[ModuleType, ...] = (a_round_trips, b_same_bytes, c_hostile_bytes, d_versions)

Case = Callable[[Site], None]


class CodecConformance:
    """What every codec must do. Subclass it with a name that pytest collects, and say how codecs are made::

        class TestMyCodec(CodecConformance):
            def site(self) -> Site:
                return Site(codec=my_codec, bombs=[b"..."], elsewhere="my_package.my_codec:my_codec")

    Each method is one case. It is skipped only for a property of the `Site` that is false, which the text names, or
    where hypothesis is not installed.
    """

    def site(self) -> Site:
        """Return the format under test."""
        raise NotImplementedError("a codec's test class says how codecs are made")


def _method(case: Case) -> Callable[[CodecConformance], None]:
    def method(self: CodecConformance) -> None:
        case(self.site())

    method.__doc__ = case.__doc__
    return method


for _section in SECTIONS:
    for _name, _case in vars(_section).items():
        if _name.startswith("test_"):
            assert not hasattr(CodecConformance, _name), f"{_name} stands in two sections"
            setattr(CodecConformance, _name, _method(_case))
