"""The hook on real machines where it cannot do its work: no way back, signals, missed post hooks, switched off.

The one rule: apt is asked and apt answers: its exit status, its words, and what is on the disk afterwards.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from snap_upgrade.hook import trouble
from snap_upgrade.packages.apt import Apt
from tests.lab import blockdev, breaking
from tests.lab.breaking import CASES, INSTALL
from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine, Process, Result
from tests.system.clilab import su
from tests.system.test_apt_failures import hang, m, offer, open_gate, settle, transactions, watchers

__all__ = ["m"]
CONF = "/etc/snap-upgrade.conf"
HOOK = "/usr/lib/snap-upgrade/apt-hook"
POLICIES = [("refuse", 100), ("warn", 0)]


def state_is_empty(machine: Machine) -> bool:
    """Whether nothing of any transaction is there: no journal, snapshot, record, watcher or socket of one."""
    state = machine.top / ".snap-upgrade"
    left = [path for kind in ("journal", "history", "snap", "records") for path in (state / kind).glob("*")]
    return left + list(machine.live("/run/snap-upgrade").glob("hook/*")) == [] and not watchers(machine)


# --- no way back


@contextmanager
def swap_file(machine: Machine) -> Iterator[None]:
    machine.run(["btrfs", "filesystem", "mkswapfile", "--size", "16m", "/swapfile"])
    machine.run(["swapon", "/swapfile"])
    try:
        yield
    finally:
        machine.run(["swapoff", "/swapfile"])


def nothing(_machine: Machine) -> AbstractContextManager[None]:
    return nullcontext()


LAYOUTS: dict[str, tuple[Layout, Callable[[Machine], AbstractContextManager[None]], str]] = {
    "kernel line has subvolid": (Layout(kernel_line="subvolid"), nothing, "the kernel command line says subvolid=256"),
    "kernel line has the top level": (Layout(subvol=None, kernel_line="subvol"), nothing, "says subvol=/"),
    "/var/lib/rpm elsewhere": (Layout(extra=(("@rpm", "/var/lib/rpm"),)), nothing, "/var/lib/rpm lies outside"),
    "dpkg's database elsewhere": (
        Layout(extra=(("@dpkg", "/var/lib/dpkg"),)), nothing, "dpkg's database in /var/lib/dpkg is not in the subvolume"
    ),
    "swap file": (Layout(), swap_file, "the active swap file /swapfile is inside the root volume"),
}  # fmt: skip


@pytest.mark.parametrize(("layout", "also", "reason"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_where_no_roll_back_can_take_effect_apt_is_refused_or_warned(
    layout: Layout, also: Callable[[Machine], AbstractContextManager[None]], reason: str, tmp_path: Path
) -> None:
    with Machine(tmp_path, layout=layout, extra=("btrfs-progs",)) as m, also(m):
        offer(m, Deb("a"))
        for policy, status in POLICIES:
            m.path(CONF).write_text(f"on_no_snapshot = {policy}\n")
            result = m.run([*INSTALL, "a"], check=False)
            assert_told(result, policy, status, reason)
            assert m.live("/usr/share/a").exists() == (policy == "warn")
            assert not list((m.top / ".snap-upgrade").glob("journal/*"))
        assert m.run(["snap-upgrade", "check"], check=False).returncode == 3


def assert_told(result: Result, policy: str, status: int, reason: str) -> None:
    assert result.returncode == status, result.output
    assert reason in result.output
    if policy == "refuse":
        assert "refusing the transaction" in result.output
        assert "apt-get -o DPkg::Pre-Install-Pkgs::snap-upgrade= ..." in result.output
        assert "on_no_snapshot = warn in /etc/snap-upgrade.conf" in result.output
    else:
        assert "going on without one, as /etc/snap-upgrade.conf says" in result.output


# PID 1 of a pid namespace whose root is another file system, as a live medium or another installation would have it.
_OTHER_ROOT = """set -e
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
pivot_root . .
umount -l .
cd /
shift
"$@"
"""


def in_other_root(machine: Machine, where: str, argv: tuple[str, ...]) -> Result:
    inside = ["sh", "-c", _OTHER_ROOT, "sh", where, *argv]
    return machine.run(["unshare", "--mount", "--pid", "--fork", "--propagation", "private", *inside], check=False)


@pytest.mark.parametrize(("policy", "status"), POLICIES)
@pytest.mark.parametrize("kind", ["overlay", "ext4"])
def test_a_root_that_is_not_on_btrfs_is_refused_or_warned(kind: str, policy: str, status: int, tmp_path: Path) -> None:
    with Machine(tmp_path) as m:
        offer(m, Deb("a"))
        m.path(CONF).write_text(f"on_no_snapshot = {policy}\n")
        with other_file_system(m, kind, tmp_path) as where:
            assert_told(in_other_root(m, where, (*INSTALL, "a")), policy, status, f"{kind}, not btrfs")
            assert m.live(f"{where}/usr/share/a").exists() == (policy == "warn")


@contextmanager
def other_file_system(machine: Machine, kind: str, tmp_path: Path) -> Iterator[str]:
    machine.run(["mkdir", "/run/o", "/run/upper", "/run/layers"])
    if kind == "overlay":
        machine.run(["mount", "-t", "tmpfs", "tmpfs", "/run/layers"])
        machine.run(["mkdir", "/run/layers/upper", "/run/layers/work"])
        layers = "lowerdir=/,upperdir=/run/layers/upper,workdir=/run/layers/work"
        machine.run(["mount", "-t", "overlay", "overlay", "-o", layers, "/run/o"])
        yield "/run/o"
        return
    image = tmp_path / "ext4.img"
    made = ["/sbin/mkfs.ext4", "-q", "-d", str(machine.path("/")), str(image), "2G"]
    subprocess.run(made, check=True)
    with blockdev.attached(image) as device:
        number = device.stat().st_rdev
        machine.run(["mknod", "/dev/other", "b", str(os.major(number)), str(os.minor(number))])
        machine.run(["mount", "-t", "ext4", "/dev/other", "/run/o"])
        yield "/run/o"
        machine.run(["umount", "/run/o"])


@pytest.mark.parametrize(("policy", "status"), POLICIES)
def test_a_root_that_is_read_only_is_refused_or_warned(m: Machine, policy: str, status: int) -> None:
    offer(m, Deb("a", files={"/var/opt/a": b"a\n"}))
    m.path(CONF).write_text(f"on_no_snapshot = {policy}\n")
    # apt itself needs /var; so it is a copy that can be written, and dpkg can install what lies below it.
    script = 'cp -a /var /run/var; mount --bind /run/var /var; mount -o remount,bind,ro /; exec "$@"'
    result = m.run(["unshare", "--mount", "sh", "-ec", script, "sh", *INSTALL, "a"], check=False)
    assert_told(result, policy, status, "the root is mounted read-only")
    assert m.live("/run/var/opt/a").exists() == (policy == "warn")


def test_a_file_system_that_is_read_only_stays_so_where_only_a_warning_is_wanted(m: Machine) -> None:
    offer(m, Deb("a", files={"/var/opt/a": b"a\n"}))
    m.path(CONF).write_text("on_no_snapshot = warn\n")
    script = 'cp -a /var /run/var; mount --bind /run/var /var; mount -o remount,ro /; "$@"; cat /proc/self/mountinfo'
    result = m.run(["unshare", "--mount", "sh", "-ec", script, "sh", *INSTALL, "a"])
    assert "(the root is mounted read-only); going on without one" in result.output
    (root,) = (line for line in result.stdout.splitlines() if line.split(" ")[4:5] == ["/"] and " - btrfs " in line)
    assert root.partition(" - btrfs ")[2].split(" ")[1].split(",")[0] == "ro"


def test_what_is_remembered_of_the_layout_ends_with_what_it_was_made_from(m: Machine) -> None:
    offer(m, Deb("a"))
    for _ in range(2):
        m.run([*INSTALL, "--reinstall", "a"])
    remembered = m.top / ".snap-upgrade/layout.json"
    made = remembered.stat().st_ino
    m.run([*INSTALL, "--reinstall", "a"])
    assert remembered.stat().st_ino == made  # nobody asked again
    fstab = m.path("/etc/fstab")
    # The kernel line decides before fstab does; so it has to be silent for this.
    m.live("/proc/cmdline").write_text("quiet\n")
    m.run([*INSTALL, "--reinstall", "a"])
    assert remembered.stat().st_ino != made
    made = remembered.stat().st_ino
    fstab.write_text(fstab.read_text().replace("subvol=@", "subvolid=256"))
    result = m.run([*INSTALL, "--reinstall", "a"], check=False)
    assert_told(result, "refuse", 100, "/etc/fstab says subvolid=256")
    assert remembered.stat().st_ino == made  # a refusal is not remembered
    fstab.write_text(fstab.read_text().replace("subvolid=256", "subvol=@"))
    m.run([*INSTALL, "--reinstall", "a"])
    remembered.write_text("[[[")
    m.run([*INSTALL, "--reinstall", "a"])
    assert json.loads(remembered.read_text())


# --- signals


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
BEFORE, AFTER = ("hook.asked", "hook.begin.empty", "hook.begin.after"), (
    "hook.snapshot.made", "hook.record.written", "hook.started.after", "hook.watcher.forked", "hook.watching",
)  # fmt: skip


def stopped_at(m: Machine, point: str) -> tuple[Process, int]:
    """Start apt and return it and its hook, which waits at *point* until somebody opens the pipe /run/points."""
    m.live("/run/snap-upgrade-failpoints").touch()
    gate, old = m.live("/run/points"), m.live("/run/points.old")
    os.mkfifo(gate)
    process = m.popen([*INSTALL, "a"], env={"SNAP_UPGRADE_FAILPOINT": "log:/run/points"}, pty=True)
    for one in (*BEFORE, *AFTER):
        hook = waiting_hook(m)
        if one == point:
            return process, hook
        # The next point needs a pipe of its own before this one is opened.
        gate.rename(old)
        os.mkfifo(gate)
        assert old.read_text() == f"{one}#1\n"
    raise AssertionError(f"there is no point {point}")


def waiting_hook(m: Machine) -> int:
    """Return the pre hook once it sleeps in what the kernel calls waiting for a pipe's other end."""
    while True:
        for pid, line in m.processes().items():
            is_ours = line.endswith("-IS /usr/lib/snap-upgrade/apt-hook pre")
            if is_ours and Path(f"/proc/{pid}/wchan").read_text() == "wait_for_partner":
                return pid


