"""`list`, `status` and the hook with few and with many environments, against `snapper list` and `btrfs subvolume list`.

The one rule: each peer has as many snapshots, made by itself, on the same kind of file system.
"""

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import peers, stats
from tests.bench.hook import environments, floor_snapshots, prepare, snapshots_of_ours, variant
from tests.bench.meter import Meter, Unmeasurable
from tests.bench.report import Measure, Report, interleave
from tests.lab.machine import Machine

# The command does the same; a thousand starts of Python are not what is measured here.
_CREATE = """
import sys
from snap_upgrade import manage
from snap_upgrade.detect import open_machine
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    def planner(machine, inventory):
        return manage.plan_create(machine, inventory, f"bench-{number}", "", "")
    manage.execute(open_machine(create=True), "create", "bench", planner, True)
"""
_QUIET = "--disable-used-space"


def add_environments(machine: Machine, number: int) -> None:
    """Let the machine have *number* environments in all."""
    have = len(listed(machine))
    machine.run(["/usr/bin/python3", "-I", "-c", _CREATE, str(have), str(number)], timeout=1800)
    if len(listed(machine)) != number:
        raise Unmeasurable(f"the machine has {len(listed(machine))} environments, not {number}")


def listed(machine: Machine) -> list[dict[str, object]]:
    """Return what `list --json` says."""
    found: list[dict[str, object]] = json.loads(machine.run(["snap-upgrade", "list", "--json"], timeout=600).stdout)
    return found


def command(meter: Meter, *argv: str, lines: int = 0) -> Measure:
    """Return the measurement of a command that prints at least *lines* lines."""

    def measure() -> Mapping[str, float]:
        cost = meter.measure(argv)
        if len(cost.output.splitlines()) < lines:
            raise Unmeasurable(f"{' '.join(argv)} printed too little:\n{cost.output}")
        return {"cpu": cost.total, "wall": cost.wall, "memory": cost.memory_kib}

    return measure


def _require_used_space(meter: Meter) -> None:
    text = meter.measure(("snapper", "list")).output
    if "Used Space" not in text or ("MiB" not in text and "KiB" not in text):
        raise Unmeasurable(f"snapper with quota does not list the used space:\n{text}")


class Sites:
    """The three machines: ours, snapper's, and snapper's with quota."""

    def __init__(self, stack: contextlib.ExitStack, scratch: Path) -> None:
        ours, plain, quota = (stack.enter_context(Machine(scratch, extra=peers.PACKAGES)) for _ in range(3))
        self.ours, self.plain, self.quota = Meter(ours), Meter(plain), Meter(quota)
        prepare(ours)
        self.envs = environments(ours)
        for machine in (plain, quota):
            peers.set_up_snapper(machine)

    def grow(self, number: int) -> None:
        """Let every machine have *number* environments or snapshots."""
        add_environments(self.ours.machine, number)
        # With quota every new snapshot takes longer than the one before it: it is on while snapper lists, not before.
        peers.switch_quota(self.quota.machine, on=False)
        for meter in (self.plain, self.quota):
            peers.add_snapper_snapshots(meter.machine, number)
        peers.switch_quota(self.quota.machine, on=True)
        _require_used_space(self.quota)

    def variants(self, number: int) -> dict[str, Measure]:
        """Return what is measured with *number* environments."""
        return {
            "list": command(self.ours, "snap-upgrade", "list", lines=number),
            "status": command(self.ours, "snap-upgrade", "status", lines=3),
            "snapper": command(self.plain, "snapper", "list", lines=number),
            "quota": command(self.quota, "snapper", "list", lines=number),
            "quiet": command(self.quota, "snapper", "list", _QUIET, lines=number),
            "btrfs": command(self.ours, "btrfs", "subvolume", "list", "/", lines=number),
            "none": variant(self.ours, self.envs["none"], None, 0),
            "hook": variant(self.ours, self.envs["ours"], snapshots_of_ours, 1),
            "floor": variant(self.ours, self.envs["floor"], floor_snapshots, 1),
        }

    def settle(self) -> None:
        """Let all be written."""
        for meter in (self.ours, self.plain, self.quota):
            meter.settle()


def measure(scratch: Path, numbers: Sequence[int], rounds: int) -> dict[int, list[stats.Round]]:
    """Return the rounds for each number of environments."""
    with contextlib.ExitStack() as stack:
        sites = Sites(stack, scratch)
        found = {}
        for number in numbers:
            sites.grow(number)
            found[number] = interleave(sites.variants(number), rounds, functools.partial(sites.settle))
    return found


def run(scratch: Path, *, is_quick: bool) -> Report:
    """Measure."""
    found = measure(scratch, (10, 50) if is_quick else (10, 100, 1000), 3 if is_quick else 7)
    report = Report(
        "listing",
        "`list`, `status` and the hook with more and more environments",
        (
            "snapper: as many snapshots, snapperd running, CPU of the daemon counted; without quota it has no "
            "used space to show",
            f"snapper with quota: the used space is shown by default; `{_QUIET}` avoids it",
            "the kernel's own threads count the space: that work is in snapper's wall time and not in its CPU time",
            "the hook: what it adds to a reinstall",
        ),
    )
    first = next(iter(found))
    _against_peers(report, found)
    _growth(report, found, first)
    return report


def _against_peers(report: Report, found: Mapping[int, list[stats.Round]]) -> None:
    called = {
        "snapper": "`snapper list`, no quota",
        "quota": "`snapper list`, quota",
        "quiet": f"`snapper list {_QUIET}`, quota",
        "btrfs": "`btrfs subvolume list`",
    }
    for number, rounds in found.items():
        for ours in ("list", "status"):
            for peer, what in called.items():
                for kind, word in (("cpu", "CPU"), ("wall", "wall")):
                    of = stats.ratio(f"{ours} {kind}", f"{peer} {kind}")
                    report.add(f"{number:,}, {word}: `{ours}` / {what}", rounds, of)
        for name, what in ({"list": "`list`", "status": "`status`"} | called).items():
            columns = {f"{name} cpu": f"{number:,}: CPU {what}", f"{name} wall": f"{number:,}: wall {what}"}
            report.add_medians(rounds, columns, "ms", 1000)


def _growth(report: Report, found: Mapping[int, list[stats.Round]], first: int) -> None:
    """Say what is added for each number; growth is between different rounds, so it is told and not judged.

    A snapshot of a root that shares its blocks with many others costs the file system itself more: the floor shows it.
    """
    hook, floor = (stats.added(f"{name} cpu", "none cpu") for name in ("hook", "floor"))
    base = hook(found[first])
    for number, rounds in found.items():
        report.add(f"{number:,}, CPU: hook / the floor", rounds, stats.added_ratio("hook cpu", "floor cpu", "none cpu"))
        report.add_context(f"{number:,}: CPU added by the hook", "ms", rounds, lambda some: hook(some) * 1000)
        report.add_context(f"{number:,}: CPU added by the floor", "ms", rounds, lambda some: floor(some) * 1000)
        if number != first:
            report.add(f"hook: {number:,} environments / {first}", rounds, lambda some: hook(some) / base)
