"""Small truths of the command line: what it says is so, and what it advises can be done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import btrfsutil
import pytest

from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo
from tests.system.clilab import PROGRAM, everything, names, su, su_json
from tests.system.test_apt_failures import hang, open_gate, settle

BAD = breaking.fails_in("postinst", "bad")
INSTALL = ("apt-get", "install", "-y")
CONF = "/etc/snap-upgrade.conf"
COUNTED = """
import sys
sys.path.insert(0, "/usr/lib/python3/dist-packages")
from snap_upgrade.system import kernel
real, looks = kernel.mountinfo, []
kernel.mountinfo = lambda *a: (looks.append(1), real(*a))[1]
from snap_upgrade.cli.main import main
main(["list", "-q"])
print("looked", len(looks))
"""


@pytest.fixture
def m(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as machine:
        local_repo(machine.path("/"), [BAD, Deb("good", "1.0"), Deb("other", "1.0")], method="copy")
        machine.run(["apt-get", "update"])
        yield machine


# --- names


@pytest.mark.parametrize("word", ["running", "last", "next", "default"])
def test_a_word_of_the_commands_names_no_environment(m: Machine, word: str) -> None:
    su(m, "create", "x")
    before = m.subvolumes()
    for words in (["create", word], ["rename", "x", word], ["image-update", "--no-progress", "--be-name", word]):
        assert "meaning of its own" in su(m, *words, code=2).stderr
    assert m.subvolumes() == before


def test_an_environment_that_has_such_a_name_already_can_be_used_and_destroyed(m: Machine) -> None:
    su(m, "create", "x")
    record = next(path for path in (m.top / ".snap-upgrade/records").iterdir() if '"x"' in path.read_text())
    record.write_text(record.read_text().replace('"name": "x"', '"name": "running"'))
    assert "running" in names(m)
    su(m, "destroy", "-y", "running")
    assert names(m).keys() == {"initial"}


# --- the configuration


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_file_in_the_place_of_the_settings_is_told_and_nobody_hangs(m: Machine, kind: str) -> None:
    conf = m.path(CONF)
    conf.unlink(missing_ok=True)
    m.run({"fifo": ["mkfifo", CONF], "directory": ["mkdir", CONF], "device": ["ln", "-s", "/dev/zero", CONF]}[kind])
    assert f"{CONF} is not a regular file" in su(m, "create", "x", code=2, timeout=20).stderr
    assert f"{CONF} is not a regular file" in su(m, "list", timeout=20).stderr
    refused = m.run([*INSTALL, "good"], check=False, timeout=60)
    assert refused.returncode == 100
    assert f"{CONF} is not a regular file: refusing the transaction" in refused.stderr
    m.run(["apt-get", "-o", "DPkg::Pre-Install-Pkgs::snap-upgrade=", "install", "-y", "good"])


def test_a_typing_error_does_not_take_back_that_operations_may_go_on(m: Machine) -> None:
    m.path(CONF).write_text("enabled = maybe\non_no_snapshot = warn\n")
    told = m.run([*INSTALL, "good"])
    assert "line 1" in told.stderr
    assert "going on without one" in told.stderr
    assert not (m.top / ".snap-upgrade/journal").exists()


# --- apt for another root


def second_root(machine: Machine) -> None:
    """Make the small root /srv/r: an empty database, and what a script of dpkg's needs to run."""
    machine.run(["sh", "-ec", """
        mkdir -p /srv/r/var/lib/dpkg/updates /srv/r/var/lib/dpkg/info /srv/r/var/lib/apt/lists/partial \\
                 /srv/r/var/cache/apt/archives/partial /srv/r/var/log/apt /srv/r/tmp /srv/r/dev /srv/r/proc /srv/r/srv/r
        : > /srv/r/var/lib/dpkg/status; : > /srv/r/var/lib/dpkg/available
        cp -a /etc /bin /sbin /lib /lib64 /usr /srv/r
        cp -a /var/lib/apt/lists/. /srv/r/var/lib/apt/lists/; cp -a /srv/repo /srv/r/srv/repo"""])  # fmt: skip


