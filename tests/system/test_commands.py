"""What every command shows, and what -n and --json mean for each of them.

The one rule: what is expected follows from the issue and from the disk, never from what the program printed before.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine
from tests.lab.repo import local_repo
from tests.system.clilab import PROGRAM, STATE, everything, names, su, su_json

CONF = "/etc/snap-upgrade.conf"


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine for the tests that leave it as they found it, but for their own names."""
    with Machine(tmp_path_factory.mktemp("walk"), layout=Layout("@rootfs")) as machine:
        debs = [Deb("good", "1.0"), breaking.fails_in("postinst", "bad")]
        local_repo(machine.path("/"), debs, method="copy")
        machine.run(["apt-get", "update"])
        su(machine, "create", "base")
        yield machine


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which nothing was ever done."""
    with Machine(tmp_path) as machine:
        yield machine


def table(text: str) -> list[dict[str, str]]:
    """Return the rows of a printed table by the titles of its columns, cut where the titles begin."""
    header, *lines = text.splitlines()
    titles = header.split()
    starts = [header.index(title) for title in titles]
    ends = [*starts[1:], None]
    # A column aligned to the right begins before its title: its cell is then cut by the gap of two spaces.
    return [
        {title: line[start:end].strip() for title, start, end in zip(titles, starts, ends, strict=True)}
        for line in lines
    ]


# --- list


def test_the_space_of_each_environment_is_listed_where_quota_counts_it(fresh: Machine) -> None:
    su(fresh, "create", "grown")
    (fresh.top / STATE / "be/grown/big").write_bytes(os.urandom(4 << 20))
    top = str(fresh.live("/"))
    os.sync()
    assert names(fresh)["grown"]["space"] is None
    subprocess.run(["/bin/btrfs", "quota", "enable", top], check=True)
    subprocess.run(["/bin/btrfs", "quota", "rescan", "-w", top], check=True, stdout=subprocess.DEVNULL)
    os.sync()
    size = names(fresh)["grown"]["space"]
    assert 4 << 20 <= size < 5 << 20
    (plain,) = (line.split("\t") for line in su(fresh, "list", "-H").stdout.splitlines() if line.startswith("grown\t"))
    assert int(plain[3]) == size
    (shown,) = (line for line in su(fresh, "list").stdout.splitlines() if line.startswith("grown "))
    assert " 4." in shown and " MiB " in shown


def test_when_each_was_made_is_what_the_clock_said(m: Machine) -> None:
    before = time.time()
    su(m, "create", "dated")
    after = time.time()
    assert before <= names(m)["dated"]["created"] <= after
    (plain,) = (line.split("\t") for line in su(m, "list", "-H").stdout.splitlines() if line.startswith("dated\t"))
    assert int(before) <= datetime.fromisoformat(plain[4]).timestamp() <= after
    (row,) = (row for row in table(su(m, "list").stdout) if row["BE"] == "dated")
    shown = m.run(["date", "-d", f"@{names(m)['dated']['created']}", "+%Y-%m-%d %H:%M"]).stdout.strip()
    assert row["Created"] == shown
    newest = su_json(m, "history")[0]
    assert before <= newest["time"] <= after
    assert shown in su(m, "history", newest["id"]).stdout
    su(m, "destroy", "-y", "dated")


def test_the_table_says_what_each_came_from_and_verbose_what_it_is_for(m: Machine) -> None:
    su(m, "create", "-e", "base", "-d", "for the mailer", "child")
    text = su(m, "list").stdout
    rows = {row["BE"]: row for row in table(text)}
    assert rows["child"]["Origin"].startswith("base, transaction ")
    assert "for the mailer" not in text
    assert "for the mailer" in su(m, "list", "-v").stdout
    su(m, "destroy", "-y", "child")


def test_snapshots_alone_are_listed_with_s_and_with_all_beside_the_environments(fresh: Machine) -> None:
    su(fresh, "run", "--", "true")
    assert [row["kind"] for row in su_json(fresh, "list")] == ["environment"]
    assert [(row["kind"], row["name"]) for row in su_json(fresh, "list", "-s")] == [("snapshot", "snap-1")]
    assert {row["kind"] for row in su_json(fresh, "list", "-a")} == {"environment", "snapshot"}
    assert su(fresh, "list", "-s", "-H").stdout.split("\t")[0] == "snap-1"


# --- environments


def test_the_running_environment_is_renamed_while_it_runs(m: Machine) -> None:
    su(m, "rename", "initial", "called anew")
    assert names(m)["called anew"]["active"] == "NR"
    assert su_json(m, "status")["running"] == "called anew"
    su(m, "rename", "called anew", "initial")


def test_unmount_by_name_unmounts_every_place(m: Machine) -> None:
    su(m, "create", "twice")
    for place in ("/run/here", "/run/there"):
        m.live(place).mkdir()
        su(m, "mount", "twice", place)
    su(m, "unmount", "twice")
    assert names(m)["twice"]["mountpoints"] == []
    assert not any(m.live("/run/here").iterdir()) and not any(m.live("/run/there").iterdir())
    su(m, "destroy", "-y", "twice")


def test_destroy_does_not_ask_with_capital_f(m: Machine) -> None:
    su(m, "create", "unasked")
    su(m, "destroy", "unasked", code=2)
    su(m, "destroy", "-F", "unasked")
    assert "unasked" not in names(m)


def test_a_mount_that_is_refused_leaves_no_directory_of_ours(m: Machine) -> None:
    su(m, "create", "held")
    su(m, "pin", "held")
    # The failure after the directory was made: the mount itself.
    m.live("/run/snap-upgrade/mnt").mkdir(parents=True, exist_ok=True)
    m.live("/run/snap-upgrade-failpoints").touch()
    result = m.run(
        [PROGRAM, "mount", "held"], check=False, env={"SNAP_UPGRADE_FAILPOINT": "error:step.mount.before#1:5"}
    )
    m.live("/run/snap-upgrade-failpoints").unlink()
    if result.returncode == 0:
        su(m, "unmount", "held")
        pytest.fail("the mount was to fail")
    assert not m.live("/run/snap-upgrade/mnt/held").exists()
    su(m, "unpin", "held")
    su(m, "destroy", "-y", "held")


def test_cancel_takes_the_snapshot_of_what_it_destroys_along_and_leaves_what_is_pinned(m: Machine) -> None:
    before = set(m.subvolumes())
    su(m, "image-update", "--be-name", "updated", "--", "install", "good")
    su(m, "cancel")
    assert "updated" not in names(m)
    assert set(m.subvolumes()) == before
    su(m, "image-update", "--be-name", "kept", "--", "install", "good")
    su(m, "pin", "kept")
    su(m, "cancel")
    assert names(m)["kept"]["active"] == ""
    assert names(m)["initial"]["active"] == "NR"
    su(m, "unpin", "kept")
    su(m, "destroy", "-y", "kept")
    left = [row["name"] for row in su_json(m, "list", "-s")]
    if left:
        su(m, "destroy", "-y", *left)


# --- -n, where nothing else looks


def test_a_dry_run_changes_nothing_where_there_is_something_to_change(m: Machine) -> None:
    su(m, "create", "other")
    su(m, "pin", "base")
    su(m, "image-update", "--be-name", "updated", "--", "install", "good")
    place = su(m, "mount", "other").stdout.strip()
    before = everything(m)
    boots = m.tree_hash(f"{STATE}/be/other")
    for words in (["unmount", "other"], ["unmount", place], ["unpin", "base"], ["cancel"], ["destroy", "base", "-F"],
                  ["activate", "other"], ["rollback", "other"]):  # fmt: skip
        code = 3 if words[0] == "destroy" else 0
        su(m, "-n", *words, code=code)
        assert everything(m) == before, words
    for words in (["install", "good"], ["image-update", "--", "install", "good"]):
        su(m, "-n", "-R", place, *words)
        assert everything(m) == before, words
    assert m.tree_hash(f"{STATE}/be/other") == boots
    su(m, "unmount", "other")
    su(m, "cancel")
    su(m, "unpin", "base")
    su(m, "destroy", "-y", "other")


def test_a_dry_run_of_giving_a_transaction_up_leaves_it_open(fresh: Machine) -> None:
    su(fresh, "create", "first")
    journal = fresh.top / STATE / "journal/77"
    journal.write_bytes(b"garbage\nmore garbage\n")
    before = everything(fresh)
    su(fresh, "recover", "--abandon", "77", "-n")
    su(fresh, "recover", "--abandon", "77", "-n", "-y")
    assert everything(fresh) == before


def test_a_dry_run_of_prune_destroys_nothing_even_with_yes(fresh: Machine) -> None:
    surplus(fresh)
    before = everything(fresh)
    su(fresh, "prune", "-n", "-y")
    assert everything(fresh) == before


# --- --json, wherever a script may read


def one_object(text: str) -> dict[str, Any]:
    """Return the only thing that was printed."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_every_command_that_changes_something_ends_with_one_object(m: Machine) -> None:
    """In this order each has something to do."""
    life: tuple[list[str], ...] = (
        ["create", "scripted"], ["describe", "scripted", "x"], ["pin", "scripted"], ["unpin", "scripted"],
        ["rename", "scripted", "renamed"], ["mount", "renamed"], ["unmount", "renamed"], ["activate", "renamed"],
        ["cancel"], ["activate", "-t", "renamed"], ["cancel"], ["rollback", "renamed"], ["cancel"],
        ["destroy", "-y", "renamed"], ["install", "-y", "good"], ["remove", "-y", "good"],
        ["run", "--", "echo", "loud"],
    )  # fmt: skip
    for words in life:
        ours, _, theirs = " ".join(words).partition(" -- ")
        told = one_object(su(m, "--json", *words).stdout)
        assert told["exit_code"] == 0, words
        assert told["message"], words
        is_package = words[0] in {"install", "remove", "run"}
        assert is_package or words[0] == "mount" or told["steps"], (ours, theirs)
    assert su_json(m, "prune", "-y", code=4)["error"]["exit_code"] == 4


