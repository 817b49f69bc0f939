"""``tidewire dlq``: good use, bad use, JSON, and what is asked before anything changes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tidewire.cli import dlq
from tidewire.cli import main as cli
from tidewire.model import (
    DeadLetter,
    Delivery,
    GroupSpec,
    InboxChannel,
    Message,
    Reason,
    Topic,
    TopicSpec,
)
from tidewire.operations.audit import Operator, ledger_of
from tidewire.operations.redrive import _begun, plan_letters
from tidewire.operations.selection import Selection
from tidewire.rules.letters import dead_letter
from tidewire.transports.sqlite import open_sqlite_transport

TOPIC, GROUP = "shop.order", "billing"
# Until the command is in the table of commands the tests put it there; afterwards this changes nothing.
DRIVER = "import sys; from tidewire.cli import main; main.COMMANDS.setdefault('dlq', ('tidewire.cli.dlq', '')); "
DRIVER += "sys.exit(main.main(['dlq', *sys.argv[1:]]))"


class Ran(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output, which is one JSON document."""
        return json.loads(self.out)


Run = Callable[..., Ran]


def letter(event_id: str, *, key: str | None = None, reason: Reason = Reason.PERMANENT, error: str = "") -> Message:
    """Return a dead letter as the runtime writes it."""
    own = {"ce-id": event_id, "ce-source": "shop", "ce-type": "shop.order.placed", "content-type": "application/json"}
    message = Message(Topic(TOPIC), event_id, "shop", key, own, b'{"order_id":"1","total":0.10}')
    made = dead_letter(
        Delivery(message, "0", 1, 1), DeadLetter(reason, "no stock"), group=GROUP, failure=None, member="billing-1"
    )
    headers = {**made.headers, "dl-last-error": error} if error else made.headers
    return Message(made.to, made.id, made.source, made.key, headers, made.body)


LETTERS = (
    letter("head", key="k"),
    letter("next", key="k", reason=Reason.HELD),
    letter("late", reason=Reason.EXHAUSTED, error="TimeoutError: after 30 s\x1b[2J"),
)


@pytest.fixture
def broker(tmp_path: Path) -> Path:
    """Return a broker with three dead letters: a held key of two, and one without a key."""
    path = tmp_path / "broker.db"

    async def fill() -> None:
        async with open_sqlite_transport(path) as transport:
            await transport.provision([TopicSpec(TOPIC, lanes=2)], [GroupSpec(GROUP, [TOPIC])])
            await transport.publish(LETTERS)

    asyncio.run(fill())
    return path


@pytest.fixture
def run(broker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs ``tidewire dlq`` on the broker, without a terminal."""
    monkeypatch.setitem(cli.COMMANDS, "dlq", ("tidewire.cli.dlq", ""))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))

    def command(*arguments: str, url: str = f"sqlite:///{broker}") -> Ran:
        capsys.readouterr()
        code = cli.main(["dlq", *arguments, *(["--broker", url] if url else [])])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return command


def inbox_of(broker: Path) -> list[str]:
    """Return the ids of what lies in the group's inbox channel."""

    async def look() -> list[str]:
        async with open_sqlite_transport(broker) as transport:
            return [browsed.message.id for browsed in await transport.browse(InboxChannel(TOPIC, GROUP))]

    return asyncio.run(look())


def left(run: Run) -> list[str]:
    """Return the ids of the dead letters."""
    return [one["id"] for one in run("list", "--json").json["letters"]]


# --- looking --------------------------------------------------------------------------------------------------


def test_a_list_says_what_and_why_and_how_many(run: Run) -> None:
    """One line each, a count by reason, and nothing from a message steers the terminal."""
    ran = run("list")
    assert 0 == ran.code
    assert all(name in ran.out for name in ("head", "next", "late", "3 dead letters", "1 held"))
    assert "TimeoutError: after 30 s\\x1b[2J" in ran.out
    assert "\x1b" not in ran.out


def test_a_list_as_json_has_its_documented_keys(run: Run) -> None:
    """Counts are of all, letters up to the limit, times in microseconds."""
    document = run("list", "--limit", "1", "--json").json
    assert {"count", "reasons", "channels", "letters"} == set(document)
    assert (3, {"permanent": 1, "held": 1, "exhausted": 1}) == (document["count"], document["reasons"])
    assert [{"topic": TOPIC, "group": GROUP, "count": 3}] == document["channels"]
    (one,) = document["letters"]
    assert ("head", "k", "permanent", "no stock", 1) == (
        one["id"],
        one["key"],
        one["reason"],
        one["detail"],
        one["attempts"],
    )
    assert 10**15 < one["stored_at"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--reason-is", "held"], ["next"]),
        (["--key", "k"], ["head", "next"]),
        (["--error", "timeout"], ["late"]),
        (["--id", "late", "--id", "head"], ["head", "late"]),
        (["--type", "shop.order.placed", "--topic", TOPIC, "--group", GROUP], ["head", "next", "late"]),
        (["--newer-than", "1h"], ["head", "next", "late"]),
        (["--older-than", "1h"], []),
    ],
)
def test_a_list_can_be_narrowed(run: Run, options: Sequence[str], wanted: Sequence[str]) -> None:
    """Each option narrows; an empty answer is an answer."""
    assert list(wanted) == [one["id"] for one in run("list", "--json", *options).json["letters"]]
    assert 0 == run("list", *options).code


