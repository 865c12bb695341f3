"""The inside of the state subvolume, and the names of snapshots that live for one comparison.

The rule: whatever is missing can be made again; a passing snapshot is taken away only if the process in its name ended.
"""

from __future__ import annotations

import os
from pathlib import Path

from snap_upgrade.system import files, kernel

FOLDERS = ("be", "snap", "records", "journal", "history", "logs", "kept", "archives", "diff")


def complete(state: Path) -> bool:
    """Give *state* its mode, folders and version where they lack; return whether anything did."""
    changed = state.stat().st_mode & 0o7777 != 0o700
    if changed:
        state.chmod(0o700)
    for folder in FOLDERS:
        try:
            (state / folder).mkdir(mode=0o700)
            changed = True
        except FileExistsError:
            continue
    if not (state / "version").exists():
        files.write_durable(state / "version", b"1\n")
        changed = True
    return changed


def passing_name(number: int) -> str:
    """Return the name of a passing snapshot of volume *number*; boot, pid and start name this process for ever."""
    return f"{kernel.boot_id()}.{os.getpid()}.{kernel.process_start(os.getpid())}.{number}"


def owner_of(name: str) -> tuple[str, int, int] | None:
    """Return boot, process and its start time from the name of a passing snapshot; None if it is no such name."""
    words = name.split(".")
    if len(words) != 4 or not all(kernel.is_number(word) for word in words[1:]):
        return None
    return words[0], int(words[1]), int(words[2])


def left_over(folder: Path) -> list[str]:
    """Return the passing snapshots in *folder* whose process has ended; other names are not ours to judge."""
    found = []
    for name in os.listdir(folder):
        owner = owner_of(name)
        if owner is None:
            continue
        boot, pid, start = owner
        try:
            alive = boot == kernel.boot_id() and kernel.process_start(pid) == start
        except (FileNotFoundError, ProcessLookupError):
            alive = False
        if not alive:
            found.append(name)
    return found