ELSEWHERE = {
    "dpkg-root": ("-o", "Dir=/srv/r", "-o", "Dir::State::status=/srv/r/var/lib/dpkg/status",
                  "-o", "Dpkg::Options::=--force-unsafe-io", "-o", "Dpkg::Options::=--root=/srv/r"),
    "RootDir": ("-o", "RootDir=/srv/r"),
    "chroot": ("-o", "Dir=/srv/r", "-o", "Dir::State::status=/srv/r/var/lib/dpkg/status",
               "-o", "DPkg::Chroot-Directory=/srv/r"),
}  # fmt: skip


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
@pytest.mark.parametrize("way", ELSEWHERE)
def test_apt_for_another_root_is_none_of_our_transactions(tmp_path: Path, release: str, way: str) -> None:
    with Machine(tmp_path, root=release) as machine:
        local_repo(machine.path("/"), [Deb("good", "1.0")], method="copy")
        machine.run(["apt-get", "update"])
        second_root(machine)
        told = machine.run(["apt-get", *ELSEWHERE[way], "install", "-y", "good"])
        settle(machine)
        assert "Package: good" in machine.path("/srv/r/var/lib/dpkg/status").read_text()
        assert "Package: good" not in machine.path("/var/lib/dpkg/status").read_text()
        assert not (machine.top / ".snap-upgrade").exists(), "a transaction was made for a root that is not ours"
        ours = [line for line in told.stderr.splitlines() if "snap-upgrade" in line]
        assert len(ours) <= 1
        if way == "dpkg-root":
            assert "/srv/r/var/lib/dpkg" in ours[0]


def test_apt_that_only_reads_elsewhere_changes_this_root_and_is_protected(m: Machine) -> None:
    second_root(m)
    m.run(["apt-get", "-o", "Dir=/srv/r", "-o", "Dir::State::status=/srv/r/var/lib/dpkg/status", "install", "-y",
           "good"])  # fmt: skip
    settle(m)
    assert m.path("/var/lib/dpkg/info/good.list").exists(), "dpkg does not go by Dir"
    assert su_json(m, "history")[0]["verdict"] == "success"


def test_a_person_in_a_chroot_is_told_that_nothing_protects_him_and_a_build_is_not(m: Machine) -> None:
    second_root(m)
    m.run(["mount", "-t", "proc", "proc", "/srv/r/proc"])
    quiet = m.run(["chroot", "/srv/r", *INSTALL, "good"])
    told = m.run(["chroot", "/srv/r", *INSTALL, "other"], pty=True)
    settle(m)
    assert "snap-upgrade" not in quiet.output
    ours = [line for line in told.output.splitlines() if "snap-upgrade" in line]
    assert len(ours) == 1
    assert "chroot" in ours[0] and "not protected" in ours[0]
    assert not (m.top / ".snap-upgrade").exists()


def test_a_chroot_into_the_root_itself_is_the_machine_and_protected(m: Machine) -> None:
    m.run(["sh", "-ec", "mkdir -p /srv/c; mount --rbind / /srv/c"])
    m.run(["chroot", "/srv/c", *INSTALL, "good"])
    settle(m)
    m.run(["chroot", "/srv/c", PROGRAM, "install", "-y", "other"])
    assert [row["verdict"] for row in su_json(m, "history")] == ["success", "success"]
    assert [row["packages"] for row in su_json(m, "history")] == [1, 1]


# --- while apt is at work


def test_a_dpkg_at_work_is_not_called_cut_off(m: Machine) -> None:
    with hang(m):
        told = su_json(m, "status")
        assert "apt-get" in told["packages_at_work"] or "dpkg" in told["packages_at_work"]
        assert not [one for one in told["problems"] if "cut off" in one["message"] or "half-" in one["message"]]
        assert not [one for one in su_json(m, "check")["problems"] if "cut off" in one["message"]]
        assert told["packages_at_work"] in su(m, "status").stdout
        open_gate(m, "hangs")
    settle(m)
    assert su_json(m, "status")["packages_at_work"] is None


