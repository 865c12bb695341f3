"""The nouns of package work: what is asked for, what it will cost, what came of it.

The rule: the same words for every package manager; what only one of them knows stays in its backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Verb(Enum):
    """What is asked of the package manager."""

    UPGRADE = "upgrade"
    INSTALL = "install"
    REMOVE = "remove"
    CUSTOM = "custom"


class Conffiles(Enum):
    """What happens to a configuration file that both the administrator and the package changed."""

    KEEP = "keep"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Request:
    """*packages* as the user typed them; *arguments* are passed on untouched (``CUSTOM``: the whole command)."""

    verb: Verb
    packages: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    conffiles: Conffiles = Conffiles.KEEP


@dataclass(frozen=True, slots=True)
class PackageChange:
    """One package that will change or has changed; a version is None where the package is absent."""

    name: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class PackagePlan:
    """What the request means now. Bytes: to download, by how much the root grows (may be negative), to write.

    A clone shares its blocks with what it was made from: every new file takes new space, also where it replaces one.
    """

    changes: tuple[PackageChange, ...]
    download_bytes: int
    unpack_bytes: int
    written_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the run left. *verdict* is one of core.verdict's kinds; *exit_status* is None if nobody saw it;
    *kept_conffiles* are left for a person to merge."""

    verdict: str
    reasons: tuple[str, ...]
    changes: tuple[PackageChange, ...]
    exit_status: int | None
    kept_conffiles: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """Progress. ``phase``: *name* begins; ``download``: *done* of *total* bytes; ``package``: *done* of *total*
    packages, *name* is at hand; ``line``: *name* is a line the package manager printed."""

    kind: str
    name: str = ""
    done: int = 0
    total: int = 0


Report = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Root:
    """An environment to work on.

    *path* reads it from this process (it may be a ``/proc/self/fd`` path). *attach* mounts it at a
    directory and is called in a fresh private mount namespace, in a child.

    *is_disposable*: nothing done to it counts before the whole file system is synced, and a run that a power cut ended
    is destroyed unread. Whoever says so has to see to both; then a package manager need not sync file by file.
    """

    path: Path
    attach: Callable[[Path], None]
    is_disposable: bool = False
