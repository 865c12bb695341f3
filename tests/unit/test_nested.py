"""Nested volumes without a file system: names of parts, groups of moves, and the hook's doubles of both."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snap_upgrade import config, records
from snap_upgrade.core import plan
from snap_upgrade.core.errors import UsageError
from snap_upgrade.core.model import Kind, State
from snap_upgrade.core.steps import CarryNested, Destroy, Step, groups
from snap_upgrade.hook import nested, settings, state

paths = st.lists(st.text("ab:%-/3A25 ö", min_size=1).filter(lambda text: "/" not in text), min_size=1).map("/".join)


@given(paths, paths)
@example("a:b", "a/b")
@example("a%3Ab", "a:b")
@example("a%2F", "a%25")
def test_a_part_is_one_name_from_which_its_place_is_known(one: str, other: str) -> None:
    path = plan.part_path(".snap-upgrade/snap/7", one)
    folder, _, name = path.rpartition("/")
    assert folder == ".snap-upgrade/snap/7.parts"
    assert plan.part_of(path) == one
    assert nested.part_name(one) == name
    assert one == other or plan.part_path(".snap-upgrade/snap/7", other) != path


CARRY = CarryNested("c" * 32, "@/var/lib/x", "y/var/lib/x")
OTHER = Destroy("x")


@pytest.mark.parametrize(
    ("steps", "numbers", "expected"),
    [
        ([], [], []),
        ([CARRY, CARRY, CARRY], [0, 1, 2], [[0, 1, 2]]),
        ([CARRY, OTHER, CARRY], [0, 1, 2], [[0], [1], [2]]),
        ([OTHER, OTHER], [0, 1], [[0], [1]]),
        ([CARRY, CARRY, OTHER, CARRY, CARRY], [0, 1, 2, 3, 4], [[0, 1], [2], [3, 4]]),
        ([CARRY, CARRY, OTHER], [2, 1, 0], [[2], [1, 0]]),
    ],
)
def test_moves_one_after_the_other_are_one_group_and_nothing_else_is(
    steps: list[Step], numbers: list[int], expected: list[list[int]]
) -> None:
    assert groups(steps, numbers) == expected


@pytest.mark.parametrize("value", ["", "a", "/a/b/ c//", "a\tb", "a a", "..x"])
def test_the_hook_reads_what_travels_as_the_commands_do(value: str) -> None:
    text = f"clone_nested = {value}\n"
    assert settings.parse(text).nested == config.parse(text).clone_nested


@pytest.mark.parametrize("value", ["/", "a ..", "a//b", "./a", "a/../b", "//"])
def test_the_hook_refuses_a_place_that_the_commands_refuse(value: str) -> None:
    text = f"enabled = yes\nclone_nested = {value}\n"
    with pytest.raises(settings.BadSetting, match="line 2"):
        settings.parse(text)
    with pytest.raises(UsageError, match="line 2"):
        config.parse(text)


def test_a_record_that_a_hook_writes_is_one_and_a_root_gets_a_free_name(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        state._furnish(fd)
        state.enrol(fd, "a" * 32, "part", "snap-7/var/lib/x", ".snap-upgrade/snap/7.parts/var:lib:x", "b" * 32, "7")
        state.enrol(fd, "d" * 32, "environment", "initial", "@", None, None, True)
        (tmp_path / "records/damaged.json").write_text("{")
        (tmp_path / "records/other.json").write_text("[]")
        (tmp_path / "records/.half.new").write_text("")
        assert nested._names(fd) == {"initial", "snap-7/var/lib/x"}
        assert state.is_recorded(fd, "d" * 32)
        assert not state.is_recorded(fd, "e" * 32)
    finally:
        os.close(fd)
    found = {one.uuid: one for one in records.Records(tmp_path).read()[0]}
    part, root = found["a" * 32], found["d" * 32]
    assert (part.kind, part.origin, part.transaction, part.state) == (Kind.PART, "b" * 32, "7", State.READY)
    assert not part.adopted
    assert (root.kind, root.name, root.path, root.transaction) == (Kind.ENVIRONMENT, "initial", "@", None)
    assert root.adopted
