"""A machine on which all went wrong at once: every problem that is told has a command, and the commands mend it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import btrfsutil
import pytest

from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo
from tests.system.clilab import PROGRAM, STATE, names, su, su_json
from tests.system.test_apt_failures import settle
from tests.system.test_package import build

CONF = "/etc/snap-upgrade.conf"
MOODY = Deb("moody", "1.0", scripts={"postinst": "#!/bin/sh\ntest -e /root/fixed\n"})
NOT_TO_BE_MENDED = ("less than the reserve", "another file clears it")
TOLD = ("nothing boots next", "the its volume is deleted is recorded", "the moved was moved", "journal 77 ",
        "journal 78", "kept/thing lay", "garbage of mine", "folder.json", "hooks.json", "pointer.json", "switched off",
        "was interrupted", "80snap-upgrade is not", "apt-hook is not", "less than the reserve", "moody", "clears it",
        "has the version 'garbage'")  # fmt: skip
# While a transaction is open these may be its own.
TOLD_LATER = ("be/stranger is in our", "snap/99 is in our", "the half is half")


@pytest.fixture
def wreck(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path, install=False, extra=("btrfs-progs",)) as m:
        package = build(tmp_path)
        repo = local_repo(m.path("/"), [MOODY], method="copy")
        shutil.copy(package, repo.dir)
        control = subprocess.run(["dpkg-deb", "-f", str(package)], capture_output=True, text=True, check=True).stdout
        repo.add_file(repo.dir / package.name, control)
        repo.publish()
        m.run(["apt-get", "update"])
        m.run(["apt-get", "install", "-y", "snap-upgrade"])
        settle(m)
        m.run(["apt-get", "install", "-y", "moody"], check=False)
        settle(m)
        ruin(m)
        yield m


def ruin(m: Machine) -> None:
    """Break all of our state that can be broken, and what of apt's tells it about us."""
    for name in ("pending", "its volume is deleted", "moved", "half"):
        su(m, "create", f"the {name}")
    state = m.top / STATE
    su(m, "activate", "the pending")
    m.live("/run/snap-upgrade-failpoints").touch()
    m.run([PROGRAM, "create", "cut"], check=False, env={"SNAP_UPGRADE_FAILPOINT": "kill:action.clone.made#1"})
    btrfsutil.delete_subvolume(str(m.top / "@"))
    btrfsutil.delete_subvolume(str(state / "be/the its volume is deleted"))
    (state / "be/the moved").rename(m.top / "moved by hand")
    half = next(path for path in (state / "records").iterdir() if '"the half"' in path.read_text())
    half.write_text(half.read_text().replace('"state": "ready"', '"state": "building"'))
    for path in ("be/stranger", "be/stranger/inside", "snap/99", "kept/thing"):
        btrfsutil.create_subvolume(str(state / path))
    (state / "kept/thing/data").write_text("mine\n")
    for path in ("journal/77", "history/78.json", "records/garbage of mine", "hooks.json", "pointer.json"):
        (state / path).write_bytes(b"garbage\nmore garbage\n")
    (state / "version").write_bytes(b"garbage\n")
    (state / "records/folder.json").mkdir()
    m.path(CONF).write_text("enabled = no\nreserve_mib = 100000\n")
    m.path("/etc/apt/apt.conf.d/80snap-upgrade").unlink()
    m.path("/etc/apt/apt.conf.d/99clear").write_text("#clear DPkg::Post-Invoke;\n")
    m.path("/usr/lib/snap-upgrade/apt-hook").chmod(0o644)


def problems(m: Machine) -> dict[str, str]:
    """Return all problems that status and check tell, each with its hint."""
    found: dict[str, str] = {}
    for words in (["status"], ["check"]):
        told = m.run([PROGRAM, "--json", *words], check=False)
        assert told.returncode in (0, 9, 11), told.output
        found |= {one["message"]: one["hint"] for one in json.loads(told.stdout)["problems"]}
    return found


def commands(m: Machine, hint: str) -> list[str]:
    """Return the commands of a hint: it is one itself, or they stand in quotes."""
    is_command = m.run(["sh", "-c", 'command -v "$1"', "sh", hint.split()[0]], check=False).returncode == 0
    return [hint] if is_command else re.findall(r"'([^']+)'", hint)


def test_every_problem_has_a_command_that_runs_and_together_they_mend_all(wreck: Machine) -> None:
    m = wreck
    first = problems(m)
    for word in TOLD:
        assert [text for text in first if word in text], f"{word} is not told: {first}"
    m.path("/root/fixed").touch()
    seen = set()
    for _ in range(4):
        for message, hint in problems(m).items():
            seen.add(message)
            assert hint, f"no hint for: {message}"
            found = commands(m, hint)
            assert found, f"no command in the hint {hint!r} for: {message}"
            for command in found:
                done = m.run(["sh", "-c", command], pty=True, stdin="y\n", check=False)
                assert done.returncode not in (1, 2, 126, 127) or "findmnt" in command, f"{command}: {done.output}"
                if "99clear" not in message and "clears it" in message:
                    assert "99clear" in done.output
                if "kept/thing" in message and command.startswith("mount "):
                    assert m.live(f"{command.split()[-1]}/data").read_text() == "mine\n"
    settle(m)
    left = [text for text in problems(m) if not any(word in text for word in NOT_TO_BE_MENDED)]
    assert left == []
    for word in TOLD_LATER:
        assert any(word in text for text in seen), f"{word} is not told"
    m.path("/etc/apt/apt.conf.d/99clear").unlink()
    m.path(CONF).write_text("")
    su(m, "check")
    assert (m.top / STATE / "history/77.damaged").read_bytes() == b"garbage\nmore garbage\n"
    assert (m.top / STATE / "records/garbage of mine.damaged").exists()
    assert {name for name, row in names(m).items() if row["state"] != "ready"} == set()
    assert su_json(m, "status")["next"] == su_json(m, "status")["running"]
    m.reboot()
    assert m.boot_log is not None and m.boot_log.returncode in (0, 4)
