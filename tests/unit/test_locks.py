"""The lock of the state: refused at once while a command works, waited for while a recovery ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from snap_upgrade.core.errors import Locked
from snap_upgrade.system import files


def test_a_command_at_work_is_named_and_not_waited_for(tmp_path: Path) -> None:
    with files.locked(tmp_path / "lock", "snap-upgrade image-update"):
        with pytest.raises(Locked, match=r"snap-upgrade image-update \(process"):
            files.lock(tmp_path / "lock", "snap-upgrade rollback", patience_s=3600)


def test_a_recovery_is_waited_for_until_it_ends(tmp_path: Path) -> None:
    held = files.lock(tmp_path / "lock", "snap-upgrade recover")
    ender = threading.Timer(0.2, os.close, [held])
    ender.start()
    with files.locked(tmp_path / "lock", "snap-upgrade rollback", patience_s=3600):
        assert (tmp_path / "lock").read_text().startswith("snap-upgrade rollback")
    ender.join()


def test_a_recovery_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    with files.locked(tmp_path / "lock", "snap-upgrade recover --boot"):
        with pytest.raises(Locked):
            files.lock(tmp_path / "lock", "snap-upgrade rollback", patience_s=0.2)
