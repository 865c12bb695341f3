"""What apt says is understood, on output recorded from apt 2.6.1 (bookworm) and 3.0.3 (trixie)."""

import pytest

from snap_upgrade.core.dpkgdb import Database, Package
from snap_upgrade.core.errors import (
    FailedUnchanged,
    Locked,
    NetworkFailed,
    NoSpace,
    Refused,
    SignatureFailed,
    SnapUpgradeError,
)
from snap_upgrade.core.packages import Event, PackageChange
from snap_upgrade.core.request import Target
from snap_upgrade.packages import apt_errors, apt_plan
from snap_upgrade.packages.apt_plan import Archive
from snap_upgrade.packages.apt_progress import Progress, parse_status
from snap_upgrade.packages.apt_read import newer_entries

BADSIG_2_6 = (
    "W: GPG error: http://127.0.0.1:38045 ./ InRelease: The following signatures were invalid: BADSIG 18C1 lab\n"
    "E: The repository 'http://127.0.0.1:38045 ./ InRelease' is not signed.\n"
)
BADSIG_3_0 = (
    "W: OpenPGP signature verification failed: http://127.0.0.1:46365 ./ InRelease: Sub-process /usr/bin/sqv returned "
    "an error code (1), error message is: Verifying signature:            Message has been manipulated\n"
    "E: The repository 'http://127.0.0.1:46365 ./ InRelease' is not signed.\n"
)
REFUSED = (
    "E: Failed to fetch http://127.0.0.1:9/./InRelease  Could not connect to 127.0.0.1:9 (127.0.0.1). - connect (111: "
    "Connection refused)\n"
    "E: Some index files failed to download. They have been ignored, or old ones used instead.\n"
)
CUT = (
    "E: Failed to fetch http://127.0.0.1:9/./a.deb  Error reading from server. Remote end closed connection [IP: ::1]\n"
    "E: Some files failed to download\n"
)
MISMATCH = (
    "E: Failed to fetch http://127.0.0.1:9/./aaa_2.0_all.deb  Hash Sum mismatch\n"
    "   Hashes of expected file:\n    - SHA256:9f9c\n   Hashes of received file:\n    - SHA256:b726\n"
    "E: Some files failed to download\n"
)
UNMET_3_0 = (
    "E: Unable to correct problems, you have held broken packages.\n"
    "E: The following information from --solver 3.0 may provide additional context:\n"
    "   Unable to satisfy dependencies. Reached two conflicting decisions:\n"
    "   1. bbb:amd64=1.0 is selected for install\n"
)
UNMET_OUT = (
    "The following packages have unmet dependencies:\n"
    " dash : Depends: dpkg (>= 1.19.1) but it is not going to be installed\n"
    " grep : Depends: dpkg (>= 1.15.4) but it is not going to be installed or\n"
    "                 install-info but it is not installable\n\n"
)


@pytest.mark.parametrize(("stderr", "kind", "words"), [
    (BADSIG_2_6, SignatureFailed, "BADSIG"),
    (BADSIG_3_0, SignatureFailed, "Verifying signature: Message has been manipulated"),
    (REFUSED, NetworkFailed, "Connection refused"),
    (CUT, NetworkFailed, "Remote end closed connection"),
    (MISMATCH, SignatureFailed, "Hash Sum mismatch"),
    (UNMET_3_0, Refused, "Unable to correct problems"),
    ("E: Unable to locate package nonesuch\n", Refused, "Unable to locate package nonesuch"),
    ("E: You don't have enough free space in /var/cache/apt/archives/.\n", NoSpace, "enough free space"),
    ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 7 (apt)\n", Locked, "process 7"),
    ("", Refused, "exited with 100 and gave no reason"),
])  # fmt: skip
def test_a_message_asks_for_the_right_reaction_and_is_quoted(
    stderr: str, kind: type[SnapUpgradeError], words: str
) -> None:
    error = apt_errors.failure("do it", 100, "", stderr)
    assert type(error) is kind
    assert words in error.message
    assert error.message.endswith("; nothing was changed")


def test_summaries_are_left_out_where_a_cause_is_known() -> None:
    assert apt_errors.reasons("", CUT) == [CUT.split("\n")[0][3:]]
    assert apt_errors.reasons("", "E: Some files failed to download\n") == ["Some files failed to download"]


def test_a_killed_apt_is_no_refusal() -> None:
    assert type(apt_errors.failure("do it", -9, "", "")) is FailedUnchanged


