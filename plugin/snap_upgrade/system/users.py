"""Which processes use a volume, mounted or not.

The rule: a volume is recognised by its device number, for a mount that was taken away lazily has no path any more.
"""

from __future__ import annotations

import os


def inside(device: int) -> list[str]:
    """Return "name (process N)" of each process but this one that works in the volume *device* or has a file open."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _uses(name, device):
            try:
                with open(f"/proc/{name}/comm", "rb") as file:
                    found.append(f"{os.fsdecode(file.read()).strip()} (process {name})")
            except OSError:
                continue  # it ended while we looked
    return found


def _uses(name: str, device: int) -> bool:
    places = [f"/proc/{name}/{what}" for what in ("cwd", "root", "exe")]
    try:
        places += [f"/proc/{name}/fd/{number}" for number in os.listdir(f"/proc/{name}/fd")]
    except OSError:
        return False
    for place in places:
        try:
            if os.stat(place).st_dev == device:
                return True
        except OSError:
            continue  # closed meanwhile, or a kernel thread has none
    return False
