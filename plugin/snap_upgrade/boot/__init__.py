"""What the machine boots: the interface of every boot loader and the table of them.

The rule: a boot loader says what it can do here. What it cannot, it refuses by name instead of pretending.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One entry of a boot menu, *environment* by uuid."""

    ident: str
    title: str
    environment: str | None


class BootLoader(Protocol):
    """Calls that change something raise Refused where this loader cannot do it."""

    kind: str

    def entries(self) -> list[BootEntry]:
        """Return the entries of the menu that belong to environments."""
        ...

    def next_environment(self) -> str | None:
        """Return the environment the loader will boot, read back its own way; None: the storage decides."""
        ...

    def set_once(self, environment: str) -> None:
        """Boot *environment* the next time only."""
        ...

    def set_default(self, environment: str) -> None:
        """Boot *environment* from now on."""
        ...

    def add(self, environment: str, title: str) -> BootEntry:
        """Add an entry for *environment*."""
        ...

    def remove(self, environment: str) -> None:
        """Remove the entry of *environment*."""
        ...

    def fallback_problem(self) -> str | None:
        """Return why there is no automatic fallback here, or None if there is one."""
        ...


_TABLE = {"none": "snap_upgrade.boot.none:NoLoader"}


def open_loader(kind: str, root: Path) -> BootLoader:
    """Return the boot loader *kind* of the machine whose root is *root*."""
    module, _, name = _TABLE[kind].partition(":")
    return cast(Callable[[Path], BootLoader], getattr(import_module(module), name))(root)
