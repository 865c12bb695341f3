"""The state directory as the hooks use it: relative to an open top level, one journal, no classes of the engine.

The rule: the same shapes on disk as journal.py and records.py (docs/internals.md), and what this returns from is
on disk. The engine is too heavy for a hook; a test reads with the one what the other wrote.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from snap_upgrade.core import wire
from snap_upgrade.system import failpoint, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATE = ".snap-upgrade"
PARTS = ".parts"  # as in core.plan
FOLDERS = ("be", "snap", "records", "journal", "history", "logs", "kept", "archives")
VERSION = "1\n"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class Locked(Exception):
    """A command that changes something is at work; the text names it."""


class BadState(Exception):
    """The state directory is not one that this version understands."""


def open_state(top: int) -> int:
    """Return a descriptor of the state directory below the top level *top*; make it if there is none."""
    try:
        state = os.open(STATE, _FOLDER, dir_fd=top)
    except FileNotFoundError:
        kernel.create_subvolume(top, STATE.encode())
        state = os.open(STATE, _FOLDER, dir_fd=top)
        os.fchmod(state, 0o700)
    version = read(state, "version")
    if version is None:
        _furnish(state)
    elif version != VERSION.encode():
        told = version[:20].decode("ascii", "backslashreplace").strip()
        raise BadState(f"the state of snap-upgrade has the version {told!r}, this program knows {VERSION.strip()}")
    return state


def _furnish(state: int) -> None:
    """Make the folders, then the file that says that they are all there."""
    for name in FOLDERS:
        try:
            os.mkdir(name, 0o700, dir_fd=state)
        except FileExistsError:
            pass  # made before we or somebody else was cut off
    write(state, "version", VERSION.encode())


def lock(state: int, holder: str) -> int:
    """Lock the state against commands that change something; raise Locked at once if there is one, naming it."""
    fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=state)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(kernel.read_holder(fd) or "another snap-upgrade") from None
        kernel.write_holder(fd, holder)
    except BaseException:
        os.close(fd)
        raise
    return fd


def wait_for_lock(state: int) -> int:
    """Lock the state, however long another command takes."""
    fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=state)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def read(folder: int, path: str) -> bytes | None:
    """Return the content of a file, None if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def write(folder: int, path: str, data: bytes, is_durable: bool = True) -> None:
    """Replace the content of the file *path* by *data*, whole; readers see the old or the new."""
    head, slash, base = path.rpartition("/")
    temporary = f"{head}{slash}.{base}.{os.getpid()}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        try:
            _write_all(fd, data)
            if is_durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        remove(folder, temporary)
        raise
    if is_durable:
        sync_folder(folder, head or ".")


def remove(folder: int, path: str) -> None:
    """Remove a file that may be gone already."""
    try:
        os.unlink(path, dir_fd=folder)
    except FileNotFoundError:
        pass


