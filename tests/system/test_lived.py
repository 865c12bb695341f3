"""What was booted may hold the only copy of something: no policy of ours destroys it, nor what another system boots.

The one rule: what a person wrote is looked for on the disk after the command, by its content.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import btrfsutil
import pytest

from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine
from tests.lab.repo import local_repo
from tests.system.clilab import PROGRAM, STATE, names, su, su_json

PACKAGES = [Deb(name, "1.0") for name in ("p1", "p2", "p3", "p4")]
RECORDS = f"{STATE}/records"
DAY = 86400


def equipped(machine: Machine) -> Machine:
    local_repo(machine.path("/"), [breaking.fails_in("postinst", "bad"), *PACKAGES], method="copy")
    machine.run(["apt-get", "update"])
    return machine


@pytest.fixture(params=[Layout("@"), Layout("@rootfs", select="default")], ids=["exchange", "set-default"])
def m(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path, layout=request.param) as machine:
        yield equipped(machine)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Machine]:
    """A machine of the layout that most have, where the layout makes no difference."""
    with Machine(tmp_path) as machine:
        yield equipped(machine)


def update(machine: Machine, name: str, package: str) -> None:
    su(machine, "image-update", "--be-name", name, "--", "install", package)


def three_unused(machine: Machine) -> None:
    """Make three environments that could be pruned."""
    for name, package in (("a1", "p2"), ("a2", "p3"), ("a3", "p4")):
        su(machine, "image-update", "--fresh", "--no-activate", "--be-name", name, "--", "install", package, code=8)


def live_in(machine: Machine, name: str) -> None:
    """Boot *name*, which boots next, and write in it what is nowhere else."""
    machine.reboot()
    assert su_json(machine, "status")["running"] == name
    machine.path("/root/thesis").write_text("ten years of work\n")


def holds_thesis(machine: Machine, name: str) -> bool:
    """Whether the thesis is in the environment *name*, as a person finds it."""
    if name not in names(machine):
        return False
    place = Path(su(machine, "mount", name).stdout.strip())
    text = (machine.live(str(place)) / "root/thesis").read_text()
    su(machine, "unmount", name)
    return text == "ten years of work\n"


def aged(machine: Machine) -> None:
    """Let every record be a day old."""
    for path in (machine.top / RECORDS).iterdir():
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "created": data["created"] - DAY}) + "\n")


# --- cancel


def test_cancel_keeps_an_update_that_was_booted(m: Machine) -> None:
    update(m, "u1", "p1")
    live_in(m, "u1")
    su(m, "activate", "initial")
    m.reboot()
    su(m, "activate", "u1")
    told = su(m, "cancel")
    assert holds_thesis(m, "u1")
    assert "u1 is kept: it was booted" in told.output
    assert names(m)["initial"]["active"] == "NR"


def test_cancel_during_a_boot_for_once_keeps_the_system_it_came_from(m: Machine) -> None:
    update(m, "u1", "p1")
    live_in(m, "u1")
    su(m, "create", "t1")
    su(m, "activate", "-t", "t1")
    m.reboot()
    assert su_json(m, "status")["pending"] == "u1"
    su(m, "cancel")
    assert holds_thesis(m, "u1")


def test_cancel_destroys_an_update_that_nobody_booted(m: Machine) -> None:
    update(m, "u1", "p1")
    assert "destroyed u1" in su(m, "cancel").output
    assert "u1" not in names(m)


@pytest.mark.parametrize(("words", "name", "why"), [
    (("rename", "u1", "mine"), "mine", "you gave it a name"),
    (("describe", "u1", "golden"), "u1", "you described it"),
])  # fmt: skip
def test_cancel_keeps_an_update_that_somebody_made_his_own(
    one: Machine, words: tuple[str, ...], name: str, why: str
) -> None:
    update(one, "u1", "p1")
    su(one, *words)
    assert f"{name} is kept: {why}" in su(one, "cancel").output
    assert name in names(one)


def test_a_boot_is_recorded_even_if_the_recovery_at_boot_finds_damage(one: Machine) -> None:
    update(one, "u1", "p1")
    (one.top / STATE / "journal/99").write_bytes(b"not a journal\nat all\n")
    one.reboot()
    assert one.boot_log is not None and one.boot_log.returncode != 0
    (one.top / STATE / "journal/99").unlink()
    made = [json.loads(path.read_text()) for path in (one.top / RECORDS).iterdir()]
    assert [record["lived"] for record in made if record["name"] == "u1"] == [True]


# --- prune


def test_prune_counts_only_what_was_never_booted(m: Machine) -> None:
    m.path("/etc/snap-upgrade.conf").write_text("keep_environments = 1\n")
    update(m, "u1", "p1")
    live_in(m, "u1")
    three_unused(m)
    su(m, "activate", "initial")
    m.reboot()
    aged(m)
    fate = {row["name"]: row for row in su_json(m, "prune", "-n")}
    assert "it was booted" in fate["u1"]["reason"]
    su(m, "--yes", "prune")
    assert holds_thesis(m, "u1")
    assert {"a1", "a2", "a3"} & set(names(m)) == {"a3"}


def second_system(machine: Machine) -> None:
    """Make another system on the disk, whose root is ``@b``, and boot it."""
    btrfsutil.create_snapshot(str(machine.top / "@"), str(machine.top / "@b"))
    machine.path("/etc/which").write_text("A\n")
    other = machine.top / "@b/etc"
    (other / "which").write_text("B\n")
    (other / "fstab").write_text((other / "fstab").read_text().replace("subvol=@", "subvol=@b"))
    boot(machine, "@b", "B")


def boot(machine: Machine, subvol: str, which: str) -> None:
    machine.layout = Layout(subvol=subvol)
    machine.reboot()
    assert machine.path("/etc/which").read_text() == f"{which}\n"


def test_prune_in_one_system_leaves_the_root_of_the_other_alone(one: Machine) -> None:
    second_system(one)
    update(one, "bnew", "p1")
    # Not booted: what boots next in the other system lies at its place all the same.
    boot(one, "@", "A")
    one.path("/etc/snap-upgrade.conf").write_text("keep_environments = 1\n")
    three_unused(one)
    aged(one)
    su(one, "--yes", "prune")
    boot(one, "@b", "B")
    assert su_json(one, "status")["running"] == "bnew"


# --- roll back


def test_last_is_a_transaction_of_what_runs_not_of_another_system(one: Machine) -> None:
    one.path("/etc/which").write_text("A\n")
    one.run([PROGRAM, "install", "-y", "p1"])
    second_system(one)
    one.run([PROGRAM, "install", "-y", "p2"])
    boot(one, "@", "A")
    su(one, "rollback", "last")
    one.reboot()
    assert one.path("/etc/which").read_text() == "A\n"
    assert not one.path("/usr/share/doc/p1").exists()


def test_last_is_not_what_was_done_to_an_environment_at_a_directory(one: Machine) -> None:
    one.run([PROGRAM, "install", "-y", "p1"])
    su(one, "create", "x")
    place = su(one, "mount", "x").stdout.strip()
    su(one, "-R", place, "install", "-y", "p2")
    su(one, "unmount", "x")
    (number,) = (row["id"] for row in su_json(one, "history") if row["flow"] == "alternate-root")
    refused = su(one, "rollback", number, code=3)
    assert "worked on x" in refused.stderr
    for which in (["last"], []):
        told = su(one, "rollback", *which)
        assert "before-1 " in told.output and "install" in told.output
        su(one, "cancel")


def test_the_line_is_followed_where_records_are_gone(one: Machine) -> None:
    one.run([PROGRAM, "install", "-y", "p1"])
    update(one, "u1", "p2")
    one.reboot()
    su(one, "destroy", "-y", "snap-2")
    assert "before-1 " in su(one, "rollback", "last").output


def test_a_way_back_that_somebody_deleted_is_made_anew(one: Machine) -> None:
    one.run([PROGRAM, "install", "-y", "bad"], check=False)
    assert "before-1" in names(one)
    btrfsutil.delete_subvolume(str(one.top / STATE / "be/before-1"))
    su(one, "rollback", "1")
    one.reboot()
    assert su_json(one, "status", code=11)["running"] == "before-1-2"


def test_looking_at_a_way_back_is_no_use_of_it(one: Machine) -> None:
    one.run([PROGRAM, "install", "-y", "bad"], check=False)
    su(one, "diff", "--files", "before-1")
    su(one, "rollback", "1")
    su(one, "cancel")
    su(one, "rollback", "1")
    assert su_json(one, "status")["next"] == "before-1"


def test_a_way_back_that_was_written_to_is_used(one: Machine) -> None:
    one.run([PROGRAM, "install", "-y", "bad"], check=False)
    (one.top / STATE / "be/before-1/etc/added").write_text("x")
    su(one, "rollback", "1")
    assert su_json(one, "status")["next"] == "before-1-2"


# --- status


def test_status_says_that_a_pending_update_lacks_what_was_changed_since(one: Machine) -> None:
    update(one, "u1", "p1")
    assert not any("u1 boots next" in problem["message"] for problem in su_json(one, "status")["problems"])
    su(one, "install", "-y", "p2")
    found = su_json(one, "status")
    (told,) = (problem for problem in found["problems"] if problem["message"].startswith("u1 boots next"))
    assert "transaction 2" in told["message"]
    assert (told["hint"], told["severity"]) == ("snap-upgrade image-update --fresh", "warning")
