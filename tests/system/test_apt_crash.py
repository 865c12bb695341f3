"""The flows with the real apt, killed at their fail points: what boots is whole, and recovery ends them.

The one rule: the machine dies at the point (SIGKILL to all of it), boots what would boot, and only then is judged.
The scripted package manager of tests/crash walks every point; here are those around real packages, spread evenly.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo
from tests.system.clilab import names, su, su_json
from tests.system.test_apt_failures import settle

MARKER = "/run/snap-upgrade-failpoints"
SAMPLES = 7


@dataclass(frozen=True)
class Flow:
    """One way to use real apt. *allowed* are the versions the running root may have after it was cut and recovered."""

    argv: tuple[str, ...]
    is_bad: bool
    allowed: frozenset[str]


IMAGE = ("snap-upgrade", "image-update")
APT = ("apt-get", "install", "-y", "thing")
AT_ROOT = ("snap-upgrade", "-R", "/mnt", "upgrade")
FLOWS = {
    "image-update": Flow(IMAGE, False, frozenset({"1.0 installed", "2.0 installed"})),
    "image-update-fails": Flow(IMAGE, True, frozenset({"1.0 installed"})),
    "live": Flow(APT, False, frozenset({"1.0 installed", "2.0 installed"})),
    "live-fails": Flow(APT, True, frozenset({"1.0 installed", "2.0 half-configured"})),
    "root-fails": Flow(AT_ROOT, True, frozenset({"1.0 installed"})),
}


def prepared(folder: Path, flow: Flow) -> Machine:
    """Return a machine with thing 1.0, an offered 2.0, and a file that its user has synced."""
    machine = Machine(folder)
    machine.start()
    scripts = {"postinst": "#!/bin/sh\nexit 1\n"} if flow.is_bad else {}
    new = Deb("thing", "2.0", files={"/opt/thing": b"two\n"}, scripts=scripts)
    repo = local_repo(machine.path("/"), [Deb("thing", "1.0", files={"/opt/thing": b"one\n"})], method="copy")
    machine.run(["apt-get", "update"])
    machine.run(["apt-get", "install", "-y", "-o", "DPkg::Pre-Install-Pkgs::snap-upgrade=", "thing"])
    repo.add(new)
    repo.publish()
    machine.run(["apt-get", "update"])
    machine.path("/root/mine").write_text("do not lose me\n")
    machine.run(["sync"])
    if flow.argv[:2] == AT_ROOT[:2]:
        su(machine, "create", "target")
        su(machine, "mount", "target", "/mnt")
    machine.live(MARKER).touch()
    return machine


def thing(machine: Machine) -> str:
    """Return version and state of the package in the running root."""
    return machine.run(["dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "thing"]).stdout


def points(folder: Path, flow: Flow) -> list[str]:
    """Return the points that the flow reaches, in order."""
    machine = prepared(folder, flow)
    try:
        machine.run(flow.argv, check=False, env={"SNAP_UPGRADE_FAILPOINT": "log:/run/points"})
        settle(machine)
        return machine.live("/run/points").read_text().split()
    finally:
        machine.close()


def check_whole(machine: Machine, flow: Flow, where: str) -> None:
    """Check the machine after recovery."""
    version = thing(machine)
    assert version in flow.allowed, where
    content = "two\n" if version.startswith("2.0") else "one\n"
    assert machine.path("/opt/thing").read_text() == content, where
    assert machine.path("/root/mine").read_text() == "do not lose me\n", where
    is_begun = ".snap-upgrade" in machine.subvolumes()
    assert not is_begun or list((machine.top / ".snap-upgrade/journal").iterdir()) == [], where
    rows = names(machine, "-a")
    assert all(row["state"] == "ready" for row in rows.values()), f"{where}: {rows}"
    known = {row["path"] for row in rows.values()} | {".snap-upgrade"}
    assert set(machine.subvolumes()) <= known, where
    if "half-configured" in version:
        su(machine, "rollback", "last")
        machine.reboot()
        assert thing(machine) == "1.0 installed", where


@pytest.mark.parametrize("name", FLOWS)
def test_a_machine_that_dies_anywhere_boots_whole_and_recovers(name: str, tmp_path: Path) -> None:
    flow = FLOWS[name]
    reached = points(tmp_path, flow)
    assert len(reached) > SAMPLES
    for place in range(SAMPLES):
        point = reached[place * (len(reached) - 1) // (SAMPLES - 1)]
        machine = prepared(tmp_path, flow)
        try:
            machine.run(flow.argv, check=False, env={"SNAP_UPGRADE_FAILPOINT": f"kill:{point}"})
            machine.crash()
            machine.reboot()
            assert machine.boot_log is not None
            assert machine.boot_log.returncode in (0, 4), f"{point}: {machine.boot_log.output}"
            check_whole(machine, flow, f"{name}, killed at {point}")
        finally:
            machine.close()


@pytest.mark.parametrize(("name", "is_unsynced"), [("image-update", True), ("root-fails", False)])
def test_only_a_clone_is_unpacked_without_syncing_every_file(name: str, is_unsynced: bool, tmp_path: Path) -> None:
    machine = prepared(tmp_path, FLOWS[name])
    try:
        machine.run(FLOWS[name].argv, check=False)
        logs = "".join(log.read_text() for log in (machine.top / ".snap-upgrade/logs").iterdir())
        assert "force-conf" in logs
        assert ("force-unsafe-io" in logs) is is_unsynced
    finally:
        machine.close()


def until_hanging(machine: Machine) -> None:
    """Offer and start a package whose script waits; kill apt and our watcher, and let dpkg live on."""
    local_repo(machine.path("/"), [breaking.hanging("hangs", "1.0")], method="copy")
    machine.run(["apt-get", "update"])
    apt = machine.popen(["apt-get", "install", "-y", "hangs"])
    machine.wait_for_file("/run/hangs.hangs")
    for pid, line in machine.processes().items():
        if "apt-hook" in line:
            os.kill(pid, signal.SIGKILL)
    apt.kill()


def test_a_dpkg_that_outlives_its_apt_is_waited_for_before_anything_is_judged(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        until_hanging(machine)
        error = su_json(machine, "recover", code=10)["error"]
        assert "dpkg" in error["message"]
        assert [row["verdict"] for row in su_json(machine, "history")] == [None]
        machine.live("/run/hangs.gate").write_text("go\n")
        machine.wait_for_dpkg()
        su(machine, "recover")
        (row,) = su_json(machine, "history")
        assert row["verdict"] in {"interrupted", "failed", "success"}
        state = machine.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", "hangs"]).stdout
        assert (row["verdict"] == "success") == (state == "installed")
