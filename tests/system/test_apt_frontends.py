"""The front ends above libapt, real ones: whose operation it was, and how many transactions it makes.

The one rule: one transaction for each commit, but one for a whole run of unattended-upgrades.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import breaking, roots
from tests.lab.breaking import INSTALL
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo
from tests.system.clilab import names, su
from tests.system.test_apt_failures import Transaction, transactions

NAMES = ("aa", "bb", "cc")
UNATTENDED = 'Unattended-Upgrade::Origins-Pattern { "origin=lab"; };\n'


@pytest.fixture(params=roots.RELEASES)
def m(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A machine with three packages that have an upgrade; that of bb is free to break."""
    with Machine(tmp_path, root=request.param, extra=roots.FRONT_ENDS) as machine:
        yield machine


def offer_upgrades(m: Machine, *upgrades: Deb) -> list[Transaction]:
    repo = local_repo(m.path("/"), [Deb(name, "1.0") for name in NAMES])
    m.run(["apt-get", "update"])
    m.run([*INSTALL, *NAMES])
    repo.add(*upgrades)
    repo.publish()
    m.run(["apt-get", "update"])
    m.path("/etc/apt/apt.conf.d/99lab").write_text(UNATTENDED)
    return transactions(m)


def changed(transaction: Transaction) -> list[str]:
    return [change[0] for change in transaction.last("verdict")["changes"]]


def test_a_run_of_unattended_upgrades_is_one_transaction(m: Machine) -> None:
    before = offer_upgrades(m, *(Deb(name, "2.0") for name in NAMES))
    m.run(["unattended-upgrade"])
    (found,) = transactions(m)[len(before) :]
    assert found.lines[0]["front_end"] == "unattended-upgrade"
    assert [line["kind"] for line in found.lines].count("request") == 2
    assert (found.verdict, found.is_open, changed(found)) == ("success", False, ["aa:all", "bb:all", "cc:all"])


def test_a_failure_in_a_run_of_unattended_upgrades_is_a_failure_of_the_whole(m: Machine) -> None:
    before = offer_upgrades(m, Deb("aa", "2.0"), breaking.fails_in("postinst", "bb"), Deb("cc", "2.0"))
    m.run(["unattended-upgrade"], check=False)
    (found,) = transactions(m)[len(before) :]
    assert (found.verdict, found.has_snapshot) == ("failed", True)
    assert found.last("verdict")["unmet"] == ["bb:all"]


def test_two_commits_of_one_process_of_python_apt_are_two_transactions(m: Machine) -> None:
    before = offer_upgrades(m)
    code = "import apt; c = apt.Cache(); c['aa'].mark_delete(); c.commit(); c.open(); c['bb'].mark_delete(); c.commit()"
    m.run(["/usr/bin/python3", "-c", code])
    found = transactions(m)[len(before) :]
    assert [(one.verdict, one.is_open, changed(one)) for one in found] == [
        ("success", False, ["aa:all"]),
        ("success", False, ["bb:all"]),
    ]
    assert all("python3 -c" in one.lines[0]["command"] for one in found)


def test_aptitude_is_named_and_judged(m: Machine) -> None:
    before = offer_upgrades(m, breaking.fails_in("postinst", "bb"))
    m.run(["aptitude", "-y", "install", "bb"], check=False)
    found = transactions(m)[len(before) :][0]
    assert (found.lines[0]["front_end"], found.verdict) == ("aptitude", "failed")


def test_packagekit_is_named_and_judged(m: Machine) -> None:
    before = offer_upgrades(m, breaking.fails_in("postinst", "bb"))
    m.run(["sh", "-c", "mkdir -p /run/dbus && dbus-daemon --system --fork && pkcon -y update bb"], check=False)
    (found,) = transactions(m)[len(before) :]
    assert m.pids(b"packagekitd"), "the daemon is to live on: what follows is done beside it"
    assert (found.lines[0]["front_end"], found.verdict, found.is_open) == ("packagekitd", "failed", False)
    assert f"before-{found.lines[0]['id']}" in names(m)
    su(m, "rollback", "last", "-n")