def sync_folder(folder: int, path: str) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(path, _FOLDER, dir_fd=folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def numbers(state: int, folder: str) -> list[int]:
    """Return the numbers that are used for names in a folder of the state directory."""
    fd = os.open(folder, _FOLDER, dir_fd=state)
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    stems = (name.partition(".")[0] for name in names)
    return [int(stem) for stem in stems if stem.isascii() and stem.isdecimal()]


def begin(state: int, compose: Any) -> str:
    """Begin a transaction under the next free number, durably; *compose* returns its first lines from the number."""
    # The open ones are listed first: one that is closed meanwhile is then seen in one of the two.
    number = max([0, *(n for folder in ("journal", "history", "snap") for n in numbers(state, folder))]) + 1
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        try:
            fd = os.open(f"journal/{number}", flags, 0o600, dir_fd=state)
            break
        except FileExistsError:
            number += 1
    ident = str(number)
    try:
        failpoint.reach("hook.begin.empty")
        try:
            _write_all(fd, b"".join(wire.line(line) for line in compose(ident)))
            os.fsync(fd)
        finally:
            os.close(fd)
        # btrfs logs a new file's name with its first fsync, and the snapshot that comes next commits it for good.
    except BaseException:
        remove(state, f"journal/{ident}")
        raise
    return ident


def lines(state: int, ident: str) -> tuple[list[dict[str, Any]], int] | None:
    """Return the whole lines of an open journal and their length in bytes; None if it is closed or damaged."""
    data = read(state, f"journal/{ident}")
    if data is None:
        return None
    found, good = [], 0
    pieces = data.split(b"\n")
    for piece in pieces[:-1]:
        value = wire.parse_line(piece + b"\n")
        if not isinstance(value, dict):
            return None  # damage: reported by status, never repaired by guessing
        found.append(value)
        good += len(piece) + 1
    if not found or found[0].get("kind") != "begin":
        return None
    return found, good


def append(state: int, ident: str, *added: dict[str, Any]) -> None:
    """Append lines to an open journal, durably, after cutting off one that a crash tore."""
    known = lines(state, ident)
    if known is None:
        raise BadState(f"the journal {ident} is closed or damaged")
    fd = os.open(f"journal/{ident}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, dir_fd=state)
    try:
        if os.fstat(fd).st_size != known[1]:
            os.ftruncate(fd, known[1])
        _write_all(fd, b"".join(wire.line(line) for line in added))
        os.fsync(fd)
    finally:
        os.close(fd)
    failpoint.reach(f"hook.{added[-1]['kind']}.after")


def close(state: int, ident: str, outcome: str, *last: dict[str, Any]) -> None:
    """Write the *last* lines and the end, and move the journal among the closed ones.

    The end is durable, the move need not be: a journal with an end among the open ones is moved by recovery.
    """
    append(state, ident, *last, {"kind": "end", "outcome": outcome, "exit": 0})
    os.rename(f"journal/{ident}", f"history/{ident}.json", src_dir_fd=state, dst_dir_fd=state)


def forget(state: int, ident: str) -> None:
    """Take back what was made for *ident*, under which no package was touched. The journal goes last."""
    known = lines(state, ident)
    if known is not None and any(one["kind"] == "started" and one["step"] == 1 for one in known[0]):
        # Without its snapshot nobody could judge what the journal says was let loose.
        append(state, ident, {"kind": "undoing", "step": 1})
    drop_snapshot(state, ident, None)
    failpoint.reach("hook.forget.dropped")
    remove(state, f"journal/{ident}")
    sync_folder(state, "journal")


def enrol(
    state: int,
    uuid: str,
    kind: str,
    name: str,
    path: str,
    origin: str | None,
    ident: str | None,
    is_adopted: bool = False,
) -> None:
    """Record the volume *uuid* durably, as records.py does. *ident* is the transaction that made it, if one did."""
    record = {
        "version": 1,
        "uuid": uuid,
        "kind": kind,
        "name": name,
        "path": path,
        "created": time.time(),
        "origin": origin,
        "transaction": ident,
        "state": "ready",
        "adopted": is_adopted,
        "pinned": False,
        "description": "",
    }
    write(state, f"records/{uuid}.json", (wire.encode(record) + "\n").encode())


def is_recorded(state: int, uuid: str) -> bool:
    """Whether the volume *uuid* has a record."""
    try:
        os.stat(f"records/{uuid}.json", dir_fd=state, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def drop_snapshot(state: int, ident: str, uuid: str | None) -> None:
    """Destroy the snapshot of transaction *ident*, its parts and their records; what is gone already is fine."""
    snapshots = os.open("snap", _FOLDER, dir_fd=state)
    try:
        found = _uuid_at(snapshots, ident)
        if found is not None and uuid is not None and found != uuid:
            raise BadState(f"{STATE}/snap/{ident} is not the snapshot that transaction {ident} made; it is kept")
        if found is not None:
            kernel.destroy_subvolume(snapshots, ident.encode())
            failpoint.reach("hook.snapshot.gone")
        gone = _drop_parts(snapshots, ident)  # after it: no snapshot is seen without its parts
        known = uuid or found
        gone += [known] if known is not None else []
        if gone:
            # A record goes only when the cut of the power cannot bring its volume back: fsync of a folder that lost
            # a subvolume commits.
            os.fsync(snapshots)
        for one in gone:
            remove(state, f"records/{one}.json")
            failpoint.reach("hook.record.gone")
        if gone:
            sync_folder(state, "records")
    finally:
        os.close(snapshots)


def _drop_parts(snapshots: int, ident: str) -> list[str]:
    try:
        os.stat(f"{ident}{PARTS}", dir_fd=snapshots, follow_symlinks=False)
    except FileNotFoundError:
        return []
    from snap_upgrade.hook import nested

    return nested.drop(snapshots, ident)


def _uuid_at(folder: int, name: str) -> str | None:
    try:
        fd = os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        return str(kernel.subvolume_info(fd).uuid)
    finally:
        os.close(fd)


def is_full(error: OSError) -> bool:
    """Whether *error* says that there is no room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