def test_unmet_dependencies_are_one_line_for_each_package() -> None:
    assert apt_errors.parse_unmet(UNMET_OUT) == [
        "dash : Depends: dpkg (>= 1.19.1) but it is not going to be installed",
        "grep : Depends: dpkg (>= 1.15.4) but it is not going to be installed or "
        "install-info but it is not installable",
    ]


DATABASE = Database(
    [
        Package("dpkg", "amd64", "1.22"),
        Package("aaa", "all", "1.0"),
        Package("libc6", "amd64", "2.36", multi_arch="same"),
        Package("libc6", "i386", "2.36", multi_arch="same"),
        Package("half", "all", "1.0", state="half-configured"),
    ]
)


def test_a_simulation_becomes_targets_with_their_architectures() -> None:
    text = (
        "Reading package lists...\n"
        "Inst aaa [1.0] (2.0 lab:lab [all])\n"
        "Inst libc6:i386 [2.36] (2.37 Debian:12.9/stable, Debian-Security:12/stable-security [i386]) [libc6:amd64 ]\n"
        "Inst new (0.1 lab:lab [amd64]) []\n"
        "Conf aaa (2.0 lab:lab [all])\nConf half (1.0 lab:lab [all])\n"
        "Remv libc6 [2.36]\n"
    )
    found = {
        f"{t.name}:{t.arch}": (t.old_version, t.new_version, t.operation)
        for t in apt_plan.parse_simulation(text, DATABASE)
    }
    assert found == {
        "aaa:all": ("1.0", "2.0", "unpack"),
        "libc6:i386": ("2.36", "2.37", "unpack"),
        "new:amd64": (None, "0.1", "unpack"),
        "half:all": ("1.0", "1.0", "configure"),
        "libc6:amd64": ("2.36", None, "remove"),
    }


HEAD = "Reading package lists...\nBuilding dependency tree...\n"
LISTS = (
    HEAD + "The following packages were automatically installed and are no longer required:\n   unused (1.0)\n"
    "The following packages will be REMOVED:\n   libc6 (2.36)\n   purged* (1)\n   conffiles*\n"
    "The following NEW packages will be installed:\n   new (1:0.1)\n   new:i386 (1:0.1)\n"
    "The following packages have been kept back:\n   kept (1.0 => 2.0)\n"
    "The following packages will be upgraded:\n   aaa (1.0 => 2.0)\n   libc6:i386 (2.36 => 2.37)\n"
    "The following packages will be DOWNGRADED:\n   half (1.0 => 0.5)\n"
    "2 upgraded, 2 newly installed, 1 downgraded, 3 to remove and 1 not upgraded.\n"
    "Need to get 115 kB of archives.\n"
)


def test_the_lists_become_targets_and_what_is_only_told_does_not() -> None:
    targets = apt_plan.parse_lists(LISTS, DATABASE)
    assert targets is not None
    found = {f"{t.name}:{t.arch}": (t.old_version, t.new_version, t.operation) for t in targets}
    assert found == {
        "libc6:amd64": ("2.36", None, "remove"),
        "purged:None": (None, None, "remove"),
        "conffiles:None": (None, None, "remove"),
        "new:None": (None, "1:0.1", "unpack"),
        "new:i386": (None, "1:0.1", "unpack"),
        "aaa:None": ("1.0", "2.0", "unpack"),
        "libc6:i386": ("2.36", "2.37", "unpack"),
        "half:None": ("1.0", "0.5", "unpack"),
    }
    nothing = f"{HEAD}0 upgraded, 0 newly installed, 0 to remove and 3 not upgraded.\n"
    assert apt_plan.parse_lists(nothing, DATABASE) == []


@pytest.mark.parametrize("text", [
    "",
    HEAD,
    LISTS.replace("2 upgraded", "3 upgraded"),
    LISTS.replace("will be DOWNGRADED", "will be lowered"),
    LISTS.replace("   aaa (1.0 => 2.0)", "   aaa"),
    LISTS.replace("   aaa (1.0 => 2.0)", "   aaa (2.0)"),
    LISTS.replace("   new (1:0.1)", "   new"),
    LISTS + "1 not fully installed or removed.\n",
    HEAD + "0 upgraded, 0 newly installed, 1 reinstalled, 0 to remove and 2 not upgraded.\n",
])  # fmt: skip
def test_lists_that_are_not_all_are_not_believed(text: str) -> None:
    assert apt_plan.parse_lists(text, DATABASE) is None


