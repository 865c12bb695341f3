"""Debian's snapper, set up in a machine as it is on a real one: its configuration, the system bus, its hooks.

The one rule: a peer is measured at its best and really working; every use of it is checked by what it left on disk.
"""

import os
import select
import shutil
import signal

from tests.bench.meter import Unmeasurable
from tests.lab.machine import Machine

PACKAGES = ("snapper", "dbus", "btrfs-progs")
SNAPSHOTS = "/.snapshots"


def start_bus(machine: Machine) -> None:
    """Start the system bus, which starts snapperd when it is first called."""
    machine.live("/run/dbus").mkdir(exist_ok=True)
    machine.run(["dbus-uuidgen", "--ensure"])
    machine.run(["dbus-daemon", "--system", "--fork", "--nopidfile"])


def set_up_snapper(machine: Machine) -> None:
    """Give the root a snapper configuration, Debian's defaults, and start the bus."""
    # systemd-tmpfiles makes it on a real machine; snapper reads it.
    mtab = machine.path("/etc/mtab")
    if not mtab.is_symlink():
        mtab.symlink_to("../proc/self/mounts")
    machine.run(["snapper", "--no-dbus", "create-config", "/"])
    start_bus(machine)
    machine.run(["snapper", "list"])


def snapper_numbers(machine: Machine) -> set[int]:
    """Return the numbers of the snapshots that snapper has, each with its subvolume really there."""
    folder = machine.path(SNAPSHOTS)
    subvolumes = set(machine.subvolumes())
    prefix = f"{machine.booted()}{SNAPSHOTS}".lstrip("/")
    found = {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()}
    lacking = [number for number in found if f"{prefix}/{number}/snapshot" not in subvolumes]
    if lacking:
        raise Unmeasurable(f"snapper counts snapshots without a subvolume: {lacking}")
    return found


def add_snapper_snapshots(machine: Machine, number: int) -> None:
    """Let snapper have *number* snapshots in all, taken by snapper itself in one shell."""
    missing = number - len(snapper_numbers(machine))
    script = 'for i in $(seq "$1"); do snapper --no-dbus create -d bench || exit 1; done'
    machine.run(["sh", "-c", script, "sh", str(missing)], timeout=900)
    if len(snapper_numbers(machine)) != number:
        raise Unmeasurable(f"snapper has {len(snapper_numbers(machine))} snapshots, not {number}")
    # The daemon keeps a list of its own: it must read the one that we made behind its back.
    restart_snapperd(machine)


def switch_quota(machine: Machine, *, on: bool) -> None:
    """Let the file system count space for snapper, as `snapper setup-quota` does, or not any more."""
    stop_snapperd(machine)
    if on:
        machine.run(["snapper", "--no-dbus", "setup-quota"], timeout=600)
        machine.run(["btrfs", "quota", "rescan", "-w", "/"], timeout=900)
    else:
        machine.run(["btrfs", "quota", "disable", "/"])
        machine.run(["snapper", "--no-dbus", "set-config", "QGROUP="])
    restart_snapperd(machine)


def stop_snapperd(machine: Machine) -> None:
    """End snapperd, as its time limit does; the bus starts another when it is called."""
    for pid, command in machine.processes().items():
        if command.startswith("/usr/sbin/snapperd"):
            fd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(fd, signal.SIGTERM)
                if not select.select([fd], [], [], 60)[0]:
                    raise Unmeasurable("snapperd does not end")
            finally:
                os.close(fd)


def restart_snapperd(machine: Machine) -> None:
    """End snapperd; the bus starts another, which is warm when this returns."""
    stop_snapperd(machine)
    machine.run(["snapper", "list", "--disable-used-space"], timeout=900)


def apt_parts(machine: Machine, name: str, *hooks: str) -> dict[str, str]:
    """Make apt read all its configuration but hooks of snapshot tools, and *hooks* of those.

    Returns the environment with which apt does so: nothing on the root differs between two variants.
    """
    folder = machine.live(f"/run/bench/{name}.conf.d")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in sorted(machine.path("/etc/apt/apt.conf.d").iterdir()):
        if part.name in hooks or part.name not in ("80snapper", "80snap-upgrade", "80floor"):
            shutil.copy(part, folder)
    config = machine.live(f"/run/bench/{name}.conf")
    config.write_text(f'Dir::Etc::Parts "/run/bench/{name}.conf.d";\n')
    return {"APT_CONFIG": f"/run/bench/{name}.conf"}
