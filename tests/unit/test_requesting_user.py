"""Who asked for it: the hook and the commands look at the same places, in the same order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NO_LOGIN = 2**32 - 1
# The login is written once for a process and its children, so each case has a process of its own.
ASK = """
import json, os, sys
if sys.argv[1]:
    try:
        open("/proc/self/loginuid", "w").write(sys.argv[1])
    except OSError:
        pass
from snap_upgrade.engine import requesting_user
from snap_upgrade.hook.owner import user
try:
    login = int(open("/proc/self/loginuid").read())
except OSError:
    login = 2**32 - 1
print(json.dumps([user(os.environ), requesting_user(), login]))
"""
CASES = {
    "sudo": ({"SUDO_UID": "1000", "PKEXEC_UID": "5", "PACKAGEKIT_CALLER_UID": "6"}, 1000, "SUDO_UID"),
    "pkexec": ({"PKEXEC_UID": "5", "PACKAGEKIT_CALLER_UID": "6"}, 5, "PKEXEC_UID"),
    "packagekit": ({"PACKAGEKIT_CALLER_UID": "6"}, 6, "PACKAGEKIT_CALLER_UID"),
    "no number": ({"SUDO_UID": "x; rm", "PKEXEC_UID": "7"}, 7, "PKEXEC_UID"),
}


def ask(environment: dict[str, str], login: str = "") -> list[object]:
    """Return what the hook and the commands say, and the login of the process that was asked."""
    path = str(Path(__file__).resolve().parents[2] / "plugin")
    done = subprocess.run([sys.executable, "-c", ASK, login], env={"PYTHONPATH": path, **environment}, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return list(json.loads(done.stdout))


@pytest.mark.parametrize(("environment", "uid", "source"), CASES.values(), ids=CASES.keys())
def test_the_variables_name_the_person_and_come_before_the_login(
    environment: dict[str, str], uid: int, source: str
) -> None:
    hook, command, _ = ask(environment, "4321")
    assert hook == command == {"uid": uid, "source": source}


def test_without_a_variable_the_login_names_the_person() -> None:
    hook, command, login = ask({}, "4321")
    # A kernel without audit has no login: then it is whoever runs it.
    expected = {"uid": 0, "source": "uid"} if login == NO_LOGIN else {"uid": login, "source": "loginuid"}
    assert hook == command == expected
