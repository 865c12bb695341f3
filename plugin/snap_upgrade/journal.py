"""The write-ahead journal: a step is on disk as started before it touches anything.

One file per open transaction, outside every environment so that no roll back takes it along.
A last line that is short or fails its checksum was torn by a crash and counts as never written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snap_upgrade.core import wire
from snap_upgrade.core.errors import NotFound, SnapUpgradeError, StateDamaged
from snap_upgrade.core.plan import PARTS
from snap_upgrade.core.steps import Step, from_json
from snap_upgrade.system import failpoint, files

VERSION = 1
SUFFIX = ".json"  # of closed transactions
ASIDE = ".damaged"  # of those that a person put aside

# What every line must have; a kind that is not here was written by a version that knows more.
_BEGIN: dict[str, type] = {"id": str, "flow": str, "plan": list}
_MAY_LACK: dict[str, Any] = {"request": [], "since": {}}
_OPTIONAL: dict[str, type] = {"request": list, "since": dict}
_STEP: dict[str, type] = {"step": int}
_SHAPES: dict[str, dict[str, type]] = {
    "started": _STEP,
    "done": {"step": int, "result": dict},
    "failed": _STEP,
    "undoing": _STEP,
    "undone": _STEP,
    "request": {"request": list},
    "post": {},
    "released": {},
    "verdict": {"verdict": str, "reasons": list},
    "decide": {"plan": list},
    "end": {"outcome": str, "exit": int},
}

# What a crash can leave of a first line; anything else in a file of one line is not ours to remove.
_TORN_BEGIN = re.compile(rb"[0-9a-f]{0,8}|[0-9a-f]{8} (\{.*\n?)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that a transaction belongs to; *start* tells it from a later one with the same number."""

    pid: int
    start: int
    name: str


@dataclass(slots=True)
class Entries:
    """A journal as read: the ``begin`` line, and what came after it."""

    begin: dict[str, Any]
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ident(self) -> str:
        """The number of the transaction."""
        return str(self.begin["id"])

    @property
    def flow(self) -> str:
        """What kind of transaction it is."""
        return str(self.begin["flow"])

    @property
    def owner(self) -> Owner:
        """Who runs it, or ran it."""
        data = self.begin.get("owner") or {"pid": 0, "start": 0}
        return Owner(data["pid"], data["start"], str(data.get("name", "")))

    def steps(self) -> list[Step]:
        """Return the steps of the plan and, numbered on, those of the decision."""
        plans = [self.begin["plan"]] + [line["plan"] for line in self.lines if line["kind"] == "decide"]
        return [from_json(step) for plan in plans for step in plan]

    def numbers(self, kind: str) -> list[int]:
        """Return the steps that have a line of *kind*, oldest line first."""
        return [int(line["step"]) for line in self.lines if line["kind"] == kind]

    def last(self, kind: str) -> dict[str, Any] | None:
        """Return the newest line of *kind*, or None."""
        return next((line for line in reversed(self.lines) if line["kind"] == kind), None)

    def requests(self) -> list[list[dict[str, Any]]]:
        """Return what was asked of the package manager, one list for each commit that joined."""
        first = [self.begin["request"]] if self.begin.get("request") else []
        return first + [line["request"] for line in self.lines if line["kind"] == "request"]


def parse(content: bytes, name: str) -> tuple[Entries | None, int]:
    """Return the entries of a journal and how many bytes of *content* are whole lines.

    None where not even the first line is whole: the transaction never began.
    Raises StateDamaged for a bad line before the last, an unknown version and lines that are not ours.
    """
    lines: list[dict[str, Any]] = []
    good = 0
    # Not splitlines(): a carriage return is no end of a line of ours, it can only be part of a torn one.
    pieces = [piece + b"\n" for piece in content.split(b"\n")]
    pieces[-1] = pieces[-1][:-1]
    pieces = [piece for piece in pieces if piece]
    for number, piece in enumerate(pieces, start=1):
        data = wire.parse_line(piece)
        if data is None:
            if number != len(pieces):
                raise _damaged(name, f"line {number} is damaged, and it is not the last")
            break
        if not isinstance(data, dict):
            raise _damaged(name, f"line {number} is not an entry")
        lines.append(data)
        good += len(piece)
    if not lines:
        if not _TORN_BEGIN.fullmatch(content.rstrip(b"\0")):
            raise _damaged(name, "it is not a journal")
        return None, 0
    return _entries(lines, name), good


