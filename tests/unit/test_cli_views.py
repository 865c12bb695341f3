"""What the commands show, as functions of data: rows, flags, tables, problems, progress.

The one rule: the data is made here, and what is expected follows from the issue, not from the output.
"""

import contextlib
import io
import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snap_upgrade.cli import health, history, listing, output, status
from snap_upgrade.cli.diff import change_lines, summary_of
from snap_upgrade.cli.output import Output
from snap_upgrade.cli.progress import Progress, phase_text, status_line
from snap_upgrade.core import errors
from snap_upgrade.core.model import Kind, Record, State
from snap_upgrade.core.packages import Event, PackageChange
from snap_upgrade.core.steps import MakeClone, Packages, Seal, Step, TakeSnapshot, to_json
from snap_upgrade.journal import Entries

A, B, C, D = ("a" * 32, "b" * 32, "c" * 32, "d" * 32)


def record(uuid: str, name: str, **more: Any) -> Record:
    given = {"kind": Kind.ENVIRONMENT, "path": f".snap-upgrade/be/{name}", "created": 1.0, "origin": None,
             "transaction": None, "state": State.READY, **more}  # fmt: skip
    return Record(uuid, name=name, **given)


INITIAL = record(A, "initial", adopted=True)
SNAPSHOT = record(B, "snap-41", kind=Kind.SNAPSHOT, origin=A, transaction="41")
CLONE = record(C, "2026-11-20", origin=B, transaction="41")
RECORDS = {one.uuid: one for one in (INITIAL, SNAPSHOT, CLONE)}


def rows(*records: Record) -> list[listing.Row]:
    known = {one.uuid: one for one in records}
    return [listing.make_row(one, known, None) for one in records]


# --- list


@pytest.mark.parametrize(
    ("uuid", "running", "following", "default", "flags"),
    [
        (A, A, A, A, "NR"),
        (A, A, B, B, "N"),
        (B, A, B, B, "R"),
        (B, A, B, A, "T"),
        (A, A, B, A, "NR"),
        (A, A, A, B, "NT"),  # running after activate -t, before recover put the default back
        (C, A, B, A, ""),
        (A, A, None, None, "N"),
        (B, A, B, None, ""),  # the pointer is damaged: nobody knows for how long it boots
    ],
)
def test_active_says_now_reboot_and_next_only(
    uuid: str, running: str, following: str | None, default: str | None, flags: str
) -> None:
    assert listing.active_flags(uuid, running, following, default) == flags


def test_the_origin_is_the_environment_behind_the_snapshots_and_the_transaction() -> None:
    row = listing.make_row(CLONE, RECORDS, None)
    assert (row.origin, row.transaction) == ("initial", "41")
    assert listing.origin_text(row) == "initial, transaction 41"
    assert listing.origin_text(listing.make_row(INITIAL, RECORDS, None)) == "-"


def test_an_origin_that_is_gone_leaves_the_transaction() -> None:
    assert listing.origin_text(listing.make_row(CLONE, {C: CLONE}, None)) == "transaction 41"


def test_a_snapshot_whose_environment_is_gone_is_itself_the_origin() -> None:
    assert listing.make_row(CLONE, {B: SNAPSHOT, C: CLONE}, None).origin == "snap-41"


def test_origins_in_a_circle_end() -> None:
    first, second = record(A, "x", kind=Kind.SNAPSHOT, origin=B), record(B, "y", kind=Kind.SNAPSHOT, origin=A)
    assert listing.origin_of(first, {A: first, B: second}) is not None
    tree = listing.lineage(rows(record(A, "x", origin=B), record(B, "y", origin=A)))
    assert {row.name for _, row in tree} == {"x", "y"}


def test_the_tree_shows_each_under_what_it_was_made_from() -> None:
    found = [(depth, row.name) for depth, row in listing.lineage(rows(CLONE, SNAPSHOT, INITIAL))]
    assert found == [(0, "initial"), (1, "snap-41"), (2, "2026-11-20")]
    without_snapshots = [row for row in rows(CLONE, SNAPSHOT, INITIAL) if row.kind == "environment"]
    assert [(depth, row.name) for depth, row in listing.lineage(without_snapshots)] == [
        (0, "initial"),
        (1, "2026-11-20"),
    ]


@pytest.mark.parametrize("state", [State.BUILDING, State.FAILED])
def test_a_half_made_or_failed_environment_is_never_listed_as_complete(state: State) -> None:
    row = listing.make_row(record(D, "half", state=state), {}, None)
    assert state.value in listing.marks(row)
    assert listing.plain(row).split("\t")[6] == state.value
    assert listing.marks(listing.make_row(INITIAL, {}, None)) == ""


