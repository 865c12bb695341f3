"""The story that `make demo` tells: a good install, a bad one and the way back, two image updates.

The rule: every line of output is what a real program printed in a real machine, every claim in between
is checked here, and a claim that does not hold ends the demo with an error.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab.debs import Deb
from tests.lab.machine import Layout, Machine, Result
from tests.lab.repo import Repo
from tests.lab.tree import Entry, differences

# dpkg without the lines that are only for a moving terminal
QUIET = ("-qq", "-o", "Dpkg::Use-Pty=0")
LAYOUTS = {
    "@": Layout(subvol="@"),
    "top-level": Layout(subvol=None, select="default"),
    "default": Layout(subvol="root", select="default"),
    "name with space": Layout(subvol="name with space"),
}


class Broken(Exception):
    """A claim of the story did not hold."""


def folder() -> Path:
    """Return where the machine is kept between runs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "snap-upgrade" / "demo"


class Teller:
    """Prints chapters, runs commands in the machine and shows what they print."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._bold, self._plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")

    def chapter(self, title: str, text: str) -> None:
        """Begin a chapter."""
        print(f"\n{self._bold}== {title}{self._plain}\n\n{textwrap.fill(text, 100)}\n", flush=True)

    def run(self, *argv: str, expect: int | None = 0) -> Result:
        """Run *argv* in the machine and show it as a person would have typed it; its exit status must be *expect*."""
        shown = " ".join(f"'{word}'" if " " in word else word for word in argv if word not in QUIET)
        print(f"{self._bold}root@demo:~# {shown}{self._plain}", flush=True)
        result = self.machine.run(list(argv), check=False, timeout=600)
        for line in (result.stdout + result.stderr).splitlines():
            print(f"  {line}")
        if result.returncode != 0:
            print(f"  [exit status {result.returncode}]")
        if expect is not None and result.returncode != expect:
            raise Broken(f"'{shown}' was to exit with {expect}, and exited with {result.returncode}")
        print(flush=True)
        return result

    def check(self, claim: str, holds: bool) -> None:
        """Say *claim*, or end the demo because it is not so."""
        if not holds:
            raise Broken(claim)
        print(f"  [checked] {claim}", flush=True)


def application(version: str, scripts: dict[str, str] | None = None) -> Deb:
    """Return the demo's own package, which the story upgrades."""
    content = {"/opt/demo/application": f"version {version}\n".encode()}
    return Deb("demo-application", version, files=content, scripts=scripts or {})


def publish(machine: Machine, *debs: Deb) -> None:
    """Make *debs* what the machine's local repository has, beside the mirror."""
    folder = machine.path("/opt/repository")
    shutil.rmtree(folder, ignore_errors=True)
    repo = Repo(folder, "trusted")
    repo.add(*debs)
    repo.publish()
    repo.enable(machine.path("/"), "file:/opt/repository")


