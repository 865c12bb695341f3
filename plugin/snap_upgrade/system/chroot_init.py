"""PID 1 of a run inside an environment: stays outside the chroot, starts the command, buries the dead.

The rule: when it ends, nothing it was above is left, however the end came about: the command exited, the caller
asked, the caller died. Outside the chroot, because a PID 1 inside makes systemctl and ischroot believe it is no chroot.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from snap_upgrade.core.errors import SnapUpgradeError
from snap_upgrade.system import kernel
from snap_upgrade.system.chroot_mounts import furnish

INTERRUPT, KILL = b"i", b"k"
STATUS_FD = 3
_CLONE_NEWUTS, _CLONE_NEWIPC = 0x04000000, 0x08000000
_NAMESPACES = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | _CLONE_NEWUTS | _CLONE_NEWIPC
_GRACE_S = 5.0
_NO_PROGRAM, _BROKEN = 127, 70


@dataclass(frozen=True, slots=True)
class Order:
    """What to run, and the caller's ends of the pipes (to be closed here) beside ours."""

    attach: Callable[[Path], None]
    target: Path
    argv: list[str]
    env: Mapping[str, str]
    network: bool
    control: int
    report: int
    out: int
    err: int
    status: int
    callers: tuple[int, ...]


def enter(order: Order, caller: int) -> None:
    """Become the parent of PID 1 in new namespaces and end when it ends. Never returns; runs in a forked child."""
    code = _BROKEN
    try:
        _leave_terminal()
        kernel.die_with_parent(signal.SIGKILL)
        for fd in order.callers:
            os.close(fd)
        if os.getppid() == caller:
            kernel.unshare(_NAMESPACES)
            # Slave and not private: nothing leaks out, yet a disk unmounted outside is not kept busy by our copy.
            kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_SLAVE)
            first = os.fork()
            if first == 0:
                _first(order)
            for fd in (order.control, order.report, order.out, order.err, order.status):
                os.close(fd)
            code = 0 if os.waitpid(first, 0)[1] == 0 else _BROKEN
    except BaseException as error:
        _tell(order.report, _describe(error))
    finally:
        os._exit(code)


def _leave_terminal() -> None:
    """Take no signal of the caller's terminal: what a Ctrl-C means is for the caller to say."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.setsid()


def _first(order: Order) -> None:
    """Be PID 1: furnish the root, run the command, report, leave nothing. Never returns."""
    code = _BROKEN
    try:
        kernel.die_with_parent(signal.SIGKILL)
        _tell(order.report, _Supervisor(order).run())
        code = 0
    except BaseException as error:
        _tell(order.report, _describe(error))
    finally:
        os._exit(code)


class _Supervisor:
    """The loop of PID 1."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._status: int | None = None
        self._left: list[str] = []
        self._wake, wake_up = os.pipe()
        for fd in (self._wake, wake_up):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> dict[str, object]:
        """Run the command to its end and end all it left; return what to report."""
        order = self._order
        os.umask(0o022)  # what is made for the environment is for its users too, such as _apt
        order.attach(order.target)
        kernel.mount("", str(order.target), flags=kernel.MS_REC | kernel.MS_PRIVATE)
        furnish(str(order.target), order.network)
        begun, begin = os.pipe()
        main = os.fork()
        if main == 0:
            _become(order)
        for fd in (order.out, order.err, order.status, begin):
            os.close(fd)
        os.read(begun, 1)  # at its end once the command leads a group of its own and can be interrupted
        killed = self._attend(main)
        return {"status": self._status, "left": self._left, "killed": killed}

    def _attend(self, main: int) -> bool:
        """Wait for the command, then for whatever it left; return whether all was killed on demand."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._order.control, select.POLLIN)
        deadline: float | None = None
        while self._bury(main):
            if self._status is not None and deadline is None:
                self._left = _names(self._order.target)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGTERM)
                deadline = time.monotonic() + _GRACE_S
            left_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = {fd for fd, _ in poller.poll(left_ms)}
            if self._wake in ready:
                os.read(self._wake, 4096)
            if self._order.control in ready and not self._obey(main):
                self._kill_all(main)
                return True
            if deadline is not None and time.monotonic() >= deadline:
                self._kill_all(main)
        return False

    def _obey(self, main: int) -> bool:
        """Do what the caller asks; False means: kill. A closed pipe is a caller that died."""
        word = os.read(self._order.control, 1)
        if word == INTERRUPT and self._status is None:
            # The group, as a terminal would: a shell's child gets it too. dpkg, in its own session, does not.
            os.killpg(main, signal.SIGINT)
        return word == INTERRUPT

    def _kill_all(self, main: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        while self._bury(main, wait=True):
            pass

    def _bury(self, main: int, wait: bool = False) -> bool:
        """Collect the dead; return whether anybody is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == main:
                self._status = os.waitstatus_to_exitcode(status)


def _become(order: Order) -> None:
    """Turn this process into the command. Never returns."""
    try:
        null = os.open("/dev/null", os.O_RDONLY)
        # Out of the way first: one of them may have the number another is to get.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (null, order.out, order.err, order.status)]
        for number, fd in enumerate(high):
            os.dup2(fd, number)
        os.setsid()
        # It imports a module at its first call: out of our own root, not out of the one that is being changed.
        os.get_exec_path(dict(order.env))
        os.chroot(order.target)
        os.chdir("/")
        os.umask(0o022)
        for signal_number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(signal_number, signal.SIG_DFL)
        os.closerange(STATUS_FD + 1, os.sysconf("SC_OPEN_MAX"))
        os.execvpe(order.argv[0], order.argv, dict(order.env))  # noqa: S606
    except BaseException as error:
        os.write(2, f"cannot run {order.argv[0]} in the environment: {error}\n".encode(errors="replace"))
    finally:
        os._exit(_NO_PROGRAM)


def _names(target: Path) -> list[str]:
    """Return the names of the processes that live in our namespace beside us."""
    names = []
    for entry in sorted(os.listdir(target / "proc")):
        if not entry.isdigit() or entry == "1":
            continue
        try:
            text = (target / "proc" / entry / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        if not rest.startswith(" Z"):
            names.append(name)
    return names


def _describe(error: BaseException) -> dict[str, object]:
    if isinstance(error, SnapUpgradeError):
        return {"error": error.message, "hint": error.hint, "class": type(error).__name__}
    return {"error": f"{type(error).__name__}: {error}", "hint": "", "class": ""}


def _tell(report: int, what: dict[str, object]) -> None:
    try:
        os.write(report, json.dumps(what).encode() + b"\n")
    except OSError as error:
        # The caller is gone. Nobody is left to tell but the terminal, if there still is one.
        sys.stderr.write(f"cannot report {what}: {error}\n")
