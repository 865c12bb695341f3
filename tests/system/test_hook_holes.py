"""Holes in what the hooks keep: a half-made transaction that a later commit meets, a database behind a link, daemons.

The one rule: real front ends on a real machine, and what is on the disk and in the answer of the next command.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import breaking, roots
from tests.lab.breaking import INSTALL
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.system.clilab import su
from tests.system.test_apt_failures import m, offer, transactions

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
