"""Snapshot, activate and roll back with few and with many files in the root: the time must not follow the files.

The one rule: the machines differ in the number of files and in nothing else, and take turns.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import btrfsutil

from tests.bench import peers, stats
from tests.bench.hook import environments, prepare
from tests.bench.meter import Meter, Unmeasurable
from tests.bench.report import Report, interleave
from tests.lab.machine import Machine

_PER_FOLDER = 500
_OPERATIONS = {
    "ioctl": ["/run/bench/floor"],
    "create": ["snap-upgrade", "create", "bench"],
    "activate": ["snap-upgrade", "activate", "bench"],
    "rollback": ["snap-upgrade", "rollback", "last"],
}


def add_files(folder: Path, number: int) -> None:
    """Make *number* small files below *folder*."""
    for start in range(0, number, _PER_FOLDER):
        sub = folder / str(start)
        sub.mkdir(parents=True)
        for name in range(start, min(start + _PER_FOLDER, number)):
            fd = os.open(sub / str(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, b"%d\n" % name)
            os.close(fd)


class Site:
    """One machine with a number of files, and the operations that are measured in it."""

    def __init__(self, machine: Machine, files: int) -> None:
        self.meter = Meter(machine)
        self.machine = machine
        add_files(machine.path("/srv/files"), files)
        prepare(machine)
        environments(machine)
        self.meter.settle()

    def measure(self) -> Mapping[str, float]:
        """Do each operation once, from a file system at rest, and put all back as it was."""
        found: dict[str, float] = {}
        for name, words in _OPERATIONS.items():
            # One changed file, so that there is something to commit, the same everywhere.
            self.machine.path("/srv/touched").write_text(name)
            self.meter.settle()
            cost = self.meter.measure(words)
            found |= {f"{name} cpu": cost.total, f"{name} wall": cost.wall}
        self._check()
        self.machine.run(["snap-upgrade", "cancel"])
        self.machine.run(["snap-upgrade", "destroy", "-y", "bench"])
        for snapshot in self.machine.path("/.floor").iterdir():
            btrfsutil.delete_subvolume(str(snapshot))
        self.machine.run(["btrfs", "subvolume", "sync", "/"], timeout=600)
        return found

    def _check(self) -> None:
        listed = self.machine.run(["snap-upgrade", "list", "-H"]).stdout.splitlines()
        active = {line.split("\t")[0]: line.split("\t")[1] for line in listed}
        following = [name for name, what in active.items() if "R" in what]
        if "bench" not in active or not following[0].startswith("before-"):
            raise Unmeasurable(f"create and rollback left this: {listed}")


def run(scratch: Path, *, is_quick: bool) -> Report:
    """Measure."""
    sizes = (1000, 20000) if is_quick else (1000, 100000, 500000)
    with contextlib.ExitStack() as stack:
        sites = {f"{n}": Site(stack.enter_context(Machine(scratch, extra=peers.PACKAGES)), n) for n in sizes}
        variants = {name: site.measure for name, site in sites.items()}
        rounds = interleave(variants, 4 if is_quick else 15, lambda: None)
    report = Report(
        "flat",
        "snapshot and clone (`create`), `activate` and `rollback` with more and more files in the root",
        (
            f"files beside the about 8,000 of the system: {', '.join(f'{n:,}' for n in sizes)}",
            "each operation begins with the file system at rest and one changed file",
            "ioctl: a bare Python that takes one snapshot and does nothing else: what the file system itself adds",
        ),
    )
    for operation in _OPERATIONS:
        for number, word in (("cpu", "CPU"), ("wall", "wall")):
            for size in sizes[1:]:
                of = stats.ratio(f"{size} {operation} {number}", f"{sizes[0]} {operation} {number}")
                goal = None if operation == "ioctl" else 1.2
                report.add(f"{operation}, {word}: {size:,} files / {sizes[0]:,}", rounds, of, goal)
            columns = {f"{size} {operation} {number}": f"{operation}, {word}, {size:,} files" for size in sizes}
            report.add_medians(rounds, columns, "ms", 1000)
    return report
