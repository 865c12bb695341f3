"""The processes above us, and where the watcher of each would listen: all that ``post`` needs.

The rule: imports os and nothing else, for every operation of apt pays for this twice.
"""

from __future__ import annotations

import os

RUN = "/run/snap-upgrade"
FOLDER = f"{RUN}/hook"


class Ancestor:
    """A process above us."""

    __slots__ = ("comm", "is_dead", "parent", "pid", "start")

    def __init__(self, pid: int) -> None:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b")")
        words = tail.split()
        self.pid = pid
        self.comm = os.fsdecode(head.partition(b"(")[2])
        self.is_dead = words[0] in (b"Z", b"X")
        self.parent = int(words[1])
        self.start = int(words[19])


def ancestors() -> list[Ancestor]:
    """Return the processes above us, nearest first; PID 1 is left out, and one that ends meanwhile ends the list."""
    found: list[Ancestor] = []
    pid = os.getppid()
    while pid > 1:
        try:
            one = Ancestor(pid)
        except (FileNotFoundError, ProcessLookupError):
            break
        found.append(one)
        pid = one.parent
    return found


def is_alive(pid: int, start: int) -> bool:
    """Whether exactly this process still runs; one of which only the exit status is left has ended."""
    try:
        one = Ancestor(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return one.start == start and not one.is_dead


def address(one: Ancestor) -> str:
    """Return where the watcher of the front end *one* listens."""
    return f"{FOLDER}/{one.pid}-{one.start}"
