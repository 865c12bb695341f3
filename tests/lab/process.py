"""Programs running inside a machine, seen from outside: their output, their end, their terminal.

The one rule: a program's end is what PID 1 of its machine says it is, never a guess from a
closed pipe; an orphan that still holds the pipe does not delay it.
"""

import contextlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.lab import kernel

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/sh",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
}


class MachineDied(Exception):
    """PID 1 of the machine ended while somebody waited for a program in it."""


@dataclass(frozen=True)
class Result:
    """How a program ended. *returncode* is negative for a signal; a terminal has everything in *stdout*."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Both streams, standard error last."""
        return self.stdout + self.stderr


class ProgramFailed(AssertionError):
    """A program in a machine ended with an error that the test did not expect."""

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__(f"{' '.join(result.argv)} ended with {result.returncode}\n{result.stdout}\n{result.stderr}")


class Process:
    """A program inside a machine. ``pid`` is its number outside, ``pid_inside`` its number inside."""

    def __init__(self, control: socket.socket, argv: Sequence[str], *, cwd: str, env: Mapping[str, str] | None,
                 stdin: str | bytes | None, pty: bool) -> None:  # fmt: skip
        self.argv = tuple(argv)
        self.returncode: int | None = None
        self._story, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._collected: dict[int, bytearray] = {}
        self._terminal = -1
        environment = {**ENVIRONMENT, **({"TERM": "xterm"} if pty else {}), **(env or {})}
        request = {"argv": list(argv), "cwd": cwd, "env": environment, "pty": pty}
        given, kept = ([], []) if pty else _stdio(stdin)
        try:
            socket.send_fds(control, [json.dumps(request).encode()], [far.fileno(), *given])
        except OSError as error:
            raise MachineDied(f"cannot start {argv[0]}: the machine is not running ({error})") from error
        finally:
            far.close()
            for fd in given:
                os.close(fd)
        text, fds, _, _ = socket.recv_fds(self._story, 4096, 2)
        if not text:
            raise MachineDied(f"the machine ended while it started {argv[0]}")
        story = json.loads(text)
        if "error" in story:
            raise OSError(f"cannot start {argv[0]}: {story['error']}")
        self.pid_inside: int = story["pid"]
        self._pidfd = fds[0]
        self.pid = kernel.outside_pid(self._pidfd)
        if pty:
            self._terminal = fds[1]
            kept = [self._terminal, -1]
        for fd in fds:
            os.set_inheritable(fd, False)
        self._out, self._err = kept
        for fd in kept:
            if fd >= 0:
                os.set_blocking(fd, False)
                self._collected[fd] = bytearray()
        self._texts: tuple[str, str] | None = None
        if pty and stdin:
            self.type(stdin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stdout(self) -> str:
        """What it has written to standard output (or its terminal) and we have read so far."""
        return self._texts[0] if self._texts else self._collected[self._out].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to standard error and we have read so far."""
        return self._texts[1] if self._texts else self._collected.get(self._err, b"").decode(errors="replace")

    def type(self, text: str | bytes) -> None:
        """Type on the terminal; ``\\x03`` is a real Ctrl-C, ``\\x04`` the end of input."""
        data = text.encode() if isinstance(text, str) else text
        while data:
            select.select([], [self._terminal], [])
            data = data[os.write(self._terminal, data) :]

    def ctrl_c(self) -> None:
        """Press Ctrl-C: the terminal sends SIGINT to its foreground group."""
        self.type(b"\x03")

    def hang_up(self) -> None:
        """Close the terminal: its session gets SIGHUP, later writes fail."""
        self._collect()
        self._texts = (self.stdout, "")
        self._collected.clear()
        os.close(self._terminal)
        self._terminal = -1

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this very process, never to another that got its number."""
        signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> Result:
        """Kill it with SIGKILL, if it has not ended, and wait."""
        if self.poll() is None:
            # Buried between the two calls: its status is on the way to us.
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
        return self.wait()

    def poll(self) -> int | None:
        """Return its exit status, None while it runs."""
        self._pump(0, lambda: True)
        return self.returncode

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for its end, reading what it writes meanwhile. Raises TimeoutError and leaves it running."""
        self._pump(timeout, lambda: self.returncode is not None)
        if self.returncode is None:
            raise TimeoutError(f"{' '.join(self.argv)} still runs after {timeout} s\n{self.stdout}\n{self.stderr}")
        return Result(self.argv, self.returncode, self.stdout, self.stderr)

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until it has written *text*. Raises TimeoutError, and MachineDied or ValueError if it ended without."""
        self._pump(timeout, lambda: text in self.stdout + self.stderr or self.returncode is not None)
        if text in self.stdout + self.stderr:
            return
        problem = f"{' '.join(self.argv)} did not write {text!r}\n{self.stdout}\n{self.stderr}"
        raise TimeoutError(problem) if self.returncode is None else ValueError(problem)

    def close(self) -> None:
        """Kill it if it still runs, and release what we hold of it."""
        if self._pidfd < 0:
            return
        if self.returncode is None:
            try:
                self.kill()
            except MachineDied:
                self.returncode = -signal.SIGKILL
        self._texts = (self.stdout, self.stderr)
        for fd in {*self._collected, self._pidfd}:
            os.close(fd)
        self._collected.clear()
        self._story.close()
        self._pidfd = self._terminal = -1

    def _pump(self, timeout: float | None, until: Callable[[], bool]) -> None:
        """Read output and the exit status until *until* holds or *timeout* seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        open_fds = set(self._collected)
        while True:
            open_fds -= self._collect()
            # Zero seconds still means one look: what is there to be read is read.
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if self.returncode is None:
                satisfied = until()
                ready = select.select([self._story.fileno(), *open_fds], [], [], 0 if satisfied else left)[0]
                if self._story.fileno() in ready:
                    self._read_status()
                    continue
                if satisfied or (not ready and deadline is not None and time.monotonic() >= deadline):
                    return
            else:
                return

    def _read_status(self) -> None:
        text = self._story.recv(4096)
        if not text:
            raise MachineDied(f"the machine ended while {' '.join(self.argv)} ran in it\n{self.stdout}\n{self.stderr}")
        self.returncode = os.waitstatus_to_exitcode(json.loads(text)["status"])

    def _collect(self) -> set[int]:
        """Read what is there; return the descriptors that are at their end."""
        ended = set()
        for fd, text in self._collected.items():
            try:
                while chunk := os.read(fd, 65536):
                    text += chunk
                ended.add(fd)
            except BlockingIOError:
                pass
            except OSError:
                # A terminal whose other side is closed answers EIO: that is its end of file.
                ended.add(fd)
        return ended


def _stdio(stdin: str | bytes | None) -> tuple[list[int], list[int]]:
    """Return the descriptors for the program's stdio, and our ends of its two outputs."""
    if stdin is None:
        source = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    else:
        source = os.memfd_create("stdin")
        data = stdin.encode() if isinstance(stdin, str) else stdin
        Path(f"/proc/self/fd/{source}").write_bytes(data)
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    return [source, out_write, err_write], [out_read, err_read]
