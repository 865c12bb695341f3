"""Nested subvolumes on a whole machine: those that travel with the root, and those that follow it.

The one rule: what is in the nested volume is compared, not that one is there: "before" or "after" the operation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import btrfsutil
import pytest

from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine
from tests.lab.repo import local_repo
from tests.system.clilab import names, su, su_json
from tests.system.test_apt_crash import MARKER
from tests.system.test_apt_failures import settle

THING = "var/lib/thing"
FILE = f"/{THING}/file"
CONF = "/etc/snap-upgrade.conf"
WRITES = f"#!/bin/sh\necho after > {FILE}\n"
BAD = Deb("bad", "1.0", scripts={"postinst": f"{WRITES}exit 1\n"})
GOOD = Deb("good", "1.0", scripts={"postinst": WRITES})
INSTALL = ("apt-get", "install", "-y")
STATE = ".snap-upgrade"


def offered(machine: Machine) -> Machine:
    local_repo(machine.path("/"), [BAD, GOOD], method="copy")
    machine.run(["apt-get", "update"])
    machine.path(FILE).write_text("before\n")
    return machine


@pytest.fixture
def m(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path, layout=Layout("@", nested=(THING,))) as machine:
        offered(machine).path(CONF).write_text(f"clone_nested = /{THING}/\n")
        yield machine


def parts(machine: Machine) -> set[str]:
    """Return the snapshots of nested volumes that lie beside those of the root."""
    return {path for path in machine.subvolumes() if ".parts/" in path}


def told_of_parts(machine: Machine) -> list[str]:
    """Return the problems in which a part has a place."""
    return [one["message"] for one in su_json(machine, "status")["problems"] if STATE in one["message"]]


def assert_all_on_record(machine: Machine) -> None:
    known = {row["path"] for row in names(machine, "-a").values()}
    assert set(machine.subvolumes()) - {STATE} <= known
    assert {path.name for path in (machine.top / STATE / "snap").iterdir()} == {
        Path(path).relative_to(f"{STATE}/snap").parts[0] for path in known if path.startswith(f"{STATE}/snap/")
    }


@pytest.mark.parametrize("argv", [(*INSTALL, "bad"), ("snap-upgrade", "install", "-y", "bad")], ids=["apt", "cli"])
def test_the_way_back_has_what_was_nested_as_it_was_before(m: Machine, argv: tuple[str, ...]) -> None:
    m.run(argv, check=False)
    settle(m)
    assert m.path(FILE).read_text() == "after\n"
    assert parts(m) == {f"{STATE}/snap/1.parts/var:lib:thing"}
    assert told_of_parts(m) == []
    assert set(names(m)) == {"initial", "before-1"}
    assert names(m, "-a")[f"snap-1/{THING}"]["kind"] == "part"
    su(m, "rollback", "last")
    m.reboot()
    assert m.path(FILE).read_text() == "before\n"
    m.path(FILE).write_text("the restored one can be written\n")
    where = Path(su(m, "mount", "initial").stdout.strip())
    assert m.live(f"{where}{FILE}").read_text() == "after\n", "the failed system keeps its own"
    su(m, "destroy", "-y", "snap-1")
    assert parts(m) == set()
    assert_all_on_record(m)


@pytest.mark.parametrize("flow", ["prune", "proposal", "nothing came of it"])
def test_a_snapshot_takes_its_parts_along_when_it_goes(m: Machine, flow: str) -> None:
    if flow == "proposal":
        m.path(CONF).write_text(f"clone_nested = {THING}\npolicy = proposal\n")
        m.run([*INSTALL, "good"])
    elif flow == "prune":
        m.path(CONF).write_text(f"clone_nested = {THING}\nkeep_restore_points = 1\n")
        for verb in ("install", "remove", "install"):
            m.run(["apt-get", verb, "-y", "good"])
            settle(m)
        assert len(parts(m)) == 3
        for path in (m.top / STATE / "records").iterdir():
            data = json.loads(path.read_text())
            path.write_text(json.dumps(data | {"created": data["created"] - 86400}) + "\n")
        su(m, "--yes", "prune")
    else:
        m.run([*INSTALL, "-o", "DPkg::Pre-Install-Pkgs::zz=false", "good"], check=False)
    settle(m)
    kept = {"prune": 1}.get(flow, 0)
    assert len(parts(m)) == kept
    assert len(list((m.top / STATE / "snap").iterdir())) == 2 * kept
    assert_all_on_record(m)


def test_an_environment_at_r_dir_is_restored_with_what_was_nested_in_it(m: Machine) -> None:
    su(m, "create", "target")
    su(m, "mount", "target", "/mnt")
    m.live(f"/mnt{FILE}").write_text("before, in the target\n")
    su(m, "-R", "/mnt", "install", "-y", "bad", code=6)
    assert m.live(f"/mnt{FILE}").read_text() == "before, in the target\n"
    assert m.path(FILE).read_text() == "before\n"
    assert parts(m) == set()
    assert told_of_parts(m) == []
    assert_all_on_record(m)


def test_an_image_update_works_on_its_own_copy_of_what_is_nested(m: Machine) -> None:
    su(m, "image-update", "--no-progress", "--", "install", "-y", "bad", code=5)
    assert m.path(FILE).read_text() == "before\n"
    assert set(m.subvolumes()) == {"@", f"@/{THING}", STATE}
    su(m, "image-update", "--no-progress", "--", "install", "-y", "good")
    assert m.path(FILE).read_text() == "before\n"
    m.reboot()
    assert m.path(FILE).read_text() == "after\n"
    assert_all_on_record(m)


def test_one_nested_volume_in_another_and_names_that_are_no_volume(m: Machine) -> None:
    inner = f"{THING}/a:b/inner%3A"
    m.path(f"/{THING}/a:b").mkdir()
    btrfsutil.create_subvolume(str(m.path(f"/{inner}")))
    m.path(f"/{inner}/file").write_text("before\n")
    m.path("/srv/link").symlink_to(f"/{THING}")
    m.path(CONF).write_text(f"clone_nested = {inner} {THING} {THING} srv/link etc missing/one\n")
    m.run([*INSTALL, "bad"], check=False)
    settle(m)
    assert {Path(path).name for path in parts(m)} == {"var:lib:thing", "var:lib:thing:a%3Ab:inner%253A"}
    m.path(f"/{inner}/file").write_text("after\n")
    su(m, "rollback", "last")
    m.reboot()
    assert m.path(FILE).read_text() == "before\n"
    assert m.path(f"/{inner}/file").read_text() == "before\n"


def test_what_is_mounted_over_a_nested_volume_is_not_taken_for_it(m: Machine) -> None:
    other = m.path("/srv/other")
    btrfsutil.create_subvolume(str(other))
    (other / "file").write_text("of the other volume\n")
    m.run(["mount", "--bind", "/srv/other", f"/{THING}"])
    m.run([*INSTALL, "good"])
    settle(m)
    assert (m.top / f"{STATE}/snap/1.parts/var:lib:thing/file").read_text() == "before\n"


def test_a_hook_that_is_killed_leaves_no_part_of_a_snapshot(m: Machine) -> None:
    btrfsutil.create_subvolume(str(m.path("/srv/more")))
    m.path(CONF).write_text(f"clone_nested = {THING} srv/more\n")
    m.live(MARKER).touch()
    argv = [*INSTALL, "-o", "DPkg::Pre-Install-Pkgs::zz=false", "good"]  # a later hook says no: nothing comes of it
    m.run(argv, check=False, env={"SNAP_UPGRADE_FAILPOINT": "log:/run/points"})
    settle(m)
    reached = [point for point in m.live("/run/points").read_text().split() if point.startswith("hook.")]
    assert {"hook.part.made#2", "hook.part.recorded#2", "hook.part.gone#2", "hook.record.gone#3"} <= set(reached)
    for point in reached:
        m.run(argv, check=False, env={"SNAP_UPGRADE_FAILPOINT": f"kill:{point}"})
        settle(m)
        m.run(["/usr/sbin/snap-upgrade", "recover"], check=False)
        assert parts(m) == set(), point
        assert list((m.top / STATE / "snap").iterdir()) == [], point
        assert list((m.top / STATE / "journal").iterdir()) == [], point
        assert_all_on_record(m)


# --- a way back by hand, on a machine where no command of ours was ever typed


def test_what_travels_can_be_put_back_by_hand_as_it_was(m: Machine) -> None:
    m.run([*INSTALL, "good"])
    settle(m)
    assert m.path(FILE).read_text() == "after\n"
    (m.top / "@").rename(m.top / "broken")
    btrfsutil.create_snapshot(str(m.top / STATE / "snap/1"), str(m.top / "@"))
    (m.top / "@" / THING).rmdir()
    btrfsutil.create_snapshot(str(m.top / STATE / "snap/1.parts/var:lib:thing"), str(m.top / "@" / THING))
    m.reboot()
    assert m.path(FILE).read_text() == "before\n"
    assert (m.top / "broken" / THING / "file").read_text() == "after\n"


@pytest.mark.parametrize("select", ["fstab", "default"])
def test_what_is_nested_follows_a_root_that_was_put_back_by_hand(tmp_path: Path, select: str) -> None:
    layout = Layout("@", nested=(THING,)) if select == "fstab" else Layout("@", select="default", nested=(THING,))
    with Machine(tmp_path, layout=layout) as m:
        offered(m).run([*INSTALL, "bad"], check=False)
        settle(m)
        (m.top / "@" / THING / "file").write_text("mine\n")
        m.run(["sync"])
        if select == "fstab":
            (m.top / "@").rename(m.top / "broken")
            btrfsutil.create_snapshot(str(m.top / STATE / "snap/1"), str(m.top / "@"))
        else:
            btrfsutil.set_default_subvolume(str(m.top / STATE / "be/before-1"))
        m.reboot()
        assert m.boot_log is not None
        assert m.boot_log.returncode == 0, m.boot_log.output
        assert m.booted() == ("@" if select == "fstab" else f"{STATE}/be/before-1")
        assert m.path(FILE).read_text() == "mine\n"
        assert not m.run(["dpkg-query", "-W", "bad"], check=False).stdout


def test_the_hook_records_the_running_root_as_a_command_does_and_once(tmp_path: Path) -> None:
    with Machine(tmp_path) as m:
        local_repo(m.path("/"), [Deb("good", "1.0")], method="copy")
        m.run(["apt-get", "update"])
        m.run([*INSTALL, "good"])
        settle(m)
        row = next(row for row in names(m).values() if row["active"] == "NR")
        assert (row["name"], row["adopted"], row["path"], row["state"]) == ("initial", True, "@", "ready")
        record = m.top / STATE / "records" / f"{row['uuid']}.json"
        written = record.read_bytes()
        m.run(["apt-get", "remove", "-y", "good"])
        settle(m)
        su(m, "create", "x")
        assert record.read_bytes() == written
        record.unlink()
        su(m, "rename", "x", "initial", code=2)
        (m.top / STATE / "records" / "damaged.json").write_text("{")
        m.run([*INSTALL, "good"])
        settle(m)
        assert record.exists()


def test_status_tells_of_what_was_left_in_another_root(tmp_path: Path) -> None:
    with Machine(tmp_path, layout=Layout("@", nested=(THING,))) as m:
        offered(m)
        su(m, "create", "x")
        su(m, "activate", "x")
        m.reboot()
        assert m.path(FILE).read_text() == "before\n", "carried at boot"
        assert not [one for one in su_json(m, "status")["problems"] if THING in one["message"]]
        su(m, "activate", "initial")
        m.halt()
        m._attach(m.image)
        m._boot()
        (problem,) = [one for one in su_json(m, "status")["problems"] if THING in one["message"]]
        assert problem["severity"] == "warning"
        assert "is in x, and in its place in the running root is nothing" in problem["message"]
        m.run(problem["hint"].split())
        assert m.path(FILE).read_text() == "before\n"
        assert not [one for one in su_json(m, "status")["problems"] if THING in one["message"]]
