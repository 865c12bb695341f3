"""Who does this: the front end's process, its name, its command line, and the person behind it.

The rule: a process is named by number *and* start time; a lock names the front end only if that is our ancestor.
"""

from __future__ import annotations

import fcntl
import os
import struct

from snap_upgrade.hook.ancestry import Ancestor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FRONTEND_LOCK = "/var/lib/dpkg/lock-frontend"
DPKG_LOCK = "/var/lib/dpkg/lock"
ARCHIVES_LOCK = "/var/cache/apt/archives/lock"
UNATTENDED = "unattended-upgrade"
_SHELLS = ("sh", "dash", "bash")
_NOBODY = 2**32 - 1  # loginuid of a process that no login started


def lock_holder(path: str) -> int:
    """Return the number of the process that holds a POSIX lock on *path*; 0 if nobody does or it cannot be named."""
    try:
        # Not to write: whoever waits for the file to be closed by its holder must not hear of us.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        # struct flock: type, whence, start, length, pid.
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    kind, _, _, _, pid = struct.unpack("@hhqqi4x", answer)
    # An OFD lock (our own, on a clone) has the pid -1.
    return 0 if kind == fcntl.F_UNLCK else max(int(pid), 0)


def find(above: list[Ancestor]) -> Ancestor:
    """Return the front end among the processes *above* us: who holds apt's locks, else the nearest that is no shell."""
    for path in (FRONTEND_LOCK, ARCHIVES_LOCK):
        holder = lock_holder(path)
        for one in above:
            if one.pid == holder:
                return one
    for one in above:
        if one.comm not in _SHELLS:
            return one
    raise ProcessLookupError("apt-hook has no parent: it is called by apt")


def words(pid: int) -> list[str]:
    """Return the command line of *pid*, as it says itself."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0") if word]


def name(argv: list[str], comm: str) -> str:
    """Return what a person calls the program with the command line *argv*: of a script, the script's name."""
    return shown(_name(argv, comm), 60)


def _name(argv: list[str], comm: str) -> str:
    if not argv:
        return comm
    first = argv[0].rpartition("/")[2]
    if not first.startswith(("python", "perl")):
        return first or comm
    # The options of each that say what to run (code, for Perl also by -E; a module), and those with a word after them.
    code, valued = ("c", "WX") if first.startswith("python") else ("eE", "")
    rest = iter(argv[1:])
    for word in rest:
        if not word.startswith("-"):
            return word.rpartition("/")[2]
        letters = "" if word.startswith("--") else word[1:]
        for place, letter in enumerate(letters):
            if letter in code:
                return f"{first} -{letter}"
            if letter == "m" and code == "c":
                return f"{first} -m {letters[place + 1 :] or next(rest, '')}"
            if letter in valued:
                if place == len(letters) - 1:
                    next(rest, "")
                break
    return first


def shown(text: str, most: int) -> str:
    """Return *text* on one line, in printable characters and at most *most* of them, as it is written down."""
    out = []
    for letter in text[:most]:
        out.append(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii"))
    safe = "".join(out)
    return safe if len(safe) <= most and len(text) <= most else safe[: most - 1] + "…"


def user(environment: dict[str, str] | os._Environ[str]) -> dict[str, Any]:
    """Return who asked for it, and how we know: by the variables that apt itself goes by, else by the login."""
    for variable in ("SUDO_UID", "PKEXEC_UID", "PACKAGEKIT_CALLER_UID"):
        value = environment.get(variable, "")
        if value.isascii() and value.isdecimal() and len(value) <= 10:
            return {"uid": int(value), "source": variable}
    try:
        with open("/proc/self/loginuid", encoding="ascii") as file:
            login = int(file.read())
    except (OSError, ValueError):
        login = _NOBODY  # a kernel without audit has no such file
    if login != _NOBODY:
        return {"uid": login, "source": "loginuid"}
    return {"uid": os.getuid(), "source": "uid"}
