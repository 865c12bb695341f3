"""Power cuts for tests: log every write, flush and discard of a device in use, and rebuild what a cut would have left.

The rule: a state is made from the base image and the log, never from the image that was written. What a flush in the
log covers is in every later state; what it does not cover may be there, be missing, or be torn at 4 KiB.

    reflink(image, base)                                    # before: the state at the start
    with LoggedDevice(image, log_dir) as dev, mounted_device(dev.path) as root:
        work(root, step=dev.mark)                           # dev.mark("activated"): all that came before is in the log
    log = BlockLog(log_dir)
    with Replay(base, log, scratch) as replay:
        for cut in cuts(log, 200, seed=1):
            with replay.mounted(cut) as root:               # mount replays the log tree, as a boot would
                ...
"""

import mmap
import os
import random
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.lab import blockdev
from tests.lab.blockdev import reflink, sparse_copy
from tests.lab.fuseserver import DISCARD, FLUSH, MARK, RECORD, WRITE, write_all, zero_range
from tests.lab.served import ServedDevice

Model = Literal["prefix", "volatile"]
MODELS: tuple[Model, ...] = ("prefix", "volatile")
_TORN = 4096  # the sector size of btrfs: it never asks for less, and drives of today write so much whole
_NEAR = 3  # how many entries around a flush count as near it

mounted = blockdev.mounted


class LoggedDevice(ServedDevice):
    """``with LoggedDevice(image, log_dir) as dev:`` gives ``dev.path``; *log_dir*, made if absent, gets the log.

    Writes go to *image* as well, so after the block it is the state without a cut.
    """

    def __init__(self, image: Path, log_dir: Path) -> None:
        log_dir.mkdir(exist_ok=True)
        super().__init__(image, log_dir)

    def mark(self, text: str) -> None:
        """Note in the log that *text* is true now: every request answered so far stands before it."""
        self.command(f"mark {text}")


@dataclass(frozen=True)
class Entry:
    """One request, as the device saw it. *position* is where a write's bytes are in the data file."""

    kind: int
    offset: int
    length: int
    position: int


@dataclass(frozen=True)
class Mark:
    """*text* was said when *index* entries were in the log."""

    index: int
    text: str


class BlockLog:
    """A log read back. A record cut short by a killed server was never answered and does not count."""

    def __init__(self, log_dir: Path) -> None:
        self.entries: list[Entry] = []
        self.marks: list[Mark] = []
        self.data_path = log_dir / "data"
        self._flushed = [0]  # numbers of entries, ascending: a flush is the last of so many
        raw = (log_dir / "index").read_bytes()
        whole = len(raw) // RECORD.size * RECORD.size
        with open(self.data_path, "rb") as data:
            for offset, length, position, kind in RECORD.iter_unpack(raw[:whole]):
                if kind == MARK:
                    data.seek(position)
                    self.marks.append(Mark(len(self.entries), data.read(length).decode()))
                    continue
                self.entries.append(Entry(kind, offset, length, position))
                if kind == FLUSH:
                    self._flushed.append(len(self.entries))

    def label(self, index: int) -> str:
        """Return the last mark that is true after the first *index* entries, or "" before any."""
        before = bisect_right(self.marks, index, key=lambda mark: mark.index)
        return self.marks[before - 1].text if before else ""

    def index_of(self, text: str) -> int:
        """Return how many entries stand before the mark *text*."""
        return next(mark.index for mark in self.marks if mark.text == text)

    def flushed(self, index: int) -> int:
        """Return how many of the first *index* entries are safe from a cut: all up to the last flush."""
        return self._flushed[bisect_right(self._flushed, index) - 1]

    def near_flush(self, start: int, stop: int) -> list[int]:
        """Return the numbers of entries from *start* to *stop* at which a flush is close, before or after."""
        near = {at + step for at in self._flushed for step in range(-_NEAR, _NEAR + 1)}
        near |= {mark.index for mark in self.marks}
        return sorted(index for index in near if start <= index <= stop)

    def summary(self) -> str:
        """Say in a line what is in the log."""
        count = {kind: sum(e.kind == kind for e in self.entries) for kind in (WRITE, FLUSH, DISCARD)}
        size = sum(e.length for e in self.entries if e.kind == WRITE)
        return f"{count[WRITE]} writes ({size >> 20} MiB), {count[FLUSH]} flushes, {count[DISCARD]} discards"


@dataclass(frozen=True)
class Cut:
    """The power goes after *index* entries, the last mark being *label*; *seed* decides what a volatile cache keeps."""

    index: int
    model: Model
    seed: int
    label: str


def cuts(
    log: BlockLog, count: int, seed: int, models: Sequence[Model] = MODELS, start: int = 0, stop: int | None = None
) -> list[Cut]:
    """Choose *count* different cuts between entries *start* and *stop*, in the order a Replay does fastest.

    Half of each model's stand near a flush, where the file system commits; the others anywhere. ``prefix`` always has
    both ends. Fewer are returned only if the log has no more states of the models asked for.
    """
    stop = len(log.entries) if stop is None else stop
    rnd = random.Random(seed)
    chosen: set[Cut] = set()
    if "prefix" in models:
        share = count if len(models) == 1 else count // 2
        chosen = {Cut(i, "prefix", 0, log.label(i)) for i in _prefix_points(log, share, rnd, start, stop)}
    if "volatile" in models:
        open_points = [i for i in range(start, stop + 1) if log.flushed(i) < i]
        near = [i for i in log.near_flush(start, stop) if log.flushed(i) < i]
        missing = count - len(chosen) if open_points else 0
        for n in range(missing):
            index = rnd.choice(near if n % 2 and near else open_points)
            chosen.add(Cut(index, "volatile", rnd.getrandbits(48), log.label(index)))
    return sorted(chosen, key=lambda cut: (settled(log, cut), cut.index, cut.model, cut.seed))