def test_a_hook_killed_while_it_takes_back_its_snapshot_leaves_nothing_that_recovery_cannot_close(m: Machine) -> None:
    offer(m, Deb("a"))
    process, hook = stopped_at(m, "hook.watching")
    signal.pidfd_send_signal(os.pidfd_open(hook), signal.SIGTERM)
    gate, old = m.live("/run/points"), m.live("/run/points.old")
    for point in ("hook.watching#1", "hook.undoing.after#1"):
        gate.rename(old)
        os.mkfifo(gate)
        assert old.read_text() == f"{point}\n"
        assert waiting_hook(m) == hook
    assert not (m.top / ".snap-upgrade/snap/1").exists()
    signal.pidfd_send_signal(os.pidfd_open(hook), signal.SIGKILL)
    assert process.wait(60).returncode == 100
    su(m, "recover")
    (found,) = transactions(m)
    assert not found.is_open
    assert found.last("end")["outcome"] == "undone"
    su(m, "status")
    m.run([*INSTALL, "a"])


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("point", [*BEFORE, *AFTER])
def test_a_signal_in_the_pre_hook_leaves_nothing_half_made(m: Machine, point: str, number: signal.Signals) -> None:
    offer(m, Deb("a"))
    process, hook = stopped_at(m, point)
    signal.pidfd_send_signal(os.pidfd_open(hook), number)
    # From here on nothing waits any more: whoever opens the pipe finds a reader.
    pipe = os.open(m.live("/run/points"), os.O_RDWR)
    result = process.wait(60)
    os.close(pipe)
    assert result.returncode == 100
    words = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}
    assert f"no snapshot of the root could be made ({words[number]}): refusing" in result.output
    assert "E: Failure running script" in result.output
    assert state_is_empty(m)
    assert not m.path("/usr/share/a").exists()
    m.run([*INSTALL, "a"])
    assert [(one.verdict, one.is_open) for one in transactions(m)] == [("success", False)]


