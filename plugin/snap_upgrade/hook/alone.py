"""What ``post`` does where no watcher answers: it was killed, or there is no transaction of ours at all.

The rule: as the watcher would, in this process, and nothing that is heavy: recovery comes later by itself.
"""

from __future__ import annotations

import errno
import os

from snap_upgrade.core.dpkgdb import BadDatabase
from snap_upgrade.core.request import BadRequest
from snap_upgrade.hook import closing, owner, settings, state, trouble
from snap_upgrade.hook.ancestry import Ancestor
from snap_upgrade.system import kernel


def judge(above: list[Ancestor], is_terminal: bool) -> str:
    """Judge the open transaction of a process above us and return what the user is to be told."""
    try:
        device, _, options = kernel.root_device()
        if options.partition(",")[0] != "rw":
            return ""
        top = kernel.open_top_level(device)
        folder = os.open(state.STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOENT):
            return ""  # no btrfs, no state: no transaction of ours
        return f"snap-upgrade: what became of this operation cannot be found out: {error}\n"
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    starts = {one.pid: one.start for one in above}
    for number in state.numbers(folder, "journal"):
        known = state.lines(folder, str(number))
        if known is None or closing.is_decided(known[0]) or not closing.is_whole(known[0]):
            continue
        begin = known[0][0]
        theirs = begin.get("owner") or {}
        front_end = str(begin.get("front_end") or "")
        if begin.get("boot_id") != kernel.boot_id() or starts.get(theirs.get("pid", 0)) != theirs.get("start"):
            continue
        if front_end in ("", "snap-upgrade"):
            return ""  # our own command judges what it ran
        joins = front_end.startswith(owner.UNATTENDED)
        try:
            judged = closing.finish(folder, root, str(number), not joins)
        except (BadDatabase, BadRequest, state.BadState, settings.BadSetting, OSError) as error:
            trouble.note(folder, "the post hook", str(number), error)
            return f"snap-upgrade: transaction {number} cannot be judged and stays open: {error}\n"
        return "" if judged is None else closing.message(judged, is_terminal and not joins)
    return ""
