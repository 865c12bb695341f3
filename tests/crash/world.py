"""A small machine on a real btrfs, made in milliseconds, with its root at ``@`` or in the default subvolume.

The one rule: what is expected was known before: the trees of version 1 and 2 are made here, not read from a result.
"""

import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import btrfsutil

from snap_upgrade import journal, records
from snap_upgrade.actions import Machine
from snap_upgrade.config import Config
from snap_upgrade.core.errors import StateDamaged
from snap_upgrade.core.model import Kind, Record
from snap_upgrade.core.plan import STATE
from tests.crash import driver
from tests.crash.driver import CONFIG, MANY, NESTED, Ended
from tests.crash.packages import DATA, FILES, STATUS, Scripted, write_version
from tests.lab import kernel
from tests.lab.blockdev import sparse_copy

SIZE = 192 << 20
FIRST = 256  # the number of the first subvolume that was made, the root
NESTED_NUMBER = 257  # and of the second, which is nested in it
USERS = {"home/user.txt": "the user's words\n", f"{NESTED}/data": "docker's layers\n"}
LAYOUTS = ("exchange", "default")


def make(image: Path, layout: str) -> None:
    """Make the file system with a root of version 1, a nested subvolume in it, and nothing of ours."""
    with open(image, "xb") as file:
        file.truncate(SIZE)
    subprocess.run(["/sbin/mkfs.btrfs", "-q", "-U", str(uuid.uuid4()), str(image)], check=True, capture_output=True)
    with opened(image) as (_, top):
        root = top / "@"
        btrfsutil.create_subvolume(str(root))
        for folder in ("var/lib/dpkg", "usr/bin", "etc", "home", "run"):
            (root / folder).mkdir(parents=True)
        (root / "etc/link").symlink_to("three.conf")
        (root / "big").write_bytes(bytes(range(256)) * 1000)
        btrfsutil.create_subvolume(str(root / NESTED))
        for name, text in USERS.items():
            (root / name).write_text(text)
        (root / DATA).touch()
        write_version(root, "1")
        if layout == "default":
            btrfsutil.set_default_subvolume(str(root))


@contextmanager
def opened(image: Path) -> Iterator[tuple[Path, Path]]:
    """Attach *image* and yield its device and a private path to its top level."""
    loop = kernel.Loop(image)
    try:
        fd = kernel.mount_detached(loop.device, "btrfs", {"subvolid": "5"})
        try:
            yield loop.device, kernel.fd_path(fd)
        finally:
            os.close(fd)
    finally:
        loop.close()


def label(root: Path) -> str:
    """Return ``1`` or ``2`` if the tree at *root* is exactly of that version, else ``half``, or ``spoilt``."""
    if hashlib.sha256((root / "big").read_bytes()).digest() != hashlib.sha256(bytes(range(256)) * 1000).digest():
        return "spoilt"
    if (root / "home/user.txt").read_text() != USERS["home/user.txt"] or os.readlink(root / "etc/link") != "three.conf":
        return "spoilt"
    leftover = [path for path in (*root.glob("usr/bin/*"), *root.glob("etc/*")) if path.suffix == ".dpkg-new"]
    for version in ("1", "2"):
        right = all((root / name).read_text() == f"{name} {version}\n" * 50 for name in FILES)
        if right and (root / STATUS).read_text() == f"{version}\n" and not leftover:
            return version
    return "half"


