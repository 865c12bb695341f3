"""dpkg's database as a value: what is installed, in which state, as of the last dpkg run or the instant it was cut.

The truth is ``status`` *and* the journal in ``updates/``: after an interrupted dpkg ``status`` alone is stale, and
libapt, which reads only that, says so. Nothing here runs a program or writes.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# States in which dpkg wants to be run again; a package in one of them is broken (dpkg(1), PACKAGE STATES).
UNFINISHED = ("half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending")
_ABSENT = ("not-installed", "config-files")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class BadDatabase(Exception):
    """dpkg's database cannot be read, so nothing may be concluded from it."""


class Package:
    """One entry: what dpkg was told to want, and what it reached."""

    __slots__ = ("arch", "flag", "multi_arch", "name", "state", "version", "want")

    def __init__(
        self,
        name: str,
        arch: str,
        version: str,
        want: str = "install",
        flag: str = "ok",
        state: str = "installed",
        multi_arch: str = "",
    ) -> None:
        self.name = name
        self.arch = arch
        self.version = version
        self.want = want
        self.flag = flag
        self.state = state
        self.multi_arch = multi_arch

    @property
    def key(self) -> str:
        """The name in the database, ``name:arch``; dpkg itself lets two architectures share a name."""
        return f"{self.name}:{self.arch}"

    @property
    def is_present(self) -> bool:
        """Whether any of its files may be there; a package with only its conffiles left is gone."""
        return self.state not in _ABSENT

    @property
    def is_broken(self) -> bool:
        """Whether dpkg has to be run again for it, or it has to be installed again. What is not there is not broken."""
        return self.state in UNFINISHED or (self.flag != "ok" and self.state != "not-installed")

    @property
    def reached(self) -> tuple[str, str, str]:
        """What is on disk of it; what is *wanted* is left out, for apt notes that before it has done anything."""
        return (self.version, self.flag, self.state)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Package):
            return NotImplemented
        return self.key == other.key and self.want == other.want and self.reached == other.reached

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Package({self.key} {self.version!r} {self.want} {self.flag} {self.state})"

    def __str__(self) -> str:
        """What is there, for people: ``1.0``, ``1.0 half-configured``, ``nothing``."""
        if self.state == "not-installed":
            return "nothing"
        words = [self.version or "no version"]
        if self.state != "installed":
            words.append(self.state)
        if self.flag != "ok":
            words.append(self.flag)
        return " ".join(words)


class Database(dict[str, Package]):
    """All packages by ``name:arch``, and the names of the files in dpkg's journal that it had not merged yet."""

    __slots__ = ("journal",)

    def __init__(self, packages: Iterable[Package] = (), journal: Iterable[str] = ()) -> None:
        super().__init__()
        for package in packages:
            self[package.key] = package
        self.journal = tuple(journal)

    def named(self, name: str) -> list[Package]:
        """Return the entries of every architecture of *name*."""
        prefix = name + ":"
        return [package for key, package in self.items() if key.startswith(prefix)]


def parse_status(data: bytes) -> Database:
    """Return the database that the text of ``status`` describes. Raises BadDatabase if it is no such text."""
    database = Database()
    for stanza in data.split(b"\n\n"):
        package = _parse_stanza(stanza)
        if package is not None:
            database[package.key] = package
    return database


def merge_updates(database: Database, updates: Iterable[bytes]) -> None:
    """Apply dpkg's journal to *database*, the texts of ``updates/NNNN`` in the order of their numbers."""
    for text in updates:
        for stanza in text.split(b"\n\n"):
            package = _parse_stanza(stanza)
            if package is None:
                continue
            others = [other for other in database.named(package.name) if other.state != "not-installed"]
            # As dpkg does: a package that cannot be there twice replaces its only instance (it changed architecture).
            if len(others) == 1 and not (others[0].multi_arch == package.multi_arch == "same"):
                del database[others[0].key]
            database[package.key] = package


def read_database(admin_dir: int | str) -> Database:
    """Return the database in *admin_dir*, a path or an open folder (``/var/lib/dpkg``), its journal merged in.

    Raises BadDatabase if the status file or a file of the journal cannot be read. A dpkg at work may move its
    journal into ``status`` between two reads; then they are read again.
    """
    try:
        folder = os.open(".", _FOLDER, dir_fd=admin_dir) if isinstance(admin_dir, int) else os.open(admin_dir, _FOLDER)
        try:
            return _read_database(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise BadDatabase(f"cannot read the package database in {admin_dir}: {error}") from error


def _read_database(folder: int) -> Database:
    for _ in range(5):
        names = _journal(folder)
        database = parse_status(_read(folder, "status"))
        try:
            updates = [_read(folder, f"updates/{name}") for name in names]
        except FileNotFoundError:
            continue  # merged meanwhile
        if _journal(folder) == names:
            merge_updates(database, updates)
            database.journal = tuple(names)
            return database
    raise BadDatabase("cannot read the package database: dpkg keeps changing it")


def _parse_stanza(stanza: bytes) -> Package | None:
    """Return the package a stanza is about, None for blank space. Finds the few fields by their fixed spelling.

    dpkg writes each field once and spelled so; continued lines start with a blank and cannot be taken for one.
    """
    name = _field(stanza, b"Package: ")
    if name is None:
        if not stanza.strip():
            return None
        raise BadDatabase(f"the package database has a paragraph without a package: {stanza[:60]!r}")
    status = _field(stanza, b"Status: ") or "unknown ok not-installed"
    words = status.split()
    if len(words) != 3:
        raise BadDatabase(f"the package database has {name} with the status {status!r}")
    return Package(
        name,
        _field(stanza, b"Architecture: ") or "",
        _field(stanza, b"Version: ") or "",
        words[0],
        words[1],
        words[2],
        _field(stanza, b"Multi-Arch: ") or "",
    )


def _field(stanza: bytes, label: bytes) -> str | None:
    if stanza.startswith(label):
        start = len(label)
    else:
        start = stanza.find(b"\n" + label)
        if start < 0:
            return None
        start += len(label) + 1
    end = stanza.find(b"\n", start)
    value = stanza[start:] if end < 0 else stanza[start:end]
    return value.strip().decode("utf-8", "surrogateescape")


def _journal(folder: int) -> list[str]:
    try:
        updates = os.open("updates", _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        return []
    try:
        # Only digits count: dpkg itself ignores what it was still writing (tmp.i).
        return sorted(name for name in os.listdir(updates) if name.isascii() and name.isdigit())
    finally:
        os.close(updates)


def _read(folder: int, path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        chunks = []
        while chunk := os.read(fd, 1 << 20):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(fd)
