"""Subvolumes inside the root, and space, on a whole machine.

The one rule: what somebody put into a subvolume is there afterwards, whatever became of the environment around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import btrfsutil
import pytest

from tests.lab import breaking
from tests.lab.machine import Layout, Machine
from tests.lab.repo import local_repo
from tests.system.clilab import STATE, names, su, su_json

MACHINES, DOCKER, PORTABLES = "var/lib/machines", "var/lib/docker", "var/lib/portables"
DATA = "mine\n"


@pytest.fixture
def m(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose root has three subvolumes inside, with data in each."""
    with Machine(tmp_path, layout=Layout(nested=(MACHINES, DOCKER, PORTABLES))) as machine:
        for nested in (MACHINES, DOCKER, PORTABLES):
            machine.path(f"/{nested}/data").write_text(DATA)
        yield machine


def volumes(machine: Machine, below: str) -> set[str]:
    """Return the paths of the subvolumes below *below*, from there."""
    return {path.removeprefix(f"{below}/") for path in machine.subvolumes() if path.startswith(f"{below}/")}


def test_nested_subvolumes_are_listed_and_stay_out_of_a_clone(m: Machine) -> None:
    su(m, "create", "x")
    nested = {row["path"] for row in su_json(m, "list", "-a") if row["kind"] == "nested"}
    assert nested == {f"@/{MACHINES}", f"@/{DOCKER}", f"@/{PORTABLES}"}
    assert volumes(m, f"{STATE}/be/x") == set()
    for path in (MACHINES, DOCKER, PORTABLES):
        assert list((m.top / STATE / "be/x" / path).iterdir()) == []
        assert m.path(f"/{path}/data").read_text() == DATA


def test_only_the_configured_nested_subvolume_travels_with_a_clone(m: Machine) -> None:
    m.path("/etc/snap-upgrade.conf").write_text(f"clone_nested = {MACHINES}\n")
    su(m, "create", "x")
    assert volumes(m, f"{STATE}/be/x") == {MACHINES}
    copy = m.top / STATE / "be/x" / MACHINES / "data"
    copy.write_text("of the clone\n")
    assert m.path(f"/{MACHINES}/data").read_text() == DATA
    su(m, "destroy", "-y", "x")
    assert volumes(m, f"{STATE}/be") == set()
    assert m.path(f"/{MACHINES}/data").read_text() == DATA


def test_somebodys_subvolume_inside_blocks_no_deletion_and_is_kept(m: Machine) -> None:
    su(m, "create", "x")
    place = m.top / STATE / "be/x/srv/theirs"
    btrfsutil.create_subvolume(str(place))
    (place / "data").write_text(DATA)
    btrfsutil.create_subvolume(str(place / "inner"))
    (place / "inner/data").write_text(DATA)
    su(m, "destroy", "-y", "x")
    assert "x" not in names(m)
    assert volumes(m, f"{STATE}/be") == set()
    (kept,) = {path.split("/")[0] for path in volumes(m, f"{STATE}/kept")}
    for path in ("data", "inner/data"):
        assert (m.top / STATE / "kept" / kept / path).read_text() == DATA
    assert any(f"{STATE}/kept/{kept}" in one["message"] for one in su_json(m, "status")["problems"])


def test_nested_subvolumes_follow_a_roll_back_and_the_way_back_again(m: Machine) -> None:
    su(m, "create", "x")
    for target in ("x", "initial"):
        su(m, "rollback", target)
        m.reboot()
        for path in (MACHINES, DOCKER, PORTABLES):
            assert m.path(f"/{path}/data").read_text() == DATA, (target, path)


def test_nested_subvolumes_of_an_environment_at_a_directory_survive_its_failure(m: Machine) -> None:
    local_repo(m.path("/"), [breaking.fails_in("postinst", "broken")], method="copy")
    su(m, "create", "other")
    place = m.top / STATE / "be/other/srv/theirs"
    btrfsutil.create_subvolume(str(place))
    (place / "data").write_text(DATA)
    where = su(m, "mount", "other").stdout.strip()
    su(m, "-R", where, "install", "broken", code=6)
    assert (m.top / STATE / "be/other/srv/theirs/data").read_text() == DATA
    assert m.live(f"{where}/srv/theirs/data").read_text() == DATA


def test_space_of_what_was_destroyed_is_said_to_be_pending(m: Machine) -> None:
    su(m, "create", "x")
    assert su_json(m, "status")["space"]["pending_volumes"] == 0
    # The cleaner takes no volume away that somebody still has open.
    with (m.top / STATE / "be/x/etc/fstab").open():
        su(m, "destroy", "-y", "x")
        assert su_json(m, "status")["space"]["pending_volumes"] == 1
        assert "1 destroyed, their space is still coming back" in su(m, "status").stdout
