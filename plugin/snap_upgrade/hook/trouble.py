"""What went wrong where nobody watches: in the watcher, and in a post hook that apt does not listen to.

The rule: every line is a person's to read, so it is printable and one line; the log has a bounded size.
"""

from __future__ import annotations

import os
import sys
import time

from snap_upgrade.core import wire
from snap_upgrade.hook import state

LOG, OLDER, LAST = "logs/hook.log", "logs/hook.log.1", "hook-trouble.json"
MOST = 128 << 10  # of each of the two


def open_log(folder: int) -> int:
    """Return a descriptor that appends to the log in the state *folder*; a full one becomes the older one."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(LOG, flags, 0o600, dir_fd=folder)
    if os.fstat(fd).st_size < MOST:
        return fd
    os.close(fd)
    os.replace(LOG, OLDER, src_dir_fd=folder, dst_dir_fd=folder)
    return os.open(LOG, flags, 0o600, dir_fd=folder)


def note(folder: int, who: str, ident: str, what: object) -> None:
    """Write to the log, and for ``status``, that *who* met *what* (an exception or words) in transaction *ident*."""
    text = f"{type(what).__name__}: {what}" if isinstance(what, BaseException) else str(what)
    text = "".join(letter if letter.isprintable() else " " for letter in text)[:2000]
    now = time.time()
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(now))} {who}, transaction {ident}: {text}\n"
    try:
        fd = open_log(folder)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
        last = {"time": now, "who": who, "transaction": ident, "text": text}
        state.write(folder, LAST, (wire.encode(last) + "\n").encode(), is_durable=False)
    except OSError as error:
        sys.stderr.write(f"snap-upgrade: {line}snap-upgrade: this cannot be logged: {error}\n")
