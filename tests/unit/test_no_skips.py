"""The rule of tests/conftest.py, tried on a run of its own: what did not run did not pass."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

WAYS = {
    "skip": "import pytest\ndef test_it(): pytest.skip('later')",
    "mark": "import pytest\n@pytest.mark.skip(reason='later')\ndef test_it(): pass",
    "module": "import pytest\npytest.skip('later', allow_module_level=True)\ndef test_it(): pass",
    "importorskip": "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass",
    "xfail": "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False",
    "xpass": "import pytest\n@pytest.mark.xfail\ndef test_it(): pass",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): self.skipTest('later')",
    "nothing": "",
}


def run_pytest(folder: Path, source: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one file in *folder*, with our conftest.py and none of our settings."""
    shutil.copy(CONFTEST, folder)
    (folder / "test_one.py").write_text(source + "\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", *args, "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("way", WAYS)
def test_a_test_that_did_not_run_fails_the_run(way: str, tmp_path: Path) -> None:
    result = run_pytest(tmp_path, WAYS[way])
    assert result.returncode != 0, result.stdout
    closing = result.stdout.splitlines()[-1]
    assert not re.search("passed|skipped", closing), result.stdout


def test_the_rule_holds_for_parallel_workers(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, WAYS["skip"], "-n", "2").returncode != 0


def test_a_test_that_passed_passes(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "def test_it(): pass")
    assert result.returncode == 0 and "1 passed" in result.stdout, result.stdout
