"""How the tests speak to the program in a machine, and what they compare.

The one rule: an exit code that was not asked for fails the test with all that was printed.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tests.lab.machine import Machine
from tests.lab.process import Result

PROGRAM = "/usr/sbin/snap-upgrade"
STATE = ".snap-upgrade"


def su(machine: Machine, *words: str, code: int = 0, **more: Any) -> Result:
    """Run snap-upgrade with *words*; it must end with *code*."""
    result = machine.run([PROGRAM, *words], check=False, **more)
    assert result.returncode == code, f"{words} ended with {result.returncode}, not {code}\n{result.output}"
    return result


def su_json(machine: Machine, *words: str, code: int = 0, **more: Any) -> Any:
    """As `su`, with --json: return what it printed, and nothing else may be on standard output."""
    return json.loads(su(machine, *words, "--json", code=code, **more).stdout)


def names(machine: Machine, *words: str) -> dict[str, dict[str, Any]]:
    """Return the rows of ``list`` by name."""
    return {row["name"]: row for row in su_json(machine, "list", *words)}


def state_files(machine: Machine) -> dict[str, str]:
    """Return a digest of every file of the state directory, the clones' content left out."""
    found = {}
    base = Path(os.readlink(machine.top)) / STATE if machine.top.is_symlink() else machine.top / STATE
    for folder, folders, files in os.walk(base):
        relative = Path(folder).relative_to(base)
        if relative.parts[:1] in {("be",), ("snap",), ("kept",)}:
            folders.clear()
            continue
        for name in files:
            found[str(relative / name)] = hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()
    return found


def everything(machine: Machine) -> tuple[dict[str, int], dict[str, str], list[str], list[str]]:
    """Return what no reading command and no -n may change: subvolumes, state, mounts, and what lies in /run."""
    mounts = sorted(line.split(" ", 1)[1] for line in machine.live("/proc/1/mountinfo").read_text().splitlines())
    ours = machine.live("/run/snap-upgrade")
    # The empty folder "environment" is where chroots are mounted in namespaces of their own: the same for all.
    found = [path for path in ours.rglob("*") if path.name != "environment"] if ours.exists() else []
    in_run = sorted(str(path.relative_to(ours)) for path in found)
    return machine.subvolumes(), state_files(machine), mounts, in_run