@pytest.mark.parametrize("point", ["hook.asked", "hook.watching"])
def test_ctrl_c_pressed_in_the_pre_hook_is_a_tidy_end_of_apt(m: Machine, point: str) -> None:
    offer(m, Deb("a"))
    process, _ = stopped_at(m, point)
    process.ctrl_c()
    process.wait_for("^C")  # the terminal writes it after it has sent the signal
    pipe = os.open(m.live("/run/points"), os.O_RDWR)
    result = process.wait(60)
    os.close(pipe)
    assert result.returncode == 100
    settle(m)
    assert state_is_empty(m)
    assert not m.path("/usr/share/a").exists()


# --- a post hook that never ran

DAEMON = """
import os, sys, apt
def remove(name):
    cache = apt.Cache()
    cache[name].mark_delete(auto_fix=False)
    try:
        cache.commit()
    except SystemError as error:
        print("commit:", error, flush=True)
remove(sys.argv[1])
open("/run/let", "w").close()
remove(sys.argv[2])
os.mkfifo("/run/gate")
open("/run/done", "w").close()
open("/run/gate").read()
"""
SKIPS_OURS = 'DPkg::Post-Invoke { fails "test -e /run/let"; };\n'


def missed_post(m: Machine, first: str, second: str) -> Process:
    """Start a daemon that removes two packages, the first without our post hook; return it when it is idle."""
    m.path("/etc/apt/apt.conf.d/05fails").write_text(SKIPS_OURS)
    m.path("/root/daemon").write_text(DAEMON)
    process = m.popen(["/usr/bin/python3", "/root/daemon", first, second])
    m.wait_for_file("/run/done")
    return process


