"""Whether a roll back of this root could take effect: the answer that ``snap-upgrade check`` gives, remembered.

The rule: the one who decides is the storage, as for every command; only a good answer is remembered, beside all that
it was made from, and whatever differs asks again. A light module until it has to ask, which is once a boot.
"""

from __future__ import annotations

import os

from snap_upgrade.core import wire
from snap_upgrade.hook import state
from snap_upgrade.system import kernel

REMEMBERED = f"{state.STATE}/layout.json"
_RULES = 2  # grows when core.layout says something else of the same facts
# What core.layout calls TOGETHER, and /boot: which volume each lies on. A test compares the two.
_PLACES = ("/usr", "/etc", "/var/lib/dpkg", "/var/lib/rpm", "/boot")


def refusal(top: int, device: str, path: str, activation: str) -> tuple[str, str]:
    """Return why a roll back could not take effect, and a hint; two empty strings if it can.

    *top* is the open top level, *device* and *path* say what is mounted at ``/``.
    """
    made_from = [_RULES, kernel.boot_id(), device, path, activation, *_facts()]
    known = state.read(top, REMEMBERED)
    if known is not None:
        try:
            if wire.decode(known.decode()) == made_from:
                return "", ""
        except (ValueError, RecursionError):
            pass  # made anew below
    found = ask(activation)
    # Where a volume lies that fstab names by number, no text says.
    if not found[0] and "subvolid=" not in _text("/etc/fstab"):
        _remember(top, made_from)
    return found


def ask(activation: str) -> tuple[str, str]:
    """Return the same without memory; this imports what the commands import."""
    from pathlib import Path

    from snap_upgrade.core.errors import SnapUpgradeError
    from snap_upgrade.storage.btrfs import BtrfsStorage

    storage = BtrfsStorage(Path("/"), activation=activation)
    try:
        found = storage.layout()
    except SnapUpgradeError as error:
        return error.message, error.hint
    finally:
        storage.close()
    return found.refusal, found.hint


def _facts() -> list[object]:
    devices = []
    for place in _PLACES:
        try:
            devices.append(os.lstat(place).st_dev)
        except FileNotFoundError:
            devices.append(0)
    rows = [line.split() for line in _text("/proc/swaps").split("\n")[1:]]
    swaps = [row[0] for row in rows if len(row) > 1 and row[1] == "file"]
    return [_text("/proc/cmdline"), _text("/etc/fstab"), devices, swaps]


def _text(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode("utf-8", "backslashreplace")


def _remember(top: int, made_from: list[object]) -> None:
    try:
        state.write(top, REMEMBERED, (wire.encode(made_from) + "\n").encode(), is_durable=False)
    except FileNotFoundError:
        pass  # there is no state yet: the first operation makes it, the second remembers