# --- what is asked of apt and of other programs


def test_options_alone_are_options_of_the_upgrade(m: Machine) -> None:
    repo = local_repo(m.path("/"), [Deb("good", "1.0")], method="copy")
    m.run(["apt-get", "update"])
    m.run([*INSTALL, "good"])
    settle(m)
    repo.add(Deb("good", "2.0"))
    repo.publish()
    su(m, "image-update", "--no-progress", "--be-name", "new", "--", "--purge", "-o", "APT::Get::Show-Versions=true")
    m.reboot()
    assert m.run(["dpkg-query", "-W", "-f", "${Version}", "good"]).stdout == "2.0"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("/nonexist", "there is no such file"),
        ("/etc/fstab", "not executable"),
        ("/etc", "no file"),
        ("./nonexist", "/root/nonexist"),
        ("/usr/local/bin/orphan", "No such file"),
        ("/usr/local/bin/noise", "Exec format error"),
        ("nonexist", "there is no program nonexist"),
    ],
)
def test_a_program_that_cannot_be_run_has_changed_nothing(m: Machine, program: str, why: str) -> None:
    su(m, "create", "x")
    for name, content in (("orphan", b"#!/no/such/shell\n"), ("noise", b"\x7fELFnoise")):
        m.path(f"/usr/local/bin/{name}").write_bytes(content)
        m.path(f"/usr/local/bin/{name}").chmod(0o755)
    before = m.subvolumes().keys()
    error = json.loads(
        su(m, "run", "--json", "--", program, code=5).stdout)["error"]  # fmt: skip
    assert why in error["message"]
    assert m.subvolumes().keys() == before
    assert su_json(m, "status")["transactions"] == []


# --- what boots


def test_what_was_pending_and_boots_no_more_is_named(m: Machine) -> None:
    su(m, "create", "a")
    su(m, "create", "b")
    assert "does not boot any more" not in su(m, "activate", "a").stdout
    for words in (["activate", "b"], ["rollback", "a"], ["activate", "initial"]):
        pending = su_json(m, "status")["pending"]
        told = su(m, *words).stdout
        assert f"in the place of {pending}, which was pending and does not boot any more" in told
    su(m, "activate", "a")
    told = su(m, "activate", "-t", "b").stdout
    assert "does not boot any more" not in told, "a boots again after b"
    assert "in the place of b" in su(m, "activate", "-t", "initial").stdout


def test_a_boot_for_once_is_told_as_it_happens(m: Machine) -> None:
    su(m, "create", "once")
    once = m.top / ".snap-upgrade/be/once"
    (once / "etc/once").touch()
    (once / PROGRAM[1:]).rename(once / "usr/sbin/aside")
    told = su(m, "activate", "-t", "once").stdout
    assert "the next boot is into once, once" in told
    assert "as soon as it is up, initial is made to boot after it" in told
    assert "if it does not come up, once boots again" in told
    m.reboot()  # it boots, but not so far that our unit runs
    assert m.path("/etc/once").exists()
    m.reboot()
    assert m.path("/etc/once").exists(), "it boots again"
    m.path("/usr/sbin/aside").rename(m.path(PROGRAM))
    m.reboot()
    m.reboot()
    assert names(m)["initial"]["active"] == "NR"


def test_a_failed_environment_is_no_origin(m: Machine) -> None:
    m.path(CONF).write_text("keep_failed = yes\n")
    su(m, "image-update", "--no-progress", "--be-name", "ill", "--", "install", "-y", "bad", code=5)
    assert names(m)["ill"]["state"] == "failed"
    error = su_json(m, "create", "-e", "ill", "x", code=3)["error"]
    assert "failed" in error["message"] and "nothing was changed" in error["message"]
    assert "x" not in names(m)
    m.run(["sh", "-c", error["hint"].partition(": ")[2]])