@pytest.mark.parametrize(
    ("deb", "verdict"), [(Deb("aa"), "success"), (Deb("aa", scripts={"prerm": breaking.FAIL}), "failed")]
)
def test_the_next_operation_of_a_daemon_closes_the_one_whose_post_hook_was_missed(
    m: Machine, deb: Deb, verdict: str
) -> None:
    offer(m, deb, Deb("bb"))
    m.run([*INSTALL, "aa", "bb"])
    process = missed_post(m, "aa", "bb")
    if verdict == "success":
        # Nobody watches an idle daemon for what is closed: less than the time after which a watcher looks by itself.
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            for watcher in watchers(m):
                assert select.select([os.pidfd_open(watcher)], [], [], 20)[0]
    m.live("/run/gate").write_text("")
    result = process.wait(60)
    assert "commit: " in result.output
    first, second = transactions(m)[-2:]
    assert first.lines[0]["owner"] == second.lines[0]["owner"]
    assert (first.verdict, second.verdict, second.is_open) == (verdict, "success", False)
    assert [change[0] for change in second.last("verdict")["changes"]] == ["bb:all"]
    assert ("transaction 2 failed" in result.output) == (verdict == "failed")
    assert not list(m.live("/run/snap-upgrade/hook").iterdir())


def test_recover_closes_what_neither_post_nor_watcher_did(m: Machine) -> None:
    process = hang(m)
    (watcher,) = watchers(m)
    signal.pidfd_send_signal(os.pidfd_open(watcher), signal.SIGKILL)
    m.run(["chmod", "-x", HOOK])
    open_gate(m, "hangs")
    process.wait(60)
    m.run(["chmod", "+x", HOOK])
    assert transactions(m)[-1].is_open
    assert m.run(["snap-upgrade", "recover"], check=False).returncode == 0
    found = transactions(m)[-1]
    assert (found.verdict, found.is_open) == ("success", False)


