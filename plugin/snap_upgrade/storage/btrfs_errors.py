"""What an error of the system means for whoever asked for something of btrfs.

The rule: say what could not be done, why, and what is known of the state afterwards.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from snap_upgrade.core.errors import StorageError
from snap_upgrade.core.names import shown

DMESG = "look for errors of the device in the kernel's log: dmesg"


def named(path: str) -> str:
    """Return the path of a volume as a message has it: anybody may have given the name."""
    return shown(path) or "the top level"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError into StorageError: what could not be done, why, and that nothing was changed."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = {
            errno.ENOSPC: "remove old environments with 'snap-upgrade prune'",
            errno.ETXTBSY: "a swap file is active in it: move it to a subvolume of its own",
            errno.EROFS: "mount the file system writable; if it was, Linux stopped writing after an error, see dmesg",
            errno.EIO: DMESG,
        }.get(error.errno or 0, "")
        # A commit that failed half way may be on the device or not: that cannot be known before it is mounted anew.
        broken = error.errno == errno.EIO
        now = "what is on the device is known after the next mount" if broken else "nothing was changed"
        raise StorageError(f"cannot {what}: {reason}; {now}", error.errno or 0, hint) from error
