"""Every command on a real machine: what it does, what it refuses, and with which exit code.

The one rule: a refusal is followed by the proof that nothing changed.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machine import Layout, Machine
from tests.system.clilab import PROGRAM, STATE, everything, names, state_files, su, su_json


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine for the tests that leave it as they found it, but for their own names."""
    with Machine(tmp_path_factory.mktemp("cli"), layout=Layout("@rootfs", nested=("var/lib/machines",))) as machine:
        su(machine, "create", "base")
        yield machine


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which nothing was ever done."""
    with Machine(tmp_path) as machine:
        yield machine


# --- a machine on which nothing was ever done

READING = (
    ["list"], ["list", "-a"], ["list", "-s"], ["list", "-H"], ["list", "--tree"], ["list", "--json"], ["status"],
    ["status", "--json"], ["history"], ["history", "--json"], ["diff", "running"], ["diff", "initial", "--files"],
    ["create", "-n", "x"], ["rename", "-n", "initial", "x"], ["pin", "-n", "initial"],
    ["describe", "-n", "initial", "x"], ["mount", "-n", "initial"],
)  # fmt: skip
REFUSED_WHEN_FRESH = (
    (["cancel"], 4), (["cancel", "-n"], 4), (["prune", "-y"], 4), (["prune"], 4), (["recover"], 4),
    (["recover", "-n"], 4), (["recover", "--boot"], 4), (["rollback"], 2), (["rollback", "last", "-n"], 2),
    (["rollback", "7"], 2), (["destroy", "-y", "initial"], 3), (["activate", "initial"], 4),
    (["activate", "nobody"], 2),
    (["create", ".."], 2), (["rename", "nobody", "x"], 2), (["history", "1"], 2), (["unmount", "nobody"], 4),
    (["unpin", "initial"], 4),
)  # fmt: skip


def test_reading_and_refusing_leave_a_machine_on_which_nothing_was_ever_done_as_it_is(fresh: Machine) -> None:
    before = everything(fresh)
    for words in READING:
        su(fresh, *words)
    for words, code in REFUSED_WHEN_FRESH:
        assert su(fresh, *words, code=code).stderr.startswith("snap-upgrade: ")
    assert everything(fresh) == before
    assert STATE not in fresh.subvolumes()


def test_the_first_list_shows_the_running_root(fresh: Machine) -> None:
    (row,) = su_json(fresh, "list")
    assert (row["name"], row["active"], row["mountpoints"], row["state"]) == ("initial", "NR", ["/"], "ready")
    header, line = su(fresh, "list").stdout.splitlines()
    assert header.split() == ["BE", "Active", "Mountpoint", "Space", "Created", "Origin"]
    assert line.split()[:3] == ["initial", "NR", "/"]


# --- happy paths


def test_a_clone_lives_its_life(m: Machine) -> None:
    su(m, "create", "-d", "to play with", "life")
    assert (names(m)["life"]["origin"], names(m)["life"]["description"]) == ("initial", "to play with")
    su(m, "describe", "life", "something else")
    assert names(m)["life"]["description"] == "something else"
    su(m, "pin", "life")
    assert names(m)["life"]["pinned"]
    su(m, "pin", "life", code=4)
    assert "it is pinned" in su(m, "destroy", "-F", "life", code=3).stderr
    su(m, "unpin", "life")
    su(m, "rename", "life", "second life")
    assert f"{STATE}/be/second life" in m.subvolumes()
    su(m, "create", "-e", "second life", "child")
    assert names(m)["child"]["origin"] == "second life"
    su(m, "destroy", "-y", "second life", "child")
    assert not {"second life", "child"} & set(names(m))
    assert not {path for path in m.subvolumes() if "life" in path or "child" in path}


def test_mount_prints_where_and_unmount_cleans_up(m: Machine) -> None:
    su(m, "create", "mounted")
    place = su(m, "mount", "mounted").stdout
    assert place == "/run/snap-upgrade/mnt/mounted\n"
    assert m.live("/run/snap-upgrade/mnt/mounted/etc/os-release").exists()
    assert names(m)["mounted"]["mountpoints"] == ["/run/snap-upgrade/mnt/mounted"]
    assert "it is mounted" in su(m, "destroy", "-y", "mounted", code=3).stderr
    su(m, "mount", "mounted", code=4)
    su(m, "unmount", "mounted")
    assert not m.live("/run/snap-upgrade/mnt/mounted").exists()
    m.live("/run/elsewhere").mkdir()
    # A relative directory is the caller's, whose folder is not ours.
    su(m, "mount", "-r", "mounted", "elsewhere", cwd="/run")
    with pytest.raises(OSError, match="Read-only"):
        m.live("/run/elsewhere/etc/x").write_text("x")
    su(m, "unmount", "elsewhere/", cwd="/run")
    assert m.live("/run/elsewhere").is_dir()
    assert not any(m.live("/run/elsewhere").iterdir())
    assert su_json(m, "mount", "mounted")["mountpoint"] == "/run/snap-upgrade/mnt/mounted"
    su(m, "unmount", "mounted")
    su(m, "destroy", "-y", "mounted")


def test_activation_is_read_back_and_cancelled(m: Machine) -> None:
    su(m, "create", "later")
    assert "later boots next" in su(m, "activate", "later").stdout
    flags = {name: row["active"] for name, row in names(m).items()}
    assert (flags["initial"], flags["later"]) == ("N", "R")
    status = su_json(m, "status")
    assert (status["running"], status["next"], status["default"], status["pending"]) == ("initial", *["later"] * 3)
    su(m, "activate", "later", code=4)
    assert "it boots next" in su(m, "destroy", "-y", "later", code=3).stderr
    su(m, "cancel")
    # What the user made stays; only what an image-update made goes with its cancellation.
    assert {name: row["active"] for name, row in names(m).items() if row["active"]} == {"initial": "NR"}
    su(m, "activate", "-t", "later")
    flags = {name: row["active"] for name, row in names(m).items()}
    assert (flags["initial"], flags["later"]) == ("NR", "T")
    assert "it is running" in su(m, "destroy", "-y", "initial", code=3).stderr
    su(m, "rollback", "initial")
    assert su_json(m, "status")["pending"] is None
    su(m, "destroy", "-y", "later")


def test_a_pointer_that_makes_no_sense_is_told_and_activation_mends_it(m: Machine) -> None:
    su(m, "create", "elsewhere")
    su(m, "activate", "-t", "elsewhere")
    (m.top / STATE / "pointer.json").write_text("{")
    assert "pointer.json" in su(m, "list").stderr
    found = [one for one in su_json(m, "status", code=11)["problems"] if "pointer.json" in one["message"]]
    assert [one["severity"] for one in found] == ["error"]
    su(m, "prune", "-y", code=11)
    su(m, "activate", "initial")
    assert not [one for one in su_json(m, "status")["problems"] if "pointer.json" in one["message"]]
    su(m, "destroy", "-y", "elsewhere")


def test_the_list_in_all_its_forms(m: Machine) -> None:
    lines = [line.split("\t") for line in su(m, "list", "-H").stdout.splitlines()]
    assert {len(line) for line in lines} == {8}
    base = next(line for line in lines if line[0] == "base")
    assert base[1:3] == ["-", "-"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", base[4])
    assert base[5:] == ["initial", "ready", "environment"]
    tree = su(m, "list", "--tree").stdout.splitlines()
    assert next(line for line in tree if "base" in line).startswith("  base")
    everything_listed = {row["path"]: row["kind"] for row in su_json(m, "list", "-a")}
    assert everything_listed["@rootfs/var/lib/machines"] == "nested"
    assert "nested" not in {row["kind"] for row in su_json(m, "list")}


def test_the_files_that_differ_are_told(m: Machine) -> None:
    su(m, "create", "changed")
    root = m.top / STATE / "be/changed"
    (root / "etc/added").write_text("x")
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "etc/debian_version").write_text("changed")
    found = {one["path"]: one["change"] for one in su_json(m, "diff", "initial", "changed", "--files")}
    assert found["/etc/added"] == "+"
    assert found["/etc/debian_version"] == "M"
    assert "+ /etc/added" in su(m, "diff", "initial", "changed", "--files").stdout.splitlines()
    assert su_json(m, "diff", "initial", "changed") == []
    su(m, "destroy", "-y", "changed")


def test_history_tells_who_did_what(m: Machine) -> None:
    su(m, "create", "for history", env={"SUDO_UID": "1"})
    newest = su_json(m, "history")[0]
    assert (newest["flow"], newest["outcome"]) == ("create", "committed")
    assert newest["command"] == "snap-upgrade create 'for history'"
    assert (newest["user"]["uid"], newest["user"]["name"], newest["user"]["source"]) == (1, "daemon", "SUDO_UID")
    details = su_json(m, "history", newest["id"])
    assert [step["state"] for step in details["steps"]] == ["done"]
    text = su(m, "history", newest["id"]).stdout
    assert "clone initial as for history" in text
    assert newest["id"] in su(m, "history").stdout
    su(m, "destroy", "-y", "for history")


def test_prune_gives_a_reason_for_everything(m: Machine) -> None:
    rows = {row["name"]: row for row in su_json(m, "prune", "-n", code=4)}
    assert not rows["initial"]["is_pruned"]
    assert "running" in rows["initial"]["reason"]
    assert rows["base"]["reason"]
    assert "base" in su(m, "prune", "-n", code=4).stdout


def test_check_passes_where_all_is_well_and_tells_what_is_broken(m: Machine) -> None:
    su(m, "check")
    hook = m.path("/etc/apt/apt.conf.d/80snap-upgrade")
    kept = hook.read_bytes()
    hook.unlink()
    found = su_json(m, "check", code=11)
    assert any("80snap-upgrade is not there" in one["message"] for one in found["problems"])
    assert any("DPkg::Pre-Install-Pkgs::snap-upgrade" in one["message"] for one in found["problems"])
    assert not su_json(m, "status", code=11)["hooks"]["installed"]
    hook.write_bytes(kept)
    su(m, "check")


def test_what_others_did_behind_our_back_is_reported_with_what_mends_it(m: Machine) -> None:
    su(m, "create", "deleted")
    su(m, "create", "moved")
    m.run(["/usr/bin/python3", "-c", "import time"])
    import btrfsutil

    btrfsutil.delete_subvolume(str(m.top / STATE / "be/deleted"))
    (m.top / STATE / "be/moved").rename(m.top / "moved by hand")
    btrfsutil.create_subvolume(str(m.top / STATE / "be/stranger"))
    messages = {one["message"]: one["hint"] for one in su_json(m, "status", code=11)["problems"]}
    gone = next(text for text in messages if text.startswith("deleted "))
    assert messages[gone] == "snap-upgrade destroy deleted"
    assert any(text.startswith("moved was moved") for text in messages)
    assert any("be/stranger" in text for text in messages)
    assert names(m)["deleted"]["state"] == "missing"
    su(m, "create", "stranger", code=3)
    su(m, "destroy", "-y", "deleted")
    su(m, "destroy", "-y", "moved")
    assert "moved by hand" not in m.subvolumes()
    assert f"{STATE}/be/stranger" in m.subvolumes()
    btrfsutil.delete_subvolume(str(m.top / STATE / "be/stranger"))


# --- refusals

REFUSALS = (
    (["create", "base"], 2, "already"),
    (["create", "-e", "nobody", "x"], 2, "nobody"),
    (["destroy", "-y", "nobody"], 2, "nobody"),
    (["destroy", "-y", "base", "initial"], 3, "running"),
    (["destroy", "base"], 2, "terminal"),
    (["activate", "nobody"], 2, "nobody"),
    (["activate", "initial"], 4, "already"),
    (["rename", "base", "initial"], 2, "already"),
    (["rename", "nobody", "x"], 2, "nobody"),
    (["mount", "nobody"], 2, "nobody"),
    (["mount", "..", "/mnt"], 2, "'..'"),
    (["mount", ".."], 2, "'..'"),
    (["mount", "base", "/no/such/place"], 2, "/no/such/place"),
    (["unmount", "base"], 4, "base"),
    (["unmount", "/"], 4, "/"),
    (["unmount", "initial"], 4, "initial"),
    (["rollback", "99999"], 2, "99999"),
    (["rollback", "nobody"], 2, "nobody"),
    (["cancel"], 4, "pending"),
    (["diff", "nobody"], 2, "nobody"),
    (["diff", "99999"], 2, "99999"),
    (["history", "99999"], 2, "99999"),
    (["pin", "nobody"], 2, "nobody"),
    (["unpin", "base"], 4, "base"),
    (["describe", "base", ""], 4, "base"),
    (["recover"], 4, "interrupted"),
    (["recover", "--abandon", "99999", "-y"], 2, "99999"),
    (["recover", "--abandon", "../1", "-y"], 2, "../1"),
    (["list", "-R", "/mnt"], 2, "takes no -R"),
    (["install", "x", "-R", "/no/such/place"], 2, "/no/such/place"),
    (["install", "x", "-R", "/proc"], 3, "/proc"),
)


@pytest.mark.parametrize(("words", "code", "part"), REFUSALS, ids=lambda value: " ".join(value)
                         if isinstance(value, list) else "")  # fmt: skip
def test_a_refusal_has_its_exit_code_names_the_object_and_changes_nothing(
    m: Machine, words: list[str], code: int, part: str
) -> None:
    before = everything(m)
    result = su(m, *words, code=code)
    assert result.stderr.startswith("snap-upgrade: ")
    assert part in result.stderr
    assert not re.search(r"\.$", result.stderr.splitlines()[0])
    error = su_json(m, *words, code=code)["error"]
    assert (error["exit_code"], error["message"] in result.stderr) == (code, True)
    assert everything(m) == before


DRY = (
    ["create", "x"], ["destroy", "base"], ["activate", "base"], ["activate", "-t", "base"], ["mount", "base"],
    ["rename", "base", "x"], ["rollback", "base"], ["pin", "base"], ["describe", "base", "x"],
)  # fmt: skip


@pytest.mark.parametrize("words", DRY, ids=" ".join)
def test_dry_run_shows_numbered_steps_and_changes_nothing(m: Machine, words: list[str]) -> None:
    before = everything(m)
    lines = su(m, "-n", *words).stdout.splitlines()
    assert re.match(r"1\. \w+", lines[0])
    data = su_json(m, *words, "--dry-run")
    assert data["dry_run"]
    assert len(data["steps"]) == len(lines)
    assert everything(m) == before


# --- names

BAD_NAMES = ("", ".", "..", "/", "a/b", "../x", "new\nline", "-x", "\x1b[31mred", "last", "42", "x" * 201, "x" * 255,
             "ä" * 128, " x", "x ", "\u202ereversed", "tab\t", "snap-1", "before-1")  # fmt: skip
GOOD_NAMES = ("$(touch pwned);`touch pwned`'\"", "日本 語", "a*b?[c]", "x" * 200, "%s%n", "back\\slash", "~root",
              "#x", "{\"a\": 1}", "&& reboot")  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_hostile_name_is_refused_everywhere_and_makes_nothing(m: Machine, name: str) -> None:
    before = everything(m)
    for words in (["create", "--", name], ["rename", "--", "base", name], ["image-update", f"--be-name={name}"]):
        if words[0] == "image-update" and not name:
            continue
        result = su(m, *words, code=2)
        assert len(result.stderr.splitlines()) <= 2
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", result.stderr)
    # Where a name is looked up it is simply unknown; "last" and a number mean something to rollback.
    for words in (["destroy", "-y", "--", name], ["activate", "--", name], ["mount", "--", name], ["pin", "--", name]):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", su(m, *words, code=2).stderr)
    assert everything(m) == before


def test_bytes_that_are_no_text_are_refused(m: Machine) -> None:
    script = f"import os; os.execv({PROGRAM!r}, [b'snap-upgrade', b'create', b'\\xff\\xfe'])"
    result = m.run(["/usr/bin/python3", "-c", script], check=False)
    assert result.returncode == 2
    assert "not valid UTF-8" in result.stderr


@pytest.mark.parametrize("name", GOOD_NAMES, ids=repr)
def test_a_name_that_a_shell_would_misread_is_just_a_name(m: Machine, name: str) -> None:
    su(m, "create", name)
    assert f"{STATE}/be/{name}" in m.subvolumes()
    place = su(m, "mount", name).stdout.removesuffix("\n")
    assert place == f"/run/snap-upgrade/mnt/{name}"
    su(m, "unmount", name)
    su(m, "activate", name)
    su(m, "cancel")
    su(m, "destroy", "-y", name)
    assert name not in names(m)
    assert not [place for place in ("/", "/root") if m.path(f"{place}/pwned").exists()]


# --- with others at work


def test_a_writer_is_refused_while_another_works_and_readers_do_not_wait(m: Machine) -> None:
    with open(m.top / STATE / "lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("snap-upgrade image-update (process 1)\n")
        lock.flush()
        before = everything(m)
        for words in (["create", "x"], ["destroy", "-y", "base"], ["activate", "base"], ["mount", "base"], ["recover"],
                      ["pin", "base"], ["rename", "base", "x"], ["rollback", "base"]):  # fmt: skip
            assert su_json(m, *words, code=10)["error"]["id"] == "locked"
        for words in (["list"], ["status"], ["history"], ["diff", "base"], ["check"], ["create", "-n", "x"]):
            su(m, *words)
        assert everything(m) == before


def test_twenty_lists_at_once_are_right_while_a_writer_runs(m: Machine) -> None:
    loop = "for i in $(seq 8); do snap-upgrade -q create busy && snap-upgrade -q -y destroy busy || exit 1; done"
    with m.popen(["/bin/sh", "-c", loop]) as writer:
        lists = [m.popen([PROGRAM, "list", "--json"]) for _ in range(20)]
        for process in lists:
            result = process.wait(60)
            assert result.returncode == 0, result.output
            rows = {row["name"]: row for row in json.loads(result.stdout)}
            assert rows["initial"]["active"] == "NR"
            assert set(rows) <= {"initial", "base", "busy"}
            process.close()
        result = writer.wait(120)
        assert result.returncode == 0, result.output


# --- interrupted work


def test_interrupted_work_is_shown_and_recovered(fresh: Machine) -> None:
    su(fresh, "create", "first")
    fresh.live("/run/snap-upgrade-failpoints").touch()
    killed = fresh.run([PROGRAM, "create", "half"], check=False,
                       env={"SNAP_UPGRADE_FAILPOINT": "kill:action.clone.made#1"})  # fmt: skip
    assert killed.returncode == -9
    before = everything(fresh)
    status = su(fresh, "status", code=9)
    assert "interrupted" in status.stdout
    assert "snap-upgrade recover" in status.stdout
    assert su_json(fresh, "status", code=9)["transactions"][0]["is_interrupted"]
    su(fresh, "check", code=9)
    assert "half" not in {row["name"] for row in su_json(fresh, "list") if row["state"] == "ready"}
    assert "take it back" in su(fresh, "recover", "-n").stdout
    assert everything(fresh) == before
    done = su_json(fresh, "recover")
    assert [(one["flow"], one["outcome"]) for one in done["transactions"]] == [("create", "undone")]
    assert f"{STATE}/be/half" not in fresh.subvolumes()
    su(fresh, "status")
    su(fresh, "recover", code=4)


def test_any_command_that_writes_recovers_first(fresh: Machine) -> None:
    su(fresh, "create", "first")
    fresh.live("/run/snap-upgrade-failpoints").touch()
    fresh.run([PROGRAM, "create", "half"], check=False, env={"SNAP_UPGRADE_FAILPOINT": "kill:action.clone.made#1"})
    su(fresh, "create", "half")
    assert names(fresh)["half"]["state"] == "ready"
    assert [row["outcome"] for row in su_json(fresh, "history")[:2]] == ["committed", "undone"]


def test_a_damaged_journal_is_told_by_all_and_can_be_put_aside(fresh: Machine) -> None:
    su(fresh, "create", "first")
    journal = fresh.top / STATE / "journal/77"
    journal.write_bytes(b"garbage\nmore garbage\n")
    su(fresh, "list")
    assert any("77" in one["message"] for one in su_json(fresh, "status", code=11)["problems"])
    su(fresh, "check", code=11)
    assert su_json(fresh, "create", "x", code=11)["error"]["id"] == "state-damaged"
    su(fresh, "recover", code=11)
    assert journal.read_bytes() == b"garbage\nmore garbage\n"
    su(fresh, "recover", "--abandon", "77", code=2)
    su(fresh, "recover", "--abandon", "77", "-y")
    su(fresh, "create", "x")


def test_returning_from_one_boot_is_done_at_boot(fresh: Machine) -> None:
    su(fresh, "create", "once")
    su(fresh, "activate", "-t", "once")
    fresh.reboot()
    assert fresh.boot_log is not None
    assert fresh.boot_log.returncode == 0, fresh.boot_log.output
    flags = {name: row["active"] for name, row in names(fresh).items()}
    assert (flags["once"], flags["initial"]) == ("N", "R")
    fresh.reboot()
    assert names(fresh)["initial"]["active"] == "NR"


def test_rollback_boots_what_was_before(fresh: Machine) -> None:
    su(fresh, "create", "before")
    fresh.path("/etc/added").write_text("x")
    su(fresh, "rollback", "before")
    fresh.reboot()
    assert not fresh.path("/etc/added").exists()
    flags = {name: row["active"] for name, row in names(fresh).items()}
    assert (flags["before"], flags["initial"]) == ("NR", "")


# --- questions and terminals


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 4), ("\n", 4), ("\x04", 4)], ids=repr)
def test_destroy_asks_on_a_terminal(m: Machine, answer: str, code: int) -> None:
    m.run([PROGRAM, "create", "asked"], check=False)
    with m.popen([PROGRAM, "destroy", "asked"], pty=True) as process:
        process.wait_for("[y/N]")
        process.type(answer)
        assert process.wait(60).returncode == code
    assert ("asked" in names(m)) == (code != 0)
    m.run([PROGRAM, "destroy", "-y", "asked"], check=False)


def test_ctrl_c_at_the_question_changes_nothing(m: Machine) -> None:
    before = everything(m)
    with m.popen([PROGRAM, "destroy", "base"], pty=True) as process:
        process.wait_for("[y/N]")
        process.ctrl_c()
        result = process.wait(60)
    assert result.returncode == 5
    assert "no transaction is left open" in result.stdout
    assert everything(m) == before


def test_an_unprivileged_user_is_refused(m: Machine) -> None:
    result = m.run(["/usr/bin/setpriv", "--reuid=1", "--regid=1", "--clear-groups", PROGRAM, "list"], check=False)
    assert (result.returncode, "root" in result.stderr) == (3, True)


def test_a_configuration_that_makes_no_sense_is_told_with_its_line(m: Machine) -> None:
    conf = m.path("/etc/snap-upgrade.conf")
    kept = conf.read_bytes()
    conf.write_text("\nkeep_environments = many\n")
    assert "/etc/snap-upgrade.conf, line 2" in su(m, "create", "x", code=2).stderr
    # What reads, and what leads back, warns and goes on.
    assert "/etc/snap-upgrade.conf, line 2" in su(m, "list").stderr
    conf.write_bytes(kept)


def test_nothing_is_left_behind_in_temporary_places_or_as_bytecode(m: Machine) -> None:
    assert not any(m.live("/tmp").iterdir())
    package = m.path("/usr/lib/python3/dist-packages/snap_upgrade")
    sources = {path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py")}
    compiled = {
        (path.parent.parent / path.name.split(".")[0]).relative_to(package).as_posix()
        for path in package.rglob("*.pyc")
    }
    assert compiled <= sources
    assert [name for name in state_files(m) if name.startswith("journal/")] == []
    assert os.stat(m.top / STATE).st_mode & 0o777 == 0o700


def test_prune_destroys_what_it_showed_and_nothing_that_is_protected(fresh: Machine) -> None:
    fresh.path("/etc/snap-upgrade.conf").write_text("keep_environments = 1\n")
    for name in ("oldest", "pinned", "older", "newest"):
        # As an image update describes what it makes: what a person makes is never pruned.
        su(fresh, "create", "-d", "updated from initial", name)
    su(fresh, "create", "mine")
    su(fresh, "pin", "pinned")
    for path in (fresh.top / STATE / "records").glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "created": 1.0}))
    fate = {row["name"]: row["is_pruned"] for row in su_json(fresh, "prune", "-n")}
    keeps = {"initial": False, "pinned": False, "newest": False, "mine": False}
    assert fate == {**keeps, "oldest": True, "older": True}
    assert "2 volumes would be destroyed" in su(fresh, "prune", "-n").stdout
    su(fresh, "prune", code=2)
    with fresh.popen([PROGRAM, "prune"], pty=True) as process:
        process.wait_for("Destroy older, oldest?")
        process.type("n\n")
        assert process.wait(60).returncode == 4
    assert set(names(fresh)) == set(fate)
    assert su(fresh, "prune", "-y", "-q").stdout == ""
    assert set(names(fresh)) == keeps.keys()
    su(fresh, "prune", "-y", "-q", code=4)
