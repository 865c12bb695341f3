"""A real Debian root in a btrfs subvolume, entered the way the storage enters one, and a repository for it.

The one rule: the code under test runs here, outside; what it works on is a root with the real apt and dpkg in it,
reached only through mounts that nobody else sees.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import btrfsutil

from snap_upgrade.core.packages import Event, Outcome, Request, Root, Verb
from snap_upgrade.packages.apt import Apt
from snap_upgrade.system import chroot, kernel
from snap_upgrade.system.chroot import Finished, Limits
from tests.lab import blockdev, roots
from tests.lab.blocklog import make_btrfs
from tests.lab.debs import Deb
from tests.lab.httpd import Server
from tests.lab.repo import Repo, Signing


class Disk:
    """A btrfs with one pristine root on it."""

    def __init__(self, top: Path, device: Path) -> None:
        self.top = top
        self.device = str(device)
        self._count = 0

    def snapshot(self) -> str:
        """Make a writable snapshot of the pristine root and return its name."""
        self._count += 1
        name = f"env{self._count}"
        btrfsutil.create_snapshot(self.top / "base", self.top / name)
        return name


@contextmanager
def disk(folder: Path, release: str, extra: tuple[str, ...] = ()) -> Iterator[Disk]:
    """Yield a disk with Debian *release* on it."""
    image = folder / f"{release}.img"
    with image.open("wb") as file:
        file.truncate(4 << 30)
    make_btrfs(image)
    with blockdev.attached(image) as device, blockdev.mounted_device(device) as top:
        btrfsutil.create_subvolume(top / "base")
        words = ["tar", "--extract", "--file", str(roots.root_tar(release, extra)), "--directory", str(top / "base")]
        subprocess.run([*words, "--numeric-owner", "--xattrs", "--xattrs-include=*"], check=True)
        (top / "archives").mkdir()
        yield Disk(top, device)


class World:
    """One environment, its repository behind a web server, and everything that was reported."""

    def __init__(self, disk: Disk, folder: Path, signing: Signing = "trusted") -> None:
        self.name = disk.snapshot()
        self._stack = ExitStack()
        number = btrfsutil.subvolume_id(disk.top / self.name)
        volume = kernel.open_volume(disk.device, number)
        self._stack.callback(os.close, volume)
        top = kernel.open_top_level(disk.device)
        self._stack.callback(os.close, top)

        def attach(target: Path) -> None:
            kernel.move_mount(kernel.detached_mount(disk.device, number), str(target))

        self.volume = volume
        self.root = Root(Path(f"/proc/self/fd/{volume}"), attach)
        self.archives = Path(f"/proc/self/fd/{top}/archives/{self.name}")
        self.log = folder / "run.log"
        self.repo = Repo(folder / "repo", signing)
        self.server = self._stack.enter_context(Server(folder / "repo"))
        self.apt = Apt(network_timeout_s=2, retries=0)
        self.events: list[Event] = []

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def path(self, inside: str) -> Path:
        """Return a path of the environment as seen from here."""
        return self.root.path / inside.lstrip("/")

    def publish(self, *debs: Deb) -> None:
        """Put packages into the repository, and make it the environment's only one."""
        self.repo.add(*debs)
        self.repo.publish()
        self.repo.enable(self.root.path, self.server.url, only=True)

    def report(self, event: Event) -> None:
        """Remember *event*."""
        self.events.append(event)

    def inside(self, *argv: str, limits: Limits | None = None) -> Finished:
        """Run a command in the environment."""
        return chroot.run(self.root, list(argv), limits=limits)

    def refresh(self) -> None:
        """Fetch the lists."""
        self.apt.refresh(self.root, self.report)

    def install(self, *packages: str) -> None:
        """Install packages as somebody did before the story begins."""
        self.refresh()
        done = self.inside("apt-get", "install", "-y", *packages)
        assert done.status == 0, done

    def do(self, request: Request) -> Outcome:
        """Do all an image update does with the package manager."""
        self.refresh()
        self.apt.plan(self.root, request)
        self.download(request)
        return self.apply(request)

    def download(self, request: Request) -> None:
        """Fetch what *request* needs."""
        self.apt.download(self.root, request, self.archives, self.report)

    def apply(self, request: Request) -> Outcome:
        """Do *request* with what was fetched."""
        return self.apt.apply(self.root, request, self.archives, self.log, self.report)

    def version(self, package: str) -> str | None:
        """Return what version of *package* there is."""
        return self.apt.installed(self.root.path).get(package)

    def users(self) -> list[str]:
        """Return the processes whose mount namespace has this environment: all that a run could leave."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdecimal():
                try:
                    mounts = Path(f"/proc/{entry}/mountinfo").read_text()
                except (FileNotFoundError, ProcessLookupError, OSError):
                    continue
                if f"/{self.name} / " in mounts or f"/{self.name} /run/snap-upgrade" in mounts:
                    found.append(entry)
        return found


def install(*packages: str) -> Request:
    """Return the request to install *packages*."""
    return Request(Verb.INSTALL, packages)


@contextmanager
def temporary_disk(release: str, extra: tuple[str, ...] = ()) -> Iterator[Disk]:
    """Yield a disk in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="apt-world-") as folder, disk(Path(folder), release, extra) as made:
        yield made
