"""Every kind of state file spoilt in every way, a clock that goes back, and readers beside a writer that never ends.

The one rule: no internal error, no file that is not understood is lost, and apt is protected or refuses and says why.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo
from tests.system.clilab import PROGRAM, STATE, everything, names, su, su_json
from tests.system.test_apt_failures import settle

INSTALL = ("apt-get", "install", "-y", "--reinstall", "a")
# What each command may say while one file makes no sense: done, refused, nothing to do, interrupted, needs a person.
SAID = {0, 3, 4, 9, 11}
KINDS = ("version", "records", "journal", "history", "layout.json", "hooks.json", "hook-trouble.json", "pointer.json",
         "lock")  # fmt: skip
# Made anew by whoever finds it broken, so not kept: what is remembered to save time, and who has the lock.
REMADE = {"layout.json", "lock", "hook-trouble.json"}


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with one of each state file."""
    with Machine(tmp_path_factory.mktemp("bad-state")) as machine:
        local_repo(machine.path("/"), [Deb("a")], method="copy")
        machine.run(["apt-get", "update"])
        machine.run(INSTALL)
        machine.run(INSTALL)
        settle(machine)
        su(machine, "create", "base")
        su(machine, "activate", "-t", "base")
        machine.live("/run/snap-upgrade-failpoints").touch()
        machine.run([PROGRAM, "create", "cut"], check=False, env={"SNAP_UPGRADE_FAILPOINT": "kill:step.clone.before#1"})
        state = machine.top / STATE
        (state / "hook-trouble.json").write_text(
            '{"time": 1.0, "who": "the watcher", "transaction": "1", "text": "x"}\n'
        )
        yield machine


def file_of(m: Machine, kind: str) -> Path:
    """Return one state file of *kind*."""
    path = m.top / STATE / kind
    return sorted(path.iterdir())[0] if path.is_dir() else path


def spoilt(kind: str, content: bytes) -> dict[str, bytes]:
    """Return the bad contents for a file of *kind* that holds *content*."""
    found = {"empty": b"", "truncated": content[: len(content) // 2], "garbage": b"\xff\x00{]\n" * 9}
    later = content.replace(b'"version": 1', b'"version": 99').replace(b'"version":1', b'"version":99')
    if kind == "version":
        later = b"99\n"
    if later != content:  # hooks.json and hook-trouble.json have no version: whatever is an object is read
        found["later"] = later
    return {**found, "another shape": b"[1]\n", "deep": b"[" * 100_000}


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_state_file_is_told_and_kept_and_no_command_breaks(m: Machine, kind: str) -> None:
    path = file_of(m, kind)
    right = path.read_bytes()
    for how, content in spoilt(kind, right).items():
        path.write_bytes(content)
        where = f"{kind} {how}"
        for words in (["list"], ["status"], ["history"], ["check"], ["recover", "-n"]):
            result = m.run([PROGRAM, *words, "--json"], check=False)
            assert result.returncode in SAID, f"{where}: {words}: {result.output}"
            assert not result.stdout or json.loads(result.stdout) is not None
            assert "Traceback" not in result.output
        assert kind in REMADE or path.read_bytes() == content, f"{where}: a reader changed it"
        result = m.run(INSTALL, check=False)
        settle(m)
        assert result.returncode == 0 or "snap-upgrade: " in result.output, f"{where}: {result.output}"
        assert result.returncode in {0, 100}, f"{where}: {result.output}"
        assert "Traceback" not in result.output
        assert kind in REMADE or path.read_bytes() == content, f"{where}: the hook changed it"
        path.write_bytes(right)
        assert su(m, "list").stdout


def test_20_lists_beside_a_writer_that_never_ends_are_complete(m: Machine) -> None:
    with open(m.top / STATE / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given up only after all of them have ended
        lists = [m.popen([PROGRAM, "list", "--json"]) for _ in range(20)]
        for process in lists:
            result = process.wait(120)
            assert result.returncode == 0, result.output
            assert {"initial", "base"} <= {row["name"] for row in json.loads(result.stdout)}
            process.close()


CLOCK = """
import os, time
if os.path.exists("/run/clock-goes-back"):
    _now, _calls = time.time, []
    def _back():
        _calls.append(1)
        return _now() - 365 * 86400 - 3600 * len(_calls)
    time.time = _back
"""


def test_a_clock_that_goes_back_confuses_no_order(tmp_path: Path) -> None:
    with Machine(tmp_path) as m:
        local_repo(m.path("/"), [Deb("a")], method="copy")
        m.run(["apt-get", "update"])
        site = m.path("/usr/lib/python3.11/sitecustomize.py")
        site.unlink(missing_ok=True)
        site.write_text(CLOCK)
        m.run(INSTALL)
        settle(m)
        su(m, "create", "first")
        m.live("/run/clock-goes-back").touch()  # by a year, and with every look at it by an hour more
        su(m, "create", "second")
        su(m, "remove", "-y", "a")
        m.live("/run/clock-goes-back").unlink()
        m.run(INSTALL)
        settle(m)
        history = su_json(m, "history")
        assert [row["id"] for row in history] == ["5", "4", "3", "2", "1"]
        created = {name: row["created"] for name, row in names(m, "-a").items()}
        assert created["second"] < created["first"]  # the clock did go back
        assert created["snap-4"] < created["snap-1"]
        assert su_json(m, "prune", "-n", code=4) is not None
        su(m, "rollback", "last")
        assert su_json(m, "status")["next"] == "before-5"
        su(m, "rollback", "4")
        m.reboot()
        assert m.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", "a"]).stdout == "installed"


# The commands that look a name up; those that make one, and more names, are in tests/system/test_cli.py.
LOOKING_UP = (
    ["unpin", "--"], ["unmount", "--"], ["describe", "--"], ["create", "x", "-e"], ["rename", "--"],
    ["rollback", "--"], ["diff", "--"], ["diff", "--files", "--"], ["history", "--"], ["recover", "-y", "--abandon"],
)  # fmt: skip
HOSTILE = ("", "..", "/", "new\nline", "-x", "\x1b[31mred", "x" * 255, "\u202ereversed", "$(reboot);`reboot`")
MEANS_NOTHING_GIVEN = {"create", "rollback", "history", "recover"}  # an empty word is no name there


@pytest.mark.parametrize("words", LOOKING_UP, ids=" ".join)
def test_a_hostile_name_is_unknown_to_every_command_that_looks_one_up(m: Machine, words: list[str]) -> None:
    before = everything(m)
    for name in HOSTILE:
        if not name and words[0] in MEANS_NOTHING_GIVEN:
            continue
        more = {"describe": ["text"], "rename": ["new-name"]}.get(words[0], [])
        last = [f"{words[-1]}{name}"] if words[-1] == "-e" else [f"{words[-1]}={name}"]
        typed = [*words[:-1], *last] if words[-1] != "--" else [*words, name, *more]
        result = m.run([PROGRAM, *typed], check=False)
        assert result.returncode in {2, 4}, f"{typed}: {result.output}"
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", result.output), typed
        assert len(result.stderr.splitlines()) <= 2, typed
    assert everything(m) == before
