"""Measures programs that run in a machine: processor time in front and behind, wall time, peak memory.

The one rule: what a program leaves running after its end is counted too, and said apart.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.machine import Machine

_AGENT = Path(__file__).with_name("agent.py")
_FOLDER = "/run/bench"


class Unmeasurable(Exception):
    """A program that was to be measured did not do what it was measured for."""


@dataclass(frozen=True)
class Cost:
    """What one run of a program cost. Seconds; memory in KiB.

    *wall* and *foreground* are until the program's own end; *background* is what it left running, *servers* what
    processes that it did not start (a D-Bus service) did meanwhile, *finished* the wall time to the end of it all.
    """

    wall: float
    foreground: float
    background: float
    servers: float
    finished: float
    memory_kib: int
    background_memory_kib: int
    output: str

    @property
    def total(self) -> float:
        """All processor time that was spent because of the program, in seconds."""
        return self.foreground + self.background + self.servers


class Meter:
    """Measures in one machine; what it needs there is on tmpfs, no part of the root."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        folder = machine.live(_FOLDER)
        folder.mkdir(exist_ok=True)
        (folder / "agent.py").write_bytes(_AGENT.read_bytes())

    def measure(self, argv: Sequence[str], env: Mapping[str, str] | None = None, *,
                expect: int = 0, timeout: float = 600) -> Cost:  # fmt: skip
        """Run *argv* inside and return its cost; raise Unmeasurable unless it exits with *expect*."""
        command = ["/usr/bin/python3", "-IS", f"{_FOLDER}/agent.py", f"{_FOLDER}/output", *argv]
        told = json.loads(self.machine.run(command, env=env, timeout=timeout).stdout)
        output = self.machine.live(f"{_FOLDER}/output").read_text(errors="replace")
        status = told.pop("status")
        if status != expect:
            raise Unmeasurable(f"{' '.join(argv)} ended with {status}, not {expect}:\n{output[-3000:]}")
        return Cost(**told, output=output)

    def settle(self) -> None:
        """Write everything out, so that no measured program pays for what was done before it."""
        self.machine.run(["sync"])
