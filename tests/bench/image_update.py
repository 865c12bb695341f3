"""image-update of an upgrade against plain `apt-get update && apt-get dist-upgrade` in a copy of the same root.

The one rule: both start from copies of one disk, do the same work, and are checked to have done it.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import btrfsutil

from tests.bench import stats
from tests.bench.hook import REINSTALL
from tests.bench.meter import Cost, Meter, Unmeasurable
from tests.bench.peers import apt_parts
from tests.bench.report import Report, interleave
from tests.lab import image
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo

_PLAIN = """set -e
apt-get -q update
exec apt-get -q -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold dist-upgrade
"""
Check = Callable[[Path, Cost], None]
_POSTINST = '#!/bin/sh\nset -e\ntest "$1" = configure\nmkdir -p /var/lib/bench\ntouch /var/lib/bench/done\n'


def packages(version: str, small: int, files: int) -> list[Deb]:
    """Return *small* packages with a script each, and one with *files* files, whose content differs by version."""
    content = {f"/usr/share/bench-files/{n % 40}/{n}": f"{version} {n}\n".encode() * 20 for n in range(files)}
    some = [Deb(f"bench-{n}", version, scripts={"postinst": _POSTINST}) for n in range(small)]
    return [*some, Deb("bench-files", version, files=content), Deb("bench-small", version)]


def make_disk(scratch: Path, disk: Path, small: int, files: int) -> None:
    """Make a disk with version 1.0 installed and 2.0 in its repository, fetched and not installed."""
    old, new = packages("1.0", small, files), packages("2.0", small, files)
    with Machine(scratch, disk=disk) as machine:
        repo = local_repo(machine.path("/"), old, method="copy")
        machine.run(["apt-get", "update", "-q"])
        names = [deb.name for deb in old]
        meter = Meter(machine)
        # By apt with our hooks: nothing is done for the first time when it is measured.
        meter.measure(["apt-get", "install", "-y", "-q", *names])
        meter.measure(REINSTALL)
        repo.add(*new)
        repo.publish()
        machine.run(["apt-get", "clean"])
        # What a clone shares with its origin is copied when it is written to; the copy of the root pays for that too.
        btrfsutil.create_snapshot(str(machine.path("/")), str(machine.top / "shared-with"))


def _fresh(scratch: Path, disk: Path) -> Machine:
    copied = scratch / "run.img"
    image.copy(disk, copied)
    return Machine(scratch, disk=copied)


def _numbers(cost: Cost) -> Mapping[str, float]:
    return {"cpu": cost.total, "wall": cost.wall}


def plain(scratch: Path, disk: Path, check: Check) -> Mapping[str, float]:
    """Measure plain apt-get, with no hooks, in a fresh copy."""
    with _fresh(scratch, disk) as machine:
        meter = Meter(machine)
        env = apt_parts(machine, "none")
        meter.settle()
        cost = meter.measure(["sh", "-c", _PLAIN], env=env)
        check(machine.path("/"), cost)
        return _numbers(cost)


def ours(scratch: Path, disk: Path, check: Check) -> Mapping[str, float]:
    """Measure image-update in a fresh copy."""
    with _fresh(scratch, disk) as machine:
        meter = Meter(machine)
        meter.settle()
        cost = meter.measure(["snap-upgrade", "image-update", "-y", "--no-progress", "--be-name", "bench-be"])
        following = json.loads(machine.run(["snap-upgrade", "status", "--json"]).stdout)["next"]
        if following != "bench-be":
            raise Unmeasurable(f"{following} boots next, not the clone:\n{cost.output}")
        machine.reboot()
        check(machine.path("/"), cost)
        return _numbers(cost)


def make_release_disk(scratch: Path, disk: Path) -> None:
    """Make a Debian 12 whose sources name Debian 13, all lists and packages fetched: what a real archive costs apt."""
    with Machine(scratch, disk=disk, size="4G") as machine:
        sources = machine.path("/etc/apt/sources.list")
        sources.write_text(sources.read_text().replace("bookworm", "trixie"))
        machine.run(["apt-get", "update", "-q"], timeout=600)
        machine.run(["apt-get", "-q", "-y", "--download-only", "dist-upgrade"], timeout=1800)
        machine.run(["snap-upgrade", "create", "warm"])
        machine.run(["snap-upgrade", "destroy", "-y", "warm"])
        btrfsutil.create_snapshot(str(machine.path("/")), str(machine.top / "shared-with"))


def _require_release(root: Path, cost: Cost) -> None:
    version = (root / "etc/debian_version").read_text()
    if not version.startswith("13"):
        raise Unmeasurable(f"the root is still Debian {version}:\n{cost.output}")


def _require_upgraded(root: Path, cost: Cost) -> None:
    status = (root / "var/lib/dpkg/status").read_text()
    if status.count("\nVersion: 2.0\n") < 3 or not (root / "usr/share/bench-files/0/0").read_text().startswith("2.0"):
        raise Unmeasurable(f"the upgrade was not done:\n{cost.output}")


def run(scratch: Path, *, is_quick: bool) -> Report:
    """Measure an upgrade as an ordinary week brings it, and a large one."""
    report = Report(
        "image-update",
        "image-update against plain `apt-get update` and `apt-get dist-upgrade` in a copy of the same root",
        (
            "both include: reading the repository's lists, fetching the packages from a local repository into the "
            "cache, unpacking, configuring",
            "ours also: snapshot, clone, private namespaces, verdict, activation and reading it back",
            "ours not: one fsync for each file that dpkg unpacks; instead the whole file system is synced before the "
            "verdict. Plain apt-get does as Debian does by default",
            "both write to a root that shares its blocks with another; a fresh copy of one disk for every run",
            "not included: the network, the disk's own latency, work of kernel threads after the end",
        ),
    )
    for small, files in ((5, 2000),) if is_quick else ((5, 2000), (60, 20000)):
        make = functools.partial(make_disk, small=small, files=files)
        rounds = _compare(scratch, make, _require_upgraded, 3 if is_quick else 9)
        _add(report, rounds, f"{small + 2} packages, {files:,} files")
    return report


def run_release(scratch: Path, *, is_quick: bool) -> Report:
    """Measure the upgrade of a minimal Debian 12 to 13, with the lists and packages of the real archive."""
    report = Report(
        "release-upgrade",
        "image-update of Debian 12 to 13 against plain `apt-get update` and `apt-get dist-upgrade`",
        (
            "the minimal system of the laboratory, about 130 packages; lists and packages were fetched before, so that "
            "both only ask the mirror whether the lists are new",
            "every run of apt-get opens the lists of the whole archive, which no small local repository makes it do",
        ),
    )
    rounds = _compare(scratch, make_release_disk, _require_release, 1 if is_quick else 4)
    _add(report, rounds, "Debian 12 to 13")
    return report


def _compare(scratch: Path, make: Callable[[Path, Path], None], check: Check, rounds: int) -> list[stats.Round]:
    disk = scratch / "base.img"
    try:
        make(scratch, disk)
        pair = {
            "ours": functools.partial(ours, scratch, disk, check),
            "plain": functools.partial(plain, scratch, disk, check),
        }
        return interleave(pair, rounds, lambda: (scratch / "run.img").unlink(missing_ok=True))
    finally:
        disk.unlink(missing_ok=True)
        (scratch / "run.img").unlink(missing_ok=True)


def _add(report: Report, rounds: list[stats.Round], called: str) -> None:
    for number, word in (("cpu", "CPU"), ("wall", "wall")):
        report.add(f"{word}, {called}", rounds, stats.ratio(f"ours {number}", f"plain {number}"), 1.05)
        columns = {f"ours {number}": f"{word}, {called}, ours", f"plain {number}": f"{word}, {called}, plain"}
        report.add_medians(rounds, columns, "ms", 1000)