# --- what is shown


def test_plain_rows_end_with_state_and_kind(m: Machine) -> None:
    m.run([*INSTALL, "good"])
    settle(m)
    rows = [line.split("\t") for line in su(m, "list", "-aH").stdout.splitlines()]
    assert {(row[0], row[6], row[7]) for row in rows} == {
        ("initial", "ready", "environment"), ("snap-1", "ready", "snapshot")}  # fmt: skip
    told = su(m, "list", "--help").stdout
    assert "name, active, mountpoint, space, created, origin, state, kind" in " ".join(told.split())


@pytest.mark.parametrize("by", ["apt", "snap-upgrade"])
def test_the_work_of_the_packages_is_told_done_or_failed(m: Machine, by: str) -> None:
    for package, state, code in (("good", "done", 0), ("bad", "failed", 7)):
        if by == "apt":
            m.run([*INSTALL, package], check=False)
            settle(m)
        else:
            su(m, "install", "-y", package, code=code)
        newest = su_json(m, "history", str(len(su_json(m, "history"))))
        found = [step["state"] for step in newest["steps"] if "package manager" in step["text"]]
        assert found == [state]


def test_an_exit_code_in_json_is_the_process_own_or_none(m: Machine) -> None:
    m.run([*INSTALL, "bad"], check=False)
    settle(m)
    su(m, "run", "--", "dpkg", "--purge", "bad")
    told = su(m, "install", "-y", "bad", "--json", code=7)
    assert json.loads(told.stdout)["error"]["exit_code"] == 7
    su(m, "run", "--", "dpkg", "--purge", "bad")
    hanging = breaking.hanging()
    local_repo(m.path("/"), [hanging], method="copy")
    m.run(["apt-get", "update"])
    with m.popen([PROGRAM, "install", "-y", "hangs"]) as process:
        m.wait_for_file("/run/hangs.hangs")
        process.kill()
        open_gate(m, "hangs")
    m.wait_for_dpkg()
    su(m, "recover", code=0)
    codes = [row["exit_code"] for row in su_json(m, "history")]
    assert codes[1:] == [0, 7, 0, None], "newest first; of plain apt nobody knows it"
    newest = su_json(m, "history", str(len(codes)))
    assert newest["evidence"]["exit"] is None, "it was killed, and nobody saw how apt ended"
    assert "exit status" not in su(m, "history", str(len(codes))).stdout


def test_a_list_looks_at_the_mounts_as_often_for_many_as_for_few(m: Machine) -> None:
    looked = []
    for count in (1, 12):
        for number in range(count):
            su(m, "create", f"be-{count}-{number}")
        looked.append(m.run(["/usr/bin/python3", "-c", COUNTED]).stdout.splitlines()[-1])
    assert looked[0] == looked[1]
    place = m.run([PROGRAM, "mount", "be-1-0"]).stdout.strip()
    assert names(m)["be-1-0"]["mountpoints"] == [place]


# --- policy = proposal


def test_the_proposal_mounts_the_way_back_also_after_plain_apt(m: Machine) -> None:
    m.path(CONF).write_text("policy = proposal\n")
    m.run([*INSTALL, "bad"], check=False)
    settle(m)
    assert names(m)["before-1"]["mountpoints"] == ["/run/snap-upgrade/mnt/before-1"]
    assert m.live("/run/snap-upgrade/mnt/before-1/etc/fstab").exists()
    assert not os.path.exists(m.live("/run/snap-upgrade/mnt/before-1/var/lib/dpkg/info/bad.list"))


# --- the version of the state


def version_problems(machine: Machine) -> list[dict[str, str]]:
    """Return what status and check say of the version, which must be the same."""
    told = [
        [one for one in su_json(machine, words, code=11)["problems"] if "version" in one["message"]]
        for words in ("status", "check")
    ]
    assert told[0] == told[1]
    return told[0]