def _prefix_points(log: BlockLog, count: int, rnd: random.Random, start: int, stop: int) -> set[int]:
    if count >= stop - start + 1:
        return set(range(start, stop + 1))
    points = {start, stop} if count >= 2 else {stop}
    near = [i for i in log.near_flush(start, stop) if i not in points]
    points |= set(rnd.sample(near, min(len(near), (count - len(points)) // 2)))
    others = [i for i in range(start, stop + 1) if i not in points]
    return points | set(rnd.sample(others, count - len(points)))


def settled(log: BlockLog, cut: Cut) -> int:
    """Return how many entries are in the state of *cut* for certain and in order."""
    return cut.index if cut.model == "prefix" else log.flushed(cut.index)


class Replay:
    """Makes states from *base* and *log*, in files on *scratch*, which must know reflinks (see ``reflink_scratch``).

    Keeps one file that walks forward through the log; a cut is a reflink copy of it. A cut that lies behind starts
    the walk anew, so hand cuts in the order ``cuts`` gives them.
    """

    def __init__(self, base: Path, log: BlockLog, scratch: Path) -> None:
        self.base, self.log, self.scratch = base, log, scratch

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replay-", dir=self.scratch)))
            data = stack.enter_context(open(self.log.data_path, "rb"))
            size = os.fstat(data.fileno()).st_size
            self._data = memoryview(b"")
            if size:
                mapped = stack.enter_context(mmap.mmap(data.fileno(), size, access=mmap.ACCESS_READ))
                self._data = stack.enter_context(memoryview(mapped))
            self._start, self._walker = self._dir / "start", self._dir / "walker"
            sparse_copy(self.base, self._start)
            reflink(self._start, self._walker)
            self._at = 0
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def materialise(self, cut: Cut, out_path: Path) -> None:
        """Write the state of *cut* to the new file *out_path*, on the scratch file system."""
        self._walk(settled(self.log, cut))
        reflink(self._walker, out_path)
        if cut.model == "volatile":
            self._apply_some(out_path, self.log.entries[self._at : cut.index], random.Random(cut.seed))

    @contextmanager
    def state(self, cut: Cut) -> Iterator[Path]:
        """Yield an image in the state of *cut*, deleted afterwards."""
        image = self._dir / "state"
        self.materialise(cut, image)
        try:
            yield image
        finally:
            image.unlink()

    @contextmanager
    def mounted(self, cut: Cut, options: str = "") -> Iterator[Path]:
        """Mount the state of *cut*, as the boot after the cut would."""
        with self.state(cut) as image, blockdev.mounted(image, options=options) as root:
            yield root

    def _walk(self, target: int) -> None:
        if target < self._at:
            self._walker.unlink()
            reflink(self._start, self._walker)
            self._at = 0
        with open(self._walker, "r+b") as file:
            for entry in self.log.entries[self._at : target]:
                self._apply(file.fileno(), entry, entry.length)
        self._at = target

    def _apply_some(self, image: Path, entries: list[Entry], rnd: random.Random) -> None:
        """Apply a random half of *entries* in random order, every fourth of them torn: a cache that lost power."""
        kept = [entry for entry in entries if rnd.random() < 0.5]
        rnd.shuffle(kept)
        with open(image, "r+b") as file:
            for entry in kept:
                torn = entry.length > _TORN and rnd.random() < 0.25
                length = rnd.randrange(_TORN, entry.length, _TORN) if torn else entry.length
                self._apply(file.fileno(), entry, length)

    def _apply(self, fd: int, entry: Entry, length: int) -> None:
        if entry.kind == WRITE:
            write_all(fd, self._data[entry.position : entry.position + length], entry.offset)
        elif entry.kind == DISCARD:
            zero_range(fd, entry.offset, length)


def materialise(base_image: Path, log: BlockLog, cut: Cut, out_path: Path) -> None:
    """Write one state to the new file *out_path*; for many, a Replay is faster by far."""
    with Replay(base_image, log, out_path.parent) as replay:
        replay.materialise(cut, out_path)


@contextmanager
def reflink_scratch(directory: Path, size: int = 64 << 30) -> Iterator[Path]:
    """Mount a fresh btrfs, kept in a sparse file in *directory*, whose files share blocks; gone on leaving."""
    with tempfile.NamedTemporaryFile(prefix="scratch-", suffix=".btrfs", dir=directory) as file:
        file.truncate(size)
        image = Path(file.name)
        make_btrfs(image)
        with blockdev.mounted(image, options="nodatasum,nobarrier,commit=300") as root:
            yield root


def make_btrfs(image: Path, *options: str) -> None:
    """Make a btrfs in the existing file *image*."""
    words = ["/usr/sbin/mkfs.btrfs" if Path("/usr/sbin/mkfs.btrfs").exists() else "/sbin/mkfs.btrfs"]
    _run([*words, "--quiet", "--force", *options, str(image)])


def check(image: Path) -> None:
    """Have ``btrfs check`` read *image*, which is not mounted; an AssertionError carries what it found."""
    _run(["/usr/bin/btrfs", "check", "--readonly", str(image)])


def _run(words: list[str]) -> None:
    done = subprocess.run(
        words, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin"}
    )
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}"
