"""What may go and what must stay.

The rule: pure, and every answer has its reason, for those who ask before they let anything be destroyed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from snap_upgrade.core.model import Kind, Record, State
from snap_upgrade.core.plan import ENVIRONMENTS, UPDATE_TEXT, WAY_BACK_TEXT

LIVED = "it was booted and may hold what you wrote"
_BY_NAME = "only its name, typed by you, destroys it"


@dataclass(frozen=True, slots=True)
class Protection:
    """What must never be destroyed, by uuid; *journals* are the names that open journals speak of.

    *elsewhere* lie outside of our folder of environments: another system on this disk may boot from there.
    """

    running: str | None = None
    next: str | None = None
    default: str | None = None
    mounted: frozenset[str] = frozenset()
    journals: frozenset[str] = frozenset()
    elsewhere: frozenset[str] = frozenset()


def why_kept(record: Record, protection: Protection) -> str | None:
    """Return why *record* must not be destroyed by anybody now, or None."""
    uuid = record.uuid
    reasons = (
        (uuid == protection.running, "it is running"),
        (uuid == protection.next, "it boots next"),
        (uuid == protection.default, "it is the default"),
        (record.pinned, "it is pinned"),
        (uuid in protection.mounted, "it is mounted"),
        (record.name in protection.journals, "an open transaction names it"),
    )
    return next((why for holds, why in reasons if holds), None)


@dataclass(frozen=True, slots=True)
class Limits:
    """*restore_points* and *environments*: how many of ours to keep; *free_bytes*: the floor below which more go."""

    restore_points: int
    environments: int
    free_bytes: int
    min_age_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The fate of one record and its reason, for ``prune -n``."""

    record: Record
    is_pruned: bool
    reason: str


def prune(
    records: Sequence[Record], protection: Protection, limits: Limits, now: float, free_bytes: int
) -> list[Choice]:
    """Decide for every record, given oldest first, whether it goes.

    Below the floor of free bytes one more goes for each kind, oldest first: what it frees is only known afterwards, and
    the next run decides again. The newest of each kind always stays; so do the young, unless the clock went back.
    """
    choices: list[Choice] = []
    for kind, keep in ((Kind.SNAPSHOT, limits.restore_points), (Kind.ENVIRONMENT, limits.environments)):
        candidates = [record for record in records if record.kind is kind]
        loose = [record for record in candidates if _fixed(record, protection, limits, now) is None]
        surplus = max(0, len(loose) - max(keep, 1))
        if free_bytes < limits.free_bytes:
            surplus = min(max(surplus, 1), max(len(loose) - 1, 0))
        gone = {record.uuid for record in loose[:surplus]}
        for record in candidates:
            fixed = _fixed(record, protection, limits, now)
            if record.uuid in gone:
                why = f"more than {keep} are kept" if len(loose) > keep else "free space is below the floor"
                choices.append(Choice(record, True, why))
            else:
                choices.append(Choice(record, False, fixed or f"among the newest {max(keep, 1)}"))
    return choices


def _fixed(record: Record, protection: Protection, limits: Limits, now: float) -> str | None:
    why = why_kept(record, protection)
    if why:
        return why
    if record.adopted:
        return f"it was there before snap-upgrade; {_BY_NAME}"
    if record.lived:
        return f"{LIVED}; {_BY_NAME}"
    if record.uuid in protection.elsewhere:
        return f"it lies outside of {ENVIRONMENTS}, where another system may boot it; {_BY_NAME}"
    if record.state is State.BUILDING:
        return "it is being built"
    if 0 <= now - record.created < limits.min_age_s:
        return "it is younger than an hour"
    if record.kind is Kind.ENVIRONMENT and not record.description.startswith((WAY_BACK_TEXT, UPDATE_TEXT)):
        return "you made it or described it"
    return None


def order_of_removal(nested: Collection[tuple[str, str]]) -> list[str]:
    """Return the uuids of (uuid, path) pairs so that what lies inside another goes first."""
    return [uuid for uuid, path in sorted(nested, key=lambda item: (-item[1].count("/"), item[1]))]
