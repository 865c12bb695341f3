"""What is open when ``pre`` comes: the transaction it belongs to, or what earlier operations left behind.

The rule: nothing is joined that has no whole snapshot, and what is over is judged before dpkg runs again, so that no
later change is put on its account. Loaded only where a journal is open.
"""

from __future__ import annotations

import sys

from snap_upgrade.core.dpkgdb import BadDatabase
from snap_upgrade.core.request import BadRequest
from snap_upgrade.hook import closing, owner, post, settings, state
from snap_upgrade.hook.ancestry import Ancestor
from snap_upgrade.system import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

OURS = ("", "snap-upgrade")  # the front end that a transaction of our own command names


def join_ours(folder: int, above: list[Ancestor], entry: dict[str, Any]) -> bool:
    """Add the request to the transaction of our own command above us: it holds the lock and waits for apt."""
    for ident, lines in _undecided(folder):
        if _front_end(lines) in OURS and _is_above(lines, above):
            state.append(folder, ident, entry)
            return True
    return False


def ask_watcher(folder: int, front: Ancestor) -> None:
    """Have the watcher of an earlier operation of *front* judge it, if it still listens: the next one listens there.

    The caller does not hold the lock, for the watcher takes it.
    """
    for _, lines in _undecided(folder):
        if _is_above(lines, [front]) and not _front_end(lines).startswith(owner.UNATTENDED):
            sys.stderr.write(post.ask([front], False) or "")


def settle(folder: int, root: int, above: list[Ancestor], front: Ancestor, entry: dict[str, Any]) -> bool:
    """Join the open transaction of this run of unattended-upgrades, and see to all others. The caller holds the lock.

    Another one of *front* is over, whatever its post hook missed: daemons run one operation after another. So is that
    of any other process, if *front* has apt's locks.
    """
    has_locks = owner.lock_holder(owner.FRONTEND_LOCK) == front.pid
    has_locks = has_locks and owner.lock_holder(owner.DPKG_LOCK) in (0, front.pid)
    for ident, lines in list(_undecided(folder)):
        is_run = _is_above(lines, above) and _front_end(lines).startswith(owner.UNATTENDED)
        if is_run and closing.is_whole(lines):
            state.append(folder, ident, entry)
            return True
        if is_run or has_locks or _is_above(lines, [front]):
            _end(folder, root, ident, lines)
    return False


def _undecided(folder: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield number and lines of every live transaction of this boot that has no verdict."""
    for number in sorted(state.numbers(folder, "journal")):
        known = state.lines(folder, str(number))
        if known is None or closing.is_decided(known[0]):
            continue
        begin = known[0][0]
        if begin.get("flow") == "live" and begin.get("boot_id") == kernel.boot_id():
            yield str(number), known[0]


def _front_end(lines: list[dict[str, Any]]) -> str:
    return str(lines[0].get("front_end") or "")


def _is_above(lines: list[dict[str, Any]], above: list[Ancestor]) -> bool:
    """Whether the transaction belongs to a process in *above*."""
    theirs = lines[0].get("owner") or {}
    return any((one.pid, one.start) == (theirs.get("pid"), theirs.get("start")) for one in above)


def _end(folder: int, root: int, ident: str, lines: list[dict[str, Any]]) -> None:
    """Judge a transaction that is over, or take back one that was never made whole."""
    is_ours = _front_end(lines) in OURS
    text = ""
    try:
        if closing.is_whole(lines):
            judged = closing.finish_locked(folder, root, ident, may_close=not is_ours)
            text = "" if judged is None else closing.message(judged, False)
        elif not is_ours and all(line["kind"] != "request" for line in lines):
            state.forget(folder, ident)
    except (BadDatabase, BadRequest, state.BadState, settings.BadSetting, OSError) as error:
        text = f"snap-upgrade: transaction {ident} stays open: {error}\n"
    sys.stderr.write(text)
