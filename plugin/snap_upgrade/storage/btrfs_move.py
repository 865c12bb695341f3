"""Read-only volumes that change their directory: writable for an instant, and not longer, however we end.

The rule: which volume it is stands in the state before the flag is cleared. Whoever next opens the state to change
something gives the flag back to those whose process has ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from snap_upgrade.storage import btrfs_state
from snap_upgrade.system import failpoint, kernel

FOLDER = "moving"


@contextmanager
def writable(state: Path, numbers: list[int], opened: Callable[[int], int]) -> Iterator[None]:
    """Make the read-only volumes *numbers* writable for the block; *opened* gives a descriptor of one.

    Linux asks for write permission on a directory whose ``..`` changes (EROFS), and a read-only volume has none.
    """
    with ExitStack() as stack:
        for number in numbers:
            fd = opened(number)
            stack.callback(os.close, fd)
            note = state / FOLDER / btrfs_state.passing_name(number)
            note.parent.mkdir(mode=0o700, exist_ok=True)
            # No fsync: the flag below is committed with all that came before it.
            note.touch(mode=0o600)
            stack.callback(_give_back, fd, note)
            failpoint.reach("storage.move.noted")
            kernel.set_read_only(fd, False)
            failpoint.reach("storage.move.writable")
        yield
        failpoint.reach("storage.move.moved")


def _give_back(fd: int, note: Path) -> None:
    kernel.set_read_only(fd, True)
    failpoint.reach("storage.move.given-back")
    note.unlink()


def mend(state: Path, opened: Callable[[int], int | None]) -> None:
    """Give the flag back where a process was killed in between; *opened* returns None for a volume that is gone."""
    folder = state / FOLDER
    for name in btrfs_state.left_over(folder) if folder.is_dir() else ():
        fd = opened(int(name.rpartition(".")[2]))
        if fd is None:
            (folder / name).unlink()
            continue
        try:
            _give_back(fd, folder / name)
        finally:
            os.close(fd)