def test_an_architecture_that_apt_did_not_say_is_the_one_dpkg_then_has() -> None:
    before = Database([Package("dpkg", "amd64", "1"), Package("was", "all", "1"), Package("lib", "i386", "1")])
    after = Database([*before.values(), Package("new", "all", "2"), Package("lib", "amd64", "2")])
    wanted = [Target(name, None, None, "2", None, "unpack") for name in ("new", "lib", "was", "never")]
    gone = Target("gone", "1", "all", None, None, "remove")
    foreign = Target("lib", "1", "i386", "2", "i386", "unpack")
    found = [f"{t.name}:{t.arch}" for t in apt_plan.settle([*wanted, gone, foreign], before, after)]
    assert found == ["new:all", "lib:amd64", "was:all", "never:amd64", "gone:all", "lib:i386"]


STATUS = """Package: big
Status: install ok installed
Architecture: all
Installed-Size: 3072
Description: something big

Package: libsmall
Architecture: amd64
Installed-Size: 5

Package: libsmall
Architecture: i386
Installed-Size: 700

Package: unknown
Architecture: all
"""


def test_what_is_written_is_the_growth_and_what_it_replaces() -> None:
    targets = [
        Target("big", "1.0", "all", "2.0", "all", "unpack"),
        Target("libsmall", "1.0", "amd64", None, None, "remove"),
        Target("libsmall", "1.0", "i386", "1.0", "i386", "configure"),
        Target("unknown", "1.0", "all", "2.0", "all", "unpack"),
        Target("new", None, None, "1.0", None, "unpack"),
    ]
    assert apt_plan.written_bytes(targets, -1000, STATUS) == (3072 + 5) * 1024 - 1000
    assert apt_plan.written_bytes(targets[-1:], 500, STATUS) == 500
    assert apt_plan.written_bytes(targets[1:2], -(10**9), STATUS) == 0


def test_changes_are_named_as_apt_names_packages() -> None:
    targets = apt_plan.parse_simulation("Remv libc6:i386 [2.36]\nRemv libc6 [2.36]\n", DATABASE)
    assert apt_plan.changes_of(targets, "amd64") == (
        PackageChange("libc6", "2.36", None),
        PackageChange("libc6:i386", "2.36", None),
    )


def test_archives_and_growth_are_read_from_print_uris() -> None:
    text = (
        "Need to get 309 kB of archives.\nAfter this operation, 12.3 MB of additional disk space will be used.\n"
        "'http://x/./a_2%3a1_all.deb' a_2%3a1_all.deb 307866 MD5Sum:104b\n"
    )
    assert apt_plan.parse_uris(text) == [Archive("a_2%3a1_all.deb", 307866, "MD5Sum:104b")]
    assert apt_plan.parse_growth(text) == 12_300_000
    assert apt_plan.parse_growth("After this operation, 301 kB disk space will be freed.\n") == -301_000
    assert apt_plan.parse_growth("") == 0


@pytest.mark.parametrize(("line", "found"), [
    ("dlstatus:3:54.1781:Retrieving file 3 of 3", ("dlstatus", "3", 54.1781)),
    ("pmstatus:libc6:i386:11.1111:Unpacking libc6:i386 (amd64)", ("pmstatus", "libc6:i386", 11.1111)),
    ("pmerror:/var/cache/apt/archives/a.deb:40.0000:it failed: 1", ("pmerror", "/var/cache/apt/archives/a.deb", 40.0)),
    ("pmstatus:aaa:999.0:too much", None),
    ("media-change: disc:/media/cdrom:", None),
])  # fmt: skip
def test_a_status_line_is_read_or_ignored(line: str, found: tuple[str, str, float] | None) -> None:
    status = parse_status(line)
    assert (None if status is None else (status.kind, status.subject, status.percent)) == found


def test_progress_counts_packages_once_and_bytes_never_backwards() -> None:
    events: list[Event] = []
    progress = Progress(events.append, total_bytes=1000, total=2)
    for line in ("dlstatus:1:50.0:a", "dlstatus:1:20.0:a", "pmstatus:x:10.0:Unpacking x (amd64)",
                 "pmstatus:x:40.0:Installed x (amd64)", "pmstatus:x:41.0:Installed x (amd64)",
                 "pmerror:y:50.0:it failed"):  # fmt: skip
        progress.hear(line)
    assert [event.done for event in events] == [500, 500, 0, 1, 1, 1]
    assert progress.errors == ["y: it failed"]


def test_a_changelog_is_cut_at_the_installed_version() -> None:
    text = "a (2.0) x; u\n\n  * New (1.0).\n\n -- A  Tue\n\na (1.0) x; u\n\n  * Old.\n"
    assert newer_entries(f"Get:1 nonsense\n{text}", "1.0") == "a (2.0) x; u\n\n  * New (1.0).\n\n -- A  Tue\n"
    assert newer_entries(text, None) == text
