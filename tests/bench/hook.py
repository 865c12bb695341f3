"""What our hooks add to `apt-get install --reinstall` of one small package, against Debian's snapper and the floor.

The one rule: every variant is checked, each time, to have made the snapshots that it is said to cost.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.bench import peers, stats
from tests.bench.meter import Meter, Unmeasurable
from tests.bench.report import Report, interleave
from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo

REINSTALL = ("apt-get", "install", "-y", "-q", "--reinstall", "bench-small")

# Two bare Pythons and one snapshot: the first takes it, by the ioctl and nothing else.
_FLOOR_SNAPSHOT = """#!/usr/bin/python3 -IS
import fcntl, posix
name = b"%d" % posix.getpid()
source, folder = posix.open("/", posix.O_RDONLY), posix.open("/.floor", posix.O_RDONLY)
arguments = bytearray(source.to_bytes(8, "little") + bytes(8) + (2).to_bytes(8, "little") + bytes(32) + name)
fcntl.ioctl(folder, 0x50009417, arguments.ljust(4096, b"\\0"))
"""
_FLOOR_HOOKS = """DPkg::Pre-Install-Pkgs { floor "/run/bench/floor"; };
DPkg::Post-Invoke { floor "/usr/bin/python3 -IS -c pass"; };
"""


def snapshots_of_ours(machine: Machine) -> set[int]:
    """Return the ids of the subvolumes that are our snapshots."""
    return {ident for path, ident in machine.subvolumes().items() if path.startswith(".snap-upgrade/snap/")}


def floor_snapshots(machine: Machine) -> set[int]:
    """Return the ids of the subvolumes that the floor's hook made."""
    return {ident for path, ident in machine.subvolumes().items() if "/.floor/" in f"/{path}"}


def prepare(machine: Machine) -> None:
    """Install the package that is reinstalled, from a local repository; our first transaction is over then."""
    local_repo(machine.path("/"), [Deb("bench-small", "1.0")])
    machine.run(["apt-get", "update", "-q"])
    Meter(machine).measure(["apt-get", "install", "-y", "-q", "bench-small"])


def environments(machine: Machine) -> dict[str, dict[str, str]]:
    """Return, for each variant, the environment in which apt-get has its hooks and no other tool's."""
    hooks = {"none": (), "ours": ("80snap-upgrade",), "snapper": ("80snapper",), "floor": ("80floor",)}
    (machine.path("/") / ".floor").mkdir(exist_ok=True)
    program = machine.live("/run/bench/floor")
    program.write_text(_FLOOR_SNAPSHOT)
    program.chmod(0o755)
    found = {name: peers.apt_parts(machine, name, *files) for name, files in hooks.items()}
    machine.live("/run/bench/floor.conf.d/80floor").write_text(_FLOOR_HOOKS)
    return found


def variant(meter: Meter, env: Mapping[str, str], made: Callable[[Machine], set[int]] | None,
            number: int) -> Callable[[], Mapping[str, float]]:  # fmt: skip
    """Return the measurement of one reinstall, checked to make *number* new snapshots."""

    def measure() -> Mapping[str, float]:
        before = made(meter.machine) if made else set()
        cost = meter.measure(REINSTALL, env=env)
        new = len(made(meter.machine) - before) if made else 0
        if new != number:
            raise Unmeasurable(f"{new} snapshots were made, not {number}:\n{cost.output}")
        return {"cpu": cost.total, "front": cost.foreground + cost.servers, "wall": cost.wall, "end": cost.finished}

    return measure


def run(scratch: Path, *, is_quick: bool) -> Report:
    """Measure."""
    with Machine(scratch, extra=peers.PACKAGES) as machine:
        meter = Meter(machine)
        peers.set_up_snapper(machine)
        prepare(machine)
        envs = environments(machine)
        variants = {
            "none": variant(meter, envs["none"], None, 0),
            "ours": variant(meter, envs["ours"], snapshots_of_ours, 1),
            "snapper": variant(meter, envs["snapper"], peers.snapper_numbers, 2),
            "floor": variant(meter, envs["floor"], floor_snapshots, 1),
        }

        def cold() -> Mapping[str, float]:
            peers.stop_snapperd(machine)
            return variants["snapper"]()

        rounds = interleave({**variants, "cold": cold}, 4 if is_quick else 25, meter.settle)
    return _report(rounds)


def _report(rounds: list[stats.Round]) -> Report:
    report = Report(
        "hook",
        "what hooks add to `apt-get install --reinstall` of one small package",
        (
            "added = median of the differences to the run without hooks in the same round",
            "CPU: everything, what runs on after apt's end too (our closer; snapper's daemon and its comparison)",
            "CPU in front: what apt waits for; for snapper its daemon's whole work, for we cannot tell it apart",
            "floor: `python3 -IS` that does one snapshot ioctl, and a bare `python3 -IS -c pass`, as hooks of apt",
            "snapper: Debian's package and hooks, snapperd already running; cold: snapperd had ended, as it does "
            "after a minute",
        ),
    )
    for number, called in (("cpu", "CPU"), ("front", "CPU in front"), ("wall", "wall")):
        for peer, goal in (("snapper", 1.0), ("floor", 2.0), ("cold", None)):
            under = {"snapper": "snapper", "floor": "the floor", "cold": "snapper, cold"}[peer]
            of = stats.added_ratio(f"ours {number}", f"{peer} {number}", f"none {number}")
            report.add(f"{called}: ours / {under}", rounds, of, goal)
    for number, called in (("cpu", "CPU"), ("wall", "wall")):
        report.add(f"{called}: whole run with ours / without", rounds, stats.ratio(f"ours {number}", f"none {number}"))
    report.add_medians(rounds, {"none cpu": "CPU, no hooks", "none wall": "wall, no hooks"}, "ms", 1000)
    for name in ("ours", "snapper", "floor", "cold"):
        for number, called in (("cpu", "CPU"), ("front", "CPU in front"), ("wall", "wall")):
            report.add_context(f"{called} added by {name}", "ms", rounds, _milliseconds(name, number))
    return report


def _milliseconds(name: str, number: str) -> stats.Estimator:
    of = stats.added(f"{name} {number}", f"none {number}")
    return lambda rounds: of(rounds) * 1000
