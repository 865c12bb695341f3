"""Nested subvolumes that fstab mounts too, other systems beside the root: what must stay where it is, and the boot.

The one rule: after each roll back the machine boots twice, for the first boot is what moves things.
"""

from __future__ import annotations

from pathlib import Path

import btrfsutil
import pytest

from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine
from tests.lab.repo import local_repo
from tests.system.clilab import STATE, names, su, su_json
from tests.system.test_apt_failures import settle

INSTALL = ("apt-get", "install", "-y")
BAD = breaking.fails_in("postinst", "bad")
REFUSAL = "/etc/fstab mounts @/data, which lies inside the root and would not be there after a roll back"


def offered(machine: Machine) -> Machine:
    local_repo(machine.path("/"), [BAD, Deb("good", "1.0")], method="copy")
    machine.run(["apt-get", "update"])
    return machine


def add_to_fstab(machine: Machine, line: str) -> None:
    fstab = machine.path("/etc/fstab")
    fstab.write_text(f"{fstab.read_text()}{line}\n")


def boots(machine: Machine) -> None:
    """Boot twice; both times everything of fstab is mounted and ``recover --boot`` is content (4: nothing to do)."""
    for _ in range(2):
        machine.reboot()
        assert machine.boot_log is not None
        assert machine.boot_log.returncode in {0, 4}, machine.boot_log.output


# --- a volume inside the root that fstab mounts


@pytest.mark.parametrize("point", ["/data", "/media"])
def test_a_volume_inside_the_root_that_fstab_mounts_prevents_an_exchange(tmp_path: Path, point: str) -> None:
    with Machine(tmp_path, layout=Layout("@")) as m:
        offered(m)
        btrfsutil.create_subvolume(str(m.path("/data")))
        m.path("/data/mine").write_text("mine\n")
        add_to_fstab(m, f"UUID={m.fsid} {point} btrfs defaults,subvol=@/data 0 0")
        m.layout = Layout("@", extra=(("@/data", point),))
        m.reboot()
        report = su_json(m, "check", code=3)
        (problem,) = [one for one in report["problems"] if "fstab" in one["message"]]
        assert REFUSAL in problem["message"]
        before = m.subvolumes().keys()
        assert REFUSAL in m.run([*INSTALL, "good"], check=False).output, "the hook asks the same"
        assert REFUSAL in su(m, "image-update", "--no-progress", "--", "install", "-y", "good", code=3).stderr
        assert m.subvolumes().keys() - {STATE} == before - {STATE}
        assert not m.run(["dpkg-query", "-W", "good"], check=False).stdout

        m.run(["sh", "-ec", problem["hint"]])
        assert f"UUID={m.fsid} {point} btrfs defaults,subvol=@data 0 0" in m.path("/etc/fstab").read_text().splitlines()
        assert m.live(f"{point}/mine").read_text() == "mine\n"
        su(m, "check")
        m.run([*INSTALL, "bad"], check=False)
        settle(m)
        su(m, "rollback", "before-1")
        m.layout = Layout("@", extra=(("@data", point),))
        boots(m)
        assert m.live(f"{point}/mine").read_text() == "mine\n"
        assert not m.run(["dpkg-query", "-W", "bad"], check=False).stdout


def test_a_mount_from_inside_the_root_that_may_fail_comes_back_with_its_volume(tmp_path: Path) -> None:
    with Machine(tmp_path, layout=Layout("@")) as m:
        offered(m)
        btrfsutil.create_subvolume(str(m.path("/data")))
        m.path("/data/mine").write_text("mine\n")
        add_to_fstab(m, f"UUID={m.fsid} /media btrfs nofail,subvol=@/data 0 0")
        assert "/media is not mounted" in su(m, "check").output
        m.run([*INSTALL, "bad"], check=False)
        settle(m)
        su(m, "rollback", "before-1")
        boots(m)
        assert m.path("/data/mine").read_text() == "mine\n"


