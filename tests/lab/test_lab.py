"""The laboratory itself: what the other suites stand on is proven here, with nothing of the product installed."""

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import btrfsutil
import pytest

from tests.lab import breaking, image, install, kernel, tree
from tests.lab import machine as machine_module
from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine, MachineDied, ProgramFailed
from tests.lab.repo import local_repo

RELEASES = ("bookworm", "trixie")
CONFIGURATION = install.REPOSITORY / "packaging/snap-upgrade.conf"
LAYOUTS = {
    "@": Layout(),
    "@rootfs by number": Layout("@rootfs", select="fstab-subvolid"),
    "name with space": Layout("name with space"),
    "top level": Layout(None),
    "default": Layout("root", select="default"),
    "several": Layout("@", extra=(("@home", "/home"), ("@log", "/var/log")), nested=("var/lib/machines",)),
}


@pytest.fixture
def m(tmp_path: Path) -> Iterator[Machine]:
    """A machine without the product."""
    with Machine(tmp_path, install=False) as machine:
        yield machine


def root_line(machine: Machine) -> list[str]:
    """Return the fields of the machine's own mountinfo line for `/`."""
    lines = [line.split() for line in machine.run(["cat", "/proc/self/mountinfo"]).stdout.splitlines()]
    return next(line for line in lines if line[4] == "/")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_boots_with_its_root_at_slash(tmp_path: Path, name: str) -> None:
    layout = LAYOUTS[name]
    with Machine(tmp_path, layout=layout, install=False) as machine:
        line = root_line(machine)
        assert line[3].replace("\\040", " ") == f"/{layout.subvol or ''}"
        assert line[line.index("-") + 1 : line.index("-") + 3] == ["btrfs", str(machine.device)]
        assert machine.booted() == (layout.subvol or "")
        number = machine.subvolumes()[layout.subvol] if layout.subvol else image.TOP_LEVEL
        assert machine.booted_id == number
        expected = {path for path in (layout.subvol, *(path for path, _ in layout.extra)) if path}
        expected |= {f"{layout.subvol}/{nested}" for nested in layout.nested}
        assert set(machine.subvolumes()) == expected
        fstab = machine.run(["findmnt", "--fstab", "--noheadings", "--output", "OPTIONS", "/"]).stdout.strip()
        named = {"fstab-subvol": f",subvol={layout.subvol}", "fstab-subvolid": f",subvolid={number}", "default": ""}
        assert fstab == "defaults,compress=zstd:1" + (named[layout.select] if layout.subvol else "")
        for _, where in layout.extra:
            assert machine.run(["findmnt", "--noheadings", "--output", "FSTYPE", where]).stdout.strip() == "btrfs"


def test_a_program_inside_sees_a_machine_of_its_own(m: Machine) -> None:
    assert m.run(["readlink", "/proc/1/root"]).stdout == "/\n"
    assert m.run(["cat", "/proc/1/comm"]).stdout == "init\n"
    assert m.run(["sh", "-c", "echo $PPID"]).stdout == "1\n"
    assert m.run(["ischroot"], check=False).returncode == 1
    assert f"root=UUID={m.fsid} ro rootflags=subvol=@" in m.run(["cat", "/proc/cmdline"]).stdout
    assert set(m.run(["env"], env={"MINE": "1"}).stdout.split()) >= {"LANG=C.UTF-8", "HOME=/root", "MINE=1"}
    assert m.run(["cat"], stdin="typed\n").stdout == "typed\n"
    assert m.run(["pwd"], cwd="/usr").stdout == "/usr\n"


def test_a_failing_or_missing_program_is_an_error_unless_asked_for(m: Machine) -> None:
    with pytest.raises(ProgramFailed, match=r"ended with 3\n.*said"):
        m.run(["sh", "-c", "echo said; exit 3"])
    assert m.run(["sh", "-c", "kill -TERM $$"], check=False).returncode == -signal.SIGTERM
    missing = m.run(["/no/such/program"], check=False)
    assert (missing.returncode, "No such file" in missing.stderr) == (127, True)


def test_a_program_that_outlives_its_time_is_killed(m: Machine) -> None:
    with pytest.raises(TimeoutError, match="started"):
        m.run(["sh", "-c", "echo started; exec sleep 1000"], timeout=1)
    assert m.processes() == {}


