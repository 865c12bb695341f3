"""What becomes of a live transaction when apt is done: judged, and where nothing has to be undone, closed.

The rule: a good or empty operation is finished here, cheaply; of any other only the verdict is written, and
``snap-upgrade recover`` makes the way back once apt is gone. It is judged once; whoever comes second reads.
"""

from __future__ import annotations

import os
import time

from snap_upgrade.core import dpkgdb, request, verdict
from snap_upgrade.hook import settings, state
from snap_upgrade.system import aptlogs, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ADMIN_DIR = "var/lib/dpkg"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Judged:
    """What was found; ``is_open``: recovery has to make a way back."""

    __slots__ = ("ident", "is_open", "kept", "verdict")

    def __init__(self, ident: str, found: verdict.Verdict, is_open: bool, kept: bool) -> None:
        self.ident = ident
        self.verdict = found
        self.is_open = is_open
        self.kept = kept


def judge(folder: int, root: int, ident: str) -> tuple[verdict.Verdict, verdict.Evidence] | None:
    """Judge the open transaction *ident* as things are now; None if it is closed. *folder* is the state, *root* ``/``.

    Raises BadDatabase or BadRequest if there is nothing to judge by.
    """
    known = state.lines(folder, ident)
    if known is None:
        return None
    begin = known[0][0]
    asked = [begin.get("request") or []] + [line["request"] for line in known[0] if line["kind"] == "request"]
    targets = request.merge(request.from_json(one) for one in asked)
    before = _database_before(folder, ident)
    after = _database(root, "of this system")
    evidence = aptlogs.collect(root, begin.get("since"))
    return verdict.judge(targets, before, after, evidence), evidence


def _database_before(folder: int, ident: str) -> dpkgdb.Database:
    try:
        snapshot = os.open(f"snap/{ident}", _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        raise dpkgdb.BadDatabase(f"cannot open the snapshot snap-{ident}: {error.strerror or error}") from error
    try:
        return _database(snapshot, f"in snap-{ident}")
    finally:
        os.close(snapshot)


def _database(root: int, where: str) -> dpkgdb.Database:
    """Return dpkg's database of the system in the open folder *root*, wherever the links of that system lead."""
    try:
        fd = kernel.open_inside(root, ADMIN_DIR)
    except OSError as error:
        raise dpkgdb.BadDatabase(f"cannot read the package database {where}: {error}") from error
    try:
        # One of another device was not taken along by the snapshot, so it is the same before and after.
        if os.fstat(fd).st_dev != os.fstat(root).st_dev:
            raise dpkgdb.BadDatabase(f"the package database {where} is not in its subvolume")
        return dpkgdb.read_database(fd)
    finally:
        os.close(fd)


def finish(
    folder: int, root: int, ident: str, may_leave: bool = True, tell: Callable[[Judged], None] | None = None
) -> Judged | None:
    """Judge, write the verdict down, and close the transaction where nothing has to be undone.

    None if it is closed or judged already, or if not *may_leave* (more may join it) and all is well so far.
    *tell* hears what was found before it is written: the user need not wait for the disk. If the writing then fails
    the transaction is open, and recovery finds the same.
    """
    lock = state.wait_for_lock(folder)
    try:
        return finish_locked(folder, root, ident, may_leave, tell)
    finally:
        os.close(lock)


def finish_locked(
    folder: int,
    root: int,
    ident: str,
    may_leave: bool = True,
    tell: Callable[[Judged], None] | None = None,
    may_close: bool = True,
) -> Judged | None:
    """Do as ``finish`` does. The caller holds the lock; if not *may_close*, what follows is left to recovery."""
    known = state.lines(folder, ident)
    if known is None or is_decided(known[0]):
        return None
    found = judge(folder, root, ident)
    if found is None:
        return None
    result, evidence = found
    judged = _outlook(ident, result) if may_leave and may_close else Judged(ident, result, True, True)
    if tell is not None:
        tell(judged)
    if may_leave:
        told = [
            {"kind": "post", "time": time.time()},
            {"kind": "verdict", **result.to_json(), "evidence": evidence.to_json()},
        ]
        _close(folder, judged, known[0], told)
    return judged


def is_decided(lines: list[dict[str, Any]]) -> bool:
    """Whether a journal with these *lines* needs no verdict any more."""
    return any(line["kind"] in ("verdict", "decide", "end") for line in lines)


def is_whole(lines: list[dict[str, Any]]) -> bool:
    """Whether the snapshot is made and recorded, and nobody began to take it back."""
    marks = {(line["kind"], line.get("step")) for line in lines}
    return ("done", 0) in marks and ("started", 1) in marks and all(kind != "undoing" for kind, _ in marks)


def _outlook(ident: str, result: verdict.Verdict) -> Judged:
    """Return what becomes of the transaction by its verdict and the settings."""
    if result.kind == verdict.UNCHANGED and not result.ran:
        return Judged(ident, result, False, False)
    is_done = result.is_good and settings.load().is_kept
    return Judged(ident, result, not is_done, True)


def _close(folder: int, judged: Judged, lines: list[dict[str, Any]], told: list[dict[str, Any]]) -> None:
    """Write *told* and whatever follows, in as few durable writes as can be."""
    ident = judged.ident
    done = {"kind": "done", "step": 1, "result": {}}
    if judged.is_open:
        state.append(folder, ident, *told)
    elif judged.kept:
        # What is called good is on the disk first: a script's own files nobody else has written out.
        kernel.sync(folder)
        state.close(folder, ident, "committed", *told, done, {"kind": "decide", "plan": []})
    else:
        number = len(lines[0]["plan"])
        step = {"step": "destroy", "name": f"snap-{ident}"}
        decided = {"kind": "decide", "plan": [step]}
        state.append(folder, ident, *told, done, decided, {"kind": "started", "step": number})
        state.drop_snapshot(folder, ident, _snapshot_uuid(lines))
        state.close(folder, ident, "undone", {"kind": "done", "step": number, "result": {}})


def _snapshot_uuid(lines: list[dict[str, Any]]) -> str | None:
    for line in lines:
        if line["kind"] == "done" and line.get("step") == 0:
            uuid = line["result"].get("uuid")
            return str(uuid) if uuid else None
    return None


def message(judged: Judged, is_terminal: bool) -> str:
    """Return what the user is to be told; nothing of a plain success unless a person is watching."""
    result, ident = judged.verdict, judged.ident
    if result.is_good:
        text = "".join(f"snap-upgrade: {key} is still broken, as before\n" for key in result.still_broken)
        if is_terminal and result.kind != verdict.UNCHANGED and judged.kept:
            text += f"snap-upgrade: transaction {ident} is good; restore point kept\n"
        return text
    text = "".join(f"snap-upgrade: {reason}\n" for reason in _most(result.reasons))
    what = "failed" if result.kind == verdict.FAILED else "was interrupted"
    if result.as_before:
        text += f"snap-upgrade: transaction {ident} {what}; all packages are as they were before\n"
    else:
        text += (
            f"snap-upgrade: transaction {ident} {what}; the snapshot snap-{ident} holds the system as it was before\n"
        )
    return text + f"snap-upgrade: to boot that system next: snap-upgrade rollback before-{ident}\n"


def _most(reasons: list[str]) -> list[str]:
    return reasons if len(reasons) <= 10 else [*reasons[:10], f"and {len(reasons) - 10} more, see snap-upgrade history"]
