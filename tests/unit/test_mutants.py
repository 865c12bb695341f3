"""The mutants of tests/mutants apply to the code as it is; whether their tests turn red is `make mutants`.

The one rule: nothing is run here. Code that changes makes a mutant stale, and that is red at once.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import Mutant
from tests.mutants.__main__ import NOT_RED, RED, WRONG, judge

ALL = mutants.read()


@cache
def text(name: str) -> str:
    return (mutants.TOP / name).read_text()


def faults(mutant: Mutant) -> list[str]:
    """Return why *mutant* says nothing any more; [] if it does."""
    changed = mutant.apply(text(mutant.file))
    if changed is None:
        return [f"stale: write its text anew as {mutant.file} is now, and see it red"]
    if mutant.file.endswith(".py"):
        ast.parse(changed)
    pairs = [word.partition("::")[::2] for word in mutant.tests if word.startswith("tests/")]
    lost = [test for file, test in pairs if test and f"def {test.partition('[')[0]}(" not in text(file)]
    return ["no test is named"] * (not pairs) + [f"there is no {test}" for test in lost]


def test_each_text_stands_once_in_its_file_what_comes_of_it_is_python_and_its_tests_are_there() -> None:
    assert {mutant.claim: found for mutant in ALL if (found := faults(mutant))} == {}


def test_no_two_are_the_same_and_each_has_its_own_sentence() -> None:
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in ALL}) == len(ALL)
    assert len({(mutant.section, mutant.claim) for mutant in ALL}) == len(ALL)
    assert [mutant.claim for mutant in ALL if not re.fullmatch(r"[A-Z`\-].*[^.]", mutant.claim)] == []


def test_every_section_has_mutants() -> None:
    assert {mutant.section for mutant in ALL} == {path.stem for path in Path(mutants.FOLDER).glob("*.toml")}


@pytest.mark.parametrize(
    ("status", "closing", "expected"),
    [(1, "1 failed, 3 passed in 2.00s", RED), (0, "3 passed in 2.00s", NOT_RED), (1, "1 error in 2.00s", WRONG),
     (2, "1 error in 0.10s", WRONG), (4, "no tests ran in 0.01s", WRONG), (5, "3 deselected in 0.01s", WRONG),
     (124, "", WRONG), (2, "1 failed in 0.10s", WRONG)],
)  # fmt: skip
def test_only_a_test_that_failed_is_red(status: int, closing: str, expected: str) -> None:
    assert judge(status, f"1 failed by what it prints\n{closing}\n") == expected


def test_a_text_that_stands_twice_or_nowhere_does_not_apply() -> None:
    mutant = Mutant("storage", "Claim", "file", "a", "b", ())
    assert [mutant.apply(text) for text in ("xax", "aa", "x", "")] == ["xbx", None, None, None]
