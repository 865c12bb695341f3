"""Package work by command: in a clone, on the live root, at -R DIR, with real apt and packages that break.

The one rule: after a failure the proof that the system is as it was said to be.
"""

import fcntl
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import Repo, local_repo
from tests.system.clilab import PROGRAM, STATE, everything, names, su, su_json

SNAPSHOTS = f"{STATE}/snap/"


class Lab:
    """A machine, its only repository, and short ways to ask it."""

    def __init__(self, machine: Machine) -> None:
        self.m = machine
        debs = [Deb("good", "1.0"), breaking.with_conffile("1.0")]
        self.repo: Repo = local_repo(machine.path("/"), debs, method="copy")
        machine.run(["apt-get", "update"])

    def offer(self, *debs: Deb) -> None:
        """Put *debs* into the repository, and let apt know."""
        self.repo.add(*debs)
        self.repo.publish()
        self.m.run(["apt-get", "update"])

    def version(self, name: str) -> str:
        """Return the installed version of *name* on the running root, "" if it is not installed."""
        result = self.m.run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", name], check=False)
        return result.stdout.removeprefix("installed ") if result.stdout.startswith("installed ") else ""

    def in_environment(self, environment: str, path: str) -> Path:
        """Return the path from here of a file in *environment*, which an activation may have moved."""
        where: str = names(self.m)[environment]["path"]
        return self.m.top / where / path

    def version_in(self, environment: str, name: str) -> str:
        """Return the version of *name* in the status file of *environment*."""
        text = self.in_environment(environment, "var/lib/dpkg/status").read_text()
        found = re.search(
            rf"^Package: {name}\nStatus: install ok installed\n(?:.+\n)*?Version: (.*)$", text, re.MULTILINE
        )
        return found[1] if found else ""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Machine(tmp_path) as machine:
        yield Lab(machine)


# --- live


def test_install_upgrade_and_remove_are_transactions_that_can_be_gone_back_from(lab: Lab) -> None:
    m = lab.m
    result = su(m, "install", "-y", "good", "configured")
    assert lab.version("good") == "1.0"
    assert "snap-upgrade rollback 1" in result.stdout
    # One transaction: our own hook was off while apt ran.
    (row,) = su_json(m, "history")
    assert (row["flow"], row["verdict"], row["packages"]) == ("live", "success", 2)
    assert {one["name"]: one["new"] for one in su_json(m, "history", "1")["changes"]} == {
        "good": "1.0",
        "configured": "1.0",
    }
    assert su_json(m, "diff", "1") == [{"name": "configured", "old": None, "new": "1.0"},
                                       {"name": "good", "old": None, "new": "1.0"}]  # fmt: skip
    assert "2 packages: 2 added" in su(m, "diff", "1").stdout
    su(m, "install", "-y", "good", code=4)
    lab.offer(Deb("good", "2.0"))
    su(m, "upgrade", "-y")
    assert lab.version("good") == "2.0"
    su(m, "remove", "-y", "good", "configured")
    assert (lab.version("good"), lab.version("configured")) == ("", "")
    assert m.path("/etc/configured.conf").exists()  # removed, not purged
    su(m, "rollback", "last")
    m.reboot()
    assert lab.version("good") == "2.0"


def test_a_live_failure_keeps_a_bootable_way_back_and_names_it(lab: Lab) -> None:
    m = lab.m
    before = m.tree_hash()
    lab.offer(breaking.fails_in("postinst", "broken"))
    error = su_json(m, "install", "-y", "broken", code=7)["error"]
    name = re.search(r"rollback (\S+)", error["hint"])
    assert name is not None
    assert names(m)[name[1]]["state"] == "ready"
    details = su_json(m, "history", su_json(m, "history")[0]["id"])
    assert details["verdict"] == "failed"
    assert any("broken" in reason for reason in details["reasons"])
    assert details["evidence"]["exit"] == 100
    su(m, "rollback", name[1])
    m.reboot()
    assert lab.version("broken") == ""
    assert before.keys() - m.tree_hash().keys() == set()


def test_an_unknown_package_changes_nothing(lab: Lab) -> None:
    su(lab.m, "install", "-y", "no-such-package", code=5)
    assert not [path for path in lab.m.subvolumes() if path.startswith(SNAPSHOTS)]
    assert su_json(lab.m, "history")[0]["verdict"] == "unchanged"


