"""Names: hostile ones are refused with the reason, all others are the user's own affair."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade.core import names
from snap_upgrade.core.errors import UsageError


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a" * 255, "255 bytes"),
        ("é" * 101, "202 bytes"),
        (".", "directory"),
        ("..", "directory"),
        ("a/b", "slash"),
        ("/", "slash"),
        ("../x", "slash"),
        ("-n", "dash"),
        ("-", "dash"),
        (" a", "white space"),
        ("a ", "white space"),
        ("a\nb", "control"),
        ("a\tb", "control"),
        ("a\0b", "control"),
        ("a\x1b[31mb", "control"),
        ("a\u202eb", "control"),
        ("a\u2028b", "control"),
        ("\udcff", "UTF-8"),
        ("last", "meaning"),
        ("running", "meaning"),
        ("next", "meaning"),
        ("default", "meaning"),
        ("pending", "meaning"),
        ("42", "transaction"),
        ("٤٢", "transaction"),
        ("snap-42", "transactions"),
        ("before-1", "transactions"),
        ("failed-0", "transactions"),
    ],
)
def test_a_hostile_name_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        names.check_name(name)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "name",
    ["a", "2026-11-21", "a b", "$(rm -rf .)", "`x`", "a;b", "*", "'", '"', "\\", "übung", "日本", "a" * 200, ".hidden",
     "snap-42a", "before", "%2f", "@", "a:b", "~root"],
)  # fmt: skip
def test_any_other_name_is_fine(name: str) -> None:
    assert names.check_name(name) == name


@given(st.text(max_size=300))
def test_a_good_name_is_one_path_component_that_prints_in_one_line(name: str) -> None:
    if names.name_problem(name) is None:
        assert os.path.join("/be", name) == os.path.normpath(os.path.join("/be", name))
        assert len(os.fsencode(f"{name}")) <= 200
        assert len(name.splitlines()) == 1
        assert not name.startswith("-")


@given(st.text(min_size=1, max_size=50).filter(lambda name: names.name_problem(name) is None))
def test_a_good_name_can_be_the_name_of_a_folder(name: str) -> None:
    path = Path("/dev/shm") / f"{os.getpid()}-{name}"
    path.mkdir()
    path.rmdir()


@given(st.text(min_size=1), st.sets(st.integers(1, 9)))
def test_a_fresh_name_is_not_taken(day: str, numbers: set[int]) -> None:
    taken = {day if number == 1 else f"{day}-{number}" for number in numbers}
    assert names.fresh_name(day, taken) not in taken


@given(st.text())
def test_what_is_shown_moves_no_cursor(text: str) -> None:
    assert names.shown(text).isprintable()
