"""What a hook loads when apt calls it: the documented few, and never python-apt."""

from __future__ import annotations

import subprocess
from pathlib import Path

PLUGIN = Path(__file__).parents[2] / "plugin"
# Of docs/internals.md; "signal" and "socket" in C only, for their Python halves load enum and more.
DOCUMENTED = {"os", "sys", "time", "fcntl", "struct", "_struct", "select", "ctypes", "_ctypes", "ctypes._endian",
              "errno", "binascii", "_json", "_signal", "_socket", "__future__"}  # fmt: skip
LOAD = """
import os, sys
before = set(sys.modules)
sys.path[1:1] = [sys.argv[1], "/usr/lib/python3/dist-packages"]
import snap_upgrade.hook.pre, snap_upgrade.hook.post, snap_upgrade.hook.watch, snap_upgrade.hook.alone
print(*set(sys.modules) - before)
"""


def test_a_hook_loads_what_is_documented_and_nothing_else() -> None:
    command = ["/usr/bin/python3", "-IS", "-c", LOAD, str(PLUGIN)]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "snap_upgrade.hook.pre" in loaded
    assert {name for name in loaded if not name.startswith("snap_upgrade")} <= DOCUMENTED
    parts = {name.split(".")[1] for name in loaded if name.startswith("snap_upgrade.")}
    assert parts <= {"core", "system", "hook"}