def test_what_prune_and_abandon_did_is_one_object(fresh: Machine) -> None:
    surplus(fresh)
    told = one_object(su(fresh, "--json", "prune", "-y").stdout)
    assert (told["exit_code"], told["steps"]) == (0, ["destroy oldest"])
    (fresh.top / STATE / "journal/77").write_bytes(b"garbage\nmore garbage\n")
    assert one_object(su(fresh, "--json", "recover", "--abandon", "77", "-y").stdout)["exit_code"] == 0


def test_what_is_done_at_a_directory_or_in_a_clone_ends_with_one_object(m: Machine) -> None:
    su(m, "create", "at a place")
    place = su(m, "mount", "at a place").stdout.strip()
    for words in (["-R", place, "install", "good"], ["-R", place, "remove", "good"], ["run", "--clone", "--", "true"]):
        last = su(m, "--json", *words).stdout.splitlines()
        assert [one for one in last[:-1] if "progress" not in json.loads(one)] == []
        assert json.loads(last[-1])["exit_code"] == 0
    su(m, "unmount", "at a place")
    su(m, "cancel")
    su(m, "destroy", "-y", "at a place")


# --- prune


def surplus(machine: Machine) -> None:
    """Make two environments as updates make them, both old, of which one is to be kept."""
    machine.path(CONF).write_text("keep_environments = 1\n")
    for name in ("oldest", "newest"):
        su(machine, "create", "-d", "updated from initial", name)
    age(machine)