def test_a_plain_row_has_eight_fields_whatever_the_name() -> None:
    row = replace(listing.make_row(record(D, "tab\there\nnewline\x1b[31m"), {}, None),
                  mountpoints=("/a\tb", "/c"), space=2048)  # fmt: skip
    line = listing.plain(row)
    fields = line.split("\t")
    assert len(fields) == 8
    assert fields[6:] == ["ready", "environment"]
    assert "\n" not in line
    assert "\x1b" not in line
    assert fields[3] == "2048"


def test_nothing_is_a_dash() -> None:
    assert listing.plain(replace(rows(INITIAL)[0], created=0.0)).split("\t")[1:6] == ["-"] * 5


# --- output


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    lines = output.columns(("A", "B"), [("x", "1"), ("日本", "2"), ("e\u0301", "3")])
    assert [line.index(end) for line, end in zip(lines, "B1", strict=False)] == [6, 6]
    assert lines[2] == "日本  2"
    assert lines[3] == "e\u0301     3"
    assert output.columns(("A", "Size"), [("x", "1"), ("y", "20")], right=frozenset({1}))[1:] == ["x     1", "y    20"]


def test_what_moves_a_cursor_is_made_visible_in_tables_and_messages() -> None:
    assert "\x1b" not in "".join(output.columns(("A",), [("\x1b[2Jgone",)]))
    assert output.visible("one\ntwo\x1b[2J") == "one\ntwo\\x1b[2J"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"),
     (3000 << 40, "3000.0 TiB"),     (-2048, "-2.0 KiB")],
)  # fmt: skip
def test_bytes_are_shown_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert output.human_bytes(size) == text


def test_times_are_local_and_machine_times_have_their_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-05:30")
    time.tzset()
    try:
        assert output.local_time(86400.0) == "1970-01-02 05:30"
        assert output.iso_time(86400.0) == "1970-01-02T05:30:00+05:30"
        assert (output.local_time(0), output.iso_time(0)) == ("-", "-")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_colours_only_where_wanted_and_never_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Output()
    for color, is_json, is_painted in (("always", False, True), ("never", False, False), ("auto", False, False),
                                       ("always", True, False)):  # fmt: skip
        out.configure(is_json, False, color)
        assert ("\x1b" in out.paint("x", "red", io.StringIO())) == is_painted


def test_quiet_and_json_leave_out_what_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    for is_json, is_quiet in ((True, False), (False, True)):
        out.configure(is_json, is_quiet, "never")
        out.say("chatter")
    out.text("asked for")
    assert capsys.readouterr().out == "asked for\n"


# --- progress


def events() -> list[Event]:
    return [Event("phase", "download"), Event("download", "", 1024, 4096), Event("phase", "apply"),
            Event("package", "nano", 1, 3), Event("line", "Setting up nano \x1b[2J")]  # fmt: skip


def test_without_a_terminal_each_phase_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = Progress(Output(), True)
    for event in events():
        report(event)
    report.end()
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["downloading ...", "working in the clone ..."]
    assert shown.err == ""


def test_with_json_each_event_is_an_object_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = Progress(Output(is_json=True), True)
    for event in events():
        report(event)
    found = [json.loads(line)["progress"] for line in capsys.readouterr().out.splitlines()]
    assert [one["kind"] for one in found if one["kind"] != "download"] == ["phase", "phase", "package", "line"]
    assert found[-1]["name"] == "Setting up nano \x1b[2J"


