"""Runs a command inside an environment as if it had booted it, and leaves nothing of that run behind.

The rule: chroot in private mount, pid, uts and ipc namespaces with PID 1 outside the chroot; when a call returns or
its caller dies, every process and every mount of it is gone.

File systems mounted below the running root that are no part of the environment (``/boot``, ``/home`` on their own)
are not there: what becomes of ``/boot`` is decided where boot loaders are.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType

from snap_upgrade.core.errors import InternalError, NoSpace, Refused, SnapUpgradeError, StateDamaged, StorageError
from snap_upgrade.core.packages import Root
from snap_upgrade.system.chroot_init import INTERRUPT, KILL, Order, enter
from snap_upgrade.system.command import PATH, Lines, OnLine

# The same one for all: each run mounts there in a namespace of its own, and a killed run leaves no folder behind.
_MOUNT_POINT = Path("/run/snap-upgrade/environment")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ERRORS = {cls.__name__: cls for cls in (SnapUpgradeError, Refused, NoSpace, StorageError, StateDamaged, InternalError)}

ENVIRONMENT = {
    "PATH": f"/usr/local/sbin:/usr/local/bin:{PATH}",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    "APT_LISTCHANGES_FRONTEND": "none",
    "NEEDRESTART_SUSPEND": "1",
    "SYSTEMD_OFFLINE": "1",
    "SNAP_UPGRADE_CLONE": "1",
}


class End(Enum):
    """Why a run ended: by itself, tidily after it was asked to, killed by demand, killed by a limit."""

    EXITED = "exited"
    INTERRUPTED = "interrupted"
    KILLED = "killed"
    TOO_LONG = "too long"
    TOO_QUIET = "too quiet"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds after which a run is killed: in all, and without a word printed. None: never."""

    total_s: float | None = None
    silence_s: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """How a run ended. *left_running* names the processes that the command left and that were ended then."""

    status: int
    stdout: str
    stderr: str
    end: End = End.EXITED
    left_running: tuple[str, ...] = ()


@dataclass(slots=True)
class Listener:
    """Who hears what the command prints, line by line: both outputs, and descriptor 3 if *on_status* is set.

    Of each output the last *keep_lines* are kept (None: all).
    """

    on_line: OnLine | None = None
    on_status: OnLine | None = None
    keep_lines: int | None = None
    out: deque[str] = field(default_factory=deque)
    err: deque[str] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.out, self.err = deque(maxlen=self.keep_lines), deque(maxlen=self.keep_lines)

    def hear(self, kept: deque[str], line: str) -> None:
        """Keep *line* and pass it on."""
        kept.append(line)
        if self.on_line is not None:
            self.on_line(line)


def run(
    root: Root,
    argv: list[str],
    *,
    listener: Listener | None = None,
    env: Mapping[str, str] | None = None,
    network: bool = False,
    limits: Limits | None = None,
) -> Finished:
    """Run *argv* inside *root* and return how it ended; *env* is added to ENVIRONMENT, nothing else is inherited.

    *network* is for commands that fetch and run no script: it also covers a plain ``/etc/resolv.conf``.
    A first SIGINT, SIGTERM or SIGHUP is passed to the command's process group as SIGINT, a second one kills the tree.
    Raises what ``root.attach`` raises, and SnapUpgradeError if the environment cannot be entered.
    """
    listener = listener or Listener()
    _MOUNT_POINT.parent.mkdir(mode=0o755, exist_ok=True)
    _MOUNT_POINT.mkdir(mode=0o700, exist_ok=True)
    with _Tree(root, argv, {**ENVIRONMENT, **(env or {})}, network, listener) as tree:
        tree.watch(limits or Limits())
    return tree.finished()


