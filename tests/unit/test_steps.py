"""Steps: they survive the journal, and the inverse of an inverse is the step."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade.core import steps
from snap_upgrade.core.errors import StateDamaged
from snap_upgrade.core.steps import (
    Activate,
    CarryNested,
    Describe,
    Destroy,
    MakeClone,
    Mount,
    Packages,
    Promote,
    Rename,
    Seal,
    Step,
    TakeSnapshot,
    Unmount,
)

CLASSES: list[type[Step]] = [TakeSnapshot, MakeClone, Packages, Seal, Activate, Promote, Destroy, Rename, Describe,
                             Mount, Unmount, CarryNested]  # fmt: skip
NO_WAY_BACK = {Packages, Seal, Destroy}
MAKE = {TakeSnapshot, MakeClone}

texts = st.text(max_size=20)
any_step: st.SearchStrategy[Any] = st.one_of(
    [
        st.builds(cls, **{field.name: st.booleans() if field.type == "bool" else texts for field in fields(cls)})
        for cls in CLASSES
    ]
)


def test_every_step_there_is_is_tried_here() -> None:
    assert set(CLASSES) == set(Step.__args__)
    assert len({cls.kind for cls in CLASSES}) == len(CLASSES)


@given(any_step)
def test_a_step_comes_back_from_the_journal_as_it_went_in(step: Step) -> None:
    assert steps.from_json(json.loads(json.dumps(steps.to_json(step)))) == step


@given(any_step)
def test_the_inverse_of_the_inverse_is_the_step(step: Step) -> None:
    back = steps.inverse(step)
    if type(step) in NO_WAY_BACK:
        assert back is None
    elif type(step) in MAKE:
        assert back == Destroy(step.name)  # type: ignore[union-attr]
    else:
        assert back is not None
        assert back == step or type(step) is not type(back) or vars_of(back) != vars_of(step)
        assert steps.inverse(back) == step


def vars_of(step: Step) -> dict[str, Any]:
    return {field.name: getattr(step, field.name) for field in fields(step)}


@given(any_step)
def test_every_step_can_be_said_in_words(step: Step) -> None:
    text = steps.describe(step)
    assert text and text.isprintable()


@given(any_step, st.data())
def test_a_step_with_a_field_missing_unknown_or_of_another_type_is_damage(step: Step, data: st.DataObject) -> None:
    good = steps.to_json(step)
    key = data.draw(st.sampled_from([key for key in good if key != "step"]))
    wrong: object = data.draw(st.sampled_from([None, 1, 1.5, [], {}]))
    with pytest.raises(StateDamaged):
        steps.from_json({**good, key: wrong})
    with pytest.raises(StateDamaged):
        steps.from_json({**good, "unheard of": "x"})
    with pytest.raises(StateDamaged):
        steps.from_json({**good, "step": "teleport"})


@pytest.mark.parametrize("data", [None, 5, [], "snapshot", {}, {"step": "clone", "origin": "x"}])
def test_what_is_no_step_is_damage(data: object) -> None:
    with pytest.raises(StateDamaged):
        steps.from_json(data)


def test_taking_back_an_activation_for_one_boot_leaves_the_earlier_one_for_one_boot() -> None:
    # Booted for good: default; armed for one boot: first. Then second is armed in its place, and that is taken back.
    step = Activate("second", "first", back="default", previous_back="default")
    assert steps.inverse(step) == Activate("first", "second", back="default", previous_back="default")
    # The same for an activation for good: first stays what it was, for one boot.
    assert steps.inverse(Activate("second", "first", "", "default")) == Activate("first", "second", "default", "")