def test_apt_has_the_terminal_and_the_callers_umask_and_folder(lab: Lab) -> None:
    m = lab.m
    script = "umask; pwd; test -t 0 && echo a terminal"
    with m.popen(["/bin/sh", "-c", f'umask 027; cd /usr; exec {PROGRAM} run -- sh -c "{script}"'], pty=True) as process:
        result = process.wait(60)
    assert re.search(r"0?027\s+/usr\s+a terminal", result.stdout)
    assert result.returncode == 0


def test_any_command_is_judged_by_the_packages_and_by_its_exit_status(lab: Lab) -> None:
    m = lab.m
    su(m, "run", "--", "apt-get", "install", "-y", "good")
    assert lab.version("good") == "1.0"
    (row,) = su_json(m, "history")
    assert (row["flow"], row["verdict"], row["packages"]) == ("live", "success", 1)
    # dpkg knows nothing of this change: it can be gone back from all the same.
    su(m, "run", "--", "touch", "/etc/touched")
    assert su_json(m, "history")[0]["verdict"] == "success"
    assert {one["path"] for one in su_json(m, "diff", "2", "--files")} >= {"/etc/touched"}
    error = json.loads(su(m, "run", "--json", "--", "sh", "-c", "rm /etc/touched; exit 3", code=7).stdout)["error"]
    assert "exited with 3" in error["message"]
    su(m, "run", "--", "no-such-program", code=5)
    su(m, "rollback", "last")
    m.reboot()
    assert m.path("/etc/touched").exists()


def test_the_hook_writes_what_was_asked_for_into_our_transaction(lab: Lab) -> None:
    m = lab.m
    su(m, "install", "-y", "good")
    history = (m.top / STATE / "history/1.json").read_text()
    assert '"kind": "request"' in history or '"kind":"request"' in history
    assert [path for path in m.subvolumes() if path.startswith(SNAPSHOTS)] == [f"{SNAPSHOTS}1"]
    assert any("apt" in name for name in su_json(m, "status")["hooks"]["last_fired"])


# --- image-update


def test_an_image_update_changes_the_clone_and_boots_it_next(lab: Lab) -> None:
    m = lab.m
    su(m, "install", "-y", "good", "configured")
    m.path("/etc/configured.conf").write_text("mine\n")
    lab.offer(Deb("good", "2.0"), breaking.with_conffile("2.0"))
    result = su(m, "image-update", "--be-name", "new")
    assert lab.version("good") == "1.0"
    assert lab.version_in("new", "good") == "2.0"
    assert "2 packages: 0 added, 0 removed, 2 changed" in result.stdout
    assert "/etc/configured.conf" in result.stdout
    assert result.stdout.rstrip().endswith("hint: snap-upgrade cancel")
    assert names(m)["new"]["active"] == "R"
    assert lab.in_environment("new", "etc/configured.conf").read_text() == "mine\n"
    su(m, "image-update", code=4)
    su(m, "cancel")
    assert "new" not in names(m)
    su(m, "image-update", "--be-name", "again", "--replace-conffiles")
    assert lab.in_environment("again", "etc/configured.conf").read_text() == "setting = 2.0\n"
    m.reboot()
    assert lab.version("good") == "2.0"


def test_an_image_update_that_fails_leaves_nothing(lab: Lab) -> None:
    m = lab.m
    su(m, "install", "-y", "good")
    lab.offer(breaking.fails_in("postinst", "good"))
    before = m.subvolumes()
    tree = m.tree_hash()
    result = su(m, "image-update", "--json", code=5)
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert "was not touched" in error["message"]
    assert m.subvolumes() == before
    assert m.tree_hash() == tree
    log = su_json(m, "history", re.search(r"history (\d+)", error["hint"])[1])["log"]  # type: ignore[index]
    assert any("fails on purpose" in line for line in log)


def test_progress_as_json_is_a_line_each_and_the_result_comes_last(lab: Lab) -> None:
    m = lab.m
    su(m, "install", "-y", "good")
    lab.offer(Deb("good", "2.0", size_padding=3_000_000))
    lines = [json.loads(line) for line in su(m, "image-update", "--json", "--no-activate", code=8).stdout.splitlines()]
    phases = [one["progress"]["name"] for one in lines[:-1] if one["progress"]["kind"] == "phase"]
    assert phases[:4] == ["refresh", "plan", "download", "apply"]
    assert any(one["progress"]["kind"] == "package" for one in lines[:-1])
    result = lines[-1]
    assert (result["exit_code"], result["verdict"]) == (8, "success")
    assert result["changes"] == [{"name": "good", "old": "1.0", "new": "2.0"}]
    assert names(m)["initial"]["active"] == "NR"
    assert su(m, "image-update", "--no-activate", "-q", code=8).stdout == ""


