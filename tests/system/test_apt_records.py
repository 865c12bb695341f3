"""What is on record of an apt operation, and who closes it: the closer, the record's times, a post hook that dies."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest

from snap_upgrade.core import errors
from tests.lab import breaking
from tests.lab.breaking import CASES, INSTALL
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import Repo, local_repo
from tests.system.clilab import PROGRAM, su, su_json
from tests.system.test_apt_failures import hang, m, offer, open_gate, settle, transactions
from tests.system.test_apt_frontends import NAMES, offer_upgrades
from tests.system.test_apt_frontends import m as front_ends

__all__ = ["front_ends", "m"]
MODULES = "/usr/lib/python3/dist-packages/snap_upgrade"


def test_the_closer_makes_the_way_back_and_nobody_has_to_ask_for_it(m: Machine) -> None:
    case = CASES["postinst-fails"]
    case.prepare(m)
    m.run(case.argv, check=False)
    found = transactions(m)[-1]
    assert (found.verdict, found.is_open, found.last("end")["outcome"]) == ("failed", False, "committed")
    assert f".snap-upgrade/be/before-{found.ident}" in m.subvolumes()


def test_the_record_has_all_packages_the_reasons_and_the_times(m: Machine) -> None:
    offer(m, Deb("needed"), Deb("a", depends="needed"), Deb("gone"))
    m.run([*INSTALL, "gone"])
    began = time.time()
    m.run([*INSTALL, "a", "gone-"])
    ended = time.time()
    found = transactions(m)[-1]
    times = [began, found.lines[0]["time"], found.last("post")["time"], ended]
    assert times == sorted(times)
    assert found.last("verdict")["changes"] == [["a:all", None, "1.0"], ["gone:all", "1.0", None],
                                                ["needed:all", None, "1.0"]]  # fmt: skip
    assert sorted((one["name"], one["old"], one["new"]) for one in found.lines[0]["request"]) == [
        ("a", None, ["1.0", "all"]), ("gone", ["1.0", "all"], None), ("needed", None, ["1.0", "all"]),
    ]  # fmt: skip


def test_a_post_hook_that_dies_fails_no_operation(m: Machine) -> None:
    process = hang(m)
    module = m.path(f"{MODULES}/hook/post.py")
    shutil.rmtree(module.parent / "__pycache__")
    module.write_text("raise SystemExit(1)\n")
    open_gate(m, "hangs")
    assert process.wait(60).returncode == 0


ONCE = '#!/bin/sh\nmkdir /run/first || { test "$1" = abort-upgrade; exit $?; }\n'


def test_what_a_later_commit_of_unattended_upgrades_missed_fails_the_run(front_ends: Machine) -> None:
    """A preinst that fails leaves nothing broken: only the request of its own commit, never the first, shows it."""
    machine = front_ends
    before = offer_upgrades(machine, *(Deb(name, "2.0", scripts={"preinst": ONCE}) for name in NAMES))
    machine.run(["unattended-upgrade"], check=False)
    (found,) = transactions(machine)[len(before) :]
    later = [line["request"] for line in found.lines if line["kind"] == "request"]
    assert found.verdict == "failed"
    unmet = found.last("verdict")["unmet"]
    assert unmet and set(unmet) <= {f"{one['name']}:all" for request in later for one in request}
    assert found.last("verdict")["newly_broken"] == []


# --- image-update


@pytest.fixture
def stale(m: Machine) -> Repo:
    """A repository that got new packages since the machine last fetched its lists."""
    repo = local_repo(m.path("/"), [Deb("good")], method="copy")
    m.run(["apt-get", "update"])
    m.run([*INSTALL, "good"])
    settle(m)
    repo.add(Deb("good", "2.0", depends="new-dependency"), Deb("new-dependency"))
    repo.publish()
    return repo


def test_an_image_update_fetches_the_lists_and_upgrades_as_dist_upgrade_does(m: Machine, stale: Repo) -> None:
    changes = json.loads(su(m, "image-update", "--json").stdout.splitlines()[-1])["changes"]
    assert changes == [{"name": "good", "old": "1.0", "new": "2.0"},
                       {"name": "new-dependency", "old": None, "new": "1.0"}]  # fmt: skip


def test_network_signature_and_nothing_to_do_have_an_exit_code_each(m: Machine, stale: Repo) -> None:
    su(m, "image-update", "--be-name", "new")
    su(m, "image-update", code=4)
    source = m.path("/etc/apt/sources.list.d/lab.sources")
    trusted = source.read_text()
    source.write_text(trusted.replace("Trusted: yes", "Trusted: no"))
    codes = [m.run([PROGRAM, "image-update", "--fresh"], check=False).returncode]
    source.write_text(trusted.replace("copy:", "http://127.0.0.1:9"))
    codes.append(m.run([PROGRAM, "image-update", "--fresh"], check=False).returncode)
    assert codes == [errors.SignatureFailed.exit_code, errors.NetworkFailed.exit_code]
    assert len({4, 5, *codes}) == 4


def test_nobody_changes_packages_of_the_host_while_a_clone_is_upgraded(m: Machine) -> None:
    offer(m, breaking.hanging(), Deb("a"))
    with m.popen([PROGRAM, "image-update", "--json", "--", "install", "hangs"]) as process:
        process.wait_for("Setting up hangs")
        result = m.run([*INSTALL, "a"], check=False)
        assert (result.returncode, m.path("/usr/share/a").exists()) == (100, False)
        assert "Could not get lock /var/lib/dpkg/lock-frontend" in result.output
        process.signal(signal.SIGINT)
        process.signal(signal.SIGTERM)
        assert process.wait(60).returncode == 5
    m.run([*INSTALL, "a"])


@pytest.mark.parametrize("where", ["clone", "directory"])
def test_what_packages_need_is_measured_before_anything_is_downloaded(m: Machine, where: str) -> None:
    offer(m, Deb("big", size_padding=64 << 20), Deb("small"))
    su(m, "create", "other")
    words = ["-R", su(m, "mount", "other").stdout.strip()] if where == "directory" else []
    free = su_json(m, "status")["space"]["available"] >> 20
    m.path("/etc/snap-upgrade.conf").write_text(f"reserve_mib = {free - 60}\n")
    small, big = (["image-update", *words, "--", "install", name] for name in ("small", "big"))
    before = m.subvolumes().keys()
    su(m, *big, code=3)
    assert m.subvolumes().keys() == before
    assert not list((m.top / ".snap-upgrade/archives").glob("*.deb"))
    su(m, *small)
