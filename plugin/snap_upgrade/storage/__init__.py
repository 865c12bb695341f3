"""Where environments live: the interface of every storage and the table of them.

The rule: a storage does one thing to one volume and verifies it. It decides nothing, keeps no
records and knows no transactions; those are the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from snap_upgrade.core.model import FileChange, Layout, Space, Volume


class Storage(Protocol):
    """Every call can be repeated: asked for what is already so, it returns it.

    Volumes are named by uuid; paths are relative to the top level of the pool or file system.
    Calls raise StorageError (with errno) unless they say otherwise, and then nothing was changed.
    """

    kind: str

    def layout(self) -> Layout:
        """Return the running root and how another one would be made to boot."""
        ...

    def state_dir(self, create: bool = False) -> Path:
        """Return the state directory, usable in this process only; raise NotFound if there is none and not *create*."""
        ...

    def volumes(self) -> dict[str, Volume]:
        """Return every volume of the file system by uuid, ours and others'."""
        ...

    def at(self, path: str) -> Volume | None:
        """Return the volume at *path*, or None."""
        ...

    def nested(self, uuid: str) -> list[Volume]:
        """Return the volumes inside *uuid*, deepest first."""
        ...

    def snapshot(self, source: str, path: str) -> Volume:
        """Make a read-only snapshot of the volume *source* at *path*."""
        ...

    def clone(self, source: str, path: str) -> Volume:
        """Make a writable clone of the volume *source* at *path*."""
        ...

    def destroy(self, uuid: str) -> None:
        """Destroy exactly this volume; what is gone already is fine. Space comes back later (see pending_bytes)."""
        ...

    def rename(self, uuid: str, path: str) -> None:
        """Move the volume to *path*, which must be free."""
        ...

    def exchange(self, first: str, second: str) -> None:
        """Let the two volumes change places in one atomic operation. Not repeatable: the caller checks who is where."""
        ...

    def boots_next(self) -> Volume | None:
        """Return what would boot now, read back the way the kernel will choose it."""
        ...

    def activate(self, uuid: str) -> None:
        """Make *uuid* what boots next, by the layout's method, durable on return and read back."""
        ...

    def mount(self, uuid: str, target: Path, read_only: bool = False) -> None:
        """Mount the volume at *target* where everybody sees it."""
        ...

    def unmount(self, target: Path, lazy: bool = False) -> None:
        """Unmount what is mounted at *target*; EBUSY if it is in use. If *lazy*, processes in it do not hinder that:
        they stay where they are, unseen, so that whoever destroys the volume asks for them first."""
        ...

    def mounted_at(self, uuid: str) -> list[Path]:
        """Return where the volume is mounted in this mount namespace."""
        ...

    def mount_points(self, volumes: Iterable[Volume]) -> dict[str, list[Path]]:
        """Return the same for many volumes by uuid, at the cost of one; what is not mounted is left out."""
        ...

    def opened(self, uuid: str) -> AbstractContextManager[Path]:
        """Open the volume privately: yield a path to its root, usable in this process only."""
        ...

    def space(self) -> Space:
        """Return the space of the file system."""
        ...

    def exclusive_bytes(self, uuid: str) -> int | None:
        """Return what destroying the volume would free, where the storage knows it for nothing; else None."""
        ...

    def pending(self) -> list[int]:
        """Return the numbers of destroyed volumes whose space is not back yet."""
        ...

    def changed_files(self, old: str, new: str) -> Iterator[FileChange]:
        """Yield the files that differ between two volumes, at a cost in proportion to the change."""
        ...

    def sync(self) -> None:
        """Make everything done so far survive a power cut."""
        ...


_TABLE = {"btrfs": "snap_upgrade.storage.btrfs:BtrfsStorage"}


def open_storage(kind: str, root: Path, activation: str = "auto") -> Storage:
    """Return the storage *kind* for the file system that holds *root* (``/``, or the BE at ``-R DIR``).

    *activation* is the configured method: ``auto``, ``exchange`` or ``set-default``.
    """
    module, _, name = _TABLE[kind].partition(":")
    factory = cast(Callable[..., Storage], getattr(import_module(module), name))
    return factory(root, activation=activation)
