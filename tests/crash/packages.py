"""A package manager that does what it is told, for fault injection only: real apt is broken in tests/system.

The one rule: it changes the root the way a real one does, file after file with a fail point between, and it judges
from what lies in the two roots and from nothing else.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snap_upgrade.core.errors import CommandFailed, Locked
from snap_upgrade.core.packages import Outcome, PackageChange, PackagePlan, Report, Request, Root
from snap_upgrade.system import failpoint
from snap_upgrade.system.files import sync_dir

STATUS = "var/lib/dpkg/status"
FILES = ("usr/bin/one", "usr/bin/two", "etc/three.conf")
DATA = "var/lib/nested/version"  # what a package keeps in a nested volume: in a clone that has none, nothing


def put(path: Path, text: str, is_synced: bool = True) -> None:
    """Replace a file the way dpkg does: on the disk before it gets its name, unless told not to (*is_synced*)."""
    new = path.with_name(path.name + ".dpkg-new")
    with open(new, "w") as file:
        file.write(text)
        file.flush()
        if is_synced:
            os.fsync(file.fileno())
    new.rename(path)


def put_status(root: Path, text: str) -> None:
    """Replace dpkg's database, which dpkg syncs in any case, its folder too."""
    put(root / STATUS, text)
    sync_dir((root / STATUS).parent)


def write_version(root: Path, version: str, fail_after: int = 99, is_synced: bool = True) -> None:
    """Bring *root* to *version*, file by file as a package manager does, or stop after *fail_after* files.

    Without *is_synced* it does as dpkg with --force-unsafe-io: its database is synced all the same.
    """
    put_status(root, "half\n")
    is_there = (root / DATA).exists()
    if is_there:
        put(root / DATA, "half\n", is_synced)
    for number, name in enumerate(FILES):
        failpoint.reach("packages.file")
        if number == fail_after:
            raise CommandFailed(["dpkg"], 1, "the script says no")
        put(root / name, f"{name} {version}\n" * 50, is_synced)
    if is_there:
        put(root / DATA, f"{version}\n", is_synced)
    put_status(root, f"{version}\n")
    failpoint.reach("packages.done")


class Scripted:
    """Brings a root to version 2; with *fails* it stops in the middle."""

    name = "scripted"

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def is_present(self, root: Path) -> bool:
        return (root / STATUS).exists()

    @contextmanager
    def lock(self, root: Path) -> Iterator[None]:
        with open(root / "var/lib/dpkg/lock", "w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Locked("dpkg is at work") from error
            yield

    def refresh(self, root: Root, report: Report) -> None:
        failpoint.reach("packages.refresh")

    def plan(self, root: Root, request: Request) -> PackagePlan:
        return PackagePlan((PackageChange("one", "1", "2"),), 1000, 1000, 1000)

    def download(self, root: Root, request: Request, archives: Path, report: Report) -> None:
        (archives / "one.deb").write_text("two")
        failpoint.reach("packages.downloaded")

    def work(self, root: Path, is_synced: bool = True) -> None:
        write_version(root, "2", 1 if self.fails else 99, is_synced)

    def apply(self, root: Root, request: Request, archives: Path, log: Path, report: Report) -> Outcome:
        status = 0
        try:
            self.work(root.path, is_synced=not root.is_disposable)
        except CommandFailed as error:
            status = error.status
        log.write_text("Unpacking one\n")
        return self._outcome("1", (root.path / STATUS).read_text().strip(), status)

    def run(self, root: Root, command: list[str], log: Path, report: Report) -> Outcome:
        raise AssertionError("no flow of the crash suite asks for this")

    def judge(
        self, before: Path, after: Path, asked: list[list[dict[str, Any]]], exit_status: int | None,
        since: dict[str, Any],
    ) -> Outcome:  # fmt: skip
        old, new = ((root / STATUS).read_text().strip() for root in (before, after))
        return self._outcome(old, new, exit_status)

    def _outcome(self, old: str, new: str, status: int | None) -> Outcome:
        changes = (PackageChange("one", old, new),) if old != new else ()
        verdict = "failed" if new not in {"1", "2"} else "success" if changes else "unchanged"
        return Outcome(verdict, (f"one is {new}",), changes, -1 if status is None else status)

    def live_command(self, request: Request) -> list[str]:
        raise AssertionError("no flow of the crash suite asks for this")

    def installed(self, root: Path) -> dict[str, str]:
        return {"one": (root / STATUS).read_text().strip()}

    def changes(self, old: Path, new: Path) -> list[PackageChange]:
        raise AssertionError("no flow of the crash suite asks for this")

    def broken(self, root: Path) -> list[str]:
        return []
