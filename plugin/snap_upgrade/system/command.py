"""Runs programs: the only module that imports subprocess.

The rule: nothing of the caller's environment, folder, descriptors or standard input reaches a program,
and a call that fails leaves nothing of the program's process group running.

subprocess is loaded when a program is run: most commands of ours run none.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snap_upgrade.core.errors import CommandFailed

if TYPE_CHECKING:
    import subprocess

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND = 127
TIMED_OUT = 124
# What a person's own session may tell a program that talks to this person.
_PERSONAL = (
    *("TERM", "COLORTERM", "LANG", "LANGUAGE", "DISPLAY", "http_proxy", "https_proxy", "no_proxy"),
    *("DEBIAN_FRONTEND", "DEBIAN_PRIORITY", "APT_LISTCHANGES_FRONTEND"),
    *("SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND", "PKEXEC_UID"),
)

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended; a negative *status* is the number of the signal that killed it."""

    status: int
    stdout: str
    stderr: str


def clean_environment() -> dict[str, str]:
    """Return what every program gets: the fixed PATH, the C locale, root's home."""
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", "TERM": "dumb"}


def find_program(name: str) -> str:
    """Return the absolute path of *name*; raise CommandFailed (127) if it is not on the fixed PATH.

    A path must be absolute: one that depends on the caller's folder is refused.
    """
    candidates = [name] if name.startswith("/") else [f"{folder}/{name}" for folder in PATH.split(":")]
    if "/" not in name.lstrip("/") or name.startswith("/"):
        for path in candidates:
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    raise CommandFailed([name], NOT_FOUND, f"there is no program {name} in {PATH}")


def run(
    argv: list[str],
    *,
    input: str | None = None,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    check: bool = True,
) -> Completed:
    """Run *argv* to its end and return what it printed.

    *env* replaces the clean environment. Raises CommandFailed if the program is missing, did not end in *timeout_s*
    seconds, or, with *check*, if its status is not 0. In each case nothing of its process group is left.
    """
    import subprocess

    with _start(argv, cwd, env, subprocess.PIPE if input is not None else subprocess.DEVNULL) as process:
        try:
            out, err = process.communicate(None if input is None else _encode(input), timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            raise CommandFailed(argv, TIMED_OUT, f"did not end within {timeout_s} s and was killed") from None
        except BaseException:
            _kill_group(process)
            raise
    done = Completed(process.returncode, _decode(out), _decode(err))
    if check and done.status != 0:
        raise CommandFailed(argv, done.status, done.stderr or done.stdout)
    return done


def stream(
    argv: list[str],
    on_line: OnLine,
    *,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    check: bool = True,
) -> int:
    """Run *argv*, hand every line of both its outputs to *on_line* when it is printed, and return its status.

    Raises as run() does. What *on_line* raises ends the program.
    """
    import subprocess

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    lines = Lines(on_line)
    with _start(argv, cwd, env, subprocess.DEVNULL, merge=True) as process:
        try:
            assert process.stdout is not None
            while data := _read_before(process.stdout.fileno(), deadline):
                lines.feed(data)
            lines.end()
            status = process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            _kill_group(process)
            raise CommandFailed(argv, TIMED_OUT, f"did not end within {timeout_s} s and was killed") from None
        except BaseException:
            _kill_group(process)
            raise
    if check and status != 0:
        raise CommandFailed(argv, status, lines.last)
    return status


def interact(argv: list[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None) -> int:
    """Run *argv* on the caller's own terminal and return its status; Ctrl-C is the program's to handle.

    The environment is the clean one, with the words of the caller's session that a dialogue needs, and *env* on top.
    """
    import subprocess

    personal = {key: os.environ[key] for key in (*_PERSONAL, *_locale_words()) if key in os.environ}
    merged = {"PATH": PATH, "HOME": "/root", **personal, **(env or {})}
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        program = [find_program(argv[0]), *argv[1:]]
        with subprocess.Popen(program, cwd=cwd, env=merged, preexec_fn=lambda: _restore(previous)) as process:
            return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Lines:
    """Cuts a byte stream into lines; a line rewritten by carriage returns counts in its last form."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._rest = b""
        self.last = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes and hand on the lines that are complete."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        for raw in complete:
            self._emit(raw)

    def end(self) -> None:
        """Hand on a last line that has no newline."""
        if self._rest:
            self._emit(self._rest)
            self._rest = b""

    def _emit(self, raw: bytes) -> None:
        text = _decode(raw.rstrip(b"\r").rpartition(b"\r")[2])
        if text.strip():
            self.last = text
        self._on_line(text)


def _start(
    argv: list[str], cwd: str, env: Mapping[str, str] | None, stdin: int, merge: bool = False
) -> subprocess.Popen[bytes]:
    import subprocess

    # A group of its own: a program's helpers are killed with it, and a Ctrl-C on the terminal comes to us alone.
    return subprocess.Popen(
        [find_program(argv[0]), *argv[1:]],
        cwd=cwd,
        env=dict(clean_environment() if env is None else env),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merge else subprocess.PIPE,
        process_group=0,
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The leader is not yet waited for, so that the number of the group is still its own.
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_before(fd: int, deadline: float | None) -> bytes:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
    return os.read(fd, 65536)


def _restore(handlers: Mapping[signal.Signals, object]) -> None:
    for number, handler in handlers.items():
        # What a nohup ignored stays ignored; a handler of Python's means the default in another program.
        signal.signal(number, signal.SIG_IGN if handler == signal.SIG_IGN else signal.SIG_DFL)


def _locale_words() -> list[str]:
    return [key for key in os.environ if key.startswith("LC_")]


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
