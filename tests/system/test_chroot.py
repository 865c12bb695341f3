"""A run inside an environment sees what it must, and nothing of it is left."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snap_upgrade.core.errors import StorageError
from snap_upgrade.core.packages import Root
from snap_upgrade.system import chroot
from snap_upgrade.system.chroot import End, Limits, Listener
from tests.lab import roots
from tests.system.apt_world import Disk, World, temporary_disk


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    with temporary_disk("bookworm", roots.FRONT_ENDS) as made:
        yield made


@pytest.fixture
def world(disk: Disk, tmp_path: Path) -> Iterator[World]:
    with World(disk, tmp_path) as made:
        yield made


_ENV = {
    "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "plugin"),
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}


def _host_mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_the_command_lives_in_a_chroot_with_its_own_processes_and_fresh_run_and_tmp(world: World) -> None:
    world.path("/run/stale").touch()
    done = world.inside("sh", "-c", "ls -A /run /tmp; echo pid $$; ls -d /proc/[0-9]*; ischroot && echo chroot")
    assert "stale" not in done.stdout
    assert done.stdout.split("\n")[-2] == "chroot"
    processes = [line for line in done.stdout.split("\n") if line.startswith("/proc/")]
    assert processes == ["/proc/1", "/proc/2"]  # PID 1 and the shell


def test_systemd_in_it_knows_that_it_is_in_a_chroot(world: World) -> None:
    assert world.inside("systemd-detect-virt", "--chroot").status == 0
    unset = world.inside("env", "-u", "SYSTEMD_OFFLINE", "systemctl", "restart", "dbus.service")
    assert unset.status == 0
    assert "Running in chroot, ignoring" in unset.stderr
    assert world.inside("test", "-d", "/run/systemd").status == 1


def test_no_mount_and_no_process_is_left(world: World) -> None:
    before = _host_mounts()
    done = world.inside("sh", "-c", "mount -t tmpfs none /mnt && (sleep 1000 &) ; setsid sleep 1001 & exit 3")
    assert done.status == 3
    assert done.left_running
    assert set(done.left_running) <= {"sleep", "sh", "setsid"}  # as far as each of the two has come
    assert _host_mounts() == before
    assert world.users() == []


def test_a_daemon_that_ignores_being_asked_is_killed(world: World) -> None:
    daemon = "trap '' TERM; echo up > /srv/up; while :; do sleep 1000; done"
    done = world.inside("sh", "-c", f'mkfifo /srv/up; setsid sh -c "{daemon}" & read word < /srv/up; echo $word')
    assert done.stdout == "up\n"
    assert "sh" in done.left_running
    assert world.users() == []


def test_the_disk_under_the_root_can_be_read_as_a_block_device(world: World) -> None:
    script = "dev=$(sed -n 's/.* - btrfs \\([^ ]*\\) .*/\\1/p' /proc/self/mountinfo)\n"
    script += "test -b $dev && dd if=$dev bs=8 count=1 skip=8200 status=none"  # the superblock's magic
    assert world.inside("sh", "-c", script).stdout.startswith("_BHRfS_M")


def test_nothing_of_the_callers_environment_and_descriptors_gets_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/nonesuch.so")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    secret = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        done = world.inside("sh", "-c", "env; ls -l /proc/$$/fd")
    finally:
        os.close(secret)
    assert "LD_PRELOAD" not in done.stdout
    assert "LC_ALL=C.UTF-8" in done.stdout
    assert "SYSTEMD_OFFLINE=1" in done.stdout
    assert "hostname" not in done.stdout


def test_a_limit_on_silence_kills_all_and_says_so(world: World) -> None:
    done = world.inside("sh", "-c", "echo begun; sleep 1000", limits=Limits(silence_s=1))
    assert (done.end, done.stdout) == (End.TOO_QUIET, "begun\n")
    assert world.users() == []


def test_a_limit_in_all_holds_also_for_one_who_talks(world: World) -> None:
    done = world.inside("sh", "-c", "while echo on; do sleep 0.1; done", limits=Limits(total_s=1, silence_s=60))
    assert done.end is End.TOO_LONG
    assert world.users() == []


def test_a_first_ctrl_c_reaches_the_command_a_second_one_kills_the_tree(world: World) -> None:
    def press(line: str) -> None:
        if line in ("ready", "asked"):
            os.kill(os.getpid(), signal.SIGINT)

    script = "trap 'echo asked' INT; echo ready; while :; do sleep 0.1; done"
    done = chroot.run(world.root, ["sh", "-c", script], listener=Listener(press))
    assert done.end is End.KILLED
    assert "asked" in done.stdout
    assert world.users() == []


def test_a_command_that_stops_at_the_first_ctrl_c_is_not_killed(world: World) -> None:
    def press(line: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    script = "trap 'echo tidy > /srv/tidy; exit 7' INT; echo ready; while :; do sleep 0.1; done"
    done = chroot.run(world.root, ["sh", "-c", script], listener=Listener(press))
    assert (done.status, done.end) == (7, End.INTERRUPTED)
    assert world.path("/srv/tidy").read_text() == "tidy\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_than_the_first_runs_a_command_too(world: World) -> None:
    with ThreadPoolExecutor() as pool:
        assert pool.submit(world.inside, "echo", "here").result().stdout == "here\n"


def test_what_the_listener_raises_ends_the_run(world: World) -> None:
    def fail(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="begun"):
        chroot.run(world.root, ["sh", "-c", "echo begun; sleep 1000"], listener=Listener(fail))
    assert world.users() == []


def test_the_death_of_the_caller_ends_everything(disk: Disk, tmp_path: Path) -> None:
    name = disk.snapshot()
    code = (
        "import sys; from pathlib import Path; from snap_upgrade.core.packages import Root\n"
        "from snap_upgrade.system import chroot, kernel\n"
        f"base = {str(disk.top / name)!r}\n"
        "root = Root(Path(base), lambda to: kernel.mount(base, str(to), flags=kernel.MS_BIND))\n"
        "say = lambda line: print(line, flush=True)\n"
        "script = 'trap \"\" TERM INT HUP; sleep 1000 & echo up; wait'\n"
        "chroot.run(root, ['sh', '-c', script], listener=chroot.Listener(say))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=_ENV) as caller:
        try:
            assert caller.stdout is not None
            assert caller.stdout.readline() == b"up\n"
            tree = _descendants(caller.pid)
            assert len(tree) == 4  # the parent of PID 1, PID 1, the shell, sleep
            watches = [os.pidfd_open(pid) for pid in tree]
        finally:
            caller.kill()
    for watch in watches:
        assert select.select([watch], [], [], 60)[0], "a process survived its caller"
        os.close(watch)


def test_no_mount_leaks_out_where_mounts_are_shared_as_systemd_makes_them(disk: Disk) -> None:
    name = disk.snapshot()
    code = (
        "from pathlib import Path; from snap_upgrade.core.packages import Root\n"
        "from snap_upgrade.system import chroot, kernel\n"
        "kernel.unshare(kernel.CLONE_NEWNS)\n"
        "kernel.mount('', '/', flags=kernel.MS_REC | 1 << 20)\n"  # MS_SHARED
        f"base = {str(disk.top / name)!r}\n"
        "root = Root(Path(base), lambda to: kernel.mount(base, str(to), flags=kernel.MS_BIND))\n"
        "before = kernel.mountinfo()\n"
        "def look(line):\n"
        "    assert kernel.mountinfo() == before, 'a mount leaked out'\n"
        "chroot.run(root, ['sh', '-c', 'mount -t tmpfs none /mnt; echo up'], listener=chroot.Listener(look))\n"
        "look('')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=_ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found


def test_an_environment_that_cannot_be_attached_is_reported_as_what_it_is(world: World) -> None:
    def attach(target: Path) -> None:
        raise StorageError("mount: no such volume")

    with pytest.raises(StorageError, match="no such volume"):
        chroot.run(Root(world.root.path, attach), ["true"])


def test_a_missing_program_says_its_name(world: World) -> None:
    done = world.inside("nonesuch-program")
    assert done.status == 127
    assert "nonesuch-program" in done.stderr


def test_links_in_the_environment_lead_within_it(world: World) -> None:
    world.path("/tmp").rename(world.path("/tmp.old"))
    world.path("/tmp").symlink_to("/srv/elsewhere")
    world.path("/srv/elsewhere").mkdir()
    assert world.inside("sh", "-c", "touch /tmp/x && ls /srv/elsewhere").stdout == "x\n"
    assert list(world.path("/srv/elsewhere").iterdir()) == []
