"""A folder in memory for disks, and the disks that tests begin from, made once."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash import world


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder that costs no disk write."""
    path = Path(tempfile.mkdtemp(prefix="crash-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def disks(memory: Path) -> Callable[[str, str], Path]:
    """Return the disk in a layout after some flow has prepared it (``live!``: a live operation that failed)."""
    made: dict[tuple[str, str], Path] = {}

    def disk(layout: str, prepared: str) -> Path:
        if (layout, prepared) not in made:
            image = memory / f"{layout}-{prepared or 'bare'}.img"
            world.make(image, layout)
            if prepared:
                work = memory / "prepare"
                work.mkdir(exist_ok=True)
                with world.opened(image) as (device, top):
                    one = world.World(device, top, layout, work)
                    ended = one.run(prepared.rstrip("!"), fails=prepared.endswith("!"))
                    assert ended.code in {0, 7}, ended
            made[layout, prepared] = image
        return made[layout, prepared]

    return disk


@pytest.fixture
def work(memory: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="work-", dir=memory))
    yield path
    shutil.rmtree(path)
