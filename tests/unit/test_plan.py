"""The design's table (section 4) as plans: what is destroyed, what is kept, what is activated, and in what order."""

from __future__ import annotations

import itertools

import pytest

from snap_upgrade.core import plan
from snap_upgrade.core.plan import Policy
from snap_upgrade.core.steps import Activate, Destroy, MakeClone, Mount, Packages, Promote, Seal, TakeSnapshot, Unmount

BASE = "b" * 32
POLICIES = [Policy(*flags) for flags in itertools.product((True, False), repeat=3)]
BAD = ["failed", "interrupted"]
GOOD = ["success", "success-with-script-errors"]
SNAPSHOT = TakeSnapshot(BASE, ".snap-upgrade/snap/7", "snap-7")


def test_every_flow_takes_its_snapshot_before_the_package_manager_works() -> None:
    assert plan.live("7", BASE, "apt") == [SNAPSHOT, Packages("live", "apt")]
    assert plan.alternate_root("7", BASE, "alt", "apt") == [SNAPSHOT, Packages("root", "apt", "alt")]
    assert plan.image_update("7", BASE, "new", "apt", "why") == [
        SNAPSHOT,
        MakeClone("snap-7", ".snap-upgrade/be/new", "new", "building", "why"),
        Packages("clone", "apt", "new"),
    ]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("verdict", GOOD)
def test_a_good_image_update_is_sealed_before_it_is_activated(verdict: str, policy: Policy) -> None:
    steps = plan.after_image_update("7", verdict, "new", "old", True, policy)
    assert steps[:2] == [Seal("new"), Activate("new", "old")]
    assert steps[2:] == ([Destroy("snap-7")] if policy.to_the_letter else [])
    assert not any(isinstance(s, Activate) for s in plan.after_image_update("7", verdict, "new", "old", False, policy))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("verdict", [*BAD, "unchanged"])
def test_a_bad_image_update_is_never_activated_nor_called_complete(verdict: str, policy: Policy) -> None:
    steps = plan.after_image_update("7", verdict, "new", "old", True, policy)
    if policy.keep_failed and verdict != "unchanged":
        assert steps == [Seal("new", "failed"), Destroy("snap-7")]
    else:
        assert steps == [Destroy("new"), Destroy("snap-7")]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("verdict", BAD)
def test_a_failed_live_operation_keeps_a_way_back_and_neither_activates_nor_destroys(
    verdict: str, policy: Policy
) -> None:
    steps = plan.after_live("7", verdict, policy, "/run/x")
    assert isinstance(steps[0], MakeClone)
    assert (steps[0].origin, steps[0].name, steps[0].state) == ("snap-7", "before-7", "ready")
    assert steps[1:] == ([Mount("before-7", "/run/x")] if policy.to_the_letter else [])
    # Recovered after a crash there is nobody to look at a mount.
    assert len(plan.after_live("7", verdict, policy)) == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("verdict", GOOD)
def test_after_success_on_a_root_that_stays_the_snapshot_is_a_restore_point_by_policy(
    verdict: str, policy: Policy
) -> None:
    wanted = [] if policy.keep_on_success and not policy.to_the_letter else [Destroy("snap-7")]
    assert plan.after_live("7", verdict, policy, "/run/x") == wanted
    assert plan.after_alternate_root("7", verdict, "alt", "@alt", "/mnt", policy) == wanted


@pytest.mark.parametrize("policy", POLICIES)
def test_what_changed_nothing_leaves_nothing(policy: Policy) -> None:
    assert plan.after_live("7", "unchanged", policy, "/run/x") == [Destroy("snap-7")]
    assert plan.after_alternate_root("7", "unchanged", "alt", "@alt", "/mnt", policy) == [Destroy("snap-7")]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("verdict", BAD)
def test_a_failed_alternate_root_is_replaced_in_the_order_of_the_table(verdict: str, policy: Policy) -> None:
    steps = plan.after_alternate_root("7", verdict, "alt", "@alt", "/mnt", policy)
    assert steps[:4] == [
        MakeClone("snap-7", ".snap-upgrade/be/failed-7", "failed-7", "building"),
        Unmount("alt", "/mnt"),
        Promote("failed-7", "alt", "@alt"),
        Mount("alt", "/mnt"),
    ]
    assert steps[4:] == ([] if policy.keep_failed else [Destroy("failed-7")]) + [Destroy("snap-7")]


def test_a_roll_back_clones_the_snapshot_once() -> None:
    made = plan.rollback("7", "before-7", False, "old")
    assert [type(step) for step in made] == [MakeClone, Activate]
    assert plan.rollback("7", "before-7", True, "old", "armed") == [Activate("before-7", "old", "", "armed")]
