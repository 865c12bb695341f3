"""The package managers that the contract is held against, each with a real environment of its own.

The rule: a case offers what the suite needs in no package manager's own words.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from snap_upgrade.core.packages import Event, Root
from snap_upgrade.packages import PackageManager
from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.httpd import Status
from tests.system.apt_world import World, temporary_disk


class Case(Protocol):
    """An environment that has ``good`` 1.0 installed, ``good`` 2.0 and ``bad`` (it fails in a script) on offer."""

    manager: PackageManager
    root: Root
    archives: Path
    log: Path
    pristine: Path

    def report(self, event: Event) -> None: ...

    def cut_network(self) -> None: ...


class _AptCase:
    def __init__(self, world: World, pristine: Path) -> None:
        self._world = world
        self.manager: PackageManager = world.apt
        self.root, self.archives, self.log, self.pristine = world.root, world.archives, world.log, pristine
        self.report = world.report
        world.publish(Deb("good"))
        world.install("good")
        world.publish(Deb("good", "2.0"), breaking.fails_in("postinst", "bad"))

    def cut_network(self) -> None:
        self._world.server.fault("*", Status(503))


@contextmanager
def _apt() -> Iterator[Callable[[Path], AbstractContextManager[Case]]]:
    with temporary_disk("bookworm") as disk:

        @contextmanager
        def make(folder: Path) -> Iterator[Case]:
            with World(disk, folder) as world:
                yield _AptCase(world, disk.top / "base")

        yield make


Maker = Callable[[Path], AbstractContextManager[Case]]
MANAGERS: dict[str, Callable[[], AbstractContextManager[Maker]]] = {"apt": _apt}
