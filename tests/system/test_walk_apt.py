"""What issue 2 says of apt and no other test holds: the closer, the record's times, a post hook that dies."""

from __future__ import annotations

import shutil
import time

from tests.lab import breaking
from tests.lab.breaking import CASES, INSTALL
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.system.test_apt_failures import hang, m, offer, open_gate, transactions
from tests.system.test_apt_frontends import m as front_ends
from tests.system.test_apt_frontends import offer_upgrades

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


def test_what_a_later_commit_of_unattended_upgrades_missed_fails_the_run(front_ends: Machine) -> None:
    """A preinst that fails leaves nothing broken: only the request of its own commit shows it."""
    machine = front_ends
    before = offer_upgrades(machine, Deb("aa", "2.0"), breaking.fails_in("preinst", "bb"), Deb("cc", "2.0"))
    machine.run(["unattended-upgrade"], check=False)
    (found,) = transactions(machine)[len(before) :]
    assert (found.verdict, found.last("verdict")["unmet"]) == ("failed", ["bb:all"])
    assert found.last("verdict")["newly_broken"] == []
