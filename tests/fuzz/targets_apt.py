"""Fuzz entry points for what apt prints; see ``targets.py`` for how they are used."""

from __future__ import annotations

from collections.abc import Callable

from snap_upgrade.core.dpkgdb import Database, Package
from snap_upgrade.core.request import from_json, to_json
from snap_upgrade.packages import apt_errors, apt_plan, apt_progress, apt_read

_DATABASE = Database([Package("dpkg", "amd64", "1.22"), Package("aaa", "all", "1.0"), Package("libc6", "i386", "2.36")])

CORPUS: dict[str, list[bytes]] = {
    "apt_errors": [
        b"W: GPG error: http://x ./ InRelease: no key\nE: The repository 'http://x ./ InRelease' is not signed.\n",
        b"E: Failed to fetch http://x/a.deb  Hash Sum mismatch\n   Hashes of expected file:\n    - SHA256:9f\n",
        b"The following packages have unmet dependencies:\n bbb : Depends: aaa (>= 3) but it is not\n        or c\n\n",
    ],
    "apt_simulation": [
        b"Inst aaa [1.0] (2.0 lab:lab [all])\nRemv aaa [1.0]\n",
        b"Inst libc6:i386 [2.36] (2.37 Debian:12/stable [i386]) []\n",
        b"Conf aaa (1.0 lab:lab, Debian:12.1/stable [all])\nPurg aaa [1.0]\n",
    ],
    "apt_lists": [
        b"The following packages will be REMOVED:\n   libc6:i386* (2.36)\nThe following packages will be upgraded:\n"
        b"   aaa (1.0 => 2.0)\n1 upgraded, 0 newly installed, 1 to remove and 0 not upgraded.\n",
        b"The following NEW packages will be installed:\n   new (0.1)\nThe following packages will be DOWNGRADED:\n"
        b"   aaa (1.0 => 0.5)\n0 upgraded, 1 newly installed, 1 downgraded, 0 to remove and 2 not upgraded.\n",
    ],
    "apt_uris": [
        b"After this operation, 1,234 kB disk space will be freed.\n"
        b"'http://x/./a_2%3a1_all.deb' a_2%3a1_all.deb 307866 SHA256:104b\n",
    ],
    "apt_status": [b"dlstatus:1:0.2599:Retrieving file 1 of 1", b"pmstatus:libc6:i386:20.0000:Unpacking libc6 (i)"],
    "changelog": [b"aaa (2.0) unstable; u=low\n\n  * New.\n\n -- A <a@b>  Tue\n\naaa (1.0) unstable; u=low\n"],
}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def fuzz_apt_errors(data: bytes) -> None:
    error = apt_errors.failure("do it", 100, _text(data), _text(data))
    assert error.message.startswith("cannot do it: ")


def fuzz_apt_simulation(data: bytes) -> None:
    targets = apt_plan.parse_simulation(_text(data), _DATABASE)
    assert from_json(to_json(targets)) == targets
    assert len(apt_plan.changes_of(targets, "amd64")) == len(targets)


def fuzz_apt_lists(data: bytes) -> None:
    targets = apt_plan.parse_lists(_text(data), _DATABASE)
    if targets is not None:
        assert from_json(to_json(targets)) == targets
        assert all(target.arch for target in apt_plan.settle(targets, _DATABASE, _DATABASE) if target.new_version)
        assert apt_plan.written_bytes(targets, 1, _text(data)) > 0


def fuzz_apt_uris(data: bytes) -> None:
    for archive in apt_plan.parse_uris(_text(data)):
        assert archive.size >= 0
        assert "/" not in archive.name
    apt_plan.parse_growth(_text(data))


def fuzz_apt_status(data: bytes) -> None:
    progress = apt_progress.Progress(lambda event: None, 1000, 3)
    for line in _text(data).split("\n"):
        status = apt_progress.parse_status(line)
        assert status is None or 0 <= status.percent <= 100
        progress.hear(line)


def fuzz_changelog(data: bytes) -> None:
    text = apt_read.newer_entries(_text(data), "1.0")
    assert apt_read.newer_entries(text, "1.0") == text


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): function for name, function in globals().items() if name.startswith("fuzz_")
}
