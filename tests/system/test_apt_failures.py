"""Every way in which apt fails, with real apt and real packages: what the hooks judge, keep and say.

The one rule: a machine of its own for each case, and what is expected is the fact sheet's, not our code's.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snap_upgrade.core import wire
from tests.lab import breaking
from tests.lab.breaking import CASES, INSTALL
from tests.lab.debs import Deb
from tests.lab.machine import Machine, Process
from tests.lab.repo import local_repo

TRIXIE = ("postinst-fails", "preinst-fails", "kills-dpkg", "kills-apt", "trigger-fails")
VERDICTS = dict.fromkeys(CASES, "failed") | {"kills-dpkg": "interrupted", "kills-apt": "interrupted"}


@pytest.fixture
def m(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        yield machine


class Transaction:
    """What is on disk of one transaction, open or closed, when nothing of ours is at work any more."""

    def __init__(self, state: Path, ident: int) -> None:
        self.ident = ident
        path = state / "journal" / str(ident)
        self.is_open = path.exists()
        text = (path if self.is_open else state / "history" / f"{ident}.json").read_bytes()
        self.lines: list[dict[str, Any]] = [wire.parse_line(line) for line in text.splitlines(keepends=True)]
        assert None not in self.lines
        self.has_snapshot = (state / "snap" / str(ident)).exists()

    def last(self, kind: str) -> dict[str, Any]:
        return next(line for line in reversed(self.lines) if line["kind"] == kind)

    @property
    def verdict(self) -> str:
        return str(self.last("verdict")["verdict"])


def settle(machine: Machine) -> None:
    """Return when no process of ours is left: hook, watcher, or the recovery that it became."""
    while found := machine.pids(b"apt-hook", b"snap-upgrade"):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                process = os.pidfd_open(pid)
                ended = select.select([process], [], [], 60)[0]
                os.close(process)
                assert ended, f"process {pid} of ours does not end"


def transactions(machine: Machine) -> list[Transaction]:
    """Return all transactions, oldest first."""
    settle(machine)
    state = machine.top / ".snap-upgrade"
    if not state.exists():
        return []
    stems = {
        path.name.removesuffix(".json") for folder in ("journal", "history") for path in (state / folder).iterdir()
    }
    return [Transaction(state, ident) for ident in sorted(map(int, stems))]


def assert_way_back(transaction: Transaction, told: str) -> None:
    """The user was told what failed, where the system of before is, and the command that brings it back."""
    assert transaction.has_snapshot
    for reason in transaction.last("verdict")["reasons"]:
        assert f"snap-upgrade: {reason}" in told
    assert f"snap-upgrade rollback before-{transaction.ident}" in told


def offer(machine: Machine, *debs: Deb) -> None:
    local_repo(machine.path("/"), debs)
    machine.run(["apt-get", "update"])


def open_gate(machine: Machine, name: str) -> None:
    machine.live(f"/run/{name}.gate").write_text("go\n")


@pytest.mark.parametrize(
    ("release", "name"), [("bookworm", name) for name in CASES] + [("trixie", name) for name in TRIXIE]
)
def test_what_apt_breaks_is_judged_kept_and_told(tmp_path: Path, release: str, name: str) -> None:
    case = CASES[name]
    with Machine(tmp_path, release) as m:
        case.prepare(m)
        before = len(transactions(m))
        result = m.run(case.argv, check=False)
        assert result.returncode == case.apt_rc
        found = transactions(m)
        if name == "unmet-dependency":
            assert len(found) == before
            return
        assert len(found) == before + 1
        assert found[-1].verdict == VERDICTS[name]
        assert found[-1].has_snapshot
        if name != "kills-apt":  # there is nobody left to tell it to
            assert_way_back(found[-1], result.output)
        assert [one.verdict for one in found[:-1]] == ["success"] * before


GOOD: dict[str, tuple[tuple[Deb, ...], tuple[tuple[str, ...], ...]]] = {
    "install": ((Deb("a"),), ((*INSTALL, "a"),)),
    "chain of 20 dpkg runs": (breaking.chain(20), ((*INSTALL, "chain20"),)),
    "reinstall": ((Deb("a"),), ((*INSTALL, "a"), (*INSTALL, "--reinstall", "a"))),
    "downgrade": (
        (Deb("a", "1"), Deb("a", "2")),
        ((*INSTALL, "a"), (*INSTALL, "--allow-downgrades", "a=1")),
    ),
    "remove, purge": ((Deb("a"),), ((*INSTALL, "a"), ("apt-get", "remove", "-y", "a"))),
    "purge of conffiles": (
        (breaking.with_conffile("1", "a"),),
        ((*INSTALL, "a"), ("apt-get", "remove", "-y", "a"), ("apt-get", "purge", "-y", "a")),
    ),
    "a held package stays": (
        (Deb("a", "1"), Deb("a", "2"), Deb("b", "1"), Deb("b", "2")),
        ((*INSTALL, "a=1", "b=1"), ("apt-mark", "hold", "a"), ("apt-get", "upgrade", "-y")),
    ),
}


@pytest.mark.parametrize(("debs", "commands"), GOOD.values(), ids=GOOD.keys())
def test_a_good_operation_is_closed_at_once_and_keeps_a_restore_point(
    m: Machine, debs: tuple[Deb, ...], commands: tuple[tuple[str, ...], ...]
) -> None:
    offer(m, *debs)
    for command in commands:
        assert "snap-upgrade" not in m.run(command).output
    found = transactions(m)
    assert len(found) == sum(command[0] == "apt-get" for command in commands)
    assert [(one.verdict, one.is_open, one.has_snapshot) for one in found] == [("success", False, True)] * len(found)
    assert [one.last("end")["outcome"] for one in found] == ["committed"] * len(found)


def test_the_record_says_who_what_and_when(m: Machine) -> None:
    offer(m, Deb("a", "1"), Deb("a", "2"))
    m.run([*INSTALL, "a=1"])
    m.run([*INSTALL, "a=2"], env={"SUDO_UID": "1234"})
    begin = transactions(m)[-1].lines[0]
    assert begin["command"] == "apt-get install -y a=2"
    assert begin["user"] == {"uid": 1234, "source": "SUDO_UID"}
    assert begin["front_end"] == "apt-get"
    assert [(one["old"], one["new"]) for one in begin["request"]] == [(["1", "all"], ["2", "all"])]
    assert transactions(m)[-1].last("verdict")["changes"] == [["a:all", "1", "2"]]


def hang(m: Machine, *, pty: bool = False, debs: tuple[Deb, ...] = (), name: str = "hangs") -> Process:
    """Start an installation and return it when the postinst of *name* waits."""
    offer(m, *(debs or (breaking.hanging(name),)))
    process = m.popen([*INSTALL, debs[-1].name if debs else name], pty=pty)
    m.wait_for_file(f"/run/{name}.hangs")
    return process


def watchers(m: Machine) -> list[int]:
    return m.pids(b"apt-hook")


def what_it_waits_for(watcher: int) -> list[str]:
    """Return the names of the processes whose end a watcher awaits, as soon as apt is not among them or it is gone."""
    while True:
        names = []
        try:
            for info in Path(f"/proc/{watcher}/fdinfo").iterdir():
                for line in info.read_text().splitlines():
                    if line.startswith("Pid:") and int(line[4:]) > 0:
                        names.append(Path(f"/proc/{int(line[4:])}/comm").read_text().strip())
        except FileNotFoundError:
            if not Path(f"/proc/{watcher}").exists():
                return []
            continue  # something ended while we looked
        if names and "apt-get" not in names:
            return names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_apt_killed_while_a_script_hangs_is_interrupted(m: Machine, number: signal.Signals) -> None:
    process = hang(m)
    (watcher,) = watchers(m)
    process.signal(number)
    assert process.wait(60).returncode == -number
    assert "dpkg" in what_it_waits_for(watcher)
    # The script is still at work, so nobody may judge yet.
    assert Transaction(m.top / ".snap-upgrade", 1).lines[-1] == {"kind": "started", "step": 1}
    open_gate(m, "hangs")
    found = transactions(m)[-1]
    assert (found.verdict, found.has_snapshot) in (("interrupted", True), ("success", True))
    status = m.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", "hangs"]).stdout
    assert (found.verdict == "success") == (
        status == "installed" and not list(m.path("/var/lib/dpkg/updates").glob("[0-9]*"))
    )


def test_a_closed_terminal_is_no_failure_when_all_is_installed(m: Machine) -> None:
    process = hang(m, pty=True)
    process.hang_up()
    open_gate(m, "hangs")
    process.wait(60)
    found = transactions(m)[-1]
    assert m.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", "hangs"]).stdout == "installed"
    assert found.verdict == "success"


def test_ctrl_c_between_dpkg_runs_is_a_failure_though_apt_says_0(m: Machine) -> None:
    process = hang(m, pty=True, debs=breaking.chain(4, waits_at=2), name="chain02")
    # What Ctrl-C does: dpkg has a session of its own, so apt alone is in the foreground. A key's way to apt
    # could not be awaited; a signal that was sent is there before apt does anything else.
    process.signal(signal.SIGINT)
    open_gate(m, "chain02")
    result = process.wait(60)
    found = transactions(m)[-1]
    assert result.returncode == 0
    assert found.verdict == "failed"
    assert {"chain03:all", "chain04:all"} <= set(found.last("verdict")["unmet"])
    assert_way_back(found, result.output)


def test_a_later_hook_that_refuses_leaves_nothing_behind(m: Machine) -> None:
    offer(m, Deb("a"))
    m.path("/etc/apt/apt.conf.d/99refuse").write_text('DPkg::Pre-Install-Pkgs { refuse "exit 1"; };\n')
    assert m.run([*INSTALL, "a"], check=False).returncode == 100
    found = transactions(m)[-1]
    assert (found.verdict, found.is_open, found.has_snapshot) == ("unchanged", False, False)
    assert found.last("end")["outcome"] == "undone"
    left = [json.loads(path.read_text()) for path in (m.top / ".snap-upgrade/records").iterdir()]
    assert [(one["kind"], one["adopted"]) for one in left] == [("environment", True)], "only the running root's own"


def test_a_package_broken_before_makes_no_failure_of_a_good_installation(m: Machine) -> None:
    case = CASES["postinst-fails"]
    repo = case.prepare(m)
    assert m.run(case.argv, check=False).returncode == 100
    repo.add(Deb("fine"))
    repo.publish()
    m.run(["apt-get", "update"])
    transactions(m)
    result = m.run([*INSTALL, "fine"], check=False)
    assert result.returncode == 100
    found = transactions(m)[-1]
    assert (found.verdict, found.last("verdict")["still_broken"]) == ("success", ["p-postinst:all"])
    assert "snap-upgrade: p-postinst:all is still broken, as before" in result.output


def test_the_way_without_a_snapshot_is_the_one_that_the_refusal_names(m: Machine) -> None:
    offer(m, Deb("a"))
    conf = m.path("/etc/snap-upgrade.conf")
    conf.write_text("enabled = perhaps\n")
    refused = m.run([*INSTALL, "a"], check=False)
    assert refused.returncode == 100
    assert "snap-upgrade: /etc/snap-upgrade.conf, line 1: enabled is one of yes, no" in refused.output
    assert not m.path("/usr/share/a").exists()
    m.run(["apt-get", "-o", "DPkg::Pre-Install-Pkgs::snap-upgrade=", "install", "-y", "a"])
    assert transactions(m) == []


@pytest.mark.parametrize(("policy", "status"), [("refuse", 100), ("warn", 0)])
def test_no_snapshot_no_operation_unless_the_configuration_says_so(m: Machine, policy: str, status: int) -> None:
    offer(m, Deb("a"))
    m.path("/etc/snap-upgrade.conf").write_text(f"on_no_snapshot = {policy}\n")
    (m.top / ".snap-upgrade").write_text("a file where the state should be\n")
    result = m.run([*INSTALL, "a"], check=False)
    assert result.returncode == status
    assert "snap-upgrade: no snapshot of the root could be made (" in result.output
    assert m.path("/usr/share/a").exists() == (policy == "warn")


def test_apt_works_when_the_hook_is_gone_and_its_configuration_is_not(m: Machine) -> None:
    offer(m, Deb("a"))
    m.path("/usr/lib/snap-upgrade/apt-hook").unlink()
    m.run([*INSTALL, "a"])
    assert transactions(m) == []


def test_without_its_watcher_the_post_hook_judges_itself(m: Machine) -> None:
    process = hang(m)
    (watcher,) = watchers(m)
    signal.pidfd_send_signal(os.pidfd_open(watcher), signal.SIGKILL)
    open_gate(m, "hangs")
    assert process.wait(60).returncode == 0
    found = transactions(m)[-1]
    assert (found.verdict, found.is_open) == ("success", False)


def test_a_command_at_work_is_named_and_waited_for_by_nobody(m: Machine) -> None:
    offer(m, Deb("a"))
    m.run([*INSTALL, "a"])
    lock = "import fcntl,sys; f=open(sys.argv[1],'r+'); fcntl.flock(f,fcntl.LOCK_EX); f.truncate(0); "
    lock += (
        "f.write('snap-upgrade image-update (process 1)\\n'); f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", lock, str(m.top / ".snap-upgrade/lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout and holder.stdout.readline() == "held\n"
        result = m.run([*INSTALL, "--reinstall", "a"], check=False)
        assert holder.stdin
        holder.stdin.close()
    assert result.returncode == 100
    assert "snap-upgrade: locked by snap-upgrade image-update (process 1): refusing the transaction" in result.output
    assert len(transactions(m)) == 1


POINTS = ("hook.begin.empty", "hook.begin.after", "hook.snapshot.made", "hook.record.written", "hook.started.after")


@pytest.mark.parametrize("point", POINTS)
def test_whatever_fails_in_the_hook_leaves_nothing_and_no_package_is_touched(m: Machine, point: str) -> None:
    offer(m, Deb("a"))
    m.live("/run/snap-upgrade-failpoints").touch()
    result = m.run([*INSTALL, "a"], check=False, env={"SNAP_UPGRADE_FAILPOINT": f"error:{point}#1:28"})
    assert result.returncode == 100
    assert "no snapshot of the root could be made (no space left; make room" in result.output
    assert "apt-get -o DPkg::Pre-Install-Pkgs::snap-upgrade= ..." in result.output
    assert transactions(m) == []
    state = m.top / ".snap-upgrade"
    assert not list((state / "snap").iterdir()) and not list((state / "records").iterdir())
    assert not m.path("/usr/share/a").exists()


@pytest.mark.parametrize("point", POINTS)
def test_a_hook_that_is_killed_leaves_nothing_that_recover_does_not_take_away(m: Machine, point: str) -> None:
    offer(m, Deb("a"), Deb("earlier"))
    m.run([*INSTALL, "earlier"])
    m.live("/run/snap-upgrade-failpoints").touch()
    result = m.run([*INSTALL, "a"], check=False, env={"SNAP_UPGRADE_FAILPOINT": f"kill:{point}#1"})
    assert result.returncode == 100
    assert not m.path("/usr/share/a").exists()
    # 4: nothing was interrupted; a journal without a whole first line never began.
    assert m.run(["/usr/sbin/snap-upgrade", "recover"], check=False).returncode in (0, 4)
    assert [one.ident for one in transactions(m) if one.is_open] == []
    state = m.top / ".snap-upgrade"
    assert [path.name for path in (state / "snap").iterdir()] == ["1"]
    assert [one.verdict for one in transactions(m) if one.has_snapshot] == ["success"]
    m.run([*INSTALL, "a"])
    assert transactions(m)[-1].verdict == "success"


def test_the_watcher_holds_nothing_of_apts(m: Machine) -> None:
    process = hang(m, pty=True)
    (watcher,) = watchers(m)
    stat = Path(f"/proc/{watcher}/stat").read_text().rpartition(")")[2].split()
    assert (int(stat[3]), int(stat[4])) == (int(Path(f"/proc/{watcher}/stat").read_text().split()[0]), 0)
    held = sorted(str(fd.readlink()) for fd in Path(f"/proc/{watcher}/fd").iterdir())
    assert [one for one in held if "pts" in one or "pipe" in one or one.endswith("/lock")] == []
    open_gate(m, "hangs")
    assert process.wait(60).returncode == 0


def test_a_chroot_gets_no_snapshot_of_the_machine_around_it(m: Machine) -> None:
    offer(m, Deb("a"))
    m.run(["mkdir", "/srv/inner"])
    m.run(["sh", "-c", "cd / && cp -a --parents usr bin sbin lib lib64 etc var srv/repo /srv/inner/"])
    m.run(["mkdir", "/srv/inner/proc", "/srv/inner/tmp", "/srv/inner/dev", "/srv/inner/run"])
    for folder in ("proc", "dev"):
        m.run(["mount", "--rbind", f"/{folder}", f"/srv/inner/{folder}"])
    m.run(["chroot", "/srv/inner", *INSTALL, "a"])
    assert m.path("/srv/inner/usr/share/a").exists()
    assert transactions(m) == []


def test_a_slow_hook_is_stopped_by_its_own_time_limit(m: Machine) -> None:
    offer(m, Deb("a"))
    m.path("/etc/snap-upgrade.conf").write_text("hook_timeout_s = 1\n")
    m.run([*INSTALL, "a"])
    # Somebody who closes an older operation holds the lock, and for too long.
    lock = "import fcntl; f=open('/dev/stdin','r+'); fcntl.flock(f,fcntl.LOCK_EX); print('held', flush=True); "
    lock += "import signal; signal.pause()"
    path = m.top / ".snap-upgrade/lock"
    with path.open("r+") as file:
        file.truncate(0)
        file.write("the hook of apt-get (process 1)\n")
        file.flush()
        with subprocess.Popen([sys.executable, "-c", lock], stdin=file, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            result = m.run([*INSTALL, "--reinstall", "a"], check=False)
            holder.kill()
    assert result.returncode == 100
    assert "(it took longer than hook_timeout_s in /etc/snap-upgrade.conf allows): refusing" in result.output
    assert len(transactions(m)) == 1
