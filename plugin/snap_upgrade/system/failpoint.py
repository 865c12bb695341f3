"""Named points where a test can kill us, or let a call fail. A light module: the hooks import it too.

The rule: nothing happens unless the variable is set *and* the root user has made the marker file; an
environment variable alone, which any caller can set, changes nothing.
"""

from __future__ import annotations

import os

VARIABLE = "SNAP_UPGRADE_FAILPOINT"
MARKER = "/run/snap-upgrade-failpoints"

_seen: dict[str, int] = {}


def reach(point: str) -> None:
    """Tell that *point* is reached: the variable says what comes of it.

    ``log:FILE`` appends a line ``point#n`` (n counts from 1); ``kill:point#n`` kills this process with SIGKILL;
    ``error:point#n:NUMBER`` raises that errno.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    _act(point, wanted)


def _act(point: str, wanted: str) -> None:
    try:
        if os.lstat(MARKER).st_uid != 0:
            return
    except OSError:
        return
    _seen[point] = _seen.get(point, 0) + 1
    here = f"{point}#{_seen[point]}"
    action, _, rest = wanted.partition(":")
    if action == "log":
        descriptor = os.open(rest, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(descriptor, f"{here}\n".encode())
        os.close(descriptor)
    elif action == "kill" and rest == here:
        os.kill(os.getpid(), 9)
    elif action == "error":
        target, _, number = rest.rpartition(":")
        if target == here:
            raise OSError(int(number), os.strerror(int(number)), point)