def test_dry_run_of_package_work_shows_steps_and_packages_and_changes_nothing(lab: Lab) -> None:
    m = lab.m
    su(m, "install", "-y", "good")
    lab.offer(Deb("good", "2.0"))
    before, tree = everything(m), m.tree_hash()
    for words in (["image-update"], ["install", "configured"], ["remove", "good"], ["upgrade"], ["run", "--", "true"],
                  ["run", "--clone", "--", "true"], ["image-update", "--", "install", "configured"]):  # fmt: skip
        lines = su(m, "-n", *words).stdout.splitlines()
        assert lines[0].startswith("1. take the snapshot")
        data = json.loads(su(m, "-n", "--json", *words).stdout)
        assert data["steps"]
        assert ("changes" in data) == (words[0] != "run")
    shown = su_json(m, "image-update", "-n")
    assert shown["changes"] == [{"name": "good", "old": "1.0", "new": "2.0"}]
    assert everything(m) == before
    assert m.tree_hash() == tree


def test_any_arguments_for_apt_and_any_command_work_in_a_clone(lab: Lab) -> None:
    m = lab.m
    su(m, "image-update", "--be-name", "one", "--", "install", "good")
    assert (lab.version("good"), lab.version_in("one", "good")) == ("", "1.0")
    # A pending environment is the base of the next.
    su(m, "run", "--clone", "--", "apt-get", "install", "-y", "configured")
    pending = su_json(m, "status")["pending"]
    assert pending != "one"
    assert (lab.version_in(pending, "good"), lab.version_in(pending, "configured")) == ("1.0", "1.0")
    su(m, "image-update", "--fresh", "--be-name", "two", "--", "install", "configured")
    assert lab.version_in("two", "good") == ""
    su(m, "install", "-y", "good")  # from here on apt has logs, and they say that the next command ran no dpkg
    su(m, "run", "--clone", "--", "touch", "/etc/touched")
    assert lab.in_environment(su_json(m, "status")["pending"], "etc/touched").exists()
    result = su(m, "run", "--clone", "--", "false", code=5)
    assert "false exited with 1" in result.stderr


def test_a_signal_takes_an_image_update_back(lab: Lab) -> None:
    m = lab.m
    su(m, "create", "first")
    lab.offer(breaking.hanging())
    before = m.subvolumes()
    with m.popen([PROGRAM, "image-update", "--json", "--be-name", "cut", "--", "install", "hangs"]) as process:
        process.wait_for("Setting up hangs")
        # The first asks the script to end, which it cannot; the second kills all that runs in the clone.
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGINT)
        result = process.wait(60)
    assert result.returncode == 5, result.output
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert "interrupted" in error["message"]
    assert "not touched" in error["message"]
    assert m.subvolumes() == before
    assert not [line for line in m.processes().values() if "hangs" in line]
    assert su_json(m, "history")[0]["outcome"] == "undone"


def test_a_second_image_update_and_a_writer_are_refused_while_one_runs(lab: Lab) -> None:
    m = lab.m
    lab.offer(breaking.hanging())
    with m.popen([PROGRAM, "image-update", "--json", "--", "install", "hangs"]) as process:
        process.wait_for("Setting up hangs")
        for words in (["image-update"], ["create", "x"], ["install", "-y", "good"]):
            su(m, *words, code=10)
        assert su_json(m, "status")["transactions"][0]["is_interrupted"] is False
        assert any(row["state"] == "building" for row in su_json(m, "list"))
        process.signal(signal.SIGINT)
        process.signal(signal.SIGTERM)
        assert process.wait(60).returncode == 5


def test_a_reboot_that_cannot_be_started_is_told(lab: Lab) -> None:
    m = lab.m
    for place in ("/usr/sbin/reboot", "/usr/bin/systemctl"):
        m.path(place).unlink(missing_ok=True)
    result = su(m, "image-update", "--reboot=now", "--", "install", "good", code=11)
    assert "boots next, but the reboot was not started" in result.stderr
    assert names(m)[su_json(m, "status")["next"]]["state"] == "ready"


