"""Looking at dead letters: selections, lists, causes, and what waits behind one."""

from __future__ import annotations

import asyncio

import pytest
from operations_world import ANN, DAY, GROUP, NOW, TOPIC, everything, ids, letter, provisioned
from runtime_world import Opened

from tidewire.errors import ConfigurationError
from tidewire.model import Browsed, DeadChannel, GroupSpec, Reason, TopicSpec
from tidewire.operations.letters import CAUSES_MAX, cause_of, group_by_cause, list_letters, show_letters
from tidewire.operations.redrive import plan_letters, redrive
from tidewire.operations.selection import Letter, Selection


def made(event_id: str = "1", *, key: str | None = None, stored_at: int | None = NOW, **headers: str) -> Letter:
    """Return a letter that lies nowhere."""
    return Letter.of(Browsed(letter(event_id, key=key, **headers), 1, stored_at))


@pytest.mark.parametrize(
    ("selection", "matches"),
    [
        (Selection(), True),
        (
            Selection(topic=TOPIC, group=GROUP, type="shop.order.placed", reason="permanent", key="k", ids=("0", "1")),
            True,
        ),
        (Selection(topic="shop"), False),
        (Selection(group="bill"), False),
        (Selection(type="shop.order"), False),
        (Selection(reason="held"), False),
        (Selection(key="K"), False),
        (Selection(ids=("2",)), False),
        (Selection(error="STOCK of"), True),
        (Selection(error="timeouterror"), True),
        (Selection(error="first"), True),
        (Selection(error="second"), False),
        (Selection(before=NOW), False),
        (Selection(before=NOW + 1, after=NOW), True),
        (Selection(after=NOW + 1), False),
    ],
)
def test_everything_that_is_said_must_hold(selection: Selection, matches: bool) -> None:
    """Names are exact, error texts are looked for whatever their case, ages are half-open."""
    one = made("1", key="k", dl_last_error="TimeoutError: late", dl_first_error="ValueError: first")
    assert matches is selection.matches(one)


def test_a_letter_of_unknown_age_matches_no_age() -> None:
    """What the broker cannot tell is not guessed."""
    assert not Selection(before=NOW + DAY).matches(made(stored_at=None))
    assert not Selection(after=0).matches(made(stored_at=None))
    assert Selection().matches(made(stored_at=None))


def test_the_age_of_effects_is_the_earliest_stamp_that_can_be_read() -> None:
    """A letter that was redriven before is as old as its event; a damaged stamp says nothing."""
    assert made(ce_time="2020-01-01T00:00:00Z").beyond_window(NOW)
    assert made(dl_published="2020-01-01T00:00:00+00:00").beyond_window(NOW)
    assert not made(ce_time="yesterday", dl_first_failed="2020-01-01T00:00:00").beyond_window(NOW)
    assert not made(stored_at=None).beyond_window(NOW)


def test_a_list_shows_the_first_and_counts_all(opened: Opened) -> None:
    """The counts are of all that matches, whatever is shown."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            batch = [letter(str(n), reason=Reason.POISON if n % 3 else Reason.PERMANENT) for n in range(230)]
            await world.transport.publish(batch)
            listing = await list_letters(world.transport, everything(), limit=2)
            assert ["0", "1"] == [one.message.id for one in listing.letters]
            assert (230, {"permanent": 77, "poison": 153}) == (listing.count, listing.reasons)
            assert {DeadChannel(TOPIC, GROUP): 230} == listing.channels

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("selection", "hint"), [(Selection(topic="shop.ordr"), "shop.order"), (Selection(group="biling"), "billing")]
)
def test_a_name_that_is_not_there_is_no_empty_answer(opened: Opened, selection: Selection, hint: str) -> None:
    """A misspelt topic or group is an error that names what is near, not "no letters"."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            with pytest.raises(ConfigurationError) as raised:
                await list_letters(world.transport, selection)
            assert f"did you mean {hint!r}?" == raised.value.hint

    asyncio.run(scenario())


