"""The boot loader that is none: it says so, and pretends nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from snap_upgrade.boot import BootLoader, open_loader
from snap_upgrade.core.errors import Refused


@pytest.fixture
def loader() -> BootLoader:
    return open_loader("none", Path("/"))


def test_without_a_loader_there_is_no_menu_and_no_answer_of_its_own(loader: BootLoader) -> None:
    assert (loader.kind, loader.entries(), loader.next_environment()) == ("none", [], None)


def test_it_says_that_nothing_falls_back_by_itself(loader: BootLoader) -> None:
    why = loader.fallback_problem()
    assert why is not None
    assert "no boot loader" in why


@pytest.mark.parametrize("what", ["set_once", "set_default", "add"])
def test_what_only_a_loader_can_do_is_refused_by_name(loader: BootLoader, what: str) -> None:
    arguments = ("a" * 32, "my title") if what == "add" else ("a" * 32,)
    with pytest.raises(Refused, match="no boot loader is managed on this machine") as caught:
        getattr(loader, what)(*arguments)
    assert arguments[-1] in caught.value.message


def test_removing_what_was_never_added_is_done_already(loader: BootLoader) -> None:
    loader.remove("a" * 32)
