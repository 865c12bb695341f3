"""Package managers seen from outside: the interface of each and the table of them.

The rule: a package manager acts inside an environment and tells what came of it; whether that
environment lives on is the engine's to decide.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from snap_upgrade.core.packages import Outcome, PackageChange, PackagePlan, Report, Request, Root


class PackageManager(Protocol):
    """Every call raises CommandFailed for what has no error of its own below."""

    name: str

    def is_present(self, root: Path) -> bool:
        """Whether the environment at *root* is managed by this package manager."""
        ...

    def lock(self, root: Path) -> AbstractContextManager[None]:
        """Hold the package manager's own lock of the environment at *root*; raise Locked, naming the holder."""
        ...

    def refresh(self, root: Root, report: Report) -> None:
        """Fetch the lists of packages; raise NetworkFailed or SignatureFailed."""
        ...

    def plan(self, root: Root, request: Request) -> PackagePlan:
        """Return what *request* would do; raise NothingToDo, or Refused if it cannot be done at all."""
        ...

    def download(self, root: Root, request: Request, archives: Path, report: Report) -> None:
        """Fetch all packages of *request* into *archives*; raise NetworkFailed or SignatureFailed."""
        ...

    def apply(self, root: Root, request: Request, archives: Path, log: Path, report: Report) -> Outcome:
        """Do *request* inside the environment without the network and judge the result; all output goes to *log*."""
        ...

    def run(self, root: Root, command: list[str], log: Path, report: Report) -> Outcome:
        """Run any command inside the environment and judge what it did to the packages and by its exit status."""
        ...

    def judge(
        self,
        before: Path,
        after: Path,
        asked: list[list[dict[str, Any]]],
        exit_status: int | None,
        since: dict[str, Any],
    ) -> Outcome:
        """Judge what happened between the roots *before* and *after*.

        *asked* are the requests as the journal has them, *exit_status* is None if nobody knows it, *since* is what
        the hook noted of the logs (names, sizes) so that only what came later counts as evidence.
        """
        ...

    def live_command(self, request: Request) -> list[str]:
        """Return the command that does *request* on the live root, under the hooks."""
        ...

    def installed(self, root: Path) -> dict[str, str]:
        """Return name to version of what is installed in the environment at *root*."""
        ...

    def changes(self, old: Path, new: Path) -> list[PackageChange]:
        """Return the packages that differ between two environments."""
        ...

    def broken(self, root: Path) -> list[str]:
        """Return what the package database says is half done, a text each."""
        ...


class PackageReader(Protocol):
    """What a package manager knows of packages, for people. Reading only; see `open_reader`."""

    def candidate(self, root: Path, name: str) -> str | None:
        """Return the version of *name* that would be installed in *root*, None if there is none."""
        ...

    def sizes(self, root: Path, name: str) -> tuple[int, int]:
        """Return the bytes of *name*'s candidate to download, and installed; raise NotFound."""
        ...

    def why(self, root: Path, name: str) -> str:
        """Return why *name* is installed in *root*; raise NotFound if it is not."""
        ...

    def changelog(self, name: str, old: str | None, new: str) -> str:
        """Return what the changelog of *name* says of the versions after *old* up to *new*; asks the network."""
        ...


_READERS = {"apt": "snap_upgrade.packages.apt_read"}
_TABLE = {"apt": "snap_upgrade.packages.apt:open_apt"}
SCRIPT_TIMEOUT_S = 3600.0


def open_manager(name: str, script_timeout_s: float = SCRIPT_TIMEOUT_S) -> PackageManager:
    """Return the package manager *name*; in a clone it ends what has been silent for *script_timeout_s* (0: never)."""
    module, _, factory = _TABLE[name].partition(":")
    return cast(Callable[[float], PackageManager], getattr(import_module(module), factory))(script_timeout_s)


def open_reader(name: str) -> PackageReader:
    """Return what reads for people what the package manager *name* knows; libraries load at the first call."""
    return cast(PackageReader, import_module(_READERS[name]))


def find_manager(root: Path, script_timeout_s: float = SCRIPT_TIMEOUT_S) -> PackageManager | None:
    """Return the package manager of the environment at *root*, or None."""
    managers = (open_manager(name, script_timeout_s) for name in _TABLE)
    return next((manager for manager in managers if manager.is_present(root)), None)