def test_a_held_letter_names_its_head_and_a_head_what_waits(opened: Opened) -> None:
    """`show` tells both ways; other keys and other groups do not count."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter("head", key="k"), letter("else", key="j")])
            await world.transport.publish([letter(f"w{n}", key="k", reason=Reason.HELD) for n in range(150)])
            (head,) = await show_letters(world.transport, "head")
            assert (150, ["w0", "w1"], None) == (head.behind_count, list(head.behind[:2]), head.head)
            assert 20 == len(head.behind)
            (waiting,) = await show_letters(world.transport, "w100")
            assert ("head", 49) == (waiting.head, waiting.behind_count)
            assert [] == await show_letters(world.transport, "nobody")

    asyncio.run(scenario())


def test_one_event_may_be_a_letter_of_several_groups(opened: Opened) -> None:
    """Each group's own letter is shown; a group can be asked for."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world, groups=(GROUP, "shipping"))
            one = letter("1")
            await world.transport.publish([one, type(one)(DeadChannel(TOPIC, "shipping"), *list(_fields(one))[1:])])
            assert 2 == len(await show_letters(world.transport, "1"))
            (found,) = await show_letters(world.transport, "1", group="shipping")
            assert "shipping" == found.letter.channel.group

    asyncio.run(scenario())


def _fields(message: object) -> list[object]:
    return [getattr(message, name) for name in message.__struct_fields__]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("TimeoutError: order 17 after 30.5 s", ("TimeoutError", "order # after #.# s")),
        ("KeyError: '0192f1c0-aaaa-7bbb-8ccc-0123456789ab'", ("KeyError", "'#'")),
        ("ValueError: hash deadbeef0123 differs", ("ValueError", "hash # differs")),
        ("ValueError: abcdefabcdef is a word", ("ValueError", "abcdefabcdef is a word")),
        ("no type at all", ("", "no type at all")),
        ("", ("", "no stock of #")),
    ],
)
def test_numbers_and_ids_are_masked_in_a_cause(error: str, cause: tuple[str, str]) -> None:
    """What differs from event to event does not split a cause; words stay."""
    assert cause == cause_of(made(dl_last_error=error))


def test_letters_are_grouped_by_cause_most_frequent_first(opened: Opened) -> None:
    """A thousand orders that failed alike are one line with a count, its age and an example."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            await world.transport.publish([letter(f"a{n}", dl_last_error=f"TimeoutError: order {n}") for n in range(3)])
            await world.transport.publish([letter("b", dl_last_error="KeyError: 'x'")])
            first, second = await group_by_cause(world.transport, everything())
            assert ("TimeoutError", "order #", 3, "a0") == (first.error, first.message, first.count, first.example)
            assert ("KeyError", 1, "b") == (second.error, second.count, second.example)
            assert first.oldest is not None
            assert first.newest is not None
            assert first.oldest <= first.newest

    asyncio.run(scenario())


def test_the_number_of_causes_is_bounded(opened: Opened) -> None:
    """Messages that all differ do not fill the memory: beyond a thousand causes they are counted together."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            words = ["".join(chr(97 + (n // 26**place) % 26) for place in range(3)) for n in range(CAUSES_MAX + 5)]
            await world.transport.publish([letter(word, dl_last_error=f"ValueError: zz{word}") for word in words])
            causes = await group_by_cause(world.transport, everything())
            assert (CAUSES_MAX + 1, CAUSES_MAX + 5) == (len(causes), sum(cause.count for cause in causes))
            assert ("other", 5) == (causes[0].message, causes[0].count)

    asyncio.run(scenario())


def test_a_selection_reaches_over_topics(opened: Opened) -> None:
    """Without a topic every dead channel is walked, each to its own end."""

    async def scenario() -> None:
        async with opened() as world:
            await provisioned(world)
            spec = [TopicSpec("shop.refund", lanes=2)]
            await world.transport.provision(spec, [GroupSpec("books", ["shop.refund"])])
            one = letter("r")
            moved = type(one)(DeadChannel("shop.refund", "books"), *_fields(one)[1:])
            await world.transport.publish([letter("1"), letter("2"), moved])
            plan = await plan_letters(world.transport, everything(), now=NOW)
            assert [(TOPIC, 2), ("shop.refund", 1)] == [(part.topic, part.count) for part in plan.parts]
            done = await redrive(world.transport, plan, by=ANN)
            assert (3, 0) == (done.moved, done.dead)
            assert [] == await ids(world)

    asyncio.run(scenario())
