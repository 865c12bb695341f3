"""Who belongs to one system, by records."""

from __future__ import annotations

import itertools

import pytest

from snap_upgrade.core.families import related
from snap_upgrade.core.model import Kind, Record, State


def record(uuid: str, origin: str | None = None, kind: Kind = Kind.ENVIRONMENT) -> Record:
    return Record(uuid, kind, uuid, uuid, 0.0, origin, None, State.READY, adopted=origin is None)


A = [record("a"), record("a-snap", "a", Kind.SNAPSHOT), record("a-back", "a-snap"), record("a-next", "a-back")]
B = [record("b"), record("b-snap", "b", Kind.SNAPSHOT), record("b-back", "b-snap")]


def uuids(records: list[Record]) -> set[str]:
    return {one.uuid for one in records}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_two_systems_have_nothing_to_do_with_each_other(order: tuple[int, ...]) -> None:
    mixed = [row[n] for row in (A[:3], B) for n in order] + A[3:]
    for one in A:
        assert related(mixed, one.uuid) == uuids(A)
    for one in B:
        assert related(mixed, one.uuid) == uuids(B)


def test_two_who_have_a_vanished_ancestor_in_common_are_related() -> None:
    children = [record("x", "gone"), record("y", "gone")]
    assert related([*A, *B, *children], "x") == {"x", "y", "gone"}
    assert related([*A, *B, *children], "a") == uuids(A)


def test_with_one_system_on_record_all_is_its_though_a_link_is_gone() -> None:
    assert related([A[0], A[2]], "a") >= {"a", "a-back"}
    assert related([A[0], A[2]], "a-back") >= {"a", "a-back"}


def test_what_was_put_back_by_hand_from_a_snapshot_of_ours_is_of_its_family() -> None:
    by_hand = record("hand")
    assert "a" in related([*A, *B, by_hand], "hand", {"hand": "a-snap"})
    assert "b" not in related([*A, *B, by_hand], "hand", {"hand": "a-snap"})
    assert related([*A, *B, by_hand], "hand", {"hand": "a"}) == {"hand"}, "another system may be a copy of the root"


def test_one_without_a_record_is_alone_among_several_systems() -> None:
    assert related([*A, *B], "z") == {"z"}
    assert related([], "z") == {"z"}