def test_show_tells_everything_about_one(run: Run) -> None:
    """Headers, the body laid out, errors, and what waits behind it."""
    ran = run("show", "head")
    assert 0 == ran.code
    assert all(
        text in ran.out
        for text in ("permanent", "dl-consumer: billing-1", '"order_id": "1"', "1 events of its key: next")
    )
    (one,) = run("show", "head", "--json").json["letters"]
    assert ({"count": 1, "first": ["next"]}, None) == (one["waiting"], one["waits_behind"])
    assert ({"order_id": "1", "total": 0.1}, None) == (one["body"], one["body_text"])
    (held,) = run("show", "next", "--json").json["letters"]
    assert "head" == held["waits_behind"]


def test_show_of_nothing_is_exit_code_1(run: Run) -> None:
    """No letter with that id is told as an error; JSON stays JSON."""
    ran = run("show", "nobody")
    assert (1, "") == (ran.code, ran.out)
    assert "no dead letter has the id 'nobody'" in ran.err
    assert {"id": "nobody", "letters": []} == run("show", "nobody", "--json").json


def test_groups_count_by_cause(run: Run) -> None:
    """Numbers are masked; the most frequent comes first."""
    causes = run("groups", "--json").json["causes"]
    assert [("exhausted", "TimeoutError", 1)] == [
        (cause["reason"], cause["error"], cause["count"]) for cause in causes if cause["error"]
    ]
    assert "after # s\\x1b[#J" in run("groups").out
    assert "no dead letter matches" in run("groups", "--key", "none").out


# --- acting ---------------------------------------------------------------------------------------------------


def test_a_redrive_takes_the_key_along_and_says_what_is_left(run: Run, broker: Path) -> None:
    """The answer is what was seen afterwards: two went, one letter is there."""
    ran = run("redrive", "next", "--yes", "--json")
    assert 0 == ran.code
    document = ran.json
    assert (True, 2, 2, 0, 1, []) == tuple(
        document[name] for name in ("changed", "planned", "moved", "left", "dead", "refused")
    )
    assert ["head", "next"] == inbox_of(broker)
    assert ["late"] == left(run)
    assert "redriven 1 of 1 dead letters\n0 dead letters there now\n" == run("redrive", "--all", "--yes").out


def test_only_takes_nothing_along(run: Run, broker: Path) -> None:
    """Held or not, one letter goes."""
    assert 1 == run("redrive", "head", "--only", "--rate", "1000", "--yes", "--json").json["moved"]
    assert ["head"] == inbox_of(broker)


@pytest.mark.parametrize("verb", [["redrive"], ["discard", "--reason", "x"]])
def test_a_dry_run_changes_nothing(run: Run, broker: Path, verb: Sequence[str]) -> None:
    """The plan is printed, the letters stay, and the audit is empty."""
    ran = run(*verb, "--all", "--dry-run")
    assert (0, "") == (ran.code, ran.out)
    assert "3 of group billing on topic shop.order" in ran.err
    document = run(*verb, "--all", "--dry-run", "--json").json
    assert (True, False, 3, ["head", "next", "late"]) == (
        document["dry_run"],
        document["changed"],
        document["planned"],
        document["sample"],
    )
    assert ["head", "next", "late"] == left(run)
    assert [] == inbox_of(broker)
    assert [] == run("audit", "--json").json["acts"]


@pytest.mark.parametrize(
    "verb", [["redrive", "--key", "none"], ["discard", "--key", "none", "--reason", "x"], ["redrive", "--resume"]]
)
def test_a_no_op_says_nothing_changed(run: Run, verb: Sequence[str]) -> None:
    """A green tick for nothing is worse than a failure: the words are there, and no act."""
    ran = run(*verb, "--yes")
    assert (0, True) == (ran.code, ran.out.startswith("nothing changed"))
    assert False is run(*verb, "--yes", "--json").json.get("changed", False)
    assert [] == run("audit", "--json").json["acts"]