# --- what nobody sees is written down


def test_what_goes_wrong_in_the_watcher_is_logged_and_status_tells(m: Machine) -> None:
    process = hang(m)
    m.path(CONF).write_text("enabled = perhaps\n")
    open_gate(m, "hangs")
    assert "transaction 1 cannot be judged and stays open" in process.wait(60).output
    settle(m)
    m.path(CONF).write_text("")
    log = (m.top / ".snap-upgrade" / trouble.LOG).read_text()
    assert re.search(r"^\S+Z the watcher, transaction 1: BadSetting: .*enabled is one of yes, no", log, re.MULTILINE)
    told = json.loads(m.run(["snap-upgrade", "--json", "status"], check=False).stdout)["hooks"]["last_trouble"]
    assert (told["who"], told["transaction"]) == ("the watcher", "1")
    assert "enabled is one of yes, no" in m.run(["snap-upgrade", "status"], check=False).output


def test_what_goes_wrong_in_the_post_hook_is_logged(m: Machine) -> None:
    process = hang(m)
    (watcher,) = watchers(m)
    signal.pidfd_send_signal(os.pidfd_open(watcher), signal.SIGKILL)
    m.path(CONF).write_text("enabled = perhaps\n")
    open_gate(m, "hangs")
    assert "transaction 1 cannot be judged and stays open" in process.wait(60).output
    assert "the post hook, transaction 1: BadSetting" in (m.top / ".snap-upgrade" / trouble.LOG).read_text()


# --- one verdict on the same evidence


KINDS = ("preinst-fails", "postinst-fails", "remove-postrm-fails", "trigger-fails", "file-conflict", "kills-dpkg")


@pytest.mark.parametrize("name", KINDS)
def test_recover_judges_as_the_hook_judged(m: Machine, name: str) -> None:
    case = CASES[name]
    case.prepare(m)
    transactions(m)
    m.run(case.argv, check=False)
    found = transactions(m)[-1]
    theirs = found.last("verdict")
    begin = found.lines[0]
    before = m.top / ".snap-upgrade/snap" / str(found.ident)
    outcome = Apt().judge(before, m.path("/"), [begin["request"]], None, begin["since"])
    assert (outcome.verdict, list(outcome.reasons)) == (theirs["verdict"], theirs["reasons"])
    assert [[one.old, one.new] for one in outcome.changes] == [change[1:] for change in theirs["changes"]]
    evidence = theirs["evidence"]
    assert list(outcome.evidence) == [*evidence["errors"], *evidence["term_tail"].splitlines()]
    assert evidence["started"] == 1 and evidence["term_tail"]


# --- special ways to go wrong


def test_the_new_prerm_mends_what_the_old_one_fails_at(m: Machine) -> None:
    """dpkg calls the old prerm; if that fails the new one: only if both fail is the upgrade a failure."""
    mends = "#!/bin/sh\ntest \"$1\" != failed-upgrade || echo 'the new prerm mends'\n"
    offer(m, Deb("p", "1.0", scripts={"prerm": breaking.FAIL}), Deb("p", "2.0", scripts={"prerm": mends}))
    m.run([*INSTALL, "p=1.0"])
    assert "the new prerm mends" in m.run([*INSTALL, "p=2.0"]).output
    assert transactions(m)[-1].verdict == "success"


