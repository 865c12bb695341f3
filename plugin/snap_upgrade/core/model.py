"""The nouns: volumes, records, layouts, spaces.

The rule: these are frozen facts. Nothing here reads the machine, and nothing here decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """What a record describes. A ``part`` is a nested volume that was copied along with its environment or
    snapshot."""

    ENVIRONMENT = "environment"
    SNAPSHOT = "snapshot"
    PART = "part"


class State(Enum):
    """How far an environment has come; only a ``ready`` one may be activated."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


class Method(Enum):
    """What makes another volume boot here."""

    EXCHANGE = "exchange"
    SET_DEFAULT = "set-default"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Volume:
    """One subvolume or dataset, as the storage sees it now.

    *path* is relative to the top level; *ident* is the storage's own number (btrfs: subvolume id);
    *generation* grows with every write inside and never goes back (btrfs: ctransid; its generation moves as well when a
    snapshot of the volume is taken). It is beyond *created_generation* once something was written.
    """

    uuid: str
    ident: int
    path: str
    parent_uuid: str | None
    container: int
    read_only: bool
    generation: int
    created_generation: int


@dataclass(frozen=True, slots=True)
class Record:
    """What we know about a volume of ours. *created* is seconds since the epoch; *lived*: it was booted."""

    uuid: str
    kind: Kind
    name: str
    path: str
    created: float
    origin: str | None
    transaction: str | None
    state: State
    adopted: bool = False
    pinned: bool = False
    description: str = ""
    lived: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """How the root is chosen at boot. *boot_path* is where an exchange takes place (relative to the top level).

    ``method`` NONE comes with *refusal*: why a roll back could not take effect here.
    *warnings* are true but do not stop anything (a swap file inside the root, say). *selected* are the places of the
    volumes that something mounts by path or number at every boot: moved, they would be missed.
    """

    running: Volume
    method: Method
    boot_path: str | None = None
    refusal: str = ""
    hint: str = ""
    warnings: tuple[str, ...] = ()
    selected: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of the file system. *unallocated* are not yet given to data or metadata; *metadata_free* lies within
    metadata chunks; *available* is what a writer may count on."""

    total: int
    available: int
    unallocated: int
    metadata_free: int


class Change(Enum):
    """What happened to a file between two environments."""

    ADDED = "+"
    REMOVED = "-"
    MODIFIED = "M"


@dataclass(frozen=True, slots=True)
class FileChange:
    """One changed file; *path* starts with ``/``."""

    change: Change
    path: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something ``status`` and ``check`` show, with the command that mends it."""

    message: str
    hint: str = ""
    severity: str = "error"
    detail: dict[str, str] = field(default_factory=dict)
