"""What a benchmark found: ratios with their goals, and beside them what was measured, as text and as JSON.

The one rule: a goal is met or missed by the measured value, and a goal that the interval does not settle says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench import stats
from tests.bench.stats import Estimate, Round

Measure = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Ratio:
    """One ratio; *goal* is the most it may be, None where it is told and nothing was promised."""

    what: str
    estimate: Estimate
    goal: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the goal is met: "met", "missed", or "" where there is none; "?" where the interval holds it."""
        if self.goal is None:
            return ""
        word = "met" if self.estimate.value <= self.goal else "missed"
        return word if not self.estimate.low <= self.goal < self.estimate.high else word + "?"


@dataclass(frozen=True)
class Context:
    """An absolute number of this machine at that hour: nothing to compare with anything measured elsewhere."""

    what: str
    unit: str
    estimate: Estimate


@dataclass
class Report:
    """One benchmark's results."""

    name: str
    title: str
    notes: tuple[str, ...] = ()
    ratios: list[Ratio] = field(default_factory=list)
    context: list[Context] = field(default_factory=list)
    rounds: int = 0

    def add(self, what: str, rounds: Sequence[Round], of: stats.Estimator, goal: float | None = None) -> None:
        """Take in a ratio."""
        self.rounds = max(self.rounds, len(rounds))
        self.ratios.append(Ratio(what, stats.estimate(rounds, of), goal))

    def add_context(self, what: str, unit: str, rounds: Sequence[Round], of: stats.Estimator) -> None:
        """Take in an absolute number."""
        self.context.append(Context(what, unit, stats.estimate(rounds, of)))

    def add_medians(self, rounds: Sequence[Round], names: Mapping[str, str], unit: str, scale: float) -> None:
        """Take in the median of each of *names* (column to what it is called), multiplied by *scale*."""
        for column, what in names.items():
            self.add_context(what, unit, rounds, _scaled(column, scale))

    def lines(self) -> list[str]:
        """Return the report as text, Markdown that is also read as it is."""
        out = [f"## {self.name}: {self.title}", ""]
        out += [f"- {note}" for note in self.notes]
        out += ["", "| ratio | value | 90 % interval | goal | |", "|---|---:|---:|---:|---|"]
        for one in self.ratios:
            value, low, high = (f"{number:.2f}" for number in _three(one.estimate))
            goal = "" if one.goal is None else f"<= {one.goal:.2f}"
            out.append(f"| {one.what} | **{value}** | {low} - {high} | {goal} | {one.verdict} |")
        if self.context:
            out += ["", "| context: this machine only | median | 90 % interval | |", "|---|---:|---:|---|"]
            for each in self.context:
                value, low, high = (f"{number:.1f}" for number in _three(each.estimate))
                out.append(f"| {each.what} | {value} | {low} - {high} | {each.unit} |")
        return [*out, "", f"{self.rounds} rounds, interleaved", ""]

    def as_json(self) -> dict[str, Any]:
        """Return the report for json.dumps."""
        return {
            "name": self.name,
            "title": self.title,
            "notes": list(self.notes),
            "rounds": self.rounds,
            "ratios": [
                {"what": one.what, **_json(one.estimate), "goal": one.goal, "verdict": one.verdict}
                for one in self.ratios
            ],
            "context": [{"what": one.what, "unit": one.unit, **_json(one.estimate)} for one in self.context],
        }


def _scaled(column: str, scale: float) -> stats.Estimator:
    return lambda rounds: stats.median(stats.column(rounds, column)) * scale


def _three(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _json(estimate: Estimate) -> dict[str, float | None]:
    # JSON has no infinity.
    named = zip(("value", "low", "high"), _three(estimate), strict=True)
    return {name: None if number == float("inf") else round(number, 4) for name, number in named}


def interleave(variants: Mapping[str, Measure], rounds: int, before: Callable[[], object]) -> list[Round]:
    """Measure every variant once in each round, after *before*; the first round warms up and is not counted.

    The order turns by one from round to round, so that none always follows the same other. A variant's
    numbers are named "variant number".
    """
    names = list(variants)
    found: list[Round] = []
    for number in range(rounds + 1):
        turn = number % len(names)
        this: dict[str, float] = {}
        for name in names[turn:] + names[:turn]:
            before()
            this |= {f"{name} {what}": value for what, value in variants[name]().items()}
        if number:
            found.append(this)
    return found