def test_a_new_prerm_that_fails_alone_fails_only_when_it_runs(m: Machine) -> None:
    offer(m, Deb("p", "1.0", scripts={"prerm": "#!/bin/sh\n"}), breaking.fails_in("prerm", "p"))
    m.run([*INSTALL, "p=1.0"])
    m.run([*INSTALL, "p=2.0"])
    assert transactions(m)[-1].verdict == "success"
    assert m.run(["apt-get", "remove", "-y", "p"], check=False).returncode == 100
    found = transactions(m)[-1]
    assert (found.verdict, found.last("verdict")["unmet"]) == ("failed", ["p:all"])


def test_ctrl_c_pressed_on_the_terminal_between_dpkg_runs_is_a_failure(m: Machine) -> None:
    process = hang(m, pty=True, debs=breaking.chain(4, waits_at=2), name="chain02")
    process.ctrl_c()
    # Keys come in their order, and dpkg's terminal echoes what is no signal: then the signal was sent.
    process.type("echoed\n")
    process.wait_for("echoed")
    open_gate(m, "chain02")
    result = process.wait(60)
    found = transactions(m)[-1]
    assert result.returncode in (0, 100)
    assert found.verdict == "failed"
    assert {"chain03:all", "chain04:all"} <= set(found.last("verdict")["unmet"])
    assert "snap-upgrade rollback before-1" in result.output


def test_what_dpkg_does_by_itself_is_no_part_of_the_next_verdict(m: Machine) -> None:
    offer(m, Deb("a"), Deb("c"), Deb("d"))
    m.run([*INSTALL, "a"])
    breaks = breaking.fails_in("postinst", "b").build(m.path("/root"))
    assert m.run(["dpkg", "-i", f"/root/{breaks.name}"], check=False).returncode == 1
    m.run(["dpkg", "-r", "a"])
    assert len(transactions(m)) == 1
    m.run([*INSTALL, "c"], check=False)
    found = transactions(m)[-1]
    assert (found.verdict, found.last("verdict")["still_broken"]) == ("success", ["b:all"])
    assert [change[0] for change in found.last("verdict")["changes"]] == ["c:all"]
    m.run(["dpkg", "-P", "b"])
    m.run([*INSTALL, "d"])
    assert [change[0] for change in transactions(m)[-1].last("verdict")["changes"]] == ["d:all"]


# --- hostile names


HOSTILE = ["x = 1\nimport apt", "\x1b[31mred\x1b[0m\r", "#" + "x" * 100_000]


@pytest.mark.parametrize("head", HOSTILE, ids=["lines", "escapes", "long"])
def test_code_on_the_command_line_is_named_and_written_safely(m: Machine, head: str) -> None:
    offer(m, Deb("a"))
    m.run([*INSTALL, "a"])
    code = f"'''{head}'''\nimport apt\nc = apt.Cache()\nc['a'].mark_delete()\nc.commit()"
    m.run(["/usr/bin/python3", "-c", code])
    begin = transactions(m)[-1].lines[0]
    assert begin["front_end"] == begin["owner"]["name"] == "python3 -c"
    assert begin["command"].isprintable() and len(begin["command"]) <= 1000
    assert begin["command"].startswith("/usr/bin/python3 -c '''")


# --- switched off


def test_enabled_no_does_nothing_at_all(m: Machine) -> None:
    offer(m, Deb("a"))
    m.path(CONF).write_text("enabled = no\n")
    assert "snap-upgrade" not in m.run([*INSTALL, "a"]).output
    assert m.path("/usr/share/a").exists()
    assert not (m.top / ".snap-upgrade").exists()


def test_switched_off_for_one_run_does_nothing_and_the_next_is_protected(m: Machine) -> None:
    offer(m, Deb("a"))
    off = ["-o", "DPkg::Pre-Install-Pkgs::snap-upgrade="]
    assert "snap-upgrade" not in m.run(["apt-get", *off, "install", "-y", "a"]).output
    assert not (m.top / ".snap-upgrade").exists()
    m.run([*INSTALL, "--reinstall", "a"])
    assert [one.verdict for one in transactions(m)] == ["success"]