def test_orphans_are_adopted_and_buried(m: Machine) -> None:
    # kill -0 succeeds for a zombie: the loop ends only when PID 1 has buried the orphan.
    pid = m.run(["sh", "-c", "cat /dev/zero > /dev/null & echo $!"]).stdout.strip()
    assert m.run(["sed", "-n", "s/^PPid:[[:space:]]*//p", f"/proc/{pid}/status"]).stdout == "1\n"
    m.run(["sh", "-c", f"kill -9 {pid}; while kill -0 {pid}; do :; done"], timeout=20)


def test_pid_1_is_the_laboratorys_own_and_no_program_that_is_looked_for(m: Machine) -> None:
    assert m.pids(b"init.py") == []


def test_an_orphan_that_holds_the_pipe_does_not_delay_the_result(m: Machine) -> None:
    assert m.run(["sh", "-c", "sleep 1000 & echo over"], timeout=20).stdout == "over\n"


def test_a_signal_reaches_the_program_that_both_numbers_name(m: Machine) -> None:
    with m.popen(["sh", "-c", "trap 'echo got it; exit 5' USR1; echo ready; sleep 1000 & wait"]) as p:
        p.wait_for("ready\n")
        assert m.run(["cat", f"/proc/{p.pid_inside}/comm"]).stdout == "sh\n"
        assert Path(f"/proc/{p.pid}/comm").read_text() == "sh\n"
        p.signal(signal.SIGUSR1)
        result = p.wait(20)
    assert (result.returncode, result.stdout) == (5, "ready\ngot it\n")


def test_ctrl_c_comes_through_a_real_terminal(m: Machine) -> None:
    assert m.run(["tty"], pty=True).stdout == "/dev/pts/0\r\n"
    with m.popen(["sh", "-c", "echo ready; exec sleep 1000"], pty=True) as p:
        p.wait_for("ready")
        p.ctrl_c()
        assert p.wait(20).returncode == -signal.SIGINT


def test_closing_the_terminal_hangs_up(m: Machine) -> None:
    with m.popen(["sh", "-c", "trap 'echo bye > /root/hup; exit 7' HUP; echo ready; sleep 1000 & wait"], pty=True) as p:
        p.wait_for("ready")
        p.hang_up()
        assert p.wait(20).returncode == 7
    assert m.path("/root/hup").read_text() == "bye\n"


def test_a_file_can_be_waited_for(m: Machine) -> None:
    with m.popen(["sh", "-c", "read go; echo made > /run/made"], stdin=b"go\n"):
        m.wait_for_file("/run/made", 20)
    with pytest.raises(TimeoutError):
        m.wait_for_file("/run/never", 0)


def test_reboot_boots_what_was_exchanged_into_place(m: Machine) -> None:
    m.run(["sh", "-c", "echo old > /root/state"])
    first = m.booted_id
    btrfsutil.create_snapshot(str(m.top / "@"), str(m.top / "clone"))
    (m.top / "clone/root/state").write_text("new\n")
    exchange(m.top / "@", m.top / "clone")
    assert m.booted() == "clone"
    assert m.run(["cat", "/root/state"]).stdout == "old\n"
    m.reboot()
    assert (m.booted(), m.booted_id != first) == ("@", True)
    assert m.run(["cat", "/root/state"]).stdout == "new\n"
    assert root_line(m)[3] == "/@"


def exchange(one: Path, other: Path) -> None:
    """Exchange two paths with mv: what the product does by itself must not be tested by itself."""
    middle = one.with_name("middle")
    one.rename(middle)
    other.rename(one)
    middle.rename(other)


def test_reboot_boots_the_default_subvolume_where_that_is_what_boots(tmp_path: Path) -> None:
    with Machine(tmp_path, layout=LAYOUTS["default"], install=False) as machine:
        btrfsutil.create_snapshot(str(machine.top / "root"), str(machine.top / "clone"))
        btrfsutil.set_default_subvolume(str(machine.top / "clone"))
        machine.reboot()
        assert machine.booted() == "clone"


def test_a_subvolume_that_is_gone_does_not_boot(m: Machine) -> None:
    (m.top / "@").rename(m.top / "elsewhere")
    with pytest.raises(MachineDied, match=r"does not boot: .*subvol=@"):
        m.reboot()


def test_recover_runs_at_boot_if_the_product_is_there(m: Machine) -> None:
    m.reboot()
    assert m.boot_log is None
    launcher = m.path("/usr/sbin/snap-upgrade")
    launcher.write_text('#!/bin/sh\necho "called with $*"\nexit 9\n')
    launcher.chmod(0o755)
    m.reboot()
    assert m.boot_log is not None
    assert (m.boot_log.stdout, m.boot_log.returncode) == ("called with recover --boot\n", 9)