@pytest.mark.parametrize("content", ["99\n", "garbage\n", ""])
def test_a_state_of_another_version_is_told_and_never_written_into(m: Machine, content: str) -> None:
    su(m, "create", "x")
    (m.top / ".snap-upgrade/version").write_text(content)
    before = everything(m)
    for words in (["create", "y"], ["create", "-n", "y"], ["destroy", "-y", "x"], ["activate", "x"], ["pin", "x"],
                  ["mount", "x"], ["prune", "-y"], ["recover"], ["recover", "--abandon", "7", "-y"],
                  ["install", "-y", "good"], ["run", "--", "true"], ["image-update", "--no-progress"]):  # fmt: skip
        told = su(m, *words, code=11).stderr
        assert "version" in told and "nothing was changed" in told and "b'" not in told, words
    refused = m.run([*INSTALL, "good"], check=False)
    assert refused.returncode == 100
    assert f"the version '{content.strip()}'" in refused.stderr and "b'" not in refused.stderr
    [problem] = version_problems(m)
    assert problem["severity"] == "error"
    assert "x" in names(m)
    assert everything(m) == before


@pytest.mark.parametrize("content", ["garbage\n", ""])
def test_a_version_that_is_none_is_put_aside_by_the_hint(m: Machine, content: str) -> None:
    su(m, "create", "x")
    version = m.top / ".snap-upgrade/version"
    su(m, "recover", "--abandon", "version", "-y", code=3)
    version.write_text(content)
    [problem] = version_problems(m)
    m.run(["sh", "-c", problem["hint"]], pty=True, stdin="y\n")
    assert version.read_text() == "1\n"
    assert version.with_name("version.damaged").read_text() == content
    su(m, "check")
    su(m, "create", "y")
    m.run([*INSTALL, "good"])


def test_a_newer_version_is_never_put_aside_and_the_hint_upgrades_us(m: Machine) -> None:
    su(m, "create", "x")
    version = m.top / ".snap-upgrade/version"
    version.write_text("99\n")
    assert "newer" in su(m, "recover", "--abandon", "version", "-y", code=11).stderr
    assert version.read_text() == "99\n"
    assert not version.with_name("version.damaged").exists()
    [problem] = version_problems(m)
    local_repo(m.path("/"), [Deb("snap-upgrade", "99.0")], method="copy")
    m.run(["sh", "-c", problem["hint"]], pty=True, stdin="y\n")
    assert m.run(["dpkg-query", "-W", "-f", "${Version}", "snap-upgrade"]).stdout == "99.0"


# --- what status says


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("enabled = maybe\n", "apt is refused"),
        ("enabled = maybe\non_no_snapshot = warn\n", "apt works without a snapshot"),
        ("keep_environments = many\n", "are refused"),
    ],
)
def test_status_lists_settings_that_are_wrong(m: Machine, text: str, what: str) -> None:
    su(m, "create", "x")
    m.path(CONF).write_text(text)
    [problem] = [one for one in su_json(m, "status", code=11)["problems"] if CONF in one["message"]]
    assert problem["severity"] == "error" and problem["hint"]
    for part in ("line 1", "until this is mended", "the defaults", what):
        assert part in problem["message"]
    assert ("apt" in problem["message"]) == ("apt" in what)
    done = m.run([*INSTALL, "good"], check=False)
    settle(m)
    assert (done.returncode == 100) == ("apt is refused" in problem["message"])
    m.path(CONF).write_text("")
    assert not [one for one in su_json(m, "status")["problems"] if CONF in one["message"]]


def test_hooks_that_are_switched_off_are_installed(m: Machine) -> None:
    m.path(CONF).write_text("enabled = no\n")
    told = su(m, "status").stdout
    assert "hooks:     installed, switched off by 'enabled = no' in /etc/snap-upgrade.conf" in told
    hooks = su_json(m, "status")["hooks"]
    assert (hooks["installed"], hooks["enabled"]) == (True, False)


