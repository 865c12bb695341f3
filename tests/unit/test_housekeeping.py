"""What grows with time is kept in bounds, and nothing else goes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from snap_upgrade import housekeeping, journal


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for name in ("archives", "history", "journal", "logs"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_archives_go_by_when_they_came_and_not_by_what_the_server_says(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state / "archives" / "new.deb").write_bytes(b"x")
    (state / "archives" / "partial").mkdir()
    housekeeping.tidy(state)
    assert {path.name for path in (state / "archives").iterdir()} == {"new.deb", "partial"}
    later = time.time() + housekeeping.ARCHIVE_AGE_S + 60
    monkeypatch.setattr(time, "time", lambda: later)
    housekeeping.tidy(state)
    assert {path.name for path in (state / "archives").iterdir()} == {"partial"}


def test_a_clock_that_went_back_makes_nothing_old(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "archives" / "new.deb").write_bytes(b"x")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    housekeeping.tidy(state)
    assert (state / "archives" / "new.deb").exists()


def test_the_newest_thousand_transactions_stay_and_so_does_the_count(state: Path) -> None:
    for number in range(1, housekeeping.TRANSACTIONS + 6):
        (state / "history" / f"{number}{journal.SUFFIX}").touch()
        (state / "logs" / f"{number}.log").touch()
    (state / "journal" / "7").touch()  # open: not closed long ago, and never touched
    next_one = journal.next_number(state)
    housekeeping.tidy(state)
    assert journal.numbers(state / "history") == list(range(6, housekeeping.TRANSACTIONS + 6))
    assert not (state / "logs" / "5.log").exists()
    assert (state / "logs" / "6.log").exists()
    assert (state / "journal" / "7").exists()
    assert journal.next_number(state) == next_one


def test_a_state_that_was_never_written_is_fine(tmp_path: Path) -> None:
    housekeeping.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []
