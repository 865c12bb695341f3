"""What an environment comes from, and on what each transaction worked.

The rule: it is read from records, and where a record is gone from the journal of the transaction that wrote it; what
neither says stays unknown.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from snap_upgrade import journal
from snap_upgrade.core import errors, plan
from snap_upgrade.core.model import Record
from snap_upgrade.core.steps import MakeClone, Step, TakeSnapshot
from snap_upgrade.records import Inventory

_SNAPSHOT = re.compile(r"snap-([0-9]+)")


def worked_on(state: Path, inventory: Inventory, ident: str) -> str | None:
    """Return the uuid of the root that transaction *ident* took its snapshot of, None if nothing says so."""
    name = plan.snapshot_name(ident)
    recorded = next((record.origin for record in _records(inventory).values() if record.name == name), None)
    planned = (step.source for step in steps_of(state, ident) if isinstance(step, TakeSnapshot))
    return recorded or next(planned, None)


def line(state: Path, inventory: Inventory, uuid: str) -> dict[str, float]:
    """Return the volume *uuid* and all that it descends from.

    With each goes the number of the last transaction on it that is in this line: what was done to an environment after
    another was made from it is no part of that other's past.
    """
    records = _records(inventory)
    found: dict[str, float] = {}
    limit = math.inf
    following: str | None = uuid
    while following is not None and following not in found:
        found[following] = limit
        record = records.get(following)
        if record is None:
            break
        limit = min(limit, _number(record.transaction))
        following = record.origin
        if following is not None and following not in records:
            found[following] = limit
            ident = _snapshot_before(state, record.transaction)
            limit = min(limit, _number(ident))
            following = worked_on(state, inventory, ident) if ident else None
    return found


def steps_of(state: Path, ident: str | None) -> list[Step]:
    """Return what transaction *ident* planned; nothing if its journal is gone or cannot be understood."""
    try:
        return journal.read(state, ident).steps() if ident else []
    except (errors.NotFound, errors.StateDamaged):
        return []


def _snapshot_before(state: Path, made_by: str | None) -> str | None:
    """Return the transaction whose snapshot *made_by* cloned, None if it cloned something else."""
    for step in steps_of(state, made_by):
        cloned = _SNAPSHOT.fullmatch(step.origin) if isinstance(step, MakeClone) else None
        if cloned:
            return cloned[1]
    return None


def _records(inventory: Inventory) -> dict[str, Record]:
    return {record.uuid: record for record in (*(owned.record for owned in inventory.owned), *inventory.missing)}


def _number(ident: str | None) -> float:
    return int(ident) if ident and ident.isascii() and ident.isdecimal() else math.inf


def missed(state: Path, inventory: Inventory, pending: Record, running: str) -> list[str]:
    """Return the transactions that changed the root *running* and that *pending*, an image-update, has nothing of."""
    limit = line(state, inventory, pending.uuid).get(running)
    if limit is None or _entries(state, pending.transaction, "image-update") is None:
        return []
    found = []
    for number in journal.numbers(state / "history"):
        entries = _entries(state, str(number), "live") if number > limit else None
        if entries is not None and (entries.last("verdict") or {}).get("verdict") != "unchanged":
            planned = entries.steps()
            if planned and isinstance(planned[0], TakeSnapshot) and planned[0].source == running:
                found.append(str(number))
    return found


def _entries(state: Path, ident: str | None, flow: str) -> journal.Entries | None:
    """Return transaction *ident* if it is on record and of the kind *flow*."""
    try:
        entries = journal.read(state, ident or "")
    except (errors.NotFound, errors.StateDamaged):
        return None
    return entries if entries.flow == flow else None