def test_reboot_is_run_once_and_only_after_success(lab: Lab) -> None:
    m = lab.m
    for place in ("/usr/sbin/reboot", "/usr/bin/systemctl"):
        m.path(place).unlink(missing_ok=True)
    m.path("/usr/sbin/reboot").write_text("#!/bin/sh\necho rebooted >> /run/rebooted\n")
    m.path("/usr/sbin/reboot").chmod(0o755)
    lab.offer(breaking.fails_in("postinst", "broken"))
    su(m, "image-update", "--reboot=now", "--", "install", "broken", code=5)
    assert not m.live("/run/rebooted").exists()
    su(m, "image-update", "--reboot=ask", "--", "install", "good")
    assert not m.live("/run/rebooted").exists()
    su(m, "image-update", "--reboot=now", "--", "install", "configured")
    assert m.live("/run/rebooted").read_text() == "rebooted\n"


# --- -R DIR


def test_an_environment_at_a_directory_is_changed_and_on_failure_put_back(lab: Lab) -> None:
    m = lab.m
    lab.offer(breaking.fails_in("postinst", "broken"))
    su(m, "create", "other")
    place = su(m, "mount", "other").stdout.strip()
    su(m, "-R", place, "install", "good")
    assert (lab.version("good"), lab.version_in("other", "good")) == ("", "1.0")
    before = m.tree_hash(f"{STATE}/be/other")
    result = su(m, "install", "-R", place, "broken", code=6)
    assert "other" in result.stderr
    assert names(m)["other"]["mountpoints"] == [place]
    after = m.tree_hash(f"{STATE}/be/other")
    assert {name for name in before if before[name] != after.get(name)} == set()
    assert set(after) == set(before)
    assert "takes no -R" in su(m, "list", "-R", place, code=2).stderr


def test_an_image_update_of_an_environment_at_a_directory(lab: Lab) -> None:
    m = lab.m
    su(m, "install", "-y", "good")
    lab.offer(Deb("good", "2.0"))
    su(m, "create", "other")
    place = su(m, "mount", "other").stdout.strip()
    assert su_json(m, "image-update", "-n", "-R", place)["changes"] == [{"name": "good", "old": "1.0", "new": "2.0"}]
    su(m, "image-update", "-R", place)
    assert (lab.version("good"), lab.version_in("other", "good")) == ("1.0", "2.0")
    assert names(m)["initial"]["active"] == "NR"


# --- what must not break it


def test_a_reader_that_goes_away_does_not_break_the_update(lab: Lab) -> None:
    m = lab.m
    line = f"{PROGRAM} image-update --json --be-name piped -- install good | head -n 1; exit 0"
    first = m.run(["/bin/sh", "-c", line]).stdout
    assert json.loads(first)["progress"]["kind"] == "phase"
    # The shell waits for head only; the update goes on, and its lock says when it is done.
    m.run([PROGRAM, "status"])
    with (m.top / STATE / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert names(m)["piped"]["active"] == "R"


def test_a_signal_does_not_leave_a_live_operation_unjudged(lab: Lab) -> None:
    m = lab.m
    lab.offer(breaking.hanging())
    with m.popen([PROGRAM, "install", "-y", "hangs"]) as process:
        m.wait_for_file("/run/hangs.hangs")
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGHUP)
        # apt is not killed halfway: it is the terminal's to stop it.
        m.live("/run/hangs.gate").write_text("go\n")
        result = process.wait(60)
    assert result.returncode == 0, result.output
    assert lab.version("hangs") == "2.0"
    assert su_json(m, "history")[0]["verdict"] == "success"
    su(m, "status")


def test_the_question_before_a_reboot(lab: Lab) -> None:
    m = lab.m
    for place in ("/usr/sbin/reboot", "/usr/bin/systemctl"):
        m.path(place).unlink(missing_ok=True)
    m.path("/usr/sbin/reboot").write_text("#!/bin/sh\necho rebooted >> /run/rebooted\n")
    m.path("/usr/sbin/reboot").chmod(0o755)
    for name, answer, is_done in (("good", "n\n", False), ("configured", "y\n", True)):
        with m.popen([PROGRAM, "image-update", "--reboot=ask", "--", "install", name], pty=True) as process:
            process.wait_for("[y/N]")
            process.type(answer)
            assert process.wait(60).returncode == 0
        assert m.live("/run/rebooted").exists() == is_done


def test_on_debian_13_the_same(tmp_path: Path) -> None:
    with Machine(tmp_path, root="trixie") as machine:
        lab = Lab(machine)
        su(machine, "create", "--", "-x", code=2)
        su(machine, "install", "-y", "good")
        su(machine, "run", "--", "sh", "-c", "test $1 = --json", "x", "--json")
        su(machine, "image-update", "--be-name", "new", "--", "install", "configured")
        assert (lab.version("configured"), lab.version_in("new", "configured")) == ("", "1.0")
        su(machine, "check")
