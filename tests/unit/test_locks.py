"""The lock of the state: refused at once while a command works, waited for while a recovery ends."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snap_upgrade.core.errors import Locked
from snap_upgrade.hook import state
from snap_upgrade.system import failpoint, files

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
HOLD = """
import sys
from pathlib import Path
from snap_upgrade.system import files
files.lock(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_command_at_work_is_named_and_not_waited_for(tmp_path: Path) -> None:
    with files.locked(tmp_path / "lock", "snap-upgrade image-update"):
        with pytest.raises(Locked, match=r"snap-upgrade image-update \(process"):
            files.lock(tmp_path / "lock", "snap-upgrade rollback", patience_s=3600)


def test_a_recovery_is_waited_for_until_it_ends(tmp_path: Path) -> None:
    held = files.lock(tmp_path / "lock", "snap-upgrade recover")
    ender = threading.Timer(0.2, files.unlock, [held])
    ender.start()
    with files.locked(tmp_path / "lock", "snap-upgrade rollback", patience_s=3600):
        assert (tmp_path / "lock").read_text().startswith("snap-upgrade rollback")
    ender.join()


def test_a_recovery_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    with files.locked(tmp_path / "lock", "snap-upgrade recover --boot"):
        with pytest.raises(Locked):
            files.lock(tmp_path / "lock", "snap-upgrade rollback", patience_s=0.2)


@contextmanager
def anonymous(path: Path) -> Iterator[None]:
    """Hold the lock *path* as one does in the instant before it says who it is: whatever is written there stays."""
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def refusals(path: Path) -> set[str]:
    """Return what a command and a hook are told who find the lock *path* taken."""
    with pytest.raises(Locked) as command:
        files.lock(path, "we")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with pytest.raises(state.Locked) as hook:
            state.lock(folder, "we")
    finally:
        os.close(folder)
    return {command.value.message.removesuffix(" is at work"), str(hook.value)}


def killed_holder(path: Path, name: str) -> None:
    """Let a process lock *path* as *name*, and kill it."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env={"PYTHONPATH": str(PLUGIN)}) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        other.kill()


def test_whoever_had_the_lock_before_is_never_named_as_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.locked(path, "snap-upgrade prune"):
        pass
    assert path.read_bytes() == b""
    with anonymous(path):
        assert refusals(path) == {"another snap-upgrade"}
    killed_holder(path, "snap-upgrade image-update")
    assert b"image-update" in path.read_bytes()
    with anonymous(path):
        assert refusals(path) == {"another snap-upgrade"}


@pytest.mark.parametrize("text", [b"\xff\xfe" * 99, b"x" * 9000, b"(process 0)", b"a (process 99999999999999999999)\n",
                                  b"a (process \xd9\xa1)", b"\0" * 50, b"{}\n"])  # fmt: skip
def test_a_lock_file_that_makes_no_sense_names_nobody_and_is_written_anew(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "lock"
    path.write_bytes(text)
    with anonymous(path):
        assert refusals(path) == {"another snap-upgrade"}
    with files.locked(path, "we"):
        assert path.read_text() == f"we (process {os.getpid()})\n"


def test_between_the_lock_and_the_name_nobody_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    killed_holder(path, "snap-upgrade image-update")
    seen: list[set[str]] = []

    def look(point: str) -> None:
        if point == "lock.taken" and not seen:
            seen.append(set())
            seen[0] |= refusals(path)

    monkeypatch.setattr(failpoint, "reach", look)
    with files.locked(path, "snap-upgrade rollback"):
        assert refusals(path) == {f"snap-upgrade rollback (process {os.getpid()})"}
    assert seen == [{"another snap-upgrade"}]


def test_one_who_has_not_said_who_it_is_is_waited_for_like_a_recovery(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    file = path.open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    ender = threading.Timer(0.2, file.close)
    ender.start()
    with files.locked(path, "snap-upgrade rollback", patience_s=3600):
        pass
    ender.join()


def test_a_holder_with_a_long_command_line_is_named_short_and_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.locked(path, "snap-upgrade install " + "ä" * 5000 + "\udcff"):
        (told,) = refusals(path)
        assert told.startswith("snap-upgrade install ää")
        assert told.endswith(f"ä… (process {os.getpid()})")
        assert len(told) < 200


def test_a_file_system_that_takes_no_more_writes_does_not_keep_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _size: int) -> None:
        raise OSError(30, "read-only")

    held = files.lock(tmp_path / "lock", "we")
    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", refuse)
        files.unlock(held)
    with files.locked(tmp_path / "lock", "we again"):
        pass