def test_what_boots_next_and_is_not_ours_is_named_and_pending(m: Machine) -> None:
    su(m, "create", "x")
    (m.top / "@").rename(m.top / "aside")
    btrfsutil.create_subvolume(str(m.top / "@"))
    told = su(m, "status").stdout
    assert "next:      the volume @, which is not on record" in told
    assert "pending:   the volume @, which is not on record (snap-upgrade cancel)" in told
    data = su_json(m, "status")
    assert (data["next"], data["next_path"], data["pending"], data["is_pending"]) == (None, "@", None, True)
    su(m, "cancel")
    data = su_json(m, "status")
    assert (data["next"], data["pending"], data["is_pending"]) == ("initial", None, False)


def test_that_no_boot_loader_is_managed_is_a_note_and_no_problem(m: Machine) -> None:
    su(m, "create", "x")
    data = su_json(m, "status")
    assert data["problems"] == []
    assert ["no boot loader is managed" in note for note in data["notes"]] == [True]
    lines = su(m, "status").stdout.splitlines()
    assert "note:      no boot loader is managed" in lines[-1]
    assert "all is well" in su(m, "check").stdout


# --- what commands say


NO_ROOT = ("status", "list", "cancel", "prune", "history", "check", "recover", "activate x", "rollback", "create y",
           "diff x", "mount x", "unmount x", "pin x", "unpin x", "rename x y", "destroy -y x", "describe x y",
           "run -- true", "run --clone -- true")  # fmt: skip


def test_what_works_on_the_machine_takes_no_other_root(m: Machine) -> None:
    for words in NO_ROOT:
        error = json.loads(su(m, "--json", "-R", "/mnt", *words.split(), code=2).stdout)["error"]
        assert "install, remove, upgrade and image-update" in error["message"]
        m.run(["sh", "-c", error["hint"]])
    assert not (m.top / ".snap-upgrade").exists()


def test_a_command_that_fails_is_not_said_to_have_changed_nothing(m: Machine) -> None:
    m.run([*INSTALL, "bad"], check=False)
    settle(m)
    told = su(m, "run", "--", "sh", "-c", "touch /root/made; exit 3", code=7).stderr
    assert "no package was changed; bad:all is still broken" in told
    assert "nothing was changed" not in told and "dpkg did" not in told
    assert m.path("/root/made").exists()
    told = su(m, "run", "--clone", "--", "sh", "-c", "exit 3", code=5).stderr
    assert "no package was changed" in told and "dpkg did" not in told


def test_an_end_that_is_written_is_told_as_done_and_the_next_command_moves_it(m: Machine) -> None:
    m.live("/run/snap-upgrade-failpoints").touch()
    journal, history = (m.top / ".snap-upgrade" / name for name in ("journal", "history"))
    for name in ("moved", "left"):
        su(m, "create", name, env={"SNAP_UPGRADE_FAILPOINT": "error:journal.moved#1:28"})
        ident = su_json(m, "history", "last")["id"]
        if name == "left":  # the move did not even begin, or a cut of the power took it back
            (history / f"{ident}.json").rename(journal / ident)
        data = su_json(m, "status")
        assert data["problems"] == [] and data["transactions"] == []
        assert su_json(m, "history", "last")["outcome"] == "committed"
        su(m, "pin", name)
        assert not list(journal.iterdir())
    assert {row["outcome"] for row in su_json(m, "history")} == {"committed"}


def test_what_boots_next_for_good_is_not_made_to_boot_once(m: Machine) -> None:
    for name in ("x", "y"):
        su(m, "create", name)
    su(m, "activate", "x")
    told = su(m, "activate", "-t", "x", code=4).stderr
    assert "x boots next anyway, and not only once" in told
    assert names(m)["x"]["active"] == "R"
    su(m, "activate", "-t", "y")
    assert "already" in su(m, "activate", "-t", "y", code=4).stderr


