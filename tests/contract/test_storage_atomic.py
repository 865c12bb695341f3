"""That two volumes change places in one operation of the kernel, and not by three renames that can be cut between.

The rule: the kernel itself tells, by inotify, in which order names went and came; no reader has to be quick enough.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from tests.contract.stores import btrfs

_MOVED_FROM, _MOVED_TO = 0x40, 0x80
_HEAD = struct.Struct("iIII")


def moves(watch: int) -> list[tuple[str, str]]:
    """Return what went (``-``) and came (``+``) in the watched folders, in the kernel's order."""
    data = os.read(watch, 65536)
    found = []
    while data:
        _, mask, _, size = _HEAD.unpack_from(data)
        name = data[_HEAD.size : _HEAD.size + size].rstrip(b"\0").decode()
        found.append(("-" if mask & _MOVED_FROM else "+", name))
        data = data[_HEAD.size + size :]
    return found


def test_an_activation_changes_both_names_in_one_operation(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with btrfs(tmp_path) as case:
        state = case.storage.state_dir(create=True)
        made = case.storage.clone(case.running.uuid, ".snap-upgrade/be/new")
        watch = libc.inotify_init1(os.O_CLOEXEC)
        assert watch >= 0
        for folder in (state / "be", state.parent):
            assert libc.inotify_add_watch(watch, os.fsencode(folder), _MOVED_FROM | _MOVED_TO) > 0
        case.storage.activate(made.uuid)
        # Neither name is free for an instant: each goes only as the other comes.
        found = moves(watch)
        os.close(watch)
        assert found in ([("-", "@"), ("+", "new"), ("-", "new"), ("+", "@")],
                         [("-", "new"), ("+", "@"), ("-", "@"), ("+", "new")])  # fmt: skip