def left_behind(folder: Path) -> tuple[list[str], list[str]]:
    """Return the loop devices over files in *folder*, and our mounts in it."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {folder}" in line]
    return kernel.loops_over(folder), mounts


def pidfds(machine: Machine) -> list[int]:
    """Return a pidfd of PID 1 and one of everything else that runs in the machine."""
    return [os.pidfd_open(pid) for pid in (machine.init_pid, *machine.processes())]


def assert_ended(fds: list[int], timeout_s: float = 20) -> None:
    """Wait until all the processes have ended."""
    for fd in fds:
        assert select.select([fd], [], [], timeout_s)[0]
        os.close(fd)


def test_crash_leaves_no_process_mount_or_loop_device(m: Machine, tmp_path: Path) -> None:
    m.run(["sh", "-c", "setsid sleep 1000 & echo written > /root/file"])
    started = m.popen(["sleep", "1000"])
    fds = pidfds(m)
    assert len(fds) == 3
    assert len(kernel.loops_over(tmp_path)) == 1
    m.crash()
    assert_ended(fds, 0)
    assert left_behind(tmp_path) == ([], [])
    with pytest.raises(MachineDied):
        m.run(["true"])
    m.reboot()
    assert m.run(["cat", "/root/file"]).stdout == "written\n"
    assert m.processes() == {}
    assert started.returncode == -signal.SIGKILL


def test_power_cut_loses_what_was_not_synced_and_nothing_else(m: Machine) -> None:
    m.run(["sh", "-c", "echo kept > /root/synced; sync /root/synced; echo lost > /root/unsynced"])
    m.crash(power_cut=True)
    m.reboot()
    assert m.run(["cat", "/root/synced"]).stdout == "kept\n"
    assert not m.path("/root/unsynced").exists()


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    fds: list[int] = []
    with pytest.raises(ZeroDivisionError), Machine(tmp_path, install=False) as machine:
        machine.popen(["sleep", "1000"])
        fds = pidfds(machine)
        raise ZeroDivisionError
    assert_ended(fds, 0)
    assert left_behind(tmp_path) == ([], [])
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from pathlib import Path
from tests.lab.machine import Machine
with Machine(Path(sys.argv[1]), install=False) as m:
    p = m.popen(["sleep", "1000"])
    print(m.init_pid, p.pid, flush=True)
    p.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_tests_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    repository = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=repository, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as holder:  # fmt: skip
        assert holder.stdout is not None
        init, inside = map(int, holder.stdout.readline().split())
        supervisor = int(next(line.split()[1] for line in Path(f"/proc/{init}/status").read_text().splitlines()
                              if line.startswith("PPid:")))  # fmt: skip
        fds = [os.pidfd_open(pid) for pid in (init, inside, supervisor)]
        assert len(kernel.loops_over(tmp_path)) == 1
        holder.send_signal(number)
        assert holder.wait(20) != 0
    assert_ended(fds)
    assert left_behind(tmp_path) == ([], [])


ATTACHES = """
import sys
from pathlib import Path
from tests.lab import blockdev, kernel
image = Path(sys.argv[1])
image.write_bytes(bytes(1 << 20))
for _ in range(60):
    with blockdev.attached(image):
        pass
    kernel.Loop(image).close()
