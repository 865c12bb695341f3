"""The hooks' light doubles of heavier modules agree with them: settings, journal, records; and who is who."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snap_upgrade import config, journal
from snap_upgrade.core import layout as layouts
from snap_upgrade.core import verdict
from snap_upgrade.core.errors import UsageError
from snap_upgrade.hook import ancestry, closing, layout, owner, settings, state, trouble
from snap_upgrade.system import aptlogs

KEYS = ["enabled", "on_no_snapshot", "keep_on_success", "policy", "hook_timeout_s", "activation"]
VALUES = ["auto", "yes", "no", "refuse", "warn", "default", "proposal", "7", "0", "", "maybe", "-1", "9999999999"]
config_lines = st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES)) | st.sampled_from(
    ["", "# comment", "enabled=no # why", "no equals sign", "  policy =  proposal  "]
)


@given(st.lists(config_lines, max_size=5))
@example(["enabled = no", "enabled = no"])
def test_the_hooks_read_the_configuration_as_the_commands_do(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        full = config.parse(text)
    except UsageError:
        with pytest.raises(settings.BadSetting):
            settings.parse(text)
        return
    light = settings.parse(text)
    assert light.is_enabled == full.enabled
    assert light.refuses == (full.on_no_snapshot == "refuse")
    assert light.is_kept == (full.keep_on_success and full.policy != "proposal")
    assert light.hook_timeout_s == full.hook_timeout_s
    assert light.activation == full.activation


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    state._furnish(fd)
    yield fd
    os.close(fd)


STEPS = [
    {"step": "snapshot", "source": "a" * 32, "path": ".snap-upgrade/snap/1", "name": "snap-1"},
    {"step": "packages", "place": "live", "manager": "apt"},
]


def begun(folder: int) -> str:
    def compose(ident: str) -> list[dict[str, object]]:
        first = {"kind": "begin", "version": 1, "id": ident, "flow": "live", "plan": STEPS, "request": []}
        return [first, {"kind": "started", "step": 0}]

    return state.begin(folder, compose)


def test_the_engine_reads_the_journal_that_a_hook_writes(folder: int, tmp_path: Path) -> None:
    ident = begun(folder)
    state.append(folder, ident, {"kind": "done", "step": 0, "result": {"uuid": "b" * 32}})
    found = journal.Journal.open(tmp_path / "journal" / ident)
    assert found is not None
    assert (found.entries.ident, found.entries.numbers("done"), len(found.entries.steps())) == ("1", [0], 2)
    found.append("started", step=1)
    state.close(folder, ident, "committed", {"kind": "decide", "plan": []})
    closed = journal.read(tmp_path, ident)
    assert [line["kind"] for line in closed.lines] == ["started", "done", "started", "decide", "end"]


def test_a_number_never_comes_twice(folder: int, tmp_path: Path) -> None:
    assert begun(folder) == "1"
    state.close(folder, "1", "committed")
    (tmp_path / "snap" / "6").mkdir()
    assert begun(folder) == "7" == str(journal.next_number(tmp_path) - 1)


def test_a_torn_last_line_is_cut_off_before_the_next(folder: int, tmp_path: Path) -> None:
    ident = begun(folder)
    whole = (tmp_path / "journal" / ident).read_bytes()
    for length in range(1, 12):
        (tmp_path / "journal" / ident).write_bytes(whole + b"deadbeef {}"[:length])
        state.append(folder, ident, {"kind": "started", "step": 1})
        known = state.lines(folder, ident)
        assert known is not None and [line["kind"] for line in known[0]] == ["begin", "started", "started"]


def test_a_damaged_journal_is_neither_read_nor_written(folder: int, tmp_path: Path) -> None:
    ident = begun(folder)
    path = tmp_path / "journal" / ident
    damaged = path.read_bytes().replace(b"live", b"LIVE")
    path.write_bytes(damaged)
    assert state.lines(folder, ident) is None
    with pytest.raises(state.BadState):
        state.append(folder, ident, {"kind": "started", "step": 1})
    assert path.read_bytes() == damaged


def test_a_taken_lock_names_its_holder(folder: int) -> None:
    held = state.lock(folder, "snap-upgrade prune")
    with pytest.raises(state.Locked, match=f"snap-upgrade prune .process {os.getpid()}."):
        state.lock(folder, "the hook of apt")
    os.close(held)
    os.close(state.lock(folder, "the hook of apt"))


def test_a_state_of_a_later_version_is_refused(folder: int, tmp_path: Path) -> None:
    (tmp_path / ".snap-upgrade").mkdir()
    (tmp_path / ".snap-upgrade" / "version").write_text("2\n")
    with pytest.raises(state.BadState, match="the version '2', this program knows 1"):
        state.open_state(folder)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["apt-get", "install", "x"], "apt-get"),
        (["/usr/bin/aptitude"], "aptitude"),
        (["/usr/bin/python3", "-u", "/usr/bin/unattended-upgrade", "-d"], "unattended-upgrade"),
        (["perl", "-w", "/usr/sbin/synth"], "synth"),
        (["python3"], "python3"),
        (["python3", "-c", "import os\nos.x('/usr/bin/apt')"], "python3 -c"),
        (["/usr/bin/python3", "-Ic", "pass"], "python3 -c"),
        (["python3", "-W", "ignore", "-X", "dev", "/opt/x.py"], "x.py"),
        (["python3", "-Wignore", "x.py", "-c"], "x.py"),
        (["python3", "-I", "-m", "my.module", "x"], "python3 -m my.module"),
        (["python3", "-mmine"], "python3 -m mine"),
        (["python3", "-m"], "python3 -m "),
        (["perl", "-we", "print 1"], "perl -e"),
        (["/x/evil\n\x1b[31m", "y"], "evil\\n\\x1b[31m"),
        (["a\udcff"], "a\\udcff"),
        (["y" * 100_000], "y" * 59 + "…"),
        (["/"], "comm"),
        ([], "comm"),
    ],
)
def test_a_front_end_is_called_what_a_person_calls_it(argv: list[str], name: str) -> None:
    assert owner.name(argv, "comm") == name


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SUDO_UID": "1000"}, {"uid": 1000, "source": "SUDO_UID"}),
        ({"PKEXEC_UID": "5", "PACKAGEKIT_CALLER_UID": "6"}, {"uid": 5, "source": "PKEXEC_UID"}),
        ({"PACKAGEKIT_CALLER_UID": "6"}, {"uid": 6, "source": "PACKAGEKIT_CALLER_UID"}),
        ({"SUDO_UID": "x; rm", "PKEXEC_UID": "7"}, {"uid": 7, "source": "PKEXEC_UID"}),
    ],
)
def test_the_person_behind_it_is_who_apt_says(environment: dict[str, str], expected: dict[str, object]) -> None:
    assert owner.user(environment) == expected


LOCK = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.lockf(f,fcntl.LOCK_EX); print(1,flush=True); sys.stdin.read()"


def test_the_holder_of_a_lock_is_named_and_nobody_where_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert owner.lock_holder(str(path)) == 0
    command = [sys.executable, "-c", LOCK, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline()
        assert owner.lock_holder(str(path)) == holder.pid
        assert holder.stdin
        holder.stdin.close()
    assert owner.lock_holder(str(path)) == 0


def test_a_process_of_which_only_the_exit_status_is_left_has_ended() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    one = ancestry.Ancestor(child)
    assert one.is_dead and not ancestry.is_alive(child, one.start)
    os.waitpid(child, 0)
    parent = ancestry.Ancestor(os.getpid())
    assert ancestry.is_alive(parent.pid, parent.start) and not ancestry.is_alive(parent.pid, parent.start + 1)


def test_only_what_the_logs_got_since_then_counts_also_after_a_rotation(tmp_path: Path) -> None:
    (tmp_path / "var/log/apt").mkdir(parents=True)
    history, dpkg = tmp_path / "var/log/apt/history.log", tmp_path / "var/log/dpkg.log"
    history.write_text("\nStart-Date: old\nEnd-Date: old\n")
    dpkg.write_text("old startup archives unpack\n")
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    since = aptlogs.positions(root)
    assert aptlogs.collect(root, since).ran is False
    with history.open("a") as file:
        file.write("\nStart-Date: new\n")
    dpkg.rename(tmp_path / "var/log/dpkg.log.1")
    dpkg.write_text("new startup archives unpack\n")
    found = aptlogs.collect(root, since)
    assert (found.started, found.ended, found.startups, found.is_cut_off) == (1, 0, 1, True)
    os.close(root)


def test_no_log_means_that_nothing_ran_only_if_apt_keeps_one(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    keeps = {"Dir::Log": "var/log/apt", "Dir::Log::History": "history.log"}
    assert aptlogs.collect(root, aptlogs.positions(root, keeps)).ran is False
    assert aptlogs.collect(root, aptlogs.positions(root, {})).ran is True
    os.close(root)


def test_a_failure_names_the_snapshot_and_the_one_command() -> None:
    result = verdict.Verdict("failed", ["a:all should be 2"], ["a:all"], [], [], [["a:all", "1", None]], True)
    assert closing.message(closing.Judged("42", result, True, True), False) == (
        "snap-upgrade: a:all should be 2\n"
        "snap-upgrade: transaction 42 failed; the snapshot snap-42 holds the system as it was before\n"
        "snap-upgrade: to boot that system next: snap-upgrade rollback before-42\n"
    )


def test_a_good_operation_says_so_only_on_a_terminal() -> None:
    good = closing.Judged("42", verdict.Verdict("success", [], [], [], [], [], True), False, True)
    assert closing.message(good, False) == ""
    assert closing.message(good, True) == "snap-upgrade: transaction 42 is good; restore point kept\n"


@given(st.text(st.characters(), max_size=300), st.integers(2, 200))
def test_what_is_shown_is_one_printable_line_of_bounded_length(text: str, most: int) -> None:
    found = owner.shown(text, most)
    assert found.isprintable() and len(found) <= most
    if text.isprintable() and len(text) <= most:
        assert found == text


def test_the_hook_looks_at_every_place_that_the_layout_wants_together() -> None:
    assert set(layout._PLACES) == {*layouts.TOGETHER, "/boot"}


def test_the_log_of_the_hooks_is_of_bounded_size_and_keeps_the_last(folder: int, tmp_path: Path) -> None:
    for number in range(300):
        trouble.note(folder, "the watcher", str(number), OSError(5, "x" * 5000 + "\x1b[31m\n"))
    sizes = [(tmp_path / name).stat().st_size for name in (trouble.LOG, trouble.OLDER)]
    assert max(sizes) <= trouble.MOST + 3000 and sum(sizes) > trouble.MOST
    lines = (tmp_path / trouble.LOG).read_text().split("\n")
    assert "the watcher, transaction 299: OSError: [Errno 5] xxx" in lines[-2]
    assert all(line.isprintable() and len(line) < 2200 for line in lines)
    assert '"transaction":"299"' in (tmp_path / trouble.LAST).read_text()


def test_trouble_that_cannot_be_logged_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    trouble.note(fd, "the watcher", "1", "it broke")
    os.close(fd)
    assert "the watcher, transaction 1: it broke" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("enabled = maybe\n", True),
        ("enabled = maybe\non_no_snapshot = warn  # mine\n", False),
        ("no equals sign\non_no_snapshot = refuse\n", True),
        ("on_no_snapshot = warn\non_no_snapshot = refuse\n", True),
        (None, True),
    ],
)
def test_settings_that_are_wrong_still_say_whether_to_refuse(
    text: str | None, refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    monkeypatch.setattr(settings, "PATH", str(path))
    if text is None:
        os.mkfifo(path)
    else:
        path.write_text(text)
    with pytest.raises(settings.BadSetting) as caught:
        settings.load()
    assert caught.value.refuses is refuses
    assert str(path) in str(caught.value)