def test_transactions_are_called_by_number_and_command(m: Machine) -> None:
    su(m, "history", "last", code=2)
    su(m, "create", "x")
    su(m, "pin", "x")
    su(m, "unpin", "x")
    su(m, "describe", "x", "text")
    su(m, "run", "--clone", "--", "true")
    rows = su_json(m, "history")
    assert [row["flow"] for row in rows] == ["run --clone", "describe", "unpin", "pin", "create"]
    assert "transaction 5: run --clone" in su(m, "history", "last").stdout
    error = su_json(m, "rollback", "99", code=2)["error"]
    assert error["message"] == "there is no transaction 99 that can be gone back before"
    m.run(["sh", "-c", error["hint"]])
    assert "4" in su_json(m, "rollback", "4", code=2)["error"]["message"]


def test_the_history_is_in_the_order_of_the_numbers(m: Machine) -> None:
    for name in ("x", "y", "z"):
        su(m, "create", name)
    state = m.top / ".snap-upgrade"
    lines = (state / "history/2.json").read_bytes().splitlines(keepends=True)
    (state / "history/2.json").unlink()
    (state / "journal/2").write_bytes(b"".join(lines[:-1]))
    rows = su_json(m, "history")
    assert [(row["id"], row["outcome"]) for row in rows] == [("3", "committed"), ("2", "open"), ("1", "committed")]


@pytest.mark.parametrize("place", ["/etc", "/srv/full", "/"])
def test_nothing_is_hidden_under_a_mount(m: Machine, place: str) -> None:
    m.path("/srv/full").mkdir()
    m.path("/srv/full/file").touch()
    m.path("/srv/empty").mkdir()
    su(m, "create", "x")
    error = su_json(m, "mount", "x", place, code=2)["error"]
    assert f"{place} is not empty" in error["message"]
    assert names(m)["x"]["mountpoints"] == []
    m.run(["sh", "-c", error["hint"]])
    su(m, "unmount", "x")
    su(m, "mount", "x", "/srv/empty")
    su(m, "mount", "x", "/srv/empty", code=4)


def test_no_name_and_no_path_moves_the_cursor(m: Machine) -> None:
    su(m, "create", "x")
    su(m, "create", "y")
    (m.top / ".snap-upgrade/be/y").rename(m.top / ".snap-upgrade/be/y\x1b[2J")
    record = next(path for path in (m.top / ".snap-upgrade/records").iterdir() if '"x"' in path.read_text())
    record.write_text(record.read_text().replace('"name": "x"', '"name": "x\\u001b[2Jx"'))
    evil = "x\x1b[2Jx"
    for words in (["status"], ["check"], ["list"], ["list", "-H"], ["list", "--tree", "-v"], ["activate", "-n", evil],
                  ["activate", evil], ["activate", evil], ["diff", evil], ["cancel"], ["pin", evil], ["prune", "-n"],
                  ["destroy", "-y", evil], ["unpin", evil], ["mount", evil], ["unmount", evil],
                  ["destroy", "-n", evil], ["destroy", evil], ["rename", evil, "z"], ["rename", evil, "y"],
                  ["recover"], ["history"], ["history", "last"], ["destroy", "y"], ["destroy", "-y", "y"]):  # fmt: skip
        told = m.run([PROGRAM, *words], check=False)
        assert "\x1b" not in told.stdout + told.stderr, words


def test_a_command_for_a_name_with_a_space_can_be_typed(m: Machine) -> None:
    hint = su_json(m, "create", "my root")["hint"]
    (m.top / ".snap-upgrade/be/my root/etc/mine").touch()
    told = m.run(["sh", "-c", hint]).stdout
    assert names(m)["my root"]["active"] == "R"
    command = told.partition("keeps its own: ")[2].splitlines()[0]
    assert "/etc/mine" in m.run(["sh", "-c", command]).stdout