def test_on_a_terminal_one_line_is_drawn_over_and_cleared_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(follower, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        report = Progress(Output(), True)
        report(Event("phase", "download"))
        report.end()
    drawn = b""
    with contextlib.suppress(OSError):  # EIO: that was all, and nobody writes any more
        while part := os.read(leader, 4096):
            drawn += part
    os.close(leader)
    assert drawn.decode() == "\r\x1b[Kdownloading\r\x1b[K"


def test_on_a_terminal_bytes_packages_and_the_line_dpkg_is_at_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("snap_upgrade.cli.progress._EVERY_S", 0.0)
    drawn = []
    with open(follower, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        report = Progress(Output(), True)
        for event in (Event("phase", "download"), Event("download", "x", 1024, 4096), Event("phase", "apply"),
                      Event("package", "libc6", 2, 7), Event("line", "Setting up libc6 (2.36) ...")):  # fmt: skip
            report(event)
            drawn.append(os.read(leader, 4096).decode().removeprefix("\r\x1b[K").split())
    os.close(leader)
    assert drawn[1][1:] == ["1.0", "KiB", "of", "4.0", "KiB"]
    assert drawn[3][-2:] == ["2/7", "libc6"]
    assert drawn[4] == [*drawn[3], "Setting", "up", "libc6", "(2.36)", "..."]


def test_not_wanted_or_quiet_means_silence(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Output()
    quiet.configure(False, True, "never")
    for report in (Progress(Output(), False), Progress(quiet, True)):
        for event in events():
            report(event)
        report.end()
    assert capsys.readouterr() == ("", "")


def test_the_progress_line_fits_and_cannot_move_the_cursor() -> None:
    line = status_line("working", "1/3 nano", "Setting up \x1b[2J nano " + "x" * 300, 60)
    assert len(line) == 60
    assert "\x1b" not in line
    assert line.startswith("working  1/3 nano  Setting up")
    assert phase_text("something new") == "something new"


# --- diff


def test_a_diff_counts_added_removed_and_changed() -> None:
    changes = [PackageChange("a", None, "1"), PackageChange("b", "1", None), PackageChange("c", "1", "2")]
    assert summary_of(changes) == "3 packages: 1 added, 1 removed, 1 changed"
    assert [line.split() for line in change_lines(changes)[1:]] == [["a", "-", "1"], ["b", "1", "-"], ["c", "1", "2"]]
    assert change_lines([]) == []


# --- history

PLAN: list[Step] = [TakeSnapshot(A, ".snap-upgrade/snap/7", "snap-7"), MakeClone("snap-7", ".snap-upgrade/be/x", "x"),
        Packages("clone", "apt", "x")]  # fmt: skip
BEGIN: dict[str, Any] = {
    "kind": "begin", "version": 1, "id": "7", "flow": "image-update", "time": 1795232888.0, "boot_id": "none",
    "owner": {"pid": 1, "start": 0, "name": "apt"}, "command": "apt install \x1b[2Jx", "front_end": "apt",
    "user": {"uid": 0, "source": "SUDO_UID"}, "running": A, "plan": [to_json(step) for step in PLAN], "request": [],
}  # fmt: skip
VERDICT = {"kind": "verdict", "verdict": "failed", "reasons": ["x is half configured"],
           "changes": [["x", None, "1"], ["y", "1", None]],
           "evidence": {"exit": 100, "lines": ["postinst exited 1"], "kept_conffiles": ["/etc/x"]}}  # fmt: skip


def entries(*lines: dict[str, Any]) -> Entries:
    return Entries(BEGIN, list(lines))


def test_a_transaction_is_summed_up_with_who_what_and_verdict() -> None:
    end = {"kind": "end", "outcome": "undone", "exit": 5}
    row = history.summary(entries(VERDICT, end))
    assert (row["id"], row["flow"], row["verdict"], row["outcome"]) == ("7", "image-update", "failed", "undone")
    assert row["user"] == {"uid": 0, "name": "root", "source": "SUDO_UID"}
    assert (row["packages"], row["exit_code"]) == (2, 5)
    assert history.summary(entries())["outcome"] == "open"
    assert history.table_row(history.summary(entries()))[3] == "open"


def test_a_user_without_a_name_is_his_number_and_an_unknown_one_nobody() -> None:
    assert history.user_name(4_000_000_000) == "4000000000"
    assert history.user_name(None) is None


def test_each_step_has_the_state_of_its_last_line() -> None:
    lines = [{"kind": "started", "step": 0}, {"kind": "done", "step": 0, "result": {}}, {"kind": "started", "step": 1},
             {"kind": "failed", "step": 1, "error": "no space"}, {"kind": "undoing", "step": 1},
             {"kind": "undone", "step": 1}]  # fmt: skip
    assert [step["state"] for step in history.step_states(entries(*lines))] == ["done", "undone", "planned"]
    assert [step["state"] for step in history.step_states(entries(*lines[:4]))] == ["done", "failed", "planned"]
    assert history.step_states(entries(*lines[:4]))[1]["error"] == "no space"


def test_everything_about_a_transaction_is_told() -> None:
    decided = {"kind": "decide", "plan": [to_json(Seal("x"))]}
    joined = {"kind": "request", "request": [], "command": "unattended-upgrade"}
    whole = entries(joined, VERDICT, decided)
    data = {**history.summary(whole), **history.details(whole), "log": ["last line of the log"]}
    text = "\n".join(history.detail_lines(data))
    for part in ("root (uid 0, from SUDO_UID)", "unattended-upgrade", "x is half configured", "postinst exited 1",
                 "exit status 100", "/etc/x", "last line of the log", "mark x complete"):  # fmt: skip
        assert part in text
    assert "\x1b" not in text
    assert json.loads(json.dumps(data)) == data


def test_the_tail_of_a_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "7.log"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(2000)) + b"no newline \xff")
    found = history.tail(log)
    assert found[0].startswith("line ")
    assert found[-1] == "no newline \ufffd"
    assert len("\n".join(found)) <= 4200
    assert history.tail(tmp_path / "none") == []
    log.write_text("one\ntwo\n")
    assert history.tail(log) == ["one", "two"]


# --- status and check

HOOK_CONF = Path(__file__).parents[2] / "hooks/apt/80snap-upgrade"
# What apt itself makes of the file that we ship, with nothing of this machine's own configuration.
GOOD_DUMP = subprocess.run(
    ["/usr/bin/apt-config", "-c", str(HOOK_CONF), "dump"],
    env={"APT_CONFIG": "/dev/null", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    capture_output=True, text=True, check=True,
).stdout  # fmt: skip


def test_hooks_as_installed_have_no_problem() -> None:
    assert health.hook_settings(GOOD_DUMP) == []
    assert health.hook_settings(GOOD_DUMP.replace("DPkg::Post", "Dpkg::post")) == []
    assert health.HOOK in HOOK_CONF.read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('DPkg::Post-Invoke::snap-upgrade "', 'DPkg::Post-Invoke:: "'),
        (f'snap-upgrade "{health.HOOK} pre', 'snap-upgrade "'),
        (f"|| {health.HOOK} post", "|| true"),
        (f'snap-upgrade "{health.HOOK} pre', 'snap-upgrade "nice ' + health.HOOK + " pre"),
        ('Version "3"', 'Version "2"'),
        ('::Version "3"', '::Other "3"'),
    ],
)
def test_each_way_to_break_the_hooks_is_one_problem(old: str, new: str) -> None:
    assert old in GOOD_DUMP
    assert [found.severity for found in health.hook_settings(GOOD_DUMP.replace(old, new))] == ["error"]


