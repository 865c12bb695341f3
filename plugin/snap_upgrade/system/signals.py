"""Signals become one exception, once.

The rule: the first signal ends the work, so that the undo runs; no later one breaks into that undo, and none
at all into a recovery or a decision that is being carried out.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked us to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")


class _State:
    is_spent = False
    depth = 0
    waiting = 0


_state = _State()


def install() -> None:
    """Let the first INT, TERM or HUP raise Interrupted; one that the caller ignores (nohup) stays ignored."""
    _state.is_spent, _state.depth, _state.waiting = False, 0, 0
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _take)


def hold() -> None:
    """Let no signal break in from here to the end of the process: only finishing is left."""
    _state.is_spent = True


@contextmanager
def held() -> Iterator[None]:
    """Let no signal break in here; one that came raises Interrupted afterwards."""
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
    if _state.waiting and not _state.depth and not _state.is_spent:
        _state.is_spent = True
        raise Interrupted(_state.waiting)


def _take(number: int, frame: FrameType | None) -> None:
    if _state.is_spent:
        return
    if _state.depth:
        _state.waiting = number
        return
    _state.is_spent = True
    raise Interrupted(number)