def explain(root: Path) -> list[str]:
    """Return the beginning of every file that has a version."""
    return [f"{name}: {(root / name).read_bytes()[:20] if (root / name).exists() else None!r}" for name in
            (*FILES, STATUS, "home/user.txt")] + sorted(str(path) for path in root.glob("[ue]*/*"))  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What a user sees: environments and snapshots with their tree, what boots, what boots after that."""

    environments: frozenset[tuple[str, ...]]
    boots: str
    then: str


class World:
    """A machine's disk, attached. *place* is a folder for mount points."""

    def __init__(self, device: Path, top: Path, layout: str, place: Path) -> None:
        self.device, self.top, self.layout, self.place = device, top, layout, place
        self.state = top / STATE
        self.clones = False  # whether what ran last lets the nested volume travel along

    def run(self, flow: str, failing: str = "log", *, fails: bool = False, boot: str = "",
            config: Config = CONFIG, read_only: bool = False) -> Ended:  # fmt: skip
        self.clones = bool(config.clone_nested)
        running = None if boot else FIRST  # after another boot the root is what boots, else what always ran
        return driver.run(self.device, self.layout, flow, self.place, failing, fails=fails, boot=boot,
                          subvolid=running, config=config, read_only=read_only)  # fmt: skip

    def run_here(self, flow: str) -> int:
        """Run *flow* in this very process, which must be one made for it: its mounts are gone with it."""
        answer = driver._child(self.device, self.layout, flow, self.place, "", False, "", FIRST, CONFIG, False)
        return int(answer["code"])

    def machine_here(self) -> Machine:
        """Return the machine, in this very process, which must be one made for it."""
        root = driver.enter(self.device, self.layout, self.place, subvolid=FIRST)
        return driver.open_machine(self.device, root, self.layout, Scripted())

    def volumes(self) -> dict[str, str]:
        """Return every volume: uuid to path."""
        with btrfsutil.SubvolumeIterator(str(self.top), top=5, info=True) as found:
            return {info.uuid.hex(): path for path, info in found}

    def boots(self) -> Path:
        """Return the path of what the kernel would mount as the root now."""
        if self.layout == "exchange":
            return self.top / "@"
        path: str = btrfsutil.subvolume_path(str(self.top), btrfsutil.get_default_subvolume(str(self.top)))
        return self.top / path

    def records(self) -> list[Record]:
        found = []
        for path in sorted((self.state / "records").glob("*.json")):
            found.append(records.decode(path.read_bytes()))
        return found

    def summary(self) -> Summary:
        volumes = self.volumes()
        seen = set()
        names = {}
        for one in self.records():
            path = self.top / volumes.get(one.uuid, "gone")
            tree = self.label_of(one, path) if path.name != "gone" else "gone"
            names[one.uuid] = one.name
            seen.add((one.name, one.kind.value, one.state.value, str(one.pinned), str(one.adopted), one.description,
                      tree))  # fmt: skip
        boots = btrfsutil.subvolume_info(str(self.boots())).uuid.hex()
        pointer = self.state / "pointer.json"
        then = json.loads(pointer.read_text())["back_to"] if pointer.exists() else boots
        return Summary(frozenset(seen), names.get(boots, "not ours"), names.get(then, "nobody"))

    def label_of(self, one: Record, path: Path) -> str:
        """Return the version of what is recorded as *one* and lies at *path*, with that of what is nested in it."""
        if one.kind is Kind.PART:
            return (path / Path(DATA).name).read_text().strip()
        tree = label(path)
        return f"{tree} with {self.nested_version(one, path)}" if self.clones and tree != "half" else tree

    def nested_version(self, one: Record, path: Path) -> str:
        """Return the version of the nested volume that belongs to *one*."""
        inside = path / NESTED
        if one.kind is Kind.SNAPSHOT:
            inside = path.with_name(f"{path.name}.parts") / NESTED.replace("/", ":")
        version = inside / Path(DATA).name
        return version.read_text().strip() if version.exists() else "none"

    # -- what must hold

    def check_instant(self, worked_on: str) -> None:
        """What holds at the instant of a kill: what boots is whole, what is called ready is, the user's files are."""
        tree = label(self.boots())
        assert worked_on == "initial" or tree in {"1", "2"}, f"{tree}: {explain(self.boots())}"
        volumes = self.volumes()
        if (self.state / "records").exists():
            for one in self.records():  # decode fails on a record that is half written
                is_whole = one.kind is not Kind.PART and one.state.value == "ready" and one.name != worked_on
                if is_whole and one.uuid in volumes:
                    self._check_whole(one, self.top / volumes[one.uuid])
        nested = [path for path in volumes.values() if (self.top / path / "data").exists()]
        assert len(nested) == 1 or (self.clones and nested)
        assert {(self.top / path / "data").read_text() for path in nested} == {USERS[f"{NESTED}/data"]}
        assert btrfsutil.subvolume_path(str(self.top), NESTED_NUMBER) in nested
        which = [(self.top / path / "which") for path in volumes.values()]
        many = sorted(int(path.read_text()) for path in which if path.exists())
        assert many in ([], list(range(MANY)))

    def _check_whole(self, one: Record, path: Path) -> None:
        tree = label(path)
        assert tree in {"1", "2"}, one
        assert not self.clones or self.nested_version(one, path) == tree, one

    def check_settled(self) -> None:
        """What holds when recovery is over: no journal is open, records are the volumes, nothing is left over."""
        assert list((self.state / "journal").iterdir()) == []
        assert not any(isinstance(found, StateDamaged) for found in journal.history(self.state))
        volumes = self.volumes()
        known = {one.uuid: one for one in self.records()}
        own = btrfsutil.subvolume_path(str(self.top), NESTED_NUMBER)
        names = [one.name for one in known.values()]
        assert len(names) == len(set(names))
        for one in known.values():
            assert volumes.get(one.uuid) == one.path, one
            assert one.state.value != "building", one
        for ident, path in volumes.items():
            if path.startswith((f"{STATE}/be/", f"{STATE}/snap/")):
                inside = "var/lib/many/" in path or (NESTED in path and not self.clones) or path == own
                assert ident in known or inside, f"{path} is nobody's"
        assert {path.name.removesuffix(".parts") for path in (self.state / "snap").glob("*.parts")} <= {
            Path(path).name for path in volumes.values()}  # fmt: skip
        left = [path for path in self.state.rglob("*") if path.name.endswith(".new") and STATE in str(path)
                and not any(part in {"be", "snap"} for part in path.relative_to(self.state).parts)]  # fmt: skip
        assert left == []
        assert list((self.state / "kept").iterdir()) == []


@contextmanager
def started(master: Path, layout: str, work: Path) -> Iterator[World]:
    """Yield a fresh copy of *master*, attached, in the folder *work*; deleted afterwards."""
    image = work / "disk.img"
    sparse_copy(master, image)
    try:
        with opened(image) as (device, top):
            yield World(device, top, layout, work)
    finally:
        image.unlink()
