"""What is told as written is on disk, in the order that a power cut needs: file, then name, then folder.

btrfs forgives a missing fsync here and there, for a snapshot that follows commits everything; other file systems of
the boot partition and later versions of btrfs do not. So the calls themselves are read, made for real on the way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snap_upgrade.core.steps import MakeClone, to_json
from snap_upgrade.journal import Journal
from snap_upgrade.system import files

PLAN = [to_json(MakeClone("initial", ".snap-upgrade/be/x", "x"))]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, below: Path) -> Iterator[list[str]]:
    """Yield the list of the durable calls below *below*, in order; each is really made."""
    seen: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def told(path: object) -> str:
        return str(Path(os.fsdecode(os.fspath(path))).relative_to(below))  # type: ignore[call-overload]

    def watch_fsync(fd: int) -> None:
        fsync(fd)
        seen.append(f"fsync {told(os.readlink(f'/proc/self/fd/{fd}'))}")

    def watch_rename(old: Path, new: Path) -> None:
        rename(old, new)
        seen.append(f"name {told(new)}")

    def watch_replace(old: Path, new: Path) -> None:
        replace(old, new)
        seen.append(f"name {told(new)}")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", watch_fsync)
        patch.setattr(os, "rename", watch_rename)
        patch.setattr(os, "replace", watch_replace)
        yield seen


def test_a_file_is_on_disk_before_it_has_its_name_and_the_name_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch, tmp_path) as seen:
        files.write_durable(tmp_path / "x", b"content")
        files.remove_durable(tmp_path / "x")
    assert seen == [f"fsync .x.{os.getpid()}.new", "name x", "fsync .", "fsync ."]


def test_a_journal_is_on_disk_with_its_name_before_anything_and_every_line_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("journal", "history"):
        (tmp_path / folder).mkdir()
    with watched(monkeypatch, tmp_path) as seen:
        journal = Journal.create(tmp_path, lambda _ident: {"flow": "create", "plan": PLAN})
        begun = len(seen)
        journal.append("started", step=0)
        appended = len(seen)
        journal.append("done", step=0, result={})
        journal.append("end", outcome="committed", exit=0)
        ended = len(seen)
        journal.close("committed", 0)
    assert seen[:begun] == ["fsync journal/1", "fsync journal"]
    assert seen[begun:appended] == ["fsync journal/1"]
    assert seen[appended:ended] == ["fsync journal/1"] * 2
    assert seen[ended] == "name history/1.json"
    assert set(seen[ended + 1 :]) == {"fsync history", "fsync journal"}