@pytest.mark.parametrize(
    "verb", [["redrive", "--all"], ["discard", "--all", "--reason", "x"], ["edit", "late", "--set", "total=2"]]
)
def test_without_a_terminal_an_act_needs_yes(run: Run, broker: Path, verb: Sequence[str]) -> None:
    """A script that forgot --yes changes nothing and is told so, with exit code 2."""
    ran = run(*verb)
    assert (2, "") == (ran.code, ran.out)
    assert "--yes does it unasked" in ran.err
    assert ["head", "next", "late"] == left(run)
    assert [] == inbox_of(broker)


@pytest.mark.parametrize(("answer", "code", "moved"), [(b"y\n", 0, ["late"]), (b"\n", 1, []), (b"no\n", 1, [])])
def test_on_a_terminal_an_act_is_asked_about(broker: Path, answer: bytes, code: int, moved: Sequence[str]) -> None:
    """Anything but yes is no."""
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", DRIVER, "redrive", "late", "--broker", f"sqlite:///{broker}"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        os.write(ours, answer)
        _, err = child.communicate(timeout=30)
    finally:
        os.close(ours)
        os.close(theirs)
    assert code == child.returncode
    assert b"redrive 1? [y/N]" in err
    assert list(moved) == inbox_of(broker)


def test_a_discard_needs_a_reason_and_tells_the_group(run: Run, broker: Path) -> None:
    """The reason is in the audit; a keyed letter is announced in the inbox channel."""
    assert 2 == run("discard", "head", "--yes").code
    assert 2 == run("discard", "head", "--yes", "--reason", " ").code
    assert "discarded 1 of 1 dead letters" in run("discard", "head", "--yes", "--reason", "a test order").out
    assert ["next", "late"] == left(run)
    assert ["head"] == inbox_of(broker)
    assert {"a test order"} == {one["reason"] for one in run("audit", "--json").json["acts"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["redrive"], "no letters were selected"),
        (["redrive", "--all", "head"], "contradict"),
        (["redrive", "--resume", "--all"], "leave the selection out"),
        (["redrive", "--all", "--rate", "0"], "a rate of 0.0"),
        (["redrive", "--all", "--older-than", "soon"], "is no duration"),
        (["redrive", "--al"], "unknown argument"),
        (["list", "--reason-is", "broken"], "invalid choice"),
        (["list", "--group", "biling"], "there is no group 'biling'"),
        (["edit", "late"], "give either --set or --body"),
        (["edit", "late", "--set", "total"], "has no value"),
        (["edit", "late", "--set", "a.b=1", "--yes"], "leads nowhere"),
        (["edit", "late", "--body", "/no/such/file"], "--body /no/such/file"),
        (["edit", "nobody", "--set", "a=1"], "no dead letter has the id"),
        (["edit", "late", "--set", "a=1", "--discard-original"], "--discard-original needs --reason"),
        (["import", "/no/such/file"], "cannot read"),
        (["export", "--output", "/no/such/folder/file"], "cannot write"),
        (["export"], "--output"),
    ],
)
def test_bad_use_is_exit_code_2_with_the_place(run: Run, arguments: Sequence[str], message: str) -> None:
    """A person must change something: stdout is empty, stderr says what, and nothing changed."""
    ran = run(*arguments)
    assert (2, "") == (ran.code, ran.out)
    assert "error: " in ran.err
    assert message in ran.err
    assert ["head", "next", "late"] == left(run)


def test_a_broker_that_is_not_there_is_not_made(run: Run, tmp_path: Path) -> None:
    """A misspelt URL is an error, not an empty list."""
    ran = run("list", url=f"sqlite:///{tmp_path}/no.db")
    assert (2, "") == (ran.code, ran.out)
    assert not (tmp_path / "no.db").exists()


def test_an_interrupted_redrive_is_found_and_resumed(run: Run, broker: Path) -> None:
    """One that began and did not end is listed, resumed, and ended under its own id."""

    async def begin() -> str:
        async with open_sqlite_transport(broker) as transport:
            operator = Operator("bob")
            plan = await plan_letters(transport, Selection(), now=operator.clock.now_us())
            act = _begun("redrive", plan, by=operator)
            await ledger_of(transport).note(act)
            return act.id

    act_id = asyncio.run(begin())
    assert [act_id] == run("redrive", "--resume", "--dry-run", "--json").json["interrupted"]
    assert "begun, not ended" in run("audit").out
    assert 2 == run("redrive", "--resume").code
    (done,) = run("redrive", "--resume", "--yes", "--json").json["resumed"]
    assert (act_id, 3, 0) == (done["act"], done["moved"], done["left"])
    assert [("begun", "bob"), ("done", True)] == [
        (one["state"], one["who"] if one["state"] == "begun" else "@" in one["who"])
        for one in run("audit", "--json").json["acts"]
    ]
    assert "nothing changed" in run("redrive", "--resume", "--yes").out


