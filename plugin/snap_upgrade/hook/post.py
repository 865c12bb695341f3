"""``apt-hook post``: apt is done. Ask the watcher what became of it and print that; without one, find out ourselves.

The rule: a message, never a verdict of its own, and never a reason for apt to fail.
"""

from __future__ import annotations

import _socket
import os
import sys

from snap_upgrade.hook.ancestry import Ancestor, address, ancestors

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # the module signal loads enum, which costs more than all else here

_TIMEOUT_S = 120


def main() -> int:
    """Do what the module says; always 0."""
    os.chdir("/")
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.alarm(_TIMEOUT_S)
    above = ancestors()
    text = ask(above, os.isatty(1))
    if text is None:
        from snap_upgrade.hook import alone

        text = alone.judge(above, os.isatty(1))
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass  # the terminal is gone, and with it the reader
    return 0


def ask(above: list[Ancestor], is_terminal: bool) -> str | None:
    """Return what the watcher of a process above us says, None if there is none."""
    for one in above:
        peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            peer.connect(address(one))
            peer.sendall(b"post terminal" if is_terminal else b"post")
            return peer.recv(1 << 16).decode("utf-8", "replace")
        except OSError:
            continue  # no watcher of this one, or it was killed
        finally:
            peer.close()
    return None
