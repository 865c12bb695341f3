"""Medians, ratios and how far to trust them. Pure functions on numbers; nothing here measures.

The one rule: values that are compared were measured in the same round, so every resampling takes whole
rounds; what the machine did to one of them in that round, it did to all.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Round = Mapping[str, float]
Estimator = Callable[[Sequence[Round]], float]

_RESAMPLES = 2000
_CONFIDENCE = 0.90


@dataclass(frozen=True)
class Estimate:
    """A number and the interval that 90 of 100 resamplings of the rounds give."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two in the middle. Raises ValueError if there is none."""
    if not values:
        raise ValueError("there is no median of nothing")
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def column(rounds: Sequence[Round], name: str) -> list[float]:
    """Return what *name* cost in each round."""
    return [each[name] for each in rounds]


def ratio(over: str, under: str) -> Estimator:
    """Return the estimator of median(*over*) / median(*under*)."""
    return lambda rounds: _divide(median(column(rounds, over)), median(column(rounds, under)))


def added_ratio(over: str, under: str, base: str) -> Estimator:
    """Return the estimator of what *over* adds to *base*, in units of what *under* adds to it."""

    def estimate(rounds: Sequence[Round]) -> float:
        return _divide(added(over, base)(rounds), added(under, base)(rounds))

    return estimate


def added(name: str, base: str) -> Estimator:
    """Return the estimator of what *name* adds to *base*: the median of the differences within a round."""
    return lambda rounds: median([each[name] - each[base] for each in rounds])


def _divide(over: float, under: float) -> float:
    # Noise can make what a peer adds zero or less: then no ratio to it is finite, and none must look small.
    return over / under if under > 0 else float("inf")


def estimate(rounds: Sequence[Round], of: Estimator) -> Estimate:
    """Return *of* for the rounds, with its interval from drawing as many rounds again, with replacement.

    The draws are the same every time: the same rounds give the same interval.
    """
    draw = random.Random(len(rounds))
    again = sorted(of(draw.choices(rounds, k=len(rounds))) for _ in range(_RESAMPLES))
    edge = int(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return Estimate(of(rounds), again[edge], again[-1 - edge])