class _Tree:
    """One run, from its caller's side."""

    def __init__(self, root: Root, argv: list[str], env: Mapping[str, str], network: bool, listener: Listener) -> None:
        self._listener = listener
        self._end = End.EXITED
        self._asked = 0
        self._report = bytearray()
        pipes = [os.pipe() for _ in range(5)]
        (control, self._control), (self._told, report), (self._out, out), (self._err, err), (self._stat, stat) = pipes
        callers = (self._control, self._told, self._out, self._err, self._stat)
        order = Order(root.attach, _MOUNT_POINT, argv, env, network, control, report, out, err, stat, callers)
        # Blocked around the fork: a Ctrl-C between fork and setsid would run the caller's handler in the child.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            caller = os.getpid()
            self._pid = os.fork()
            if self._pid == 0:
                enter(order, caller)
            self._previous = self._catch()
        finally:
            for fd in (control, report, out, err, stat):
                os.close(fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _catch(self) -> dict[signal.Signals, object]:
        """Take the stop signals; one that is ignored (nohup) stays so, and other threads than the first get none."""
        mine = [number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        try:
            return {number: signal.signal(number, self._stop) for number in mine}
        except ValueError:  # another thread than the first: at the first of them, so none is taken
            return {}

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._asked += 1
        if self._end in (End.EXITED, End.INTERRUPTED):
            self._end = End.INTERRUPTED if self._asked == 1 else End.KILLED
        self._send(INTERRUPT if self._asked == 1 else KILL)

    def _send(self, word: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # all is over already
            if self._control >= 0:
                os.write(self._control, word)

    def __enter__(self) -> _Tree:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End what still runs and wait until it is gone."""
        control, self._control = self._control, -1
        os.close(control)
        try:
            if kind is not None:
                for _ in self._arrivals({self._told: None}, Limits()):
                    pass
        finally:
            os.waitpid(self._pid, 0)
            for number, handler in self._previous.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            for fd in (self._told, self._out, self._err, self._stat):
                os.close(fd)

    def watch(self, limits: Limits) -> None:
        """Hear the command until all its outputs are closed; kill it when a limit is passed."""
        listener = self._listener
        ears = {
            self._out: Lines(lambda line: listener.hear(listener.out, line)),
            self._err: Lines(lambda line: listener.hear(listener.err, line)),
            self._stat: Lines(listener.on_status or (lambda _: None)),
            self._told: None,
        }
        for fd, data in self._arrivals(dict(ears), limits):
            ear = ears[fd]
            if ear is None:
                self._report += data
            elif data:
                ear.feed(data)
            else:
                ear.end()

    def _arrivals(self, sources: dict[int, Lines | None], limits: Limits) -> Iterator[tuple[int, bytes]]:
        """Yield what arrives, empty bytes at the end of each source."""
        poller = select.poll()
        for fd in sources:
            poller.register(fd, select.POLLIN)
        clock = _Clock(limits)
        while sources:
            ready = poller.poll(clock.left_ms())
            passed = clock.passed()
            if passed is not None and (not ready or passed is End.TOO_LONG):
                self._end = passed if self._end is End.EXITED else self._end
                self._send(KILL)
                clock = _Clock(Limits())
            for fd, _ in ready:
                data = os.read(fd, 65536)
                clock.heard()
                yield fd, data
                if not data:
                    poller.unregister(fd)
                    del sources[fd]

    def finished(self) -> Finished:
        """Return how the command ended, or raise what kept it from beginning."""
        report, end, _ = self._report.partition(b"\n")
        if not end:
            raise SnapUpgradeError("the run inside the environment was killed from outside, and all it had started")
        told = json.loads(report)
        if "error" in told:
            cls = _ERRORS.get(told["class"], SnapUpgradeError)
            raise cls(f"cannot enter the environment: {told['error']}", hint=told["hint"])
        out, err = ("".join(f"{line}\n" for line in kept) for kept in (self._listener.out, self._listener.err))
        return Finished(told["status"], out, err, self._end, tuple(told["left"]))


class _Clock:
    """When the limits of a run are passed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._start = self._last = time.monotonic()

    def heard(self) -> None:
        self._last = time.monotonic()

    def left_ms(self) -> float | None:
        ends = [end for end, _ in self._ends()]
        # One millisecond more: poll() cuts fractions off, and would return just too early again and again.
        return max(0.0, min(ends) - time.monotonic()) * 1000 + 1 if ends else None

    def passed(self) -> End | None:
        now = time.monotonic()
        return next((why for end, why in self._ends() if now >= end), None)

    def _ends(self) -> list[tuple[float, End]]:
        ends = []
        if self._limits.total_s is not None:
            ends.append((self._start + self._limits.total_s, End.TOO_LONG))
        if self._limits.silence_s is not None:
            ends.append((self._last + self._limits.silence_s, End.TOO_QUIET))
        return ends
