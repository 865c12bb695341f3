"""`diff --files` of two environments 100 files apart in a large tree, against `snapper status`.

The one rule: both compare the same two states of one tree, and both must name the same files.
"""

from collections.abc import Mapping
from pathlib import Path

from tests.bench import peers, stats
from tests.bench.flat import add_files
from tests.bench.meter import Meter, Unmeasurable
from tests.bench.report import Measure, Report, interleave
from tests.lab.machine import Machine

_APART = 100


def change_files(folder: Path, total: int) -> None:
    """Write into 100 of the files, spread evenly."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files[:: total // _APART][:_APART]:
        path.write_text(f"changed {path.name}\n")


def comparison(meter: Meter, *argv: str) -> Measure:
    """Return the measurement of a comparison that names the changed files."""

    def measure() -> Mapping[str, float]:
        cost = meter.measure(argv)
        named = sum("/srv/files/" in line for line in cost.output.splitlines())
        if named != _APART:
            raise Unmeasurable(f"{' '.join(argv)} names {named} files, not {_APART}:\n{cost.output[:2000]}")
        return {"cpu": cost.total, "wall": cost.wall, "memory": cost.memory_kib}

    return measure


def prepare(machine: Machine, total: int) -> None:
    """Make the tree, and its two states as environments of ours and as snapshots of snapper's."""
    peers.set_up_snapper(machine)
    folder = machine.path("/srv/files")
    add_files(folder, total)
    for name, change in (("first", False), ("second", True)):
        if change:
            change_files(folder, total)
        machine.run(["snap-upgrade", "create", name])
        machine.run(["snapper", "create", "-d", name])


def run(scratch: Path, *, is_quick: bool) -> Report:
    """Measure."""
    total = 20000 if is_quick else 200000
    with Machine(scratch, extra=peers.PACKAGES) as machine:
        prepare(machine, total)
        meter = Meter(machine)
        variants = {
            "ours": comparison(meter, "snap-upgrade", "diff", "--files", "first", "second"),
            "snapper": comparison(meter, "snapper", "status", "1..2"),
        }

        def forget() -> None:
            # snapper keeps its result beside the snapshot: it must compare, not remember.
            for old in machine.path(peers.SNAPSHOTS).glob("*/filelist-*"):
                old.unlink()
            meter.settle()

        rounds = interleave(variants, 3 if is_quick else 9, forget)
    report = Report(
        "diff",
        f"`diff --files` of two environments {_APART} files apart in a tree of {total:,}",
        (
            "against `snapper status 1..2` of the same two states; what snapper remembers of an earlier comparison "
            "is deleted before each",
            "both are checked to name all of the files",
        ),
    )
    for number, word in (("cpu", "CPU"), ("wall", "wall"), ("memory", "peak memory")):
        report.add(f"{word}: ours / snapper", rounds, stats.ratio(f"ours {number}", f"snapper {number}"))
    for name in variants:
        report.add_medians(rounds, {f"{name} cpu": f"CPU, {name}", f"{name} wall": f"wall, {name}"}, "ms", 1000)
    return report