def test_an_empty_configuration_has_every_problem() -> None:
    assert len(health.hook_settings("")) == 3


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"1"])
def test_a_hooks_file_that_makes_no_sense_is_reported_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hooks.json").write_bytes(content)
    fired, wrong = health.last_fired(tmp_path)
    assert (fired, len(wrong)) == ({}, 1)
    assert (tmp_path / "hooks.json").read_bytes() == content


STATUS: dict[str, Any] = {
    "running": "initial", "next": "new", "default": "new", "pending": "new", "next_path": "be/new", "is_pending": True,
    "packages_at_work": None, "transactions": [],
    "hooks": {"installed": True, "enabled": True, "last_fired": {}},
    "space": {"total": 10 << 30, "available": 5 << 30, "unallocated": 1 << 30, "metadata_free": 1 << 20,
              "pending_volumes": 0},
}  # fmt: skip


def test_status_tells_running_next_default_and_pending_apart() -> None:
    lines = status.status_lines(STATUS, 0.0)
    assert [line.split()[:2] for line in lines[:4]] == [["running:", "initial"], ["next:", "new"], ["default:", "new"],
                                                        ["pending:", "new"]]  # fmt: skip
    assert "snap-upgrade cancel" in lines[3]
    nothing = status.status_lines({**STATUS, "pending": None, "is_pending": False}, 0.0)
    assert nothing[3] == "pending:   nothing"
    for path, what in (
        ("@", "the volume @, which"),
        ("", "the top level, which"),
        ("a\x1bb", "the volume a\\x1bb, which"),
    ):
        foreign = status.status_lines({**STATUS, "pending": None, "next": None, "next_path": path}, 0.0)
        assert foreign[1] == f"next:      {what} is not on record"
        assert foreign[3] == f"pending:   {what} is not on record (snap-upgrade cancel)"
    gone = status.status_lines({**STATUS, "next": None, "next_path": None, "is_pending": False}, 0.0)
    assert "next:      nothing" in gone[1] and gone[3] == "pending:   nothing"


def test_status_tells_interrupted_work_from_work_under_way() -> None:
    one = {"id": "7", "flow": "live", "process": 12, "program": "apt-get", "is_interrupted": True}
    text = "\n".join(status.status_lines({**STATUS, "transactions": [one]}, 0.0))
    assert "transaction 7 (live), interrupted" in text
    text = "\n".join(status.status_lines({**STATUS, "transactions": [{**one, "is_interrupted": False}]}, 0.0))
    assert "at work, apt-get (process 12)" in text


def test_status_says_when_which_front_end_fired_the_hooks() -> None:
    fired = {
        "installed": True,
        "enabled": True,
        "last_fired": {"apt-get": {"time": 86400.0}, "aptitude": 172800.0, "odd": "x"},
    }
    lines = status.status_lines({**STATUS, "hooks": fired}, 0.0)
    assert any("apt-get: last fired 1970-01-02" in line for line in lines)
    assert any("aptitude: last fired 1970-01-03" in line for line in lines)
    assert any("odd: unknown" in line for line in lines)


def test_exit_codes_of_reading_commands_are_errors_own() -> None:
    assert errors.StorageError("x").exit_code == errors.CommandFailed(["x"], 1, "").exit_code == errors.EXIT_UNCHANGED
