"""Which records belong to one system: several systems may live in one file system.

The rule: descent is what records say. Of what nobody recorded only one thing counts: that somebody made it by hand
from a snapshot of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from snap_upgrade.core.model import Kind, Record


def related(records: Iterable[Record], uuid: str, parents: Mapping[str, str | None] | None = None) -> set[str]:
    """Return the uuids of ancestors and descendants of *uuid* and of what has an ancestor in common, *uuid* too.

    *parents* says of volumes what each was made from, by uuid. With one system on record (at most one family has a
    root that was there before us) all of *records* are its: the record that joined them may be gone.
    """
    known = list(records)
    snapshots = {one.uuid for one in known if one.kind is Kind.SNAPSHOT}
    links = [(one.uuid, one.origin) for one in known]
    links += [(child, parent) for child, parent in (parents or {}).items() if parent in snapshots]
    families = _families({uuid, *(one.uuid for one in known)}, [(a, b) for a, b in links if b is not None])
    own = families[uuid]
    if len({id(families[one.uuid]) for one in known if one.adopted}) <= 1:
        own = own.union(*families.values())
    return set(own)


def _families(alone: set[str], links: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return the set that each belongs to, the same object for all who are joined by *links*."""
    families = {one: {one} for one in alone}
    for one, other in links:
        first, second = families.setdefault(one, {one}), families.setdefault(other, {other})
        if first is not second:
            first |= second
            families.update(dict.fromkeys(second, first))
    return families
