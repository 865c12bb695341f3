"""What grows with time in the state directory, kept in bounds: downloaded packages, closed transactions, their logs.

The rule: only files that nobody needs any more go, oldest first. The newest transaction always stays,
for its number is what the next one is counted from; and a clock that went back makes nothing old.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from snap_upgrade import journal

ARCHIVE_AGE_S = 14 * 86400
TRANSACTIONS = 1000


def tidy(state: Path) -> None:
    """Remove packages that were downloaded two weeks ago, and all but the newest thousand closed transactions.

    The caller holds the lock: nobody is downloading.
    """
    for path in _old_files(state / "archives", time.time() - ARCHIVE_AGE_S):
        path.unlink(missing_ok=True)
    for number in journal.numbers(state / "history")[:-TRANSACTIONS]:
        (state / "logs" / f"{number}.log").unlink(missing_ok=True)
        (state / "history" / f"{number}{journal.SUFFIX}").unlink(missing_ok=True)


def _old_files(folder: Path, before: float) -> list[Path]:
    """Return the plain files that came into *folder* before that time (ctime: the mtime is the server's)."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        status = os.lstat(folder / name)
        if stat.S_ISREG(status.st_mode) and status.st_ctime < before:
            found.append(folder / name)
    return found
