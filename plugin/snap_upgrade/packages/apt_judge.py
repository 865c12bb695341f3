"""What an operation of apt left in an environment, with the logs as evidence.

The rule: what was asked for against dpkg's database decides; logs, exit status and apt's words are evidence, and can
only make a verdict worse.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snap_upgrade.core import dpkgdb, verdict
from snap_upgrade.core.dpkgdb import Database
from snap_upgrade.core.errors import StateDamaged
from snap_upgrade.core.packages import Outcome, PackageChange
from snap_upgrade.core.request import Target
from snap_upgrade.core.verdict import Evidence, Verdict
from snap_upgrade.packages.apt_archives import within
from snap_upgrade.packages.apt_plan import display_name, native_architecture
from snap_upgrade.system import aptlogs

# What dpkg and ucf leave beside a configuration file that a person should look at.
_LEFT = (".dpkg-dist", ".dpkg-new", ".dpkg-old", ".ucf-dist", ".ucf-new", ".ucf-old")


@dataclass(frozen=True, slots=True)
class Before:
    """An environment before the operation: its database, how far its logs went, the leftovers it had."""

    database: Database
    marks: dict[str, Any]
    leftovers: dict[str, tuple[int, int, int]]


def read_database(root: Path) -> Database:
    """Return dpkg's database of the environment; raise StateDamaged if it cannot be read."""
    try:
        return dpkgdb.read_database(str(within(root, "var/lib/dpkg")))
    except dpkgdb.BadDatabase as error:
        raise StateDamaged(str(error), "dpkg --audit") from error


def note(root: Path, database: Database | None = None) -> Before:
    """Note the environment at *root* as it is now; *database* is its own where it has been read already."""
    return Before(database or read_database(root), note_marks(root), leftovers(root))


def leftovers(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return the files in /etc that dpkg and ucf left for a person, each with what changes when it is written anew."""
    etc = within(root, "etc")
    found = {}
    for folder, _, names in os.walk(etc):
        for name in names:
            if name.endswith(_LEFT):
                path = Path(folder, name)
                status = path.lstat()
                inside = "/etc/" + str(path.relative_to(etc))
                found[inside] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def new_leftovers(before: Before, root: Path) -> tuple[str, ...]:
    """Return the leftovers that were not there before, or were others."""
    return tuple(sorted(path for path, what in leftovers(root).items() if before.leftovers.get(path) != what))


def evidence(root: Path, marks: dict[str, Any], exit_status: int | None) -> Evidence:
    """Return what the logs of the environment got since they were at *marks*: read as the hook reads them."""
    with _opened(root) as fd:
        return aptlogs.collect(fd, marks, exit_status, _places(root))


def marks_of(before: Path, since: dict[str, Any]) -> dict[str, Any]:
    """Return how far the logs went: as the hook noted, else as the older environment has them.

    A snapshot keeps inode numbers, so a log that was rotated since is recognised by another one.
    """
    return since or note_marks(before)


def note_marks(root: Path) -> dict[str, Any]:
    """Return how far the logs of the environment went."""
    with _opened(root) as fd:
        return aptlogs.positions(fd, places=_places(root))


@contextmanager
def _opened(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _places(root: Path) -> dict[str, str]:
    return {log: str(within(root, log)) for log in aptlogs.LOGS}


def outcome(judged: Verdict, proof: Evidence, native: str, extra: list[str], kept: tuple[str, ...] = ()) -> Outcome:
    """Return the verdict as an outcome; *extra* are reasons of ours that come first."""
    changes = tuple(PackageChange(display_name(str(key), native), old, new) for key, old, new in judged.changes)
    told = (*proof.errors, *(proof.term_tail.split("\n") if proof.term_tail else []))
    return Outcome(judged.kind, (*extra, *judged.reasons), changes, proof.exit, kept, told)


def judge(
    targets: list[Target], before: Before, root: Path, now: Database, status: int | None
) -> tuple[Verdict, Evidence, str]:
    """Judge the environment, whose database is *now*; also return the evidence and the native architecture."""
    proof = evidence(root, before.marks, status)
    return verdict.judge(targets, before.database, now, proof), proof, native_architecture(now)