def version(machine: Machine) -> str:
    """Return the version of the demo's package that the booted root has."""
    found = machine.run(["dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "demo-application"])
    return found.stdout


def good_install(tell: Teller) -> None:
    """Install a real package and see the restore point."""
    tell.chapter(
        "1. An install that works",
        "Plain apt. The hook takes a snapshot before dpkg touches anything, judges the result from dpkg's database, "
        "and keeps the snapshot as a restore point.",
    )
    tell.machine.run(["apt-get", "update"])
    tell.run("apt-get", "install", "-y", *QUIET, "hello", "demo-application")
    tell.run("snap-upgrade", "history")
    tell.run("snap-upgrade", "list", "-a")
    tell.check("hello from the mirror is installed", tell.machine.path("/usr/bin/hello").exists())


def failing_upgrade(tell: Teller) -> None:
    """Upgrade to a package whose postinst fails; go back by the command that is printed; compare."""
    machine = tell.machine
    tell.chapter(
        "2. An upgrade whose postinst fails",
        "demo-application 2.0 breaks while it is configured. apt leaves the machine half upgraded; snap-upgrade keeps "
        "a bootable clone of the system as it was and prints the one command that goes back.",
    )
    refusal = "#!/bin/sh\necho 'the new database format is not for this machine' >&2\nexit 1\n"
    publish(machine, application("2.0", {"postinst": refusal}))
    machine.run(["apt-get", "update"])
    before = machine.tree_hash()
    failed = tell.run("apt-get", "install", "-y", *QUIET, "demo-application", expect=100)
    printed = re.search(r"snap-upgrade rollback (before-\d+)", failed.stdout + failed.stderr)
    if printed is None:
        raise Broken("the hook did not print the command that goes back")
    tell.check("dpkg's database says it is half done", version(machine) == "2.0 half-configured")
    tell.run("snap-upgrade", "history")
    tell.run(*printed.group(0).split())
    tell.run("snap-upgrade", "list")
    print("  (reboot)\n", flush=True)
    machine.reboot()
    tell.run("snap-upgrade", "list")
    tell.check("the application is version 1.0 and installed", version(machine) == "1.0 installed")
    prove_identical(tell, before, printed.group(1).removeprefix("before-"))


def prove_identical(tell: Teller, before: dict[str, Entry], ident: str) -> None:
    """Compare the booted tree byte for byte, with the snapshot and with the tree before apt was started."""
    machine = tell.machine
    snapshot = machine.tree_hash(f".snap-upgrade/snap/{ident}")
    now = machine.tree_hash()
    tell.check(
        f"all {len(now)} files, with content, owner, mode, times and attributes, are as in the snapshot",
        differences(snapshot, now) == [],
    )
    own = [line for line in differences(before, now) if not is_of_apt(line)]
    tell.check(
        "they are as before apt was started, but for the caches and logs that apt writes before it calls any hook",
        own == [],
    )


def is_of_apt(line: str) -> bool:
    """Whether a line of `differences` is about what apt writes before its hooks run."""
    places = ("var/cache/apt", "var/log/apt", "var/lib/apt", "var/cache/debconf", "var/lib/dpkg/lock")
    return any(place in line for place in places)


def image_update(tell: Teller) -> None:
    """Upgrade a clone while the machine runs, and boot it."""
    machine = tell.machine
    tell.chapter(
        "3. An image update that works",
        "A repaired 2.1 has come out. The upgrade happens in a clone, the running system is not touched, and the clone "
        "boots next.",
    )
    publish(machine, application("2.1"))
    tell.run("snap-upgrade", "image-update", "--be-name", "with-2.1")
    tell.check("the running system still has 1.0", version(machine) == "1.0 installed")
    tell.run("snap-upgrade", "list")
    tell.run("snap-upgrade", "diff", "running", "with-2.1")
    print("  (reboot)\n", flush=True)
    machine.reboot()
    tell.check("after the reboot it has 2.1", version(machine) == "2.1 installed")
    tell.run("snap-upgrade", "status")


def failing_image_update(tell: Teller) -> None:
    """Let an image update fail and see that nothing of it remains."""
    machine = tell.machine
    tell.chapter(
        "4. An image update that fails",
        "3.0 breaks again. This time it broke in a clone: the clone is destroyed, and nothing of it remains.",
    )
    publish(machine, application("3.0", {"postinst": "#!/bin/sh\nexit 1\n"}))
    subvolumes, before = set(machine.subvolumes()), machine.tree_hash()
    tell.run("snap-upgrade", "image-update", expect=5)
    tell.check("no subvolume more or less than before", set(machine.subvolumes()) == subvolumes)
    tell.check("not one file of the running system changed", differences(before, machine.tree_hash()) == [])


def closing(tell: Teller) -> None:
    """Show what is on record, and how to go on."""
    tell.chapter("5. What is on record", "Who did what, what came of it, and what differs.")
    tell.run("snap-upgrade", "list", "--tree")
    tell.run("snap-upgrade", "history")
    tell.run("snap-upgrade", "diff", "--files", "initial", "running")


@contextlib.contextmanager
def kept_machine(release: str, layout: Layout, fresh: bool) -> Iterator[Machine]:
    """Start the machine of the demo, anew or as it was left."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    disk = place / "disk.img"
    if fresh:
        disk.unlink(missing_ok=True)
    with Machine(place, root=release, layout=layout, install="deb", disk=disk, lists=True) as machine:
        yield machine


def story(release: str, layout: Layout) -> None:
    """Tell it all."""
    began = time.monotonic()
    print(f"Making a disposable Debian machine ({release}) with snap-upgrade installed from its package...", flush=True)
    with kept_machine(release, layout, fresh=True) as machine:
        tell = Teller(machine)
        seconds, root = time.monotonic() - began, machine.booted() or "the top level"
        print(f"It runs after {seconds:.0f} s: btrfs on {machine.device}, its root is {root}.")
        publish(machine, application("1.0"))
        for part in (good_install, failing_upgrade, image_update, failing_image_update):
            part(tell)
        closing(tell)
    print(
        f"\nDone in {time.monotonic() - began:.0f} s. The machine is kept in {folder()}:\n"
        "  a shell in it:  tests/demo/run shell\n"
        "  remove it:      tests/demo/run remove",
        flush=True,
    )


def shell(release: str, layout: Layout) -> int:
    """Give the reader a shell in the machine."""
    if not (folder() / "disk.img").exists():
        print("there is no machine yet: run 'make demo' first", file=sys.stderr)
        return 3
    with kept_machine(release, layout, fresh=False) as machine:
        print("A shell as root in the demo's machine; 'exit' ends it and the machine.", flush=True)
        enter = ["nsenter", f"--target={machine.init_pid}", "--mount", "--pid", "--uts", "--ipc", "--root"]
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": os.environ.get("TERM", "dumb"), "HOME": "/root"}
        return subprocess.call([*enter, "--wd=/root", "/bin/bash", "-l"], env=clean)


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story, open a shell or remove the machine."""
    parser = argparse.ArgumentParser(prog="tests/demo/run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", nargs="?", default="story", choices=("story", "shell", "remove"))
    parser.add_argument("--release", default="bookworm", choices=("bookworm", "trixie"))
    parser.add_argument("--layout", default="@", choices=sorted(LAYOUTS))
    arguments = parser.parse_args(argv)
    layout = LAYOUTS[arguments.layout]
    if arguments.action == "remove":
        (folder() / "disk.img").unlink(missing_ok=True)
        return 0
    if arguments.action == "shell":
        return shell(arguments.release, layout)
    try:
        story(arguments.release, layout)
    except Broken as error:
        print(f"\nthe demo ends here, this was to be true and is not: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
