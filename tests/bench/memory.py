"""Peak memory of the hook and of the commands, in units of a Python that does nothing.

The one rule: the peak is the kernel's (ru_maxrss) of the largest process, and the floor is measured the same way.
"""

from collections.abc import Mapping
from pathlib import Path

from tests.bench import peers, stats
from tests.bench.hook import REINSTALL, environments, prepare
from tests.bench.listing import add_environments, command
from tests.bench.meter import Meter
from tests.bench.report import Report
from tests.lab.machine import Machine

# Between apt and the hook: waits for it only, not for what it leaves running, and notes its peak.
_SHIM = """#!/usr/bin/python3 -IS
import os, sys
pid = os.fork()
if pid == 0:
    os.execv("/usr/lib/snap-upgrade/apt-hook", ["/usr/lib/snap-upgrade/apt-hook", *sys.argv[1:]])
_, status, usage = os.wait4(pid, 0)
with open("/run/bench/peak-" + sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""
_COMMANDS = {
    "list": ("snap-upgrade", "list"),
    "status": ("snap-upgrade", "status"),
    "history": ("snap-upgrade", "history"),
    "create": ("snap-upgrade", "create", "memory"),
    "diff --files": ("snap-upgrade", "diff", "--files", "memory", "running"),
    "activate": ("snap-upgrade", "activate", "memory"),
    "cancel": ("snap-upgrade", "cancel"),
    "snapper list": ("snapper", "list"),
    "bare Python": ("/usr/bin/python3", "-IS", "-c", "pass"),
}


def hook_with_shim(machine: Machine) -> dict[str, str]:
    """Return the environment in which apt calls our hook through the shim."""
    env = peers.apt_parts(machine, "shim", "80snap-upgrade")
    shim = machine.live("/run/bench/shim")
    shim.write_text(_SHIM)
    shim.chmod(0o755)
    part = machine.live("/run/bench/shim.conf.d/80snap-upgrade")
    part.write_text(part.read_text().replace("/usr/lib/snap-upgrade/apt-hook", "/run/bench/shim"))
    return env


def hook_memory(meter: Meter, env: Mapping[str, str]) -> Mapping[str, float]:
    """Return the peaks of one transaction's hooks."""
    files = {name: meter.machine.live(f"/run/bench/peak-{name}") for name in ("pre", "post")}
    for file in files.values():
        file.unlink(missing_ok=True)
    cost = meter.measure(REINSTALL, env=env)
    return {name: int(file.read_text()) for name, file in files.items()} | {"closer": cost.background_memory_kib}


def run(scratch: Path, *, is_quick: bool) -> Report:
    """Measure."""
    with Machine(scratch, extra=peers.PACKAGES) as machine:
        meter = Meter(machine)
        peers.set_up_snapper(machine)
        prepare(machine)
        environments(machine)
        add_environments(machine, 10)
        env = hook_with_shim(machine)
        rounds: list[stats.Round] = []
        for _ in range(2 if is_quick else 3):
            # In this order, not in turns: a peak does not depend on what else the computer does.
            found = {f"{name} memory": command(meter, *argv)()["memory"] for name, argv in _COMMANDS.items()}
            found |= {f"hook {what}": kib for what, kib in hook_memory(meter, env).items()}
            machine.run(["snap-upgrade", "destroy", "-y", "memory"])
            rounds.append(found)
    return _report(rounds)


def _report(rounds: list[stats.Round]) -> Report:
    report = Report(
        "memory",
        "peak memory (ru_maxrss), with 10 environments",
        ("in units of `python3 -IS -c pass`; of a command and what it starts, the largest process",),
    )
    floor = "bare Python memory"
    columns = {f"hook {what}": f"hook, {what}" for what in ("pre", "post", "closer")}
    columns |= {f"{name} memory": f"`{name}`" for name in _COMMANDS if name != "bare Python"}
    for column, what in columns.items():
        report.add(f"{what} / bare Python", rounds, stats.ratio(column, floor))
    report.add_medians(rounds, {**columns, floor: "bare Python"}, "MiB", 1 / 1024)
    return report