def _entries(lines: list[dict[str, Any]], name: str) -> Entries:
    begin = lines[0]
    if begin.get("kind") != "begin":
        raise _damaged(name, f"it begins with {begin.get('kind')!r}")
    if begin.get("version") != VERSION:
        raise _damaged(name, f"its format has the version {begin.get('version')!r}, this program knows {VERSION}")
    if not (_has(begin, _BEGIN) and _has({**_MAY_LACK, **begin}, _OPTIONAL) and _is_owner(begin.get("owner"))):
        raise _damaged(name, "its first line lacks what every transaction has")
    if begin["flow"] == "alternate-root" and not _has(begin, {"name": str, "path": str, "directory": str}):
        raise _damaged(name, "it does not say which root it works on")
    if begin["id"] != name.removesuffix(SUFFIX):
        raise _damaged(name, f"it is the journal of transaction {begin['id']}")
    entries = Entries(begin, lines[1:])
    for number, line in enumerate(entries.lines, start=2):
        kind = line.get("kind")
        shape = _SHAPES.get(kind) if isinstance(kind, str) else None
        if shape is None:
            raise _damaged(name, f"line {number} is a {kind!r}, which this program does not know")
        if not _has(line, shape):
            raise _damaged(name, f"line {number}, a {kind!r}, lacks what it must have")
    total = len(entries.steps())
    for line in entries.lines:
        if "step" in line and (type(line["step"]) is not int or not 0 <= line["step"] < total):
            raise _damaged(name, f"it speaks of a step {line['step']!r} that no plan has")
    return entries


def _has(line: dict[str, Any], shape: dict[str, type]) -> bool:
    return all(isinstance(line.get(key), kind) for key, kind in shape.items())


def _is_owner(owner: object) -> bool:
    """Whether *owner* names a process, or is left out."""
    return owner is None or (isinstance(owner, dict) and _has(owner, {"pid": int, "start": int}))


def _damaged(name: str, why: str) -> StateDamaged:
    return StateDamaged(
        f"the journal {name} cannot be understood: {why}; it is kept as it is",
        f"snap-upgrade recover --abandon {name.removesuffix(SUFFIX)}",
    )


class Journal:
    """An open journal: entries as read, and a descriptor to append to."""

    def __init__(self, path: Path, entries: Entries) -> None:
        self.path = path
        self.entries = entries

    @classmethod
    def create(cls, state: Path, compose: Callable[[str], dict[str, Any]]) -> Journal:
        """Begin a transaction under the next free number, durably; *compose* returns the first line from its number."""
        with files.told("write into", state / "journal"):
            return cls._create(state, compose)

    @classmethod
    def _create(cls, state: Path, compose: Callable[[str], dict[str, Any]]) -> Journal:
        folder = state / "journal"
        number = next_number(state)
        failpoint.reach("journal.create.before")
        while True:
            try:
                descriptor = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                break
            except FileExistsError:
                number += 1
        try:
            begin = {"kind": "begin", "version": VERSION, "id": str(number), **compose(str(number))}
            failpoint.reach("journal.create.empty")
            files.write_all(descriptor, wire.line(begin))
            os.fsync(descriptor)
            files.sync_dir(folder)
            failpoint.reach("journal.create.after")
        except (OSError, SnapUpgradeError):
            # Whoever is told that nothing began must not find it begun, and carried out by the next recovery.
            (folder / str(number)).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return cls(folder / str(number), Entries(begin))

    @classmethod
    def open(cls, path: Path) -> Journal | None:
        """Return the journal at *path*; None if its first line was never whole (nothing had been touched)."""
        entries, _ = parse(path.read_bytes(), path.name)
        return None if entries is None else cls(path, entries)

    def append(self, kind: str, **data: Any) -> None:
        """Append a line durably, after cutting off one that a crash tore."""
        self.append_all([{"kind": kind, **data}])

    def append_all(self, lines: list[dict[str, Any]]) -> None:
        """Append *lines*, of one kind, in one durable write. A crash may leave the first of them, and none half."""
        if not lines:
            return
        kind = lines[0]["kind"]
        failpoint.reach(f"journal.{kind}.before")
        with files.told("write", self.path):
            self._write(lines)
        self.entries.lines += lines
        failpoint.reach(f"journal.{kind}.after")

    def _write(self, lines: list[dict[str, Any]]) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            content = os.pread(descriptor, size, 0)
            _, good = parse(content, self.path.name)
            if good != size:
                os.ftruncate(descriptor, good)
            files.write_all(descriptor, b"".join(wire.line(line) for line in lines))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self, outcome: str, exit_code: int) -> None:
        """Write the end and move the journal among the closed ones.

        With its end a transaction is closed: a first move that fails is no error, for the next recovery moves it.
        """
        is_first = self.entries.last("end") is None
        if is_first:
            self.append("end", outcome=outcome, exit=exit_code)
        try:
            self._move()
        except OSError:
            if not is_first:
                raise

    def _move(self) -> None:
        target = self.path.parent.parent / "history" / f"{self.path.name}{SUFFIX}"
        with files.told("put aside the closed", self.path):
            os.rename(self.path, target)
            self.path, source = target, self.path.parent
            failpoint.reach("journal.moved")
            files.sync_dir(target.parent)
            files.sync_dir(source)


