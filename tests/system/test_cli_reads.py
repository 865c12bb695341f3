"""What the command line tells of packages beyond versions: sizes, reasons, changelogs, read from apt's own data."""

from __future__ import annotations

from pathlib import Path

from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo
from tests.system.clilab import su


def prepared(machine: Machine) -> None:
    """Install needed 1.0 for app 1.0, and offer 2.0 of both."""
    old = [Deb("app", "1.0", depends="needed"), Deb("needed", "1.0")]
    new = [Deb("app", "2.0", depends="needed"), Deb("needed", "2.0", files={"/opt/big": b"x" * 3_000_000})]
    repo = local_repo(machine.path("/"), old, method="copy")
    machine.run(["apt-get", "update"])
    machine.run(["apt-get", "install", "-y", "app"])
    repo.add(*new)
    repo.publish()
    machine.run(["apt-get", "update"])


def test_a_dry_run_that_is_asked_for_more_tells_sizes_and_reasons(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        prepared(machine)
        lines = {
            line.split()[0]: line for line in su(machine, "upgrade", "-n", "-v").stdout.splitlines() if line.split()
        }
        assert "1.0" in lines["app"] and "2.0" in lines["app"] and "manual" in lines["app"]
        assert "automatic: needed by app" in lines["needed"]
        assert "2.9 MiB" in lines["needed"], "3,000,000 bytes installed are 2,930 KiB"
        brief = su(machine, "upgrade", "-n").stdout
        assert "needed by" not in brief


def test_a_changelog_that_cannot_be_had_is_told_in_its_place(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        prepared(machine)
        machine.run(["apt-get", "install", "-y", "--only-upgrade", "app"])
        told = su(machine, "diff", "2", "running", "--changelog").stdout
        assert "app 2.0" in told
        assert "no changelog could be had" in told
        assert "1 package" in told
