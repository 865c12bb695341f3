"""What an unprivileged user of the machine cannot do to it by way of snap-upgrade: stop it, speak through it, or reach
what a way back holds.

The rule: the user acts as nobody, with what every user has: a folder of his own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine
from tests.lab.repo import local_repo
from tests.system.clilab import PROGRAM, names, su, su_json
from tests.system.test_apt_failures import settle

INSTALL = ("apt-get", "install", "-y")
AS_NOBODY = "import fcntl, os, sys\nos.setgid(65534)\nos.setuid(65534)\nd = os.open('/var/tmp', os.O_RDONLY)\n"
MAKE = "b = bytearray(4096)\nb[8:8 + len(name)] = name\nfcntl.ioctl(d, 0x5000940E, b, True)\n"
DEEP = """
for number in range(30):
    os.mkdir("d" * 200, dir_fd=d)
    d = os.open("d" * 200, os.O_RDONLY, dir_fd=d)
name = b"x"
"""


@pytest.fixture
def m(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path, layout=Layout(subvol="@")) as machine:
        local_repo(machine.path("/"), [breaking.fails_in("postinst", "bad"), Deb("good", "1.0")], method="copy")
        machine.run(["apt-get", "update"])
        yield machine


def as_nobody(machine: Machine, script: str) -> str:
    return machine.run(["/usr/bin/python3", "-IS", "-c", AS_NOBODY + script]).stdout


def test_a_volume_too_deep_for_its_path_stops_no_command(m: Machine) -> None:
    as_nobody(m, DEEP + MAKE)
    m.run([*INSTALL, "bad"], check=False)
    settle(m)
    assert len(names(m)) == 2
    row = next(one for one in su_json(m, "status")["problems"] if "too deep" in one["message"])
    assert row["severity"] == "warning"
    assert any(one["path"] == f"@/?//{row['message'].split()[2]}" for one in su_json(m, "list", "-a"))
    found = m.run(["sh", "-c", row["hint"]]).stdout
    assert any(line.startswith("/var/tmp/ddd") for line in found.splitlines()), found
    su(m, "rollback", "before-1")
    m.reboot()
    assert "running:   before-1" in su(m, "status").stdout
    su(m, "recover", "--boot", code=4)
    su(m, "destroy", "-y", "initial")
    assert names(m).keys() == {"before-1"}
    assert any(path.startswith(".snap-upgrade/kept/") for path in m.subvolumes())


def test_the_name_of_a_users_volume_cannot_speak_for_us(m: Machine) -> None:
    as_nobody(m, "name = b'x\\nsnap-upgrade: all is well\\x1b]0;pwn\\x07'\n" + MAKE)
    su(m, "create", "x")
    su(m, "activate", "x")
    m.reboot()
    assert m.boot_log is not None
    told = m.boot_log.output + m.run([PROGRAM, "recover", "--boot"], check=False).output
    assert "x\\nsnap-upgrade: all is well\\x1b]0;pwn" in told
    assert not [line for line in told.splitlines() if line.startswith("snap-upgrade: all") or not line.isprintable()]
    su(m, "activate", "initial")


REACH = """
for place in sys.argv[1:]:
    try:
        print(os.listdir(place))
    except PermissionError:
        print("kept out")
"""


def test_a_mount_at_our_own_place_lets_in_root_only(m: Machine) -> None:
    su(m, "create", "x")
    m.live("/run/snap-upgrade/mnt").mkdir(parents=True)
    m.live("/run/snap-upgrade/mnt").chmod(0o755)
    place = su(m, "mount", "x").stdout.strip()
    assert m.live(f"{place}/usr/bin").is_dir()
    assert "nosuid" not in m.run(["findmnt", "-no", "OPTIONS", place]).stdout
    assert m.run(["/usr/bin/python3", "-IS", "-c", AS_NOBODY + REACH, f"{place}/usr/bin"]).stdout == "kept out\n"


def test_the_proposal_is_out_of_reach_as_apt_leaves_it(m: Machine) -> None:
    m.path("/etc/snap-upgrade.conf").write_text("policy = proposal\n")
    m.run([*INSTALL, "bad"], check=False)
    settle(m)
    (place,) = names(m)["before-1"]["mountpoints"]
    assert m.live(f"{place}/usr/bin").is_dir()
    assert m.run(["/usr/bin/python3", "-IS", "-c", AS_NOBODY + REACH, f"{place}/usr/bin"]).stdout == "kept out\n"
    su(m, "unmount", "before-1")
    assert not m.live(place).exists()


def test_a_shell_in_a_root_that_fails_does_not_hold_up_the_machine(m: Machine) -> None:
    su(m, "create", "other")
    su(m, "mount", "other", "/mnt")
    m.run(["mkfifo", "/run/gate"])
    shell = m.popen(["sh", "-c", "cd /mnt && touch /run/in && exec cat /run/gate"])
    m.wait_for_file("/run/in")
    told = su(m, "-R", "/mnt", "install", "-y", "bad", code=6).stderr
    rows = names(m)
    (kept,) = (name for name, row in rows.items() if row["state"] == "failed")
    assert f"is still in what failed, which is kept as {kept}" in told
    assert "cat (process " in told
    assert rows["other"]["mountpoints"] == ["/mnt"]
    assert not m.live("/mnt/var/lib/dpkg/info/bad.list").exists()
    su(m, "create", "more")
    refused = su(m, "destroy", "-y", kept, code=3).stderr
    assert "cat (process " in refused
    assert kept in names(m)
    su(m, "status")
    m.live("/run/gate").write_text("leave")
    shell.wait(timeout=20)
    su(m, "destroy", "-y", kept)
    assert kept not in names(m)


def crowd(folder: Path) -> None:
    """Make files whose content lies in the metadata until none fits."""
    folder.mkdir()
    for size in (2000, 1):
        number = 0
        while True:
            try:
                (folder / f"{size}-{number}").write_bytes(os.urandom(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                break
            number += 1


def test_an_activation_asks_for_room_for_metadata_first(tmp_path: Path) -> None:
    with Machine(tmp_path, size="1G") as m:
        su(m, "create", "x")
        m.fill(0)
        crowd(m.top / "crowd")
        before = m.subvolumes()
        for words in (("activate", "x"), ("rollback", "x")):
            assert "left for metadata" in su(m, *words, code=3).stderr
        assert m.subvolumes() == before
        su(m, "recover", code=4)