def test_a_volume_named_by_number_is_looked_for_each_time(tmp_path: Path) -> None:
    with Machine(tmp_path, layout=Layout("@")) as m:
        offered(m)
        btrfsutil.create_subvolume(str(m.top / "data"))
        add_to_fstab(m, f"UUID={m.fsid} /media btrfs subvolid={m.subvolumes()['data']} 0 0")
        m.run([*INSTALL, "good"])
        settle(m)
        (m.top / "data").rename(m.top / "@/data")
        assert REFUSAL in m.run(["apt-get", "remove", "-y", "good"], check=False).output
        assert m.run(["dpkg-query", "-W", "good"], check=False).stdout


# --- what stays where it is


def test_a_mounted_volume_and_another_system_stay_at_the_top_level(tmp_path: Path) -> None:
    layout = Layout(None, select="default", nested=("srv/plain",), extra=(("data", "/media"),))
    with Machine(tmp_path, layout=layout) as m:
        offered(m)
        btrfsutil.create_snapshot(str(m.top), str(m.top / "otheros"))
        btrfsutil.create_subvolume(str(m.top / "plain"))
        m.live("/media/mine").write_text("mine\n")
        m.path("/srv/plain/mine").write_text("mine\n")
        m.run([*INSTALL, "bad"], check=False)
        settle(m)
        su(m, "rollback", "before-1")
        boots(m)
        home = f"{STATE}/be/before-1"
        assert m.booted() == home
        assert m.live("/media/mine").read_text() == "mine\n"
        assert m.path("/srv/plain/mine").read_text() == "mine\n"
        assert {"data", "otheros", f"{home}/plain", f"{home}/srv/plain"} <= m.subvolumes().keys()
        assert not [one for one in su_json(m, "status")["problems"] if "nested" in one["message"]]
        su(m, "activate", "initial")
        boots(m)
        assert m.booted() == ""
        assert m.live("/media/mine").read_text() == "mine\n"
        assert {"data", "otheros", "plain", "srv/plain"} <= m.subvolumes().keys()


def test_a_volume_inside_a_root_by_default_is_mounted_from_where_it_was(tmp_path: Path) -> None:
    with Machine(tmp_path, layout=Layout("@", select="default")) as m:
        offered(m)
        for name in ("data", "number", "used"):
            btrfsutil.create_subvolume(str(m.path(f"/{name}")))
            m.path(f"/{name}/mine").write_text(f"{name}\n")
        add_to_fstab(m, f"UUID={m.fsid} /media btrfs subvol=@/data 0 0")
        add_to_fstab(m, f"UUID={m.fsid} /opt btrfs subvolid={m.subvolumes()['@/number']} 0 0")
        m.layout = Layout("@", select="default", extra=(("@/data", "/media"), ("@/used", "/mnt")))
        m.run([*INSTALL, "bad"], check=False)
        settle(m)
        su(m, "rollback", "before-1")
        boots(m)
        assert m.booted() == f"{STATE}/be/before-1"
        assert m.live("/media/mine").read_text() == "data\n"
        assert m.live("/mnt/mine").read_text() == "used\n", "nothing but the mount says that it is used"
        assert {"@/data", "@/number", "@/used"} <= m.subvolumes().keys()


def test_the_nested_volume_of_another_system_is_not_taken(tmp_path: Path) -> None:
    inside = "var/lib/machines"
    with Machine(tmp_path, layout=Layout("@", nested=(inside,))) as m:
        offered(m)
        m.path(f"/{inside}/data").write_text("A's\n")
        m.run([*INSTALL, "good"])
        settle(m)
        other = m.top / "@b"
        btrfsutil.create_snapshot(str(m.top / "@"), str(other))
        fstab = other / "etc/fstab"
        fstab.write_text(fstab.read_text().replace("subvol=@", "subvol=@b"))
        (other / inside).rmdir()
        btrfsutil.create_subvolume(str(other / inside))
        (other / inside / "data").write_text("B's\n")
        m.layout = Layout("@b")
        m.reboot()
        m.run(["apt-get", "remove", "-y", "good"])
        settle(m)
        assert {"initial", "initial-2"} <= names(m).keys()
        m.layout = Layout("@", nested=(inside,))
        m.reboot()
        su(m, "rollback", "1")
        boots(m)
        assert m.booted() == "@"
        assert m.path(f"/{inside}/data").read_text() == "A's\n"
        assert (other / inside / "data").read_text() == "B's\n"
        m.layout = Layout("@b")
        boots(m)
        assert m.path(f"/{inside}/data").read_text() == "B's\n"


