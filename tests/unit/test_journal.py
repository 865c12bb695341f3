"""The journal: what was torn was never written, what is damaged is kept, and the clock has no part in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snap_upgrade import journal
from snap_upgrade.core import wire
from snap_upgrade.core.errors import NotFound, StateDamaged
from snap_upgrade.core.steps import Destroy, MakeClone, TakeSnapshot, to_json
from snap_upgrade.journal import Journal

PLAN = [to_json(TakeSnapshot("0" * 32, ".snap-upgrade/snap/7", "snap-7")), to_json(MakeClone("snap-7", "p", "new"))]
BEGIN: dict[str, Any] = {
    "kind": "begin",
    "version": 1,
    "id": "7",
    "flow": "create",
    "plan": PLAN,
    "owner": {"pid": 4, "start": 9, "name": "snap-upgrade"},
    "command": "snap-upgrade create \u00fc\r\n",
}
LINES: list[dict[str, Any]] = [
    BEGIN,
    {"kind": "started", "step": 0},
    {"kind": "done", "step": 0, "result": {"uuid": "f" * 32}},
    {"kind": "started", "step": 1},
    {"kind": "failed", "step": 1, "error": "no space\x00\x7f"},
    {"kind": "verdict", "verdict": "failed", "reasons": ["x"], "changes": [], "evidence": {}},
    {"kind": "decide", "plan": [to_json(Destroy("snap-7"))]},
    {"kind": "started", "step": 2},
]


def whole(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(wire.line(line) for line in lines)


def new_state(path: Path) -> Path:
    for name in ("journal", "history", "snap", "records"):
        (path / name).mkdir(parents=True)
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return new_state(tmp_path / "state")


def begin(state: Path) -> Journal:
    return Journal.create(state, lambda ident: {"flow": "create", "plan": PLAN})


# --- torn


def test_a_journal_torn_at_any_byte_is_the_whole_lines_before() -> None:
    content = whole(LINES)
    ends = [len(whole(LINES[: n + 1])) for n in range(len(LINES))]
    for cut in range(len(content) + 1):
        entries, good = journal.parse(content[:cut], "7")
        complete = sum(end <= cut for end in ends)
        assert good == ([0, *ends])[complete]
        if complete == 0:
            assert entries is None
        else:
            assert entries is not None
            assert entries.lines == LINES[1:complete]


def test_appending_after_a_tear_at_any_byte_cuts_it_off(state: Path) -> None:
    base = whole(LINES[:3])
    last = wire.line(LINES[3])
    path = state / "journal/7"
    for cut in range(len(last)):
        path.write_bytes(base + last[:cut])
        opened = Journal.open(path)
        assert opened is not None
        opened.append("undoing", step=0)
        assert path.read_bytes() == base + wire.line({"kind": "undoing", "step": 0})


def test_many_lines_written_at_once_and_torn_anywhere_leave_the_first_of_them(state: Path) -> None:
    log = begin(state)
    before = log.path.read_bytes()
    log.append_all([{"kind": "started", "step": number} for number in (0, 0, 0)])
    whole = log.path.read_bytes()
    found = set()
    for length in range(len(before), len(whole) + 1):
        entries, good = journal.parse(whole[:length], log.path.name)
        assert entries is not None
        assert good <= length
        found.add(len(entries.numbers("started")))
    assert found == {0, 1, 2, 3}
    log.append_all([])
    assert log.path.read_bytes() == whole


def test_a_last_line_with_a_flipped_bit_counts_as_never_written() -> None:
    base, last = whole(LINES[:3]), wire.line(LINES[3])
    for at in range(len(last)):
        flipped = bytearray(last)
        flipped[at] ^= 0x04
        entries, good = journal.parse(base + bytes(flipped), "7")
        assert entries is not None
        assert (good, entries.lines) == (len(base), LINES[1:3])


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"12345678 {\r\r", b"\r", b"0000"])
def test_what_a_cut_can_leave_behind_the_last_line_is_torn(tail: bytes) -> None:
    entries, good = journal.parse(whole(LINES[:3]) + tail, "7")
    assert entries is not None
    assert (good, len(entries.lines)) == (len(whole(LINES[:3])), 2)


def test_a_first_line_torn_at_any_byte_never_began_and_its_file_goes(state: Path) -> None:
    first = wire.line(BEGIN)
    path = state / "journal/7"
    for cut in range(len(first)):
        for filler in (b"", b"\0" * 9):
            path.write_bytes(first[:cut] + filler)
            assert Journal.open(path) is None
            assert journal.unbegun(state) == [path]
            assert list(journal.open_journals(state)) == []


# --- damaged


def test_damage_before_the_last_line_is_reported_and_changes_nothing(state: Path) -> None:
    content = whole(LINES[:4])
    last = content.rindex(b"\n", 0, -1)
    path = state / "journal/7"
    for at in range(last):
        damaged = bytearray(content)
        damaged[at] ^= 0x04
        path.write_bytes(bytes(damaged))
        with pytest.raises(StateDamaged, match="kept as it is"):
            Journal.open(path)
        assert path.read_bytes() == bytes(damaged)
        assert journal.unbegun(state) == []


def test_an_append_to_a_journal_damaged_meanwhile_changes_nothing(state: Path) -> None:
    opened = begin(state)
    opened.append("started", step=0)
    opened.append("done", step=0, result={})
    damaged = opened.path.read_bytes().replace(b'"started"', b'"st4rted"')
    opened.path.write_bytes(damaged)
    with pytest.raises(StateDamaged):
        opened.append("undoing", step=0)
    assert opened.path.read_bytes() == damaged


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        b"\x7fELF\x02\x01\x01" + b"\0" * 500,
        b"{}\n",
        b"\n",
        b"\n\n\n",
        b"deadbeef\n",
        whole([{**BEGIN, "version": 2}]),
        whole([{**BEGIN, "version": None}]),
        whole([{**BEGIN, "id": "8"}]),
        whole([{**BEGIN, "id": 7}]),
        whole([{**BEGIN, "plan": {}}]),
        whole([{**BEGIN, "plan": [1]}]),
        whole([{**BEGIN, "plan": [{"step": "teleport"}]}]),
        whole([{**BEGIN, "plan": [{"step": "destroy", "name": "x", "how": "fast"}]}]),
        whole([{**BEGIN, "plan": [{"step": "destroy", "name": 5}]}]),
        whole([{**BEGIN, "plan": [{"step": "destroy"}]}]),
        whole([{**BEGIN, "owner": {"pid": "4"}}]),
        whole([{**BEGIN, "owner": 4}]),
        whole([{"kind": "started", "step": 0}]),
        wire.line([1]),
        wire.line({"kind": 5}),
        whole([BEGIN]) + wire.line(["begin"]),
        whole([BEGIN, {"kind": "hold"}]),
        whole([BEGIN, {"kind": ["started"]}]),
        whole([BEGIN, {"kind": "started"}]),
        whole([BEGIN, {"kind": "started", "step": 2}]),
        whole([BEGIN, {"kind": "started", "step": -1}]),
        whole([BEGIN, {"kind": "started", "step": True}]),
        whole([BEGIN, {"kind": "started", "step": "0"}]),
        whole([BEGIN, {"kind": "done", "step": 0}]),
        whole([BEGIN, {"kind": "decide"}]),
        whole([BEGIN, {"kind": "decide", "plan": [None]}]),
        whole([BEGIN, {"kind": "end"}]),
    ],
)
def test_what_no_crash_leaves_is_damage_and_is_kept(state: Path, content: bytes) -> None:
    path = state / "journal/7"
    path.write_bytes(content)
    [found] = journal.open_journals(state)
    assert isinstance(found, StateDamaged)
    assert found.exit_code == 11
    assert journal.unbegun(state) == []
    with pytest.raises(StateDamaged):
        journal.read(state, "7")
    assert path.read_bytes() == content


def test_a_damaged_journal_that_a_person_put_aside_is_kept_whole_and_its_number_stays_used(state: Path) -> None:
    (state / "journal/7").write_bytes(b"garbage")
    journal.set_aside(state, "7")
    assert list(journal.open_journals(state)) == []
    assert (state / "history/7.damaged").read_bytes() == b"garbage"
    assert begin(state).entries.ident == "8"


# --- numbers


def test_numbers_never_repeat_whatever_was_closed(state: Path) -> None:
    assert begin(state).entries.ident == "1"
    second = begin(state)
    second.close("committed", 0)
    assert begin(state).entries.ident == "3"
    assert journal.read(state, "2").last("end") == {"kind": "end", "outcome": "committed", "exit": 0}


def test_a_lost_history_gives_no_number_whose_snapshot_is_there(state: Path) -> None:
    (state / "snap/41").mkdir()
    assert begin(state).entries.ident == "42"


def test_numbers_are_ordered_as_numbers_whatever_the_clock_says(state: Path) -> None:
    for number in (9, 10, 100):
        path = state / f"history/{number}.json"
        path.write_bytes(whole([{**BEGIN, "id": str(number)}]))
        os.utime(path, (2000 - number, 2000 - number))
    found = [entries.ident for entries in journal.history(state) if not isinstance(entries, StateDamaged)]
    assert found == ["100", "10", "9"]
    assert journal.next_number(state) == 101


def test_a_number_taken_between_counting_and_creating_is_passed_over(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "next_number", lambda _: 1)
    assert begin(state).entries.ident == "1"
    assert begin(state).entries.ident == "2"


def test_a_transaction_that_cannot_be_composed_leaves_no_file(state: Path) -> None:
    def fail(ident: str) -> dict[str, Any]:
        raise NotFound("gone")

    with pytest.raises(NotFound):
        Journal.create(state, fail)
    assert list((state / "journal").iterdir()) == []


@pytest.mark.parametrize("ident", ["", "..", "../journal/7", "7/../7", "-1", "٣", "7\0", "last"])
def test_reading_what_is_no_number_finds_nothing(state: Path, ident: str) -> None:
    (state / "journal/7").write_bytes(whole(LINES))
    with pytest.raises(NotFound):
        journal.read(state, ident)


def test_a_state_that_was_never_written_has_no_transactions(tmp_path: Path) -> None:
    assert list(journal.open_journals(tmp_path / "none")) == []
    assert list(journal.history(tmp_path / "none")) == []
    assert journal.unbegun(tmp_path / "none") == []


def test_closing_twice_after_a_crash_writes_one_end(state: Path) -> None:
    first = begin(state)
    first.append("end", outcome="undone", exit=5)
    again = Journal.open(first.path)
    assert again is not None
    again.close("committed", 0)
    assert [line for line in journal.read(state, "1").lines if line["kind"] == "end"] == [
        {"kind": "end", "outcome": "undone", "exit": 5}
    ]


# --- properties

texts = st.text(max_size=30)
entries = st.one_of(
    st.builds(lambda n: {"kind": "started", "step": n}, st.integers(0, 1)),
    st.builds(lambda n, e: {"kind": "failed", "step": n, "error": e}, st.integers(0, 1), texts),
    st.builds(lambda r: {"kind": "request", "request": r}, st.lists(st.dictionaries(texts, texts, max_size=3))),
    st.builds(lambda v, r: {"kind": "verdict", "verdict": v, "reasons": r}, texts, st.lists(texts, max_size=3)),
)


@settings(deadline=None)
@given(st.lists(entries, max_size=8), st.data())
def test_any_journal_cut_anywhere_gives_back_a_prefix_of_what_was_written(
    lines: list[dict[str, Any]], data: st.DataObject
) -> None:
    content = whole([BEGIN, *lines])
    cut = data.draw(st.integers(len(wire.line(BEGIN)), len(content)))
    parsed, good = journal.parse(content[:cut], "7")
    assert parsed is not None
    assert parsed.lines == lines[: len(parsed.lines)]
    assert good == len(whole([BEGIN, *parsed.lines])) <= cut


@settings(deadline=None)
@given(st.lists(entries, max_size=5), st.binary(max_size=40))
def test_garbage_behind_a_journal_is_torn_or_damage_and_never_an_entry(
    lines: list[dict[str, Any]], garbage: bytes
) -> None:
    content = whole([BEGIN, *lines])
    try:
        parsed, good = journal.parse(content + garbage, "7")
    except StateDamaged:
        assert b"\n" in garbage
        return
    assert parsed is not None
    assert (good, parsed.lines) == (len(content), lines)


def test_work_on_another_root_that_does_not_say_which_is_damage() -> None:
    begin = {"kind": "begin", "version": 1, "id": "1", "flow": "alternate-root", "plan": []}
    with pytest.raises(StateDamaged, match="which root"):
        journal.parse(wire.line(begin), "1")
    known = {**begin, "name": "initial", "path": "@", "directory": "/mnt"}
    entries, _ = journal.parse(wire.line(known), "1")
    assert entries is not None


def test_a_first_move_that_fails_leaves_a_transaction_closed_and_the_next_one_says_why(state: Path) -> None:
    opened = begin(state)
    (state / "history").rmdir()
    (state / "history").touch()
    opened.close("committed", 0)
    (found,) = journal.open_journals(state)
    assert isinstance(found, Journal) and found.entries.last("end") is not None
    with pytest.raises(OSError, match="closed"):
        found.close("committed", 0)
    (state / "history").unlink()
    (state / "history").mkdir()
    found.close("committed", 0)
    assert list(journal.open_journals(state)) == []
    assert journal.read(state, opened.entries.ident).last("end") == {"kind": "end", "outcome": "committed", "exit": 0}
