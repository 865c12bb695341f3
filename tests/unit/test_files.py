"""Durable files and locks: a reader sees old or new, a killed writer's leavings go, a lock dies with its holder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snap_upgrade.core.errors import Locked
from snap_upgrade.system import failpoint, files

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
HOLD = """
import sys
from pathlib import Path
from snap_upgrade.system import files
with files.locked(Path(sys.argv[1]), "the other"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_content_is_replaced_whole_and_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    files.write_durable(path, b"long old content")
    files.write_durable(path, b"new", 0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("point", ["write.before", "write.written"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    path = tmp_path / "f"
    files.write_durable(path, b"old")

    def fail(here: str) -> None:
        if here == point:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(failpoint, "reach", fail)
    with pytest.raises(OSError, match="full"):
        files.write_durable(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / f".f.{os.getpid()}.new").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        files.write_durable(tmp_path / "f", b"new")
    assert (tmp_path / "precious").read_text() == "mine"


def test_short_writes_are_continued() -> None:
    read_end, write_end = os.pipe()
    data = bytes(range(256)) * 4096  # more than a pipe holds
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        files.write_all(write_end, data)
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        assert pipe.read() == data
    assert os.waitpid(pid, 0)[1] == 0


def test_removing_what_is_gone_is_fine(tmp_path: Path) -> None:
    files.remove_durable(tmp_path / "none")


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    keep = [".f.1.new", "f.99999999.new", ".f.new", ".f..new", "f.json", f".f.{dead.pid}.old"]
    for name in [f".f.json.{dead.pid}.new", f".g.{os.getpid()}.new", *keep]:
        (tmp_path / name).touch()
    files.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(keep)
    files.sweep(tmp_path / "none")


def test_a_lock_that_another_process_holds_is_refused_with_its_name_and_free_when_that_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env={"PYTHONPATH": str(PLUGIN)})  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(Locked, match=rf"the other \(process {other.pid}\)"):
        files.lock(path, "we")
    other.kill()
    other.communicate()
    with files.locked(path, "we"):
        assert path.read_text() == f"we (process {os.getpid()})\n"


def test_a_lock_is_not_inherited_by_programs_and_ends_with_the_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files.locked(path, "we"):
        child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, close_fds=False)  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"1\n"
    with files.locked(path, "we again"):
        pass
    child.communicate(b"\n")
