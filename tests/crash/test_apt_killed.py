"""Real apt, dpkg and our watcher killed, one by one and all at once, while packages are unpacked and configured.

The one rule: what the verdict must be is read from dpkg's own database and journal, not from our code.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import local_repo
from tests.system.clilab import names, su, su_json
from tests.system.test_apt_failures import settle

HANG = "#!/bin/sh\nset -e\nmkfifo /run/gate\n: > /run/hangs\nread answer < /run/gate\n"
MARKS = {"apt": b"apt-get\0", "dpkg": b"dpkg\0--", "watcher": b"apt-hook"}
VICTIMS = (("apt",), ("dpkg",), ("watcher",), ("apt", "dpkg", "watcher"))


def until_killed(machine: Machine, script: str, victims: tuple[str, ...]) -> None:
    """Upgrade a package whose *script* waits, kill *victims* meanwhile, let the script go on and all come to rest."""
    scripts = {script: HANG}
    repo = local_repo(machine.path("/"), [Deb("thing", "1.0", files={"/opt/thing": b"one\n"})], method="copy")
    machine.run(["apt-get", "update"])
    machine.run(["apt-get", "install", "-y", "thing"])
    repo.add(Deb("thing", "2.0", files={"/opt/thing": b"two\n"}, scripts=scripts))
    repo.publish()
    machine.run(["apt-get", "update"])
    settle(machine)
    apt = machine.popen(["apt-get", "install", "-y", "thing"])
    machine.wait_for_file("/run/hangs")
    pids = {pid for victim in victims for pid in machine.pids(MARKS[victim])}
    assert len(pids) >= len(victims)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # the death of one may be the end of another
            os.kill(pid, signal.SIGKILL)
    machine.live("/run/gate").write_text("go\n")
    apt.wait(60)
    machine.wait_for_dpkg()
    settle(machine)


def is_done(machine: Machine) -> bool:
    """Whether dpkg itself says that 2.0 is installed and nothing is left to do."""
    state = machine.run(["dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "thing"]).stdout
    journal = list(machine.path("/var/lib/dpkg/updates").glob("[0-9]*"))
    return state == "2.0 installed" and not journal and machine.run(["dpkg", "--audit"]).stdout == ""


@pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
@pytest.mark.parametrize("script", ["preinst", "postinst"])
def test_whoever_is_killed_recovery_judges_right_and_the_way_back_works(
    tmp_path: Path, script: str, victims: tuple[str, ...]
) -> None:
    with Machine(tmp_path) as m:
        until_killed(m, script, victims)
        done = is_done(m)
        assert done == (victims == ("watcher",)) or victims == ("apt",)  # dpkg may come to its end without apt
        assert m.run(["/usr/sbin/snap-upgrade", "recover"], check=False).returncode in {0, 4}  # the watcher may have
        assert su_json(m, "recover", code=4)["error"]["message"] == "nothing was interrupted"
        newest = su_json(m, "history")[0]
        assert newest["id"] == "2"
        assert newest["verdict"] in ({"success"} if done else {"interrupted", "failed", "unchanged"})
        rows = names(m, "-a")
        assert all(row["state"] == "ready" for row in rows.values())
        assert ("before-2" in rows) == (newest["verdict"] in {"interrupted", "failed"})
        assert {row["path"] for row in rows.values()} | {".snap-upgrade"} == set(m.subvolumes())
        assert rows["initial"]["active"] == "NR"
        if newest["verdict"] != "unchanged":
            su(m, "rollback", "last")
            m.reboot()
        assert m.run(["dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "thing"]).stdout == "1.0 installed"
        assert m.path("/opt/thing").read_text() == "one\n"