def test_a_nested_volume_is_listed_once_beside_a_root_in_the_top_level(tmp_path: Path) -> None:
    with Machine(tmp_path, layout=Layout(None, select="default", nested=("var/lib/x",))) as m:
        offered(m).run([*INSTALL, "good"])
        settle(m)
        btrfsutil.create_snapshot(str(m.top / STATE / "snap/1"), str(m.top / "by hand"))
        btrfsutil.set_default_subvolume(str(m.top / "by hand"))
        boots(m)
        nested = [row for row in su_json(m, "list", "-a") if row["kind"] == "nested"]
        assert [(row["name"], row["origin"]) for row in nested] == [("by hand/var/lib/x", "initial-2")]


# --- a restore point that is not whole


@pytest.mark.parametrize("damage", [None, b"{"], ids=["gone", "damaged"])
def test_a_roll_back_without_the_record_of_a_part_is_refused_and_changes_nothing(
    tmp_path: Path, damage: bytes | None
) -> None:
    thing = "var/lib/thing"
    with Machine(tmp_path, layout=Layout("@", nested=(thing,))) as m:
        offered(m).path("/etc/snap-upgrade.conf").write_text(f"clone_nested = {thing}\n")
        m.path(f"/{thing}/file").write_text("before\n")
        m.run([*INSTALL, "good"])
        settle(m)
        m.path(f"/{thing}/file").write_text("after\n")
        record = m.top / STATE / "records" / f"{names(m, '-a')[f'snap-1/{thing}']['uuid']}.json"
        sound = record.read_bytes()
        record.unlink() if damage is None else record.write_bytes(damage)
        place = f"{STATE}/snap/1.parts/var:lib:thing"
        before = m.subvolumes()
        refused = su(m, "rollback", "1", code=3)
        assert place in refused.stderr
        assert "snap-upgrade status" in refused.stderr
        assert m.subvolumes() == before
        assert set(names(m)) == {"initial"}
        assert not list((m.top / STATE / "journal").iterdir())

        code = 0 if damage is None else 11
        (problem,) = [one for one in su_json(m, "status", code=code)["problems"] if place in one["message"]]
        assert "restore point of transaction 1" in problem["message"]
        assert problem["hint"] == "snap-upgrade history 1"
        su(m, *problem["hint"].split()[1:])
        m.path("/etc/snap-upgrade.conf").write_text("")
        su(m, "rollback", "1", code=3)
        record.write_bytes(sound)
        m.path("/etc/snap-upgrade.conf").write_text(f"clone_nested = {thing}\n")
        su(m, "rollback", "1")
        boots(m)
        assert m.path(f"/{thing}/file").read_text() == "before\n"


def test_a_snapshot_without_its_record_is_not_offered_for_deletion(tmp_path: Path) -> None:
    with Machine(tmp_path) as m:
        offered(m).run([*INSTALL, "good"])
        settle(m)
        (m.top / STATE / "records" / f"{names(m, '-a')['snap-1']['uuid']}.json").unlink()
        btrfsutil.create_subvolume(str(m.top / STATE / "snap/stray"))
        found = {one["message"]: one["hint"] for one in su_json(m, "status")["problems"] if STATE in one["message"]}
        assert [hint for message, hint in found.items() if f"{STATE}/snap/1 " in message] == ["snap-upgrade history 1"]
        (hint,) = [hint for message, hint in found.items() if f"{STATE}/snap/stray" in message]
        assert "btrfs subvolume delete" in hint