def age(machine: Machine) -> None:
    """Let everything be long ago."""
    for path in (machine.top / STATE / "records").glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "created": 1.0}))


def test_what_has_become_too_many_since_the_question_was_not_agreed_to(fresh: Machine) -> None:
    surplus(fresh)
    with fresh.popen([PROGRAM, "prune"], pty=True) as process:
        process.wait_for("Destroy oldest?")
        su(fresh, "create", "-d", "updated from initial", "late")
        age(fresh)
        assert {row["name"] for row in su_json(fresh, "prune", "-n") if row["is_pruned"]} >= {"oldest", "newest"}
        process.type("y\n")
        assert process.wait(60).returncode == 0
    assert set(names(fresh)) == {"initial", "newest", "late"}


def test_prune_says_why_each_goes_or_stays(fresh: Machine) -> None:
    surplus(fresh)
    reasons = {row["BE"]: line for line, row in zip(*printed(su(fresh, "prune", "-n").stdout), strict=True)}
    assert reasons["oldest"].endswith("more than 1 are kept")
    assert reasons["newest"].endswith("among the newest 1")
    assert reasons["initial"].endswith("it is running")
    told = {row["name"]: row["reason"] for row in su_json(fresh, "prune", "-n")}
    assert all(reasons[name].endswith(reason) for name, reason in told.items())
    fresh.path(CONF).write_text("keep_environments = 9\nreserve_mib = 100000\n")
    rows = {row["name"]: (row["is_pruned"], row["reason"]) for row in su_json(fresh, "prune", "-n")}
    assert rows["oldest"] == (True, "free space is below the floor")


