"""What happens to a machine over several operations and boots: each test is a story with its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import btrfsutil
import pytest

from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine
from tests.lab.repo import local_repo
from tests.system.clilab import names, su
from tests.system.test_apt_failures import settle

BAD = breaking.fails_in("postinst", "bad")
INSTALL = ("apt-get", "install", "-y")


def offered(machine: Machine, *debs: Deb) -> Machine:
    local_repo(machine.path("/"), [BAD, Deb("good", "1.0"), Deb("other", "1.0"), *debs], method="copy")
    machine.run(["apt-get", "update"])
    return machine


@pytest.fixture
def m(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        yield offered(machine)


def has(machine: Machine, package: str) -> bool:
    found = machine.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", package], check=False)
    return found.stdout == "installed"


def fail(machine: Machine) -> None:
    machine.run([*INSTALL, "bad"], check=False)
    settle(machine)


def test_a_root_in_the_top_level_goes_back_and_keeps_its_nested_data(tmp_path: Path) -> None:
    with Machine(tmp_path, layout=Layout(subvol=None, select="default", nested=("var/lib/machines",))) as machine:
        offered(machine)
        machine.path("/var/lib/machines/data").write_text("mine\n")
        fail(machine)
        su(machine, "rollback", "before-1")
        machine.reboot()
        assert machine.boot_log is not None
        assert machine.boot_log.returncode in (0, 4), machine.boot_log.output
        assert machine.booted() == ".snap-upgrade/be/before-1"
        assert not machine.run(["dpkg-query", "-W", "bad"], check=False).stdout
        assert machine.path("/var/lib/machines/data").read_text() == "mine\n"
        su(machine, "destroy", "-y", "initial", code=3)
        su(machine, "create", "x")
        assert all(not row["path"].endswith(".snap-upgrade") for row in names(machine, "-a").values())


def test_the_flows_of_the_proposal_end_by_themselves(m: Machine) -> None:
    m.path("/etc/snap-upgrade.conf").write_text("policy = proposal\n")
    su(m, "install", "-y", "bad", code=7)
    assert m.live("/run/snap-upgrade/mnt/before-1/etc/fstab").exists() or names(m)["before-1"]["mountpoint"]
    su(m, "recover", code=4)
    m.run(["umount", "/run/snap-upgrade/mnt/before-1"])
    su(m, "rollback", "last")
    m.reboot()
    assert not m.run(["dpkg-query", "-W", "bad"], check=False).stdout


def test_before_a_transaction_stays_before_it_however_the_way_back_was_used(m: Machine) -> None:
    m.run([*INSTALL, "good"])
    settle(m)
    su(m, "rollback", "1")
    m.reboot()
    assert not has(m, "good")
    m.run([*INSTALL, "other"])
    settle(m)
    su(m, "rollback", "initial")
    m.reboot()
    assert has(m, "good")
    su(m, "rollback", "1")
    m.reboot()
    assert not has(m, "good")
    assert not has(m, "other"), "the way back that was used is not the system before transaction 1"


def test_a_typing_error_in_the_settings_closes_no_way_back(m: Machine) -> None:
    m.path("/etc/snap-upgrade.conf").write_text("keep_restore_point = 5\n")
    fail(m)
    assert "keep_restore_point" in su(m, "rollback", "before-1").stderr
    m.reboot()
    assert m.boot_log is not None
    assert m.boot_log.returncode in (0, 4)
    assert not m.run(["dpkg-query", "-W", "bad"], check=False).stdout
    assert "keep_restore_point" in su(m, "create", "x", code=2).stderr


def test_a_package_that_was_broken_before_fails_no_image_update(m: Machine) -> None:
    fail(m)
    su(m, "image-update", "--no-progress", "--be-name", "later", "--", "install", "-y", "good")
    m.reboot()
    assert has(m, "good")
    assert "half-configured" in m.run(["dpkg-query", "-W", "-f", "${db:Status-Status}", "bad"]).stdout


def test_prune_never_takes_what_a_person_made(m: Machine) -> None:
    su(m, "create", "golden")  # transaction 1
    m.path("/etc/snap-upgrade.conf").write_text("keep_environments = 1\nkeep_restore_points = 1\n")
    for _ in range(2):
        fail(m)
        m.run(["dpkg", "--purge", "--force-all", "bad"])
    for path in (m.top / ".snap-upgrade/records").iterdir():
        data = json.loads(path.read_text())
        data["created"] -= 86400
        path.write_text(json.dumps(data) + "\n")
    su(m, "--yes", "prune")
    assert names(m).keys() == {"initial", "golden", "before-3"}


@pytest.mark.parametrize("folder", ["var/cache", "opt"])
def test_a_hole_in_the_clone_is_told_before_anything_is_made(m: Machine, folder: str) -> None:
    place = m.path(f"/{folder}")
    place.rename(place.with_name("aside"))
    btrfsutil.create_subvolume(str(place))
    place.chmod(0o755)
    m.run(["sh", "-c", f'cp -a "$1"/. /{folder}/ && rm -r "$1"', "sh", f"/{Path(folder).parent}/aside"])
    before = m.subvolumes().keys()
    error = json.loads(su(m, "image-update", "--json", "--", "install", "-y", "good", code=3).stdout)["error"]
    assert folder in error["message"]
    assert "clone_nested" in error["hint"]
    assert m.subvolumes().keys() - {".snap-upgrade"} == before
    m.path("/etc/snap-upgrade.conf").write_text(f"clone_nested = {folder}\n")
    su(m, "image-update", "--no-progress", "--", "install", "-y", "good")
    m.reboot()
    assert has(m, "good")


def test_what_cannot_fit_is_refused_before_a_package_is_fetched(m: Machine) -> None:
    m.path("/etc/snap-upgrade.conf").write_text("reserve_mib = 100000\n")
    before = m.subvolumes().keys()
    told = su(m, "image-update", "--no-progress", "--", "install", "-y", "good", code=3).stderr
    assert "a reserve of 100000 MiB" in told
    assert m.subvolumes().keys() - {".snap-upgrade"} == before
