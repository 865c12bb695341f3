"""Where the logs of apt and dpkg end now, and what was written to them since: the evidence for a verdict.

The rule: a position is inode and size, for a log may be rotated meanwhile; then all of the new file is new.
A light module.
"""

from __future__ import annotations

import os

from snap_upgrade.core import verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HISTORY, TERM, DPKG = "/var/log/apt/history.log", "/var/log/apt/term.log", "/var/log/dpkg.log"
LOGS = (HISTORY, TERM, DPKG)
MOST = 16 << 20  # of one log; the end counts


def positions(root: int, config: dict[str, str] | None = None, places: dict[str, str] | None = None) -> dict[str, Any]:
    """Return inode and size of each log below the open folder *root*; a log that is not there yet is at [0, 0].

    *places* says where a log really is, for a root whose links must not be followed as ours. *config* is apt's own:
    if it says that the history is kept, then ``history_kept``, and no history later is as good as an empty one.
    """
    found: dict[str, Any] = {"history_kept": _keeps_history(config or {})}
    for path in LOGS:
        try:
            status = os.stat((places or {}).get(path, path[1:]), dir_fd=root)
        except (FileNotFoundError, NotADirectoryError):
            found[path] = [0, 0]
        else:
            found[path] = [status.st_ino, status.st_size]
    return found


def collect(
    root: int, since: object, exit_status: int | None = None, places: dict[str, str] | None = None
) -> verdict.Evidence:
    """Return what the logs below the open folder *root* (or at their *places*) say since the positions *since*.

    A log that cannot be read says nothing, which is not the same as saying that nothing happened.
    """
    known = since if isinstance(since, dict) else {}
    history, term, dpkg = (_new(root, (places or {}).get(path, path[1:]), known.get(path)) for path in LOGS)
    if history is None and known.get("history_kept") is True and known.get(HISTORY) == [0, 0]:
        history = b""
    started, ended, errors = verdict.parse_history(history) if history is not None else (None, None, [])
    return verdict.Evidence(
        started,
        ended,
        None if dpkg is None else verdict.count_startups(dpkg),
        exit_status,
        errors,
        verdict.tail(term or b""),
    )


def _keeps_history(config: dict[str, str]) -> bool:
    folder, name = config.get("Dir::Log", "").strip("/"), config.get("Dir::Log::History", "")
    return f"/{folder}/{name}" == HISTORY


def _new(root: int, path: str, position: Any) -> bytes | None:
    """Return what was added to a log, None if there is no log or nobody noted where it ended."""
    if not (isinstance(position, list) and len(position) == 2 and all(isinstance(number, int) for number in position)):
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        inode, size = position
        start = size if status.st_ino == inode and status.st_size >= size else 0
        start = max(start, status.st_size - MOST)
        parts = []
        while part := os.pread(fd, 1 << 20, start):
            parts.append(part)
            start += len(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)
