"""Fail points: dead without the marker file, exact with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from snap_upgrade.system import failpoint

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
WALK = """
import sys
from snap_upgrade.system import failpoint
failpoint.MARKER = sys.argv[1]
for name in ("a", "b", "a", "a"):
    failpoint.reach(name)
    print(name, flush=True)
"""


def walk(marker: Path, wanted: str | None) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(PLUGIN)} | ({failpoint.VARIABLE: wanted} if wanted is not None else {})
    return subprocess.run([sys.executable, "-c", WALK, str(marker)], env=env, capture_output=True, text=True)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    path = tmp_path / "marker"
    path.touch()
    return path


def test_the_marker_is_where_only_root_can_make_it() -> None:
    assert failpoint.MARKER == "/run/snap-upgrade-failpoints"
    assert os.stat("/run").st_uid == 0
    assert os.stat("/run").st_mode & 0o022 == 0


@pytest.mark.parametrize("wanted", ["kill:a#1", "error:a#1:5", "log:/dev/shm/should-not-be-made"])
def test_the_variable_alone_does_nothing(tmp_path: Path, wanted: str) -> None:
    done = walk(tmp_path / "none", wanted)
    assert (done.returncode, done.stdout.split()) == (0, ["a", "b", "a", "a"])
    assert not Path("/dev/shm/should-not-be-made").exists()


def test_a_marker_of_another_user_does_nothing(marker: Path) -> None:
    os.chown(marker, 65534, 65534)
    assert walk(marker, "kill:a#1").returncode == 0


def test_the_marker_alone_does_nothing(marker: Path) -> None:
    assert walk(marker, None).returncode == 0


def test_points_are_counted_and_logged(marker: Path, tmp_path: Path) -> None:
    assert walk(marker, f"log:{tmp_path}/log").returncode == 0
    assert (tmp_path / "log").read_text().split() == ["a#1", "b#1", "a#2", "a#3"]


def test_the_process_dies_at_exactly_the_point_named(marker: Path) -> None:
    done = walk(marker, "kill:a#2")
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["a", "b"])


def test_exactly_the_call_named_fails(marker: Path) -> None:
    done = walk(marker, "error:a#2:28")
    assert (done.returncode, done.stdout.split()) == (1, ["a", "b"])
    assert "No space left on device" in done.stderr
    assert walk(marker, "error:c#1:28").returncode == 0
