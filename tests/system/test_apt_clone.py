"""apt works on an environment from outside: what was asked for is there afterwards, or the outcome says why not."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snap_upgrade.core import verdict
from snap_upgrade.core.errors import (
    FailedUnchanged,
    Locked,
    NetworkFailed,
    NothingToDo,
    Refused,
    SignatureFailed,
    SnapUpgradeError,
)
from snap_upgrade.core.packages import Conffiles, Event, PackageChange, Request, Verb
from snap_upgrade.packages.apt import Apt
from snap_upgrade.system.chroot import Limits
from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.httpd import Corrupt, Cut, Fault, Stall, Status
from tests.lab.repo import Signing, local_repo
from tests.system.apt_world import Disk, World, install, temporary_disk

UPGRADE = Request(Verb.UPGRADE)
BIG = Deb("big", "1.0", size_padding=300_000)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    with temporary_disk(request.param) as made:
        yield made


@pytest.fixture
def world(disk: Disk, tmp_path: Path) -> Iterator[World]:
    with World(disk, tmp_path) as made:
        yield made


def _script(*lines: str) -> str:
    return "\n".join(["#!/bin/sh", "set -e", *lines, ""])


def test_an_upgrade_reaches_what_was_planned_and_tells_its_progress(world: World) -> None:
    world.publish(Deb("one"), Deb("two"))
    world.install("one", "two")
    world.publish(Deb("one", "2.0", size_padding=100_000), Deb("two", "2.0"))
    world.refresh()
    planned = world.apt.plan(world.root, UPGRADE)
    assert planned.changes == (PackageChange("one", "1.0", "2.0"), PackageChange("two", "1.0", "2.0"))
    sizes = [(world.repo.dir / f"{name}_2.0_all.deb").stat().st_size for name in ("one", "two")]
    assert planned.download_bytes == sum(sizes)
    assert 90_000 < planned.unpack_bytes < 110_000
    world.download(UPGRADE)
    outcome = world.apply(UPGRADE)
    assert (outcome.verdict, outcome.exit_status, outcome.reasons) == (verdict.SUCCESS, 0, ())
    assert outcome.changes == planned.changes
    assert world.version("one") == world.version("two") == "2.0"
    fetched = [event for event in world.events if event.kind == "download" and event.total]
    assert (fetched[-1].done, fetched[-1].total) == (sum(sizes), sum(sizes))
    assert sorted(event.done for event in fetched) == [event.done for event in fetched]
    packages = [event for event in world.events if event.kind == "package"]
    assert (packages[-1].done, packages[-1].total) == (2, 2)
    assert Event("line", "Setting up one (2.0) ...") in world.events
    assert "Setting up two (2.0) ..." in world.log.read_text()
    assert list(world.path("/var/cache/apt/archives").glob("*_2.0_all.deb")) == []
    assert {path.name for path in world.archives.iterdir()} == {"one_2.0_all.deb", "two_2.0_all.deb"}


def test_all_is_there_before_anything_starts(world: World) -> None:
    world.publish(Deb("one"))
    world.refresh()
    world.download(install("one"))
    asked = len(world.server.requests)
    world.server.fault("*", Status(500))
    outcome = world.apply(install("one"))
    assert (outcome.verdict, world.version("one")) == (verdict.SUCCESS, "1.0")
    assert len(world.server.requests) == asked


def test_what_the_download_left_out_is_not_fetched_once_work_began(world: World) -> None:
    world.publish(Deb("one"))
    world.refresh()
    world.download(install("one"))
    (world.archives / Deb("one").filename).unlink()
    asked = len(world.server.requests)
    outcome = world.apply(install("one"))
    assert outcome.verdict != verdict.SUCCESS, (outcome, len(world.server.requests), asked)
    assert (len(world.server.requests), world.version("one")) == (asked, None)


def test_what_is_shared_is_not_fetched_again_and_a_damaged_copy_is_not_believed(world: World) -> None:
    world.publish(BIG)
    world.refresh()
    world.download(install("big"))
    shared = world.archives / BIG.filename
    shared.write_bytes(bytes(shared.stat().st_size))
    world.download(install("big"))
    assert [request.path for request in world.server.requests].count(BIG.filename) == 2
    world.download(install("big"))
    assert [request.path for request in world.server.requests].count(BIG.filename) == 2
    shared.write_bytes(bytes(shared.stat().st_size))  # after it was found intact
    world.download(install("big"))
    assert [request.path for request in world.server.requests].count(BIG.filename) == 3
    assert shared.read_bytes() == (world.repo.dir / BIG.filename).read_bytes()


@pytest.mark.parametrize("is_disposable", [True, False])
def test_files_are_unpacked_unsynced_only_where_a_power_cut_leaves_nothing(world: World, is_disposable: bool) -> None:
    world.path("/etc/dpkg/dpkg.cfg.d/own").write_text("force-overwrite\n")
    script = _script("tr '\\0' ' ' </proc/$PPID/cmdline >/var/lib/told", "echo $DPKG_FORCE >>/var/lib/told")
    world.publish(Deb("asks", scripts={"preinst": script}))
    world.root = replace(world.root, is_disposable=is_disposable)
    assert world.do(install("asks")).verdict == verdict.SUCCESS
    told = world.path("/var/lib/told").read_text()
    assert ("--force-unsafe-io" in told) is is_disposable, told
    assert "overwrite" in told.split("\n")[-2]


def test_a_failing_postinst_is_a_failure_with_its_reason(world: World) -> None:
    world.publish(Deb("bad"))
    world.install("bad")
    world.publish(breaking.fails_in("postinst", "bad"))
    outcome = world.do(UPGRADE)
    assert outcome.verdict == verdict.FAILED
    assert outcome.exit_status == 100
    assert "bad:all should be 2.0, it is 2.0 half-configured" in outcome.reasons
    assert "this script fails on purpose" in "\n".join(outcome.evidence)
    assert any(text.startswith("bad:all is 2.0 half-configured") for text in world.apt.broken(world.root.path))


def test_a_script_that_kills_apt_is_not_taken_for_success(world: World) -> None:
    world.publish(breaking.kills_apt("killer", "1.0"))
    outcome = world.do(install("killer"))
    assert outcome.verdict in (verdict.INTERRUPTED, verdict.FAILED)
    assert outcome.exit_status == -signal.SIGKILL
    assert world.users() == []


def test_nothing_to_do_is_told_apart(world: World) -> None:
    world.publish(Deb("one"))
    world.refresh()
    with pytest.raises(NothingToDo):
        world.apt.plan(world.root, UPGRADE)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (install("nonesuch"), "Unable to locate package nonesuch"),
        (install("unmet"), "unmet : Depends: one (>= 3)"),
        (install("one=9"), "Version '9' for 'one' was not found"),
        (Request(Verb.CUSTOM, arguments=("--nonesuch", "install")), "--nonesuch is not understood"),
        (Request(Verb.CUSTOM, arguments=("-y", "install", "one=0.5")), "Packages were downgraded"),
    ],
)
def test_what_cannot_be_done_is_refused_with_apts_reason(world: World, request_: Request, words: str) -> None:
    world.publish(Deb("one"), Deb("one", "0.5"), Deb("unmet", depends="one (>= 3)"))
    world.install("one")
    with pytest.raises(Refused) as caught:
        world.apt.plan(world.root, request_)
    assert words in caught.value.message


def test_a_held_package_is_not_upgraded_and_refused_by_name(world: World) -> None:
    world.publish(Deb("one"))
    world.install("one")
    world.publish(Deb("one", "2.0"))
    world.refresh()
    assert world.inside("apt-mark", "hold", "one").status == 0
    with pytest.raises(NothingToDo):
        world.apt.plan(world.root, UPGRADE)
    with pytest.raises(Refused, match="Held packages were changed"):
        world.apt.plan(world.root, install("one"))


def test_arguments_of_the_user_replace_the_verb(world: World) -> None:
    world.publish(Deb("one"), Deb("two", depends="one"))
    world.install("two")
    outcome = world.do(Request(Verb.CUSTOM, arguments=("purge", "one")))
    assert outcome.verdict == verdict.SUCCESS
    assert outcome.changes == (PackageChange("one", "1.0", None), PackageChange("two", "1.0", None))


def test_what_apt_lists_nowhere_is_planned_all_the_same(world: World) -> None:
    world.publish(Deb("one"), Deb("two"), breaking.with_conffile("1.0"))
    world.install("one", "configured")
    again = Request(Verb.CUSTOM, arguments=("install", "--reinstall", "one", "two"))
    planned = world.apt.plan(world.root, again)
    assert planned.changes == (PackageChange("one", "1.0", "1.0"), PackageChange("two", None, "1.0"))
    world.download(again)
    assert world.apply(again).verdict == verdict.SUCCESS
    assert world.inside("apt-get", "remove", "-y", "configured").status == 0
    purge = Request(Verb.CUSTOM, arguments=("purge", "configured"))
    assert [change.name for change in world.apt.plan(world.root, purge).changes] == ["configured"]
    assert world.apply(purge).verdict == verdict.SUCCESS
    assert not world.path("/etc/configured.conf").exists()


def test_an_action_that_cannot_be_listed_does_not_act_when_it_is_planned(world: World) -> None:
    keep = world.path("/var/cache/apt/archives/keep_1.0_all.deb")
    keep.write_bytes(b"not a package")
    with pytest.raises(NothingToDo):
        world.apt.plan(world.root, Request(Verb.CUSTOM, arguments=("clean",)))
    assert keep.exists()


def test_what_is_half_configured_is_finished_by_the_plan(world: World) -> None:
    wait = _script("test -e /srv/now")
    world.publish(Deb("late", scripts={"postinst": wait}), Deb("one"))
    world.refresh()
    assert world.inside("apt-get", "install", "-y", "late").status == 100
    world.path("/srv/now").touch()
    planned = world.apt.plan(world.root, install("one"))
    assert planned.changes == (PackageChange("late", "1.0", "1.0"), PackageChange("one", None, "1.0"))
    assert world.do(install("one")).verdict == verdict.SUCCESS
    assert world.apt.broken(world.root.path) == []


@pytest.mark.parametrize(("wrong", "error"), [("missing", NetworkFailed), ("unsigned", SignatureFailed)])
def test_a_folder_that_lacks_what_it_lists_is_told_apart_without_a_download(
    world: World, wrong: str, error: type[SnapUpgradeError]
) -> None:
    repo = local_repo(world.root.path, [Deb("one")], method="file")
    world.refresh()
    world.apt.plan(world.root, install("one"))
    if wrong == "missing":
        repo.remove(Deb("one"))
    else:
        source = world.path("/etc/apt/sources.list.d/lab.sources")
        source.write_text(source.read_text().replace("Trusted: yes", "Trusted: no"))
    with pytest.raises(error) as caught:
        world.download(install("one"))
        world.apply(install("one"))
    assert "nothing was changed" in caught.value.message
    assert world.version("one") is None


def test_a_dependency_that_a_command_breaks_is_found_though_no_list_is_read(world: World) -> None:
    world.publish(Deb("one"), Deb("two", depends="one"))
    world.install("two")
    command = ["dpkg", "--force-depends", "--remove", "one"]
    outcome = world.apt.run(world.root, command, world.log, world.report)
    assert (outcome.verdict, outcome.exit_status) == (verdict.FAILED, 0)
    assert "apt-get check fails: two : Depends: one" in "\n".join(outcome.reasons)


# -- the network


@pytest.mark.parametrize("fault", [Status(404), Cut(100), Stall(100)])
@pytest.mark.parametrize("what", ["lists", "packages"])
def test_a_broken_network_is_told_and_changes_nothing(world: World, fault: Fault, what: str) -> None:
    world.publish(BIG)
    if what == "packages":
        world.refresh()
    world.server.fault("*.deb" if what == "packages" else "Packages*", fault)
    with pytest.raises(NetworkFailed) as caught:
        world.download(install("big")) if what == "packages" else world.refresh()
    assert "nothing was changed" in caught.value.message
    assert world.version("big") is None
    assert any(request.fault is not None for request in world.server.requests)


@pytest.mark.parametrize("uri", ["refused", "unresolvable"])
def test_a_dead_mirror_is_a_network_failure(world: World, uri: str) -> None:
    world.publish(BIG)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken and not listening
        place = f"http://127.0.0.1:{closed.getsockname()[1]}" if uri == "refused" else "http://nonesuch.invalid"
        world.repo.enable(world.root.path, place, only=True)
        with pytest.raises(NetworkFailed):
            world.refresh()


@pytest.mark.parametrize("signing", ["broken", "unsigned", "signed"])
def test_only_a_good_signature_is_believed(disk: Disk, tmp_path: Path, signing: str) -> None:
    style: Signing = "trusted" if signing == "unsigned" else "broken" if signing == "broken" else "signed"
    with World(disk, tmp_path, style) as world:
        world.publish(BIG)
        source = world.path("/etc/apt/sources.list.d/lab.sources")
        source.write_text(source.read_text().replace("Trusted: yes\n", ""))
        if signing == "signed":
            assert world.do(install("big")).verdict == verdict.SUCCESS
            return
        with pytest.raises(SignatureFailed):
            world.refresh()


@pytest.mark.parametrize("what", ["lists", "packages"])
def test_content_that_is_not_what_was_signed_is_a_signature_failure(world: World, what: str) -> None:
    world.publish(BIG)
    if what == "packages":
        world.refresh()
    world.server.fault("*.deb" if what == "packages" else "Packages*", Corrupt(100))
    with pytest.raises(SignatureFailed):
        world.download(install("big")) if what == "packages" else world.refresh()
    assert not world.archives.exists() or list(world.archives.iterdir()) == []


def test_a_callers_umask_does_not_lock_out_the_user_who_fetches(world: World) -> None:
    world.publish(BIG)
    resolver = world.path("/etc/resolv.conf")
    resolver.unlink(missing_ok=True)
    resolver.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    subprocess.run(["rm", "-r", str(world.path("/var/cache/apt/archives"))], check=True, pass_fds=[world.volume])
    previous = os.umask(0o077)
    try:
        assert world.do(install("big")).verdict == verdict.SUCCESS
        read = "setpriv --reuid=_apt --clear-groups cat /etc/resolv.conf"
        done = world.inside("sh", "-c", read)
    finally:
        os.umask(previous)
    assert (done.status, done.stdout) == (0, Path("/etc/resolv.conf").read_text()), done.stderr


def test_one_package_that_fails_does_not_cost_the_others(world: World) -> None:
    world.publish(BIG, Deb("small"))
    world.refresh()
    world.server.fault(BIG.filename, Status(404))
    with pytest.raises(NetworkFailed):
        world.download(install("big", "small"))
    assert [path.name for path in world.archives.iterdir()] == ["small_1.0_all.deb"]


# -- configuration files


@pytest.mark.parametrize(("policy", "text", "left"), [
    (Conffiles.KEEP, "mine\n", "/etc/configured.conf.dpkg-dist"),
    (Conffiles.REPLACE, "setting = 2.0\n", "/etc/configured.conf.dpkg-old"),
])  # fmt: skip
def test_a_configuration_file_is_kept_or_replaced_and_listed(
    world: World, policy: Conffiles, text: str, left: str
) -> None:
    world.publish(breaking.with_conffile("1.0"))
    world.install("configured")
    world.path("/etc/configured.conf").write_text("mine\n")
    world.path("/etc/older.dpkg-dist").write_text("was there before\n")
    world.publish(breaking.with_conffile("2.0"))
    outcome = world.do(Request(Verb.UPGRADE, conffiles=policy))
    assert (outcome.verdict, outcome.kept_conffiles) == (verdict.SUCCESS, (left,))
    assert world.path("/etc/configured.conf").read_text() == text


# -- locks

_HOLD = (
    "import fcntl, sys\n"
    "file = open(sys.argv[1], 'r+')\n"
    "fcntl.lockf(file, fcntl.LOCK_EX)\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.mark.parametrize("lock", ["lock-frontend", "lock"])
def test_a_lock_held_by_another_is_refused_with_its_name(world: World, lock: str) -> None:
    path = world.path(f"/var/lib/dpkg/{lock}").resolve()
    argv = [sys.executable, "-c", _HOLD, str(world.path(f"/var/lib/dpkg/{lock}"))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[world.volume]) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n", path
        with pytest.raises(Locked, match=f"process {holder.pid}\\)"), world.apt.lock(world.root.path):
            pass
        holder.communicate()
    with world.apt.lock(world.root.path), pytest.raises(Locked, match="another snap-upgrade"):
        with world.apt.lock(world.root.path):
            pass


def test_our_lock_keeps_apt_out_and_lets_our_own_work_in(world: World) -> None:
    world.publish(Deb("one"))
    world.refresh()
    with world.apt.lock(world.root.path):
        stranger = world.inside("apt-get", "install", "-y", "one")
        assert stranger.status == 100
        assert "lock" in stranger.stderr
        assert world.do(install("one")).verdict == verdict.SUCCESS
    assert world.inside("apt-get", "remove", "-y", "one").status == 0


# -- interruptions


def _press_at(world: World, text: str, times: int, then: threading.Event | None = None) -> None:
    """Press Ctrl-C when a line with *text* is reported."""

    def report(event: Event) -> None:
        world.events.append(event)
        if event.kind == "line" and text in event.name:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
            if then is not None:
                then.set()

    world.report = report  # type: ignore[method-assign]


def _chain() -> list[Deb]:
    """Return eight packages, one dpkg run each; the second waits until apt has been interrupted."""
    wait = _script("read word < /srv/gate")
    debs = []
    for number in range(1, 9):
        before = f"link{number - 1}" if number > 1 else ""
        debs.append(Deb(f"link{number}", pre_depends=before, scripts={"postinst": wait} if number == 2 else {}))
    return debs


def test_ctrl_c_stops_between_two_packages_and_is_no_success(world: World) -> None:
    world.publish(*_chain())
    os.mkfifo(world.path("/srv/gate"))
    pressed = threading.Event()
    _press_at(world, "Setting up link2", 1, pressed)
    gate = threading.Thread(target=lambda: pressed.wait() and world.path("/srv/gate").write_text("go\n"))
    gate.start()
    outcome = world.do(install("link8"))
    gate.join()
    assert outcome.verdict in (verdict.FAILED, verdict.INTERRUPTED)
    assert any("interrupted" in reason for reason in outcome.reasons)
    assert world.version("link2") == "1.0"
    assert world.version("link8") is None
    assert world.users() == []


def test_a_second_ctrl_c_kills_a_script_that_hangs(world: World) -> None:
    world.publish(*_chain())
    os.mkfifo(world.path("/srv/gate"))
    _press_at(world, "Setting up link2", 2)
    outcome = world.do(install("link8"))
    assert outcome.verdict == verdict.INTERRUPTED
    assert any("killed" in reason for reason in outcome.reasons)
    assert world.users() == []


def test_a_script_that_hangs_is_killed_by_the_time_limit(world: World) -> None:
    world.publish(breaking.hanging("hangs", "1.0"))
    world.refresh()
    world.download(install("hangs"))
    world.apt.limits = Limits(silence_s=5)
    outcome = world.apply(install("hangs"))
    assert outcome.verdict == verdict.INTERRUPTED
    assert any("time limit" in reason for reason in outcome.reasons)
    assert world.users() == []


def test_a_download_that_is_interrupted_changes_nothing(world: World) -> None:
    world.publish(BIG)
    world.refresh()
    world.server.fault("*.deb", Stall(1000))
    world.apt = Apt(network_timeout_s=600)
    _press_at(world, "Get:1", 1)
    with pytest.raises(FailedUnchanged, match="interrupted"):
        world.download(install("big"))
    assert world.users() == []


# -- what scripts find


def test_scripts_find_the_disk_and_no_services_and_our_hooks_stay_silent(world: World) -> None:
    world.path("/etc/apt/apt.conf.d/80snap-upgrade").write_text(
        'DPkg::Pre-Install-Pkgs { snap-upgrade "touch /srv/pre; exit 1"; };\n'
        'DPkg::Post-Invoke { snap-upgrade "touch /srv/post; exit 1"; };\n'
    )
    script = _script(
        "dev=$(sed -n 's/.* - btrfs \\([^ ]*\\) .*/\\1/p' /proc/self/mountinfo)",
        "test -b $dev",
        "dd if=$dev bs=8 count=1 skip=8200 status=none > /srv/magic",
        "test ! -d /run/systemd/system",
        "test -c /dev/pts/ptmx",
        "echo $DEBIAN_FRONTEND $SYSTEMD_OFFLINE $UCF_FORCE_CONFFOLD > /srv/env",
        "setsid sleep 1000 &",
    )
    world.publish(Deb("kernel-like", scripts={"postinst": script}))
    outcome = world.do(install("kernel-like"))
    assert (outcome.verdict, outcome.reasons) == (verdict.SUCCESS, ())
    assert world.path("/srv/magic").read_bytes() == b"_BHRfS_M"
    assert world.path("/srv/env").read_text() == "noninteractive 1 1\n"
    assert not world.path("/srv/pre").exists()
    assert not world.path("/srv/post").exists()
    assert world.users() == []


def test_any_command_is_judged_by_its_status_and_by_what_it_broke(world: World) -> None:
    world.publish(breaking.fails_in("postinst", "bad"), Deb("one"))
    world.refresh()
    run = world.apt.run
    assert run(world.root, ["touch", "/srv/x"], world.log, world.report).verdict == verdict.SUCCESS
    assert run(world.root, ["false"], world.log, world.report).verdict == verdict.FAILED
    hidden = run(world.root, ["sh", "-c", "apt-get install -y bad; exit 0"], world.log, world.report)
    assert (hidden.verdict, hidden.exit_status) == (verdict.FAILED, 0)
    assert hidden.changes == (PackageChange("bad", None, "2.0 half-configured"),)


def test_a_live_operation_is_judged_from_its_snapshot(disk: Disk, world: World) -> None:
    world.publish(Deb("one"))
    world.refresh()
    before = disk.top / "base"
    assert world.inside("apt-get", "install", "-y", "one").status == 0
    asked = [[{"name": "one", "old": None, "new": ["1.0", "all"], "arch": "all", "op": "unpack", "path": None}]]
    good = world.apt.judge(before, world.root.path, asked, 0, {})
    assert (good.verdict, good.changes) == (verdict.SUCCESS, (PackageChange("one", None, "1.0"),))
    asked[0][0]["new"] = ["2.0", "all"]
    bad = world.apt.judge(before, world.root.path, asked, None, {})
    assert bad.verdict == verdict.FAILED
    assert world.apt.changes(before, world.root.path) == [PackageChange("one", None, "1.0")]
    assert world.users() == []


def test_no_error_of_apt_has_no_exit_code_of_its_own() -> None:
    for cls in (NetworkFailed, SignatureFailed, NothingToDo, Locked, Refused):
        assert issubclass(cls, SnapUpgradeError)
        assert cls.exit_code != SnapUpgradeError.exit_code