# --- mending, files -------------------------------------------------------------------------------------------


def test_an_edit_sends_a_copy_and_keeps_the_original(run: Run, broker: Path) -> None:
    """Values are JSON or text; digits stay; the answer names the copy."""
    ran = run("edit", "late", "--set", "total=12.50", "--set", "note=by hand", "--dry-run", "--json")
    assert '{"order_id":"1","total":12.50,"note":"by hand"}' == ran.json["body_text"]
    assert [] == inbox_of(broker)
    document = run("edit", "late", "--set", "total=12.50", "--yes", "--json").json
    assert ("late", False, [document["copy"]]) == (document["original"], document["discarded"], inbox_of(broker))
    assert "late" in left(run)


def test_the_reason_of_an_edit_is_in_the_audit(run: Run) -> None:
    """It is kept whether or not the original goes."""
    assert 0 == run("edit", "late", "--set", "total=12.50", "--reason", "a typing error", "--yes").code
    assert {"a typing error"} == {one["reason"] for one in run("audit", "--json").json["acts"]}


def test_an_edit_can_replace_the_body_and_discard_the_original(run: Run, tmp_path: Path) -> None:
    """With a reason, the original goes once the copy is confirmed."""
    body = tmp_path / "mended.json"
    body.write_text('{"order_id": "2"}')
    arguments = ["edit", "late", "--body", str(body), "--discard-original", "--reason", "wrong id", "--yes"]
    ran = run(*arguments)
    assert 0 == ran.code
    assert "the original was discarded" in ran.out
    assert ["head", "next"] == left(run)
    assert "wrong id" in run("audit").out


def test_an_edit_under_a_held_key_says_that_it_waits(run: Run) -> None:
    """The operator learns before the act what the key's order does to the copy."""
    assert "its key is held" in run("edit", "head", "--set", "total=1", "--dry-run").err
    told = run("edit", "head", "--set", "total=1", "--discard-original", "--reason", "x", "--dry-run").err
    assert "1 events of its key wait: the copy runs after them" in told


def test_letters_go_to_a_file_and_come_back(run: Run, tmp_path: Path) -> None:
    """Export, discard, look at the import, import, import again."""
    path = str(tmp_path / "letters.jsonl")
    assert {"file": path, "count": 3} == run("export", "--output", path, "--json").json
    assert 0 == run("discard", "--all", "--reason", "moved to a file", "--yes").code
    assert "would import 3 of group billing on topic shop.order" in run("import", path, "--dry-run").out
    assert [] == left(run)
    document = run("import", path, "--json").json
    assert (True, 3, 3, 0) == tuple(document[name] for name in ("changed", "lines", "added", "there"))
    again = run("import", path)
    assert (0, "nothing changed\n3 of 3 were there already\n") == (again.code, again.out)
    assert ["head", "next", "late"] == left(run)


def test_a_damaged_file_is_refused_with_its_lines(run: Run, tmp_path: Path) -> None:
    """The line's number is in the error, for the look and for the act."""
    path = tmp_path / "letters.jsonl"
    path.write_text('{"no": "letter"}\n')
    for extra in ([], ["--dry-run"], ["--json"]):
        ran = run("import", str(path), *extra)
        assert (2, "") == (ran.code, ran.out)
        assert "line 1" in ran.err


# --- help -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", dlq.VERBS)
def test_every_verb_has_help(run: Run, verb: str) -> None:
    """Help names the verb, --json, and an example, with exit code 0."""
    ran = run(verb, "--help", url="")
    assert 0 == ran.code
    assert all(text in ran.out for text in (f"tidewire dlq {verb}", "--json", "example"))


def test_help_lists_the_verbs_and_their_options(run: Run) -> None:
    """`dlq --help` shows all; without a verb, or with a wrong one, it is exit code 2."""
    ran = run("--help", url="")
    assert 0 == ran.code
    assert all(verb in ran.out for verb in dlq.VERBS)
    assert "--resume" in ran.out
    assert 2 == run(url="").code
    wrong = run("redrve", url="")
    assert 2 == wrong.code
    assert "did you mean 'redrive'?" in wrong.err


def test_help_loads_no_adapter() -> None:
    """Looking at the help opens nothing and imports no transport."""
    script = (
        DRIVER.replace("sys.exit(", "code = (")
        + "; print([n for n in sys.modules if n.startswith('tidewire.transports.')])"
    )
    ran = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True)
    assert "[]" == ran.stdout.splitlines()[-1]