def numbers(folder: Path) -> list[int]:
    """Return the numbers of the transactions in *folder*, smallest first."""
    try:
        stems = {name.removesuffix(SUFFIX).removesuffix(ASIDE).removesuffix(PARTS) for name in os.listdir(folder)}
    except FileNotFoundError:
        return []  # nothing was ever written here
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdecimal())


def next_number(state: Path) -> int:
    """Return the number after the highest ever used; no clock has a part in it.

    Snapshots count as well, or a lost history would give a new transaction the snapshot of an old one.
    """
    used = [number for name in ("journal", "history", "snap") for number in numbers(state / name)]
    return max([0, *used]) + 1


def set_aside(state: Path, ident: str) -> None:
    """Move the journal *ident*, which cannot be understood, out of the way and keep it as it is. It may be closed."""
    target = state / "history" / f"{ident}{ASIDE}"
    try:
        os.rename(state / "journal" / ident, target)
    except FileNotFoundError:
        os.rename(state / "history" / f"{ident}{SUFFIX}", target)
    files.sync_dir(target.parent)
    files.sync_dir(state / "journal")


def open_journals(state: Path) -> Iterator[Journal | StateDamaged]:
    """Yield the open journals, oldest first; a damaged one is yielded as the error that says so.

    A file whose first line is not whole is passed over (see `unbegun`): nothing was touched under its number.
    """
    folder = state / "journal"
    for number in numbers(folder):
        path = folder / str(number)
        try:
            journal = Journal.open(path)
        except FileNotFoundError:
            continue  # closed between the listing and the reading
        except StateDamaged as error:
            yield error
            continue
        if journal is not None:
            yield journal


def unbegun(state: Path) -> list[Path]:
    """Return the files of transactions that never began: their first line is torn."""
    folder = state / "journal"
    found = []
    for number in numbers(folder):
        path = folder / str(number)
        try:
            if parse(path.read_bytes(), path.name)[0] is None:
                found.append(path)
        except (StateDamaged, FileNotFoundError):
            continue
    return found


def read(state: Path, ident: str) -> Entries:
    """Return the transaction *ident*, open or closed; raise NotFound or StateDamaged."""
    if not (ident.isascii() and ident.isdecimal()):
        raise NotFound(f"{ident!r} is not the number of a transaction", "snap-upgrade history")
    for path in (state / "journal" / ident, state / "history" / f"{ident}{SUFFIX}"):
        try:
            entries, _ = parse(path.read_bytes(), path.name)
        except FileNotFoundError:
            continue
        if entries is not None:
            return entries
    raise NotFound(f"there is no transaction {ident}", "snap-upgrade history")


def history(state: Path) -> Iterator[Entries | StateDamaged]:
    """Yield the closed transactions, newest first; a damaged one as the error that says so."""
    for number in reversed(numbers(state / "history")):
        try:
            entries, _ = parse((state / "history" / f"{number}{SUFFIX}").read_bytes(), str(number))
        except FileNotFoundError:
            continue
        except StateDamaged as error:
            yield error
            continue
        if entries is not None:
            yield entries