"""


def test_runs_at_once_do_not_take_loop_devices_from_under_each_other(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", ATTACHES, str(tmp_path / name)], cwd=install.REPOSITORY)
            )
            for name in "abcd"
        ]
    assert [process.returncode for process in started] == [0] * 4


def test_two_machines_at_once_share_nothing(m: Machine, tmp_path: Path) -> None:
    with Machine(tmp_path, install=False) as other:
        assert m.fsid != other.fsid
        for number, machine in enumerate((m, other)):
            machine.run(["sh", "-c", f"echo {number} > /root/number; sync"])
        assert [machine.run(["cat", "/root/number"]).stdout for machine in (m, other)] == ["0\n", "1\n"]
        assert m.device != other.device
        assert m.processes() == other.processes() == {}
    assert m.run(["cat", "/root/number"]).stdout == "0\n"


def test_a_kept_disk_starts_again_as_it_was(tmp_path: Path) -> None:
    disk = tmp_path / "kept.img"
    with Machine(tmp_path, install=False, disk=disk) as machine:
        machine.run(["sh", "-c", "echo here > /root/file"])
        fsid = machine.fsid
    with Machine(tmp_path, install=False, disk=disk) as machine:
        assert machine.run(["cat", "/root/file"]).stdout == "here\n"
        assert machine.fsid == fsid


def test_a_disk_that_was_not_finished_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "REPOSITORY", tmp_path)  # a working tree in which nothing was built
    with pytest.raises(FileNotFoundError, match="make deb"):
        Machine(tmp_path, install="deb", disk=tmp_path / "kept.img").__enter__()
    assert list(tmp_path.iterdir()) == []
    assert left_behind(tmp_path) == ([], [])


def test_the_newest_built_package_is_installed_by_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, version in ((100, "9.1"), (0, "9.0")):
        path = Deb("snap-upgrade", version).build(tmp_path / "dist")
        os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    monkeypatch.setattr(install, "REPOSITORY", tmp_path)
    with Machine(tmp_path, install="deb") as machine:
        assert machine.run(["dpkg-query", "--show", "snap-upgrade"]).stdout == "snap-upgrade\t9.0\n"
        assert "install -y ./snap-upgrade_9.0_all.deb" in machine.path("/var/log/apt/history.log").read_text()
        assert not machine.path("/root/snap-upgrade_9.0_all.deb").exists()


def test_a_disk_has_no_name_before_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "kept.img"
    seen = []

    def watched(root: Path) -> None:
        seen.append(disk.exists())
        install.install_product(root)

    monkeypatch.setattr(machine_module, "install_product", watched)
    with Machine(tmp_path, disk=disk):
        assert disk.exists()
    assert seen == [False]


def test_the_product_is_installed_where_the_package_puts_it(tmp_path: Path) -> None:
    with Machine(tmp_path, install=True) as machine:
        program = "from snap_upgrade.version import VERSION; print(VERSION)"
        version = machine.run(["/usr/bin/python3", "-I", "-c", program]).stdout.strip()
        assert f'VERSION = "{version}"' in (install.REPOSITORY / "plugin/snap_upgrade/version.py").read_text()
        compiled = machine.path("/usr/lib/python3/dist-packages/snap_upgrade/__pycache__").iterdir()
        tag = machine.run(["/usr/bin/python3", "-c", "import sys; print(sys.implementation.cache_tag)"]).stdout.strip()
        assert {path.name.split(".")[1] for path in compiled} == {tag}
        assert machine.path("/etc/snap-upgrade.conf").read_bytes() == CONFIGURATION.read_bytes()
        assert machine.path("/usr/sbin/snap-upgrade").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", breaking.CASES)
def test_a_breaking_package_leaves_what_the_facts_say(tmp_path: Path, release: str, name: str) -> None:
    case = breaking.CASES[name]
    size = "1G" if case.fill is not None else "3G"
    with Machine(tmp_path, release, install=False, size=size) as machine:
        case.prepare(machine)
        result = machine.run(case.argv, check=False)
        machine.wait_for_dpkg()
        assert result.returncode == case.apt_rc, result.output
        assert bool(machine.run(["dpkg", "--audit"], check=False).stdout) == case.audit
        query = ["dpkg-query", "--show", "--showformat=${Status} ${Version}"]
        assert {name: machine.run([*query, name]).stdout for name in case.states} == dict(case.states)
        journal = [path for path in machine.path("/var/lib/dpkg/updates").iterdir() if path.name.isdigit()]
        assert bool(journal) == case.journal


def test_a_hanging_package_announces_itself_and_can_be_released(m: Machine) -> None:
    local_repo(m.path("/"), [breaking.hanging()])
    m.run(["apt-get", "update"])
    with m.popen([*breaking.INSTALL, "hangs"]) as apt:
        m.wait_for_file("/run/hangs.hangs")
        assert apt.poll() is None
        m.live("/run/hangs.gate").write_text("go\n")
        assert apt.wait(60).returncode == 0


@pytest.mark.parametrize("release", RELEASES)
def test_a_chain_of_twenty_is_twenty_runs_of_dpkg(tmp_path: Path, release: str) -> None:
    with Machine(tmp_path, release, install=False) as machine:
        local_repo(machine.path("/"), breaking.chain(20))
        machine.run(["apt-get", "update"])
        log = machine.path("/var/log/dpkg.log")  # not there in a fresh root
        assert not log.exists()
        machine.run([*breaking.INSTALL, "chain20"])
        assert log.read_text().count(" startup ") >= 20


def test_a_conffile_that_was_edited_is_asked_about(m: Machine) -> None:
    repo = local_repo(m.path("/"), [breaking.with_conffile("1.0")])
    m.run(["apt-get", "update"])
    m.run([*breaking.INSTALL, "configured"])
    m.path("/etc/configured.conf").write_text("setting = mine\n")
    repo.add(breaking.with_conffile("2.0"))
    repo.publish()
    m.run(["apt-get", "update"])
    with m.popen([*breaking.INSTALL, "configured"], pty=True) as apt:
        apt.wait_for("[default=N] ?")
        apt.type("\n")
        assert apt.wait(60).returncode == 0
    assert m.path("/etc/configured.conf").read_text() == "setting = mine\n"
    assert m.path("/etc/configured.conf.dpkg-dist").read_text() == "setting = 2.0\n"


def test_the_manifest_sees_every_kind_of_change(m: Machine) -> None:
    changes = {
        "mode": "chmod 600 /root/f",
        "uid": "chown 1 /root/f",
        "gid": "chgrp 1 /root/f",
        "mtime_ns": "touch -d '2001-01-01 00:00:00.5' /root/f",
        "target": "ln -sfn elsewhere /root/l && touch -h -r /root/d /root/l",
    }
    m.run(["sh", "-c", "mkdir /root/d; echo text > /root/f; ln -s x /root/l; mknod /root/n c 1 3; mkfifo /root/p"])
    before = m.tree_hash("@/root")
    assert {name: before[name].kind for name in ("d", "f", "l", "n", "p")} == {
        "d": "folder", "f": "file", "l": "link", "n": "character device", "p": "fifo"}  # fmt: skip
    assert tree.differences(before, m.tree_hash("@/root")) == []
    for field, command in changes.items():
        before = m.tree_hash("@/root")
        m.run(["sh", "-c", command])
        changed = tree.differences(before, m.tree_hash("@/root"))
        assert any(field in line.partition(": ")[2].split(", ") for line in changed), (field, changed)
    before = m.tree_hash("@/root")
    status = m.path("/root/f").stat()
    m.path("/root/f").write_text("tExt\n")
    os.utime(m.path("/root/f"), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert tree.differences(before, m.tree_hash("@/root")) == ["f: sha256"]
    os.setxattr(m.path("/root/f"), "user.mark", b"1")
    assert tree.differences(before, m.tree_hash("@/root")) == ["f: xattrs, sha256"]
    m.run(["sh", "-c", "echo > /root/g; rm /root/p"])
    assert {"g: only after", "p: only before"} <= set(tree.differences(before, m.tree_hash("@/root")))


def test_a_filled_disk_refuses_more(tmp_path: Path) -> None:
    with Machine(tmp_path, install=False, size="1G") as machine:
        machine.fill(16 << 20)
        with pytest.raises(OSError) as caught, machine.path("/root/big").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 64 << 20)
        assert caught.value.errno == errno.ENOSPC
        machine.path("/root/small").write_bytes(bytes(1 << 20))


def test_the_same_package_is_the_same_file_and_dpkg_agrees(tmp_path: Path) -> None:
    deb = Deb("whole", "1:2.0-1", depends="libc6", files={"/usr/bin/whole": b"#!/bin/sh\n", "/usr/share/odd": b"1"},
              conffiles=("/etc/whole",), scripts={"preinst": "#!/bin/sh\n"}, multi_arch="foreign")  # fmt: skip
    one, two = deb.build(tmp_path / "1"), deb.build(tmp_path / "2")
    assert one.read_bytes() == two.read_bytes()
    assert one.name == "whole_2.0-1_all.deb"
    shown = subprocess.run(["dpkg-deb", "--field", str(one)], check=True, capture_output=True, text=True).stdout
    assert shown == deb.control()
    listed = subprocess.run(["dpkg-deb", "--contents", str(one)], check=True, capture_output=True, text=True).stdout
    assert [(line.split()[0], line.split()[-1]) for line in listed.splitlines()] == [
        ("drwxr-xr-x", "./"), ("drwxr-xr-x", "./usr/"), ("drwxr-xr-x", "./usr/bin/"), ("drwxr-xr-x", "./usr/share/"),
        ("-rwxr-xr-x", "./usr/bin/whole"), ("-rw-r--r--", "./usr/share/odd")]  # fmt: skip
