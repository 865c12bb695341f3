"""A folder in memory for disks, and the disks that tests begin from, made once."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash import driver, world


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A folder that costs no disk write."""
    path = Path(tempfile.mkdtemp(prefix="crash-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def disks(memory: Path) -> Callable[[str, str], Path]:
    """Return the disk in a layout after some flow has prepared it.

    ``live!``: a live operation that failed; ``cloned:live``: with the nested volume configured to travel along.
    """
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
                    flow = prepared.removeprefix("cloned:")
                    config = driver.CONFIG if flow == prepared else driver.CLONED
                    ended = one.run(flow.rstrip("!"), fails=prepared.endswith("!"), config=config)
                    assert ended.code in {0, 7}, ended
            made[layout, prepared] = image
        return made[layout, prepared]

    return disk


@pytest.fixture
def work(memory: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="work-", dir=memory))
    yield path
    shutil.rmtree(path)
