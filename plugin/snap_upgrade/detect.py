"""Find out what this machine is: which storage holds the root, which loader boots it, which package manager is in it.

The rule: detection reads and never changes; only the state directory is made, and only for a command that writes.
"""

from __future__ import annotations

import os
from pathlib import Path

from snap_upgrade.actions import Machine
from snap_upgrade.boot import open_loader
from snap_upgrade.config import Config, load
from snap_upgrade.core.errors import NotFound, Refused
from snap_upgrade.packages import find_manager
from snap_upgrade.storage import Storage, open_storage

NO_STATE = Path("/run/snap-upgrade/nothing-written-yet")  # never made: what is read there is empty


def open_machine(root: Path = Path("/"), create: bool = False, config: Config | None = None) -> Machine:
    """Return the machine whose root is *root*, the running one or a BE mounted elsewhere.

    Raises Refused where no storage of ours holds the root. Without *create* a machine on which nothing was ever
    done has an empty state.
    """
    if os.geteuid() != 0:
        raise Refused("boot environments can only be read and changed by root", "run it with sudo")
    settings = load() if config is None else config
    storage = open_storage("btrfs", root, settings.activation)
    return Machine(
        root=root,
        storage=storage,
        loader=open_loader("none", root),
        config=settings,
        state=_state(storage, create),
        manager=find_manager(root, settings.script_timeout_s),
    )


def _state(storage: Storage, create: bool) -> Path:
    try:
        return storage.state_dir(create)
    except NotFound:
        return NO_STATE
