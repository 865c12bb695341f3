"""PID 1 of a laboratory machine: mounts the root as an initramfs would, starts what it is told to, reaps orphans.

Runs as ``python3 -IS init.py FD`` and imports nothing but the standard library. The one
rule: when the control socket FD closes, however its owner ended, this process ends, and
with it the kernel ends every process and every mount of the machine.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import termios
from typing import Any, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)

# It imports a module at its first call, and by then the folder with Python's modules would be another root's.
os.get_exec_path({})

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWPID = 0x20000, 0x4000000, 0x8000000, 0x20000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_RELATIME = 0x1000, 0x4000, 1 << 18, 1 << 21
_MNT_DETACH = 2
_PR_SET_NAME = 15
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_TIOCGPTN, _TIOCSPTLCK = 0x80045430, 0x40045431  # asm-generic/ioctls.h; Python has no names for them
_MAX_MESSAGE = 1 << 18


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, filesystem: str, flags: int = 0, data: str = "") -> None:
    args = (source.encode(), target.encode(), filesystem.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_libc.mount(*args), f"mount {source} on {target} ({filesystem}, {data})")


def _btrfs_options(subvol: str | None, subvolid: int | None, options: str) -> str:
    selected = f"subvol={subvol}" if subvol is not None else f"subvolid={subvolid}" if subvolid is not None else ""
    # A comma in a name would end the option; the kernel has no way to quote it.
    return ",".join(part for part in (options, selected) if part)


def _make_devices(device: str) -> None:
    _mount("devtmpfs", "dev", "tmpfs", _MS_NOSUID, "mode=755,size=1m")
    os.umask(0)
    nodes = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
    for name, (major, minor) in nodes.items():
        os.mknod(f"dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
    os.mknod(f"dev/{os.path.basename(device)}", stat.S_IFBLK | 0o660, os.stat(device).st_rdev)
    for link, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        os.symlink(f"/proc/self/fd{target}", f"dev/{link}")
    os.symlink("pts/ptmx", "dev/ptmx")
    os.mkdir("dev/pts", 0o755)
    os.mkdir("dev/shm", 0o1777)
    _mount("devpts", "dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    _mount("tmpfs", "dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    os.umask(0o022)


def _set_kernel_line(line: str) -> None:
    """Let /proc/cmdline say what this machine was booted with, not what the host was."""
    with open("run/lab-kernel-line", "w", encoding="utf-8") as file:
        file.write(line + "\n")
    _mount("run/lab-kernel-line", "proc/cmdline", "", _MS_BIND)


def _enter_root(spec: dict[str, Any]) -> None:
    """Mount the root and what belongs to it, and make it `/` of this namespace."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    device, target = spec["device"], spec["mountpoint"]
    root_options = _btrfs_options(spec["subvol"], spec["subvolid"], spec["options"])
    _mount(device, target, "btrfs", _MS_RELATIME, root_options)
    os.chdir(target)
    for subvol, where in spec["extra"]:
        _mount(device, where.lstrip("/"), "btrfs", _MS_RELATIME, _btrfs_options(subvol, None, spec["options"]))
    guarded = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount("proc", "proc", "proc", guarded)
    _mount("sysfs", "sys", "sysfs", guarded | _MS_RDONLY)
    _make_devices(device)
    _mount("tmpfs", "run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    os.makedirs("run/lock", mode=0o1777, exist_ok=True)
    _mount("tmpfs", "tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
    _set_kernel_line(spec["kernel_line"])
    # pivot_root(".", ".") stacks the old root on the new one; detaching it needs no put_old folder (pivot_root(2)).
    _check(_libc.syscall(_SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount the old root")
    os.chdir("/")
    socket.sethostname(spec["hostname"])


def _open_terminal() -> tuple[int, int]:
    """Return master and slave of a new terminal of the machine's own devpts, so that ttyname(3) works inside."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    number = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))[0]
    slave = os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    return master, slave


def _become(request: dict[str, Any], stdio: list[int]) -> NoReturn:
    """In the child: be the program asked for, with nothing inherited from PID 1."""
    try:
        os.setsid()
        if request["pty"]:
            fcntl.ioctl(stdio[0], termios.TIOCSCTTY, 0)
        for number, fd in enumerate(stdio):
            os.dup2(fd, number)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.chdir(request["cwd"])
        os.execvpe(request["argv"][0], request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"lab: cannot run {request['argv'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


class Init:
    """The running machine: children it started, and who waits for each."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.waiting: dict[int, socket.socket] = {}

    def spawn(self, request: dict[str, Any], fds: list[int]) -> None:
        """Start a program; *fds* are the socket its story is told on, then its stdio unless it gets a terminal."""
        for fd in fds:
            os.set_inheritable(fd, False)
        teller = socket.socket(fileno=fds[0])
        to_send, stdio = [], fds[1:]
        try:
            if request["pty"]:
                master, slave = _open_terminal()
                to_send, stdio = [master], [slave, slave, slave]
            pid = os.fork()
        except OSError as error:
            teller.send(json.dumps({"error": str(error)}).encode())
            teller.close()
            return
        if pid == 0:
            _become(request, stdio)
        to_send.insert(0, os.pidfd_open(pid))
        self.waiting[pid] = teller
        socket.send_fds(teller, [json.dumps({"pid": pid}).encode()], to_send)
        for fd in {*to_send, *stdio}:
            os.close(fd)

    def reap(self) -> None:
        """Bury every dead child, ours or adopted, and tell who waits for it."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            teller = self.waiting.pop(pid, None)
            if teller is not None:
                # Whoever asked may have stopped listening; that is no business of PID 1.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    teller.send(json.dumps({"status": status}).encode())
                teller.close()

    def serve(self) -> None:
        """Obey until the control socket closes."""
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.control.send(json.dumps({"ready": True}).encode())
        while True:
            ready, _, _ = select.select([self.control.fileno(), wake_read], [], [])
            if wake_read in ready:
                os.read(wake_read, 4096)
                self.reap()
            if self.control.fileno() in ready:
                text, fds, _, _ = socket.recv_fds(self.control, _MAX_MESSAGE, 8)
                if not text:
                    return
                self.spawn(json.loads(text), fds)


def _pid_one(control: socket.socket, spec: dict[str, Any]) -> NoReturn:
    try:
        _check(_libc.prctl(_PR_SET_NAME, b"init", 0, 0, 0), "prctl")
        _enter_root(spec)
        null = os.open("/dev/null", os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.close(null)
        Init(control).serve()
    except BaseException as error:
        with contextlib.suppress(OSError):
            control.send(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    os._exit(0)


def main() -> int:
    """Make the namespaces, start PID 1 in them, and stay until it has ended."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    spec = json.loads(control.recv(_MAX_MESSAGE))
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID), "unshare")
    pid = os.fork()
    if pid == 0:
        _pid_one(control, spec)
    control.close()
    while True:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) and 1
        except OSError as error:
            if error.errno != errno.EINTR:
                raise


if __name__ == "__main__":
    sys.exit(main())