def printed(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the lines of a table and its rows, without what is said below it."""
    lines = [line for line in text.splitlines() if "would be destroyed" not in line]
    return lines[1:], table("\n".join(lines))


# --- status


def problems(machine: Machine, code: int = 0) -> dict[str, str]:
    """Return the problems of ``status``, each with what mends it; also all printed for a person."""
    found = {one["message"]: one["hint"] for one in su_json(machine, "status", code=code)["problems"]}
    text = su(machine, "status", code=code).stdout
    for message, hint in found.items():
        assert message in text and hint in text
    return found


def hint_of(found: dict[str, str], part: str) -> str:
    """Return what mends the one problem that speaks of *part*."""
    (hint,) = (hint for message, hint in found.items() if part in message)
    return hint


def test_status_measures_the_space_of_the_file_system(m: Machine) -> None:
    space = su_json(m, "status")["space"]
    out = subprocess.run(["/bin/btrfs", "filesystem", "usage", "-b", str(m.live("/"))], check=True,
                         capture_output=True, text=True).stdout  # fmt: skip
    usage = {line.split(":")[0].strip(): line.split(":")[1].split()[0] for line in out.splitlines() if ":\t" in line}
    assert space["total"] == int(usage["Device size"])
    assert space["unallocated"] == int(usage["Device unallocated"])
    assert 0 < space["available"] < space["total"]
    assert space["unallocated"] <= space["available"]
    # What of the metadata chunks is free, less what the kernel keeps in them for itself.
    size, used = (int(part.split(":")[1].split(",")[0].split()[0]) for part in metadata(m))
    assert 0 < space["metadata_free"] <= size - used
    (line,) = (line for line in su(m, "status").stdout.splitlines() if line.startswith("space:"))
    gib = f"{space['total'] / (1 << 30):.1f} GiB"
    assert f"free of {gib}" in line and "unallocated" in line and "metadata" in line


def metadata(machine: Machine) -> list[str]:
    """Return "Size:N" and "Used:N" of the metadata chunks."""
    out = subprocess.run(["/bin/btrfs", "filesystem", "usage", "-b", str(machine.live("/"))], check=True,
                         capture_output=True, text=True).stdout  # fmt: skip
    (line,) = (line for line in out.splitlines() if line.startswith("Metadata"))
    return line.replace("Metadata,", "").split(": ", 1)[1].split(", ")[:2]


def test_status_counts_what_is_destroyed_and_not_yet_back(m: Machine) -> None:
    su(m, "create", "going")
    # A file that is open in it keeps the kernel from clearing it away.
    place = su(m, "mount", "going").stdout.strip()
    with open(m.live(f"{place}/etc/os-release"), "rb"):
        m.run(["umount", "-l", place])
        su(m, "destroy", "-y", "going")
        number = su_json(m, "status")["space"]["pending_volumes"]
        assert number >= 1
        assert " destroyed, their space is still coming back" in su(m, "status").stdout


def test_status_says_that_nothing_falls_back_by_itself_without_a_boot_loader(m: Machine) -> None:
    (note,) = su_json(m, "status")["notes"]
    assert "does not fall back by itself" in note


def test_status_names_too_little_space_switched_off_hooks_and_a_hook_that_cannot_run(m: Machine) -> None:
    m.path(CONF).write_text("reserve_mib = 100000\nenabled = no\n")
    hook = m.path("/usr/lib/snap-upgrade/apt-hook")
    hook.chmod(0o644)
    found = problems(m, 11)
    hook.chmod(0o755)
    m.path(CONF).write_text("")
    assert hint_of(found, "less than the reserve of 100000 MiB") == "snap-upgrade prune"
    assert "enabled = yes" in hint_of(found, "switched off")
    assert "reinstall" in hint_of(found, "not executable")
    assert not [one for one in problems(m) if "reserve" in one or "switched off" in one or "executable" in one]


def test_status_names_broken_packages_half_made_environments_and_damaged_history(fresh: Machine) -> None:
    local_repo(fresh.path("/"), [breaking.fails_in("postinst", "bad")], method="copy")
    fresh.run(["apt-get", "update"])
    su(fresh, "install", "-y", "bad", code=7)
    su(fresh, "create", "half")
    for path in (fresh.top / STATE / "records").glob("*.json"):
        record = json.loads(path.read_text())
        if record["name"] == "half":
            path.write_text(json.dumps({**record, "state": "building"}))
    newest = su_json(fresh, "history")[0]["id"]
    (fresh.top / STATE / f"history/{newest}.json").write_bytes(b"garbage\nmore garbage\n")
    found = problems(fresh, 11)
    assert any("bad" in message and "dpkg --configure -a" in hint for message, hint in found.items())
    assert hint_of(found, "half is half made") == "snap-upgrade destroy half"
    assert [message for message in found if newest in message and "half" not in message]
    su(fresh, "history", code=11)


def test_status_and_check_say_where_no_roll_back_can_take_effect(tmp_path: Path) -> None:
    with Machine(tmp_path, layout=Layout(kernel_line="subvolid")) as machine:
        found = su_json(machine, "check", code=3)["problems"]
        assert [one["severity"] for one in found if "no roll back can take effect here" in one["message"]] == ["error"]
        told = su_json(machine, "status", code=11)
        assert told["activation"] == "none"
        assert [
            one for one in told["problems"] if "no roll back can take effect here" in one["message"] and one["hint"]
        ]


def test_status_warns_of_what_will_stand_in_the_way_of_a_roll_back(fresh: Machine) -> None:
    with fresh.path("/etc/fstab").open("a") as fstab:
        fstab.write("/swapfile none swap sw 0 0\n")
    assert hint_of(problems(fresh), "swap file /swapfile")
    assert [one["severity"] for one in su_json(fresh, "check")["problems"] if "swapfile" in one["message"]] == [
        "warning"
    ]


def test_the_default_is_what_boots_after_the_one_boot(m: Machine) -> None:
    su(m, "create", "once")
    su(m, "activate", "-t", "once")
    told = su_json(m, "status")
    assert (told["running"], told["next"], told["default"]) == ("initial", "once", "initial")
    su(m, "cancel")
    su(m, "destroy", "-y", "once")


def test_status_says_by_which_way_an_activation_takes_effect(m: Machine) -> None:
    assert su_json(m, "status")["activation"] == "exchange"


# --- a hostile caller


def test_nothing_of_a_hostile_caller_reaches_the_program_or_what_it_starts(fresh: Machine) -> None:
    evil = fresh.live("/run/evil")
    evil.mkdir()
    for name in ("json", "argparse", "snap_upgrade", "sitecustomize", "usercustomize", "subprocess"):
        (evil / f"{name}.py").write_text("open('/run/caught', 'a').write(__name__)\nraise SystemExit(99)\n")
    for name in ("sh", "env", "apt-config", "dpkg-query", "btrfs", "apt-get", "mount", "id"):
        (evil / name).write_text("#!/bin/sh\necho $0 >> /run/caught\nexit 99\n")
        (evil / name).chmod(0o755)
    caller = {
        "PATH": "/run/evil", "PYTHONPATH": "/run/evil", "PYTHONHOME": "/run/evil", "PYTHONSTARTUP": "/run/evil/json.py",
        "PYTHONINSPECT": "1", "LC_ALL": "no_SUCH.locale", "LANG": "tr_TR", "TMPDIR": "/run/evil", "HOME": "/run/evil",
        "LD_LIBRARY_PATH": "/run/evil", "BASH_ENV": "/run/evil/sh", "ENV": "/run/evil/sh", "IFS": "a",
    }  # fmt: skip
    for words in (["create", "日本"], ["list"], ["status"], ["check"], ["history"], ["destroy", "-y", "日本"]):
        su(fresh, *words, env=caller, cwd="/run/evil")
    seen = su(fresh, "run", "--", "env", env=caller, cwd="/run/evil").stdout
    assert "/run/evil" not in seen
    assert not fresh.live("/run/caught").exists()
    assert not any(name.endswith(".pyc") for name in os.listdir(evil))


def test_the_state_is_private_and_output_is_whole_whatever_umask_and_locale(fresh: Machine) -> None:
    fresh.run(["/bin/sh", "-c", f"umask 0; exec {PROGRAM} create '日本'"], env={"LC_ALL": "C"})
    base = fresh.top / STATE
    modes = {path: path.stat().st_mode & 0o077 for path in (base, *base.glob("*.json"), *base.glob("*/*.json"))}
    assert set(modes.values()) == {0}
    for locale in ("C", "POSIX", "no_SUCH.locale"):
        listed = fresh.run([PROGRAM, "list", "--json"], env={"LC_ALL": locale, "PYTHONUTF8": "0"}).stdout
        assert "日本" in {row["name"] for row in json.loads(listed)}
        fresh.run([PROGRAM, "list"], env={"LC_ALL": locale, "PYTHONIOENCODING": "ascii"})


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_spoil_no_state(m: Machine, closed: str) -> None:
    m.run(["/bin/sh", "-c", f"exec {PROGRAM} create closed {closed}"])
    assert names(m)["closed"]["state"] == "ready"
    assert su_json(m, "status")["problems"] == [
        one for one in su_json(m, "status")["problems"] if one["severity"] == "warning"
    ]
    m.run(["/bin/sh", "-c", f"exec {PROGRAM} destroy -y closed {closed}"])
    assert "closed" not in names(m)
