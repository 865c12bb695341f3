"""Retention: what must stay stays, more is kept when more is asked for, and every fate has its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade.core import retention
from snap_upgrade.core.model import Kind, Record, State
from snap_upgrade.core.retention import Limits, Protection

NOW = 1_000_000.0


def record(uuid: str, kind: Kind = Kind.SNAPSHOT, **changes: object) -> Record:
    text = "the system before transaction 7"
    made = Record(uuid, kind, f"name-{uuid}", f"path/{uuid}", NOW - 90_000, None, "7", State.READY, description=text)
    return replace(made, **changes)  # type: ignore[arg-type]


kinds = st.sampled_from([Kind.SNAPSHOT, Kind.ENVIRONMENT])
drawn = st.builds(
    lambda kind, created, state, adopted, pinned, lived: record(
        "x", kind, created=created, state=state, adopted=adopted, pinned=pinned, lived=lived
    ),
    kinds,
    st.floats(NOW - 1e6, NOW + 1e6),
    st.sampled_from(State),
    st.sampled_from([False, False, True]),
    st.sampled_from([False, False, True]),
    st.sampled_from([False, False, True]),
)
lists = st.lists(drawn, max_size=14).map(
    lambda found: [replace(one, uuid=f"u{n}", name=f"name-u{n}") for n, one in enumerate(found)]
)
uuids = st.sampled_from([None, *(f"u{n}" for n in range(14))])
some = st.frozensets(st.sampled_from([f"u{n}" for n in range(14)]), max_size=4)
protections = st.builds(
    Protection, uuids, uuids, uuids, some, some.map(lambda found: frozenset(f"name-{uuid}" for uuid in found)), some
)
limits = st.builds(Limits, st.integers(0, 6), st.integers(0, 6), st.just(100))


def gone(records: list[Record], protection: Protection, limit: Limits, free: int, now: float = NOW) -> set[str]:
    return {choice.record.uuid for choice in retention.prune(records, protection, limit, now, free) if choice.is_pruned}


@given(lists, protections, limits, st.sampled_from([0, 1000]), st.floats(0, 2 * NOW))
def test_what_must_stay_stays_whatever_the_clock_says(
    records: list[Record], protection: Protection, limit: Limits, free: int, now: float
) -> None:
    pruned = gone(records, protection, limit, free, now)
    for one in records:
        if one.uuid in pruned:
            assert not one.pinned
            assert not one.adopted
            assert not one.lived
            assert one.uuid not in protection.elsewhere
            assert one.state is not State.BUILDING
            assert one.uuid not in {protection.running, protection.next, protection.default}
            assert one.uuid not in protection.mounted
            assert one.name not in protection.journals
            assert not 0 <= now - one.created < limit.min_age_s


@given(lists, protections, limits, st.sampled_from([0, 1000]))
def test_the_newest_of_each_kind_stays(records: list[Record], protection: Protection, limit: Limits, free: int) -> None:
    pruned = gone(records, protection, limit, free)
    for kind in (Kind.SNAPSHOT, Kind.ENVIRONMENT):
        of_kind = [one.uuid for one in records if one.kind is kind]
        assert not of_kind or of_kind[-1] not in pruned


@given(lists, protections, limits)
def test_keeping_more_prunes_no_other(records: list[Record], protection: Protection, limit: Limits) -> None:
    more = replace(limit, restore_points=limit.restore_points + 1, environments=limit.environments + 1)
    assert gone(records, protection, more, 1000) <= gone(records, protection, limit, 1000)


@given(lists, protections, limits, st.integers(0, 13))
def test_protecting_one_more_prunes_no_other(
    records: list[Record], protection: Protection, limit: Limits, chosen: int
) -> None:
    more = replace(protection, mounted=protection.mounted | {f"u{chosen}"})
    assert gone(records, more, limit, 1000) <= gone(records, protection, limit, 1000)


@given(lists, protections, limits)
def test_little_space_prunes_no_less_and_at_most_one_more_of_each_kind(
    records: list[Record], protection: Protection, limit: Limits
) -> None:
    rich, poor = gone(records, protection, limit, 1000), gone(records, protection, limit, 0)
    assert rich <= poor
    assert len(poor - rich) <= 2


@given(lists, protections, limits, st.sampled_from([0, 1000]))
def test_every_record_has_one_fate_and_a_reason_and_pruning_twice_changes_nothing(
    records: list[Record], protection: Protection, limit: Limits, free: int
) -> None:
    choices = retention.prune(records, protection, limit, NOW, free)
    assert sorted(choice.record.uuid for choice in choices) == sorted(one.uuid for one in records)
    assert all(choice.reason for choice in choices)
    left = [choice.record for choice in choices if not choice.is_pruned]
    left.sort(key=lambda one: int(one.uuid[1:]))
    assert gone(left, protection, limit, 1000) == set()


@pytest.mark.parametrize(
    ("protection", "changes", "why"),
    [
        (Protection(running="a"), {}, "running"),
        (Protection(next="a"), {}, "boots next"),
        (Protection(default="a"), {}, "default"),
        (Protection(mounted=frozenset({"a"})), {}, "mounted"),
        (Protection(journals=frozenset({"name-a"})), {}, "open transaction"),
        (Protection(), {"pinned": True}, "pinned"),
        (Protection(), {"adopted": True}, "before snap-upgrade"),
        (Protection(), {"lived": True}, "was booted"),
        (Protection(elsewhere=frozenset({"a"})), {}, "outside of .snap-upgrade/be"),
        (Protection(), {"state": State.BUILDING}, "being built"),
        (Protection(), {"created": NOW - 60}, "younger"),
        (Protection(), {"description": ""}, "you made it"),
        (Protection(), {"description": "golden"}, "described"),
    ],
)
def test_what_protects_is_said(protection: Protection, changes: dict[str, object], why: str) -> None:
    records = [record("a", Kind.ENVIRONMENT, **changes), *(record(f"b{n}", Kind.ENVIRONMENT) for n in range(3))]
    [choice] = [one for one in retention.prune(records, protection, Limits(0, 0, 0), NOW, 1) if one.record.uuid == "a"]
    assert not choice.is_pruned
    assert why in choice.reason


def test_the_oldest_go_first_and_one_is_kept_where_none_was_asked_for() -> None:
    records = [record(name) for name in "abcd"]
    assert gone(records, Protection(), Limits(2, 0, 0), 1) == {"a", "b"}
    assert gone(records, Protection(), Limits(0, 0, 0), 1) == {"a", "b", "c"}


def test_what_lies_inside_another_is_removed_before_it() -> None:
    assert retention.order_of_removal([("1", "a"), ("2", "a/b/c"), ("3", "a/b")]) == ["2", "3", "1"]
