"""Hooks that are cut short, and daemons: what a later commit meets, and a database behind a link.

The one rule: real front ends on a real machine, and what is on the disk and in the answer of the next command.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snap_upgrade.core import wire
from tests.lab import breaking, roots
from tests.lab.breaking import INSTALL
from tests.lab.debs import Deb
from tests.lab.machine import Machine, Process
from tests.system.clilab import su, su_json
from tests.system.test_apt_failures import Transaction, m, offer, settle, transactions, watchers

__all__ = ["m"]
FAILS = breaking.fails_in("postinst", "bad")
FAILPOINTS = "/run/snap-upgrade-failpoints"


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path, root="bookworm", extra=roots.FRONT_ENDS) as machine:
        offer(machine, FAILS, Deb("good"), Deb("other"))
        machine.live(FAILPOINTS).touch()
        yield machine


# --- a half-made transaction that the next commit of one process meets

COMMITS = """
import apt, os, sys
def commit(name, point=""):
    cache = apt.Cache()
    cache[name].mark_install()
    os.environ["SNAP_UPGRADE_FAILPOINT"] = point
    try:
        cache.commit()
    except Exception as error:
        print("commit of", name, "failed:", error, flush=True)
"""
HALF_MADE = ["hook.begin.after#1", "hook.snapshot.made#1", "hook.record.written#1"]


@pytest.mark.parametrize("point", HALF_MADE)
def test_a_commit_joins_no_half_made_transaction(fronts: Machine, point: str) -> None:
    m = fronts
    code = COMMITS + f'commit("good", "kill:{point}")\ncommit("bad")\n'
    m.path("/usr/local/bin/unattended-upgrade").write_text(code)
    result = m.run(["/usr/bin/python3", "/usr/local/bin/unattended-upgrade"], check=False)
    assert "commit of good failed" in result.output and "commit of bad failed" in result.output
    (found,) = transactions(m)
    assert (found.verdict, found.has_snapshot) == ("failed", True)
    assert found.last("verdict")["unmet"] == ["bad:all"]
    before = m.top / ".snap-upgrade/snap" / str(found.ident) / "var/lib/dpkg/status"
    assert "Package: bad" not in before.read_text()
    assert "Package: bad" in m.path("/var/lib/dpkg/status").read_text()
    assert f"snap-upgrade rollback before-{found.ident}" in result.output
    su(m, "rollback", "last", "-n")


# --- dpkg's database behind a link


@pytest.mark.parametrize("linked", ["/var/lib/dpkg", "/var/lib", "/var"])
def test_a_database_behind_an_absolute_link_is_read_in_the_snapshot(m: Machine, linked: str) -> None:
    offer(m, FAILS)
    m.run(["sh", "-c", f"mv {linked} /usr/moved && ln -s /usr/moved {linked}"])
    result = m.run([*INSTALL, "bad"], check=False)
    (found,) = transactions(m)
    assert (found.verdict, found.has_snapshot) == ("failed", True)
    assert f"snap-upgrade rollback before-{found.ident}" in result.output


# --- daemons, which live on


IDLE = """
os.mkfifo("/run/gate")
open("/run/done", "w").close()
open("/run/gate").read()
"""
# Fails, and before that ends whoever watches apt.
KILLS_WATCHER = """#!/bin/sh
for one in /proc/[0-9]*; do
    if grep -qs snap-upgrade/apt-hook $one/cmdline; then kill -9 ${one#/proc/}; fi
done
exit 1
"""


@contextmanager
def daemon(m: Machine, code: str) -> Iterator[Process]:
    """Run *code* in a daemon that lives on and is idle, or wherever it waits, inside the block."""
    m.path("/root/daemon.py").write_text(COMMITS + code + IDLE)
    with m.popen(["/usr/bin/python3", "/root/daemon.py"]) as process:
        yield process
        m.wait_for_file("/run/done")
        m.live("/run/gate").write_text("")
        process.wait(60)


def assert_way_back_of(m: Machine, ident: int) -> None:
    """Commands that change something work, though the daemon lives, and the failed operation has its way back."""
    su(m, "create", "mine")
    su(m, "rollback", f"before-{ident}", "-n")
    assert not (m.top / f".snap-upgrade/journal/{ident}").exists()


def test_a_verdict_without_a_watcher_locks_nobody_out_while_the_daemon_lives(fronts: Machine) -> None:
    m = fronts
    offer(m, Deb("mute", scripts={"postinst": KILLS_WATCHER}))
    with daemon(m, 'commit("mute")'):
        m.wait_for_file("/run/done")
        assert not watchers(m)
        assert_way_back_of(m, 1)


def test_what_was_killed_before_it_began_locks_nobody_out_while_the_daemon_lives(fronts: Machine) -> None:
    m = fronts
    with daemon(m, 'commit("good", "kill:hook.snapshot.made#1")'):
        m.wait_for_file("/run/done")
        su(m, "create", "mine")
        assert not list((m.top / ".snap-upgrade/journal").iterdir())
        assert not list((m.top / ".snap-upgrade/snap").iterdir())


def test_a_failed_operation_of_a_busy_daemon_gets_its_way_back(fronts: Machine) -> None:
    m = fronts
    names = [f"bad{number}" for number in range(6)]
    offer(m, *(breaking.fails_in("postinst", name) for name in names))
    with daemon(m, f"for name in {names}: commit(name)"):
        m.wait_for_file("/run/done")
        settle(m)
        assert not list((m.top / ".snap-upgrade/journal").iterdir())
        assert_way_back_of(m, 1)


def test_what_a_daemon_was_refused_has_no_part_in_what_another_apt_does(fronts: Machine) -> None:
    m = fronts
    m.run([*INSTALL, "other"])
    settle(m)
    refusing = m.path("/etc/apt/apt.conf.d/99no")
    refusing.write_text('DPkg::Pre-Install-Pkgs { "/bin/false"; };\n')
    with daemon(m, 'commit("good")'):
        m.wait_for_file("/run/done")
        refusing.unlink()
        m.run(["apt-get", "remove", "-y", "other"])
        refused = verdict_of(m, 2)
        assert (refused["verdict"], refused["changes"]) == ("unchanged", [])
        assert not (m.top / ".snap-upgrade/snap/2").exists()
        su(m, "create", "mine")
    assert [one.verdict for one in transactions(m)[:3]] == ["success", "unchanged", "success"]


def verdict_of(m: Machine, ident: int) -> dict[str, Any]:
    """Return the verdict line of the transaction *ident*, which is closed though a watcher of it may still wait."""
    return Transaction(m.top / ".snap-upgrade", ident).last("verdict")


# --- a commit that joined, as an older version let it


def test_what_joined_without_a_snapshot_is_never_called_taken_back(m: Machine) -> None:
    offer(m, Deb("good"))
    m.live(FAILPOINTS).touch()
    killed = m.run([*INSTALL, "good"], check=False, env={"SNAP_UPGRADE_FAILPOINT": "kill:hook.begin.after#1"})
    assert killed.returncode == 100
    with (m.top / ".snap-upgrade/journal/1").open("ab") as journal:
        journal.write(wire.line({"kind": "request", "request": []}))
    result = su(m, "recover", code=11)
    assert "taken back" not in result.output
    assert "snap-upgrade recover --abandon 1" in result.output
    su(m, "recover", "--abandon", "1", "-y")
    m.run([*INSTALL, "good"])


# --- no Python


def test_without_python_apt_says_how_to_go_on(m: Machine) -> None:
    offer(m, Deb("good"))
    m.run(["mv", "/usr/bin/python3", "/usr/bin/python3.away"])
    result = m.run([*INSTALL, "good"], check=False)
    assert result.returncode == 100
    assert not m.path("/usr/share/good").exists()
    assert "snap-upgrade: the hook cannot run" in result.output
    off = "DPkg::Pre-Install-Pkgs::snap-upgrade="
    assert f"apt-get -o {off} ..." in result.output
    m.run(["apt-get", "-o", off, "install", "-y", "good"])


# --- switched to warn


def test_an_operation_that_went_on_without_a_snapshot_leaves_a_trace(m: Machine) -> None:
    offer(m, Deb("good"), Deb("other"))
    m.run([*INSTALL, "other"])
    settle(m)
    m.path("/etc/snap-upgrade.conf").write_text("on_no_snapshot = warn\n")
    (m.top / ".snap-upgrade/snap").rename(m.top / ".snap-upgrade/snap.away")
    result = m.run([*INSTALL, "good"])
    (m.top / ".snap-upgrade/snap.away").rename(m.top / ".snap-upgrade/snap")
    assert "going on without one" in result.output
    told = su_json(m, "status")["hooks"]["last_trouble"]
    assert told["who"] == "the hook before dpkg"
    assert "going on without one" in told["text"]
