"""What an open transaction still needs, decided from its journal alone.

The rule: pure, and the same answer however often recovery itself is cut off: every answer is read
from lines that are on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from snap_upgrade.core.steps import Packages, Step


class Way(Enum):
    """Where an open transaction must go."""

    JUDGE = "judge"
    FORWARD = "forward"
    UNDO = "undo"
    END = "end"


@dataclass(frozen=True, slots=True)
class Recovery:
    """*way*, and the numbers of the steps to do (FORWARD) or to take back (UNDO), in that order."""

    way: Way
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """What a journal says: step numbers by what was written of them. *planned* counts the plan without its decision."""

    planned: int
    total: int
    started: frozenset[int]
    done: frozenset[int]
    undone: frozenset[int]
    is_decided: bool
    is_undoing: bool
    on_crash: str
    is_joined: bool  # by a later commit of the same run

    @property
    def is_forward(self) -> bool:
        """Whether what is left is to be done.

        A plan of which nothing was begun is dropped, whatever it says: on a device that fails, its first line may have
        come through though whoever asked was told that nothing was changed.
        """
        return self.is_decided or (self.on_crash == "forward" and bool(self.started))

    @property
    def is_all_done(self) -> bool:
        """Whether nothing is missing but the end itself: whoever asked may have been told that it is done."""
        return not self.is_undoing and self.total > 0 and len(self.done) == self.total


def decide(steps: Sequence[Step], progress: Progress) -> Recovery:
    """Return how to finish the transaction.

    A decision rolls forward. Before it, work on a live or alternate root has effects that only a verdict can
    judge, and a commit that joined has begun it, whatever was written before; everything else is taken back, last
    step first (or finished, if the plan says so and was begun). A plan without packages that is all done only lacks
    its end.
    """
    if progress.is_undoing:
        return _undo(progress)
    if progress.is_forward:
        # Work that was cut off has its verdict by now, and is nobody's to repeat.
        left = tuple(n for n in range(progress.total) if n not in progress.done and not isinstance(steps[n], Packages))
        return Recovery(Way.FORWARD, left) if left else Recovery(Way.END)
    if any((progress.is_joined or n in progress.started) and _outlives_us(steps[n]) for n in range(progress.planned)):
        return Recovery(Way.JUDGE)
    if progress.is_all_done and not any(isinstance(step, Packages) for step in steps):
        return Recovery(Way.END)
    return _undo(progress)


def _outlives_us(step: Step) -> bool:
    return isinstance(step, Packages) and step.place in {"live", "root"}


def _undo(progress: Progress) -> Recovery:
    left = sorted((progress.started | progress.done) - progress.undone, reverse=True)
    return Recovery(Way.UNDO, tuple(left)) if left else Recovery(Way.END)
