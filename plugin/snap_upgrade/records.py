"""What we know about our volumes: one small file for each, named by its uuid.

The rule: a file that cannot be understood is kept and reported. It is never deleted, and never guessed at.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from snap_upgrade.core.errors import NotFound
from snap_upgrade.core.model import Kind, Problem, Record, State, Volume
from snap_upgrade.core.names import name_problem
from snap_upgrade.system import files

VERSION = 1
ASIDE = ".damaged"  # of a file that a person put aside


def encode(record: Record) -> bytes:
    """Return *record* as its file's content."""
    data = asdict(record) | {"version": VERSION, "kind": record.kind.value, "state": record.state.value}
    return (json.dumps(data, sort_keys=True) + "\n").encode()


def decode(content: bytes) -> Record:
    """Return the record in *content*; raise ValueError, with the reason, for anything else."""
    try:
        data = json.loads(content.decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError("it is not an object")
    version = data.get("version")
    if version != VERSION:
        raise ValueError(f"its format has the version {version!r}, this program knows {VERSION}")
    return _record(data)


def _record(data: dict[str, Any]) -> Record:
    # The path of a root that is the top level itself is empty.
    texts = [data.get(key) for key in ("uuid", "name", "path")]
    if not all(isinstance(text, str) for text in texts) or not all(texts[:2]):
        raise ValueError("uuid, name or path is missing")
    if not all(isinstance(data.get(key, False), bool) for key in ("adopted", "pinned", "lived")):
        raise ValueError("adopted, pinned or lived is neither true nor false")
    # A part's name holds the path inside its environment; any other is a path component, and is used as one.
    problem = None if data.get("kind") == Kind.PART.value else name_problem(data["name"])
    if problem:
        raise ValueError(f"its name cannot be one: {problem}")
    try:
        return Record(
            uuid=data["uuid"],
            kind=Kind(data.get("kind")),
            name=data["name"],
            path=data["path"],
            created=float(data.get("created", 0)),
            origin=_optional(data.get("origin")),
            transaction=_optional(data.get("transaction")),
            state=State(data.get("state")),
            adopted=bool(data.get("adopted", False)),
            pinned=bool(data.get("pinned", False)),
            description=str(data.get("description", "")),
            lived=bool(data.get("lived", False)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a field has no meaning ({error})") from error


def _optional(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


@dataclass(frozen=True, slots=True)
class Owned:
    """A record joined with the volume it speaks of."""

    record: Record
    volume: Volume


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything of ours, and what does not fit together."""

    owned: tuple[Owned, ...]
    missing: tuple[Record, ...]
    problems: tuple[Problem, ...]

    def find(self, name: str) -> Owned:
        """Return what is recorded as *name*; raise NotFound that says whether it ever was there."""
        for owned in self.owned:
            if owned.record.name == name:
                return owned
        if any(record.name == name for record in self.missing):
            hint = f"snap-upgrade destroy {shlex.quote(name)}"
            raise NotFound(f"{name} is recorded, but someone else deleted its volume", hint)
        raise NotFound(f"there is no environment {name!r}", "snap-upgrade list")

    def by_uuid(self, uuid: str) -> Owned | None:
        """Return what has *uuid*, or None."""
        return next((owned for owned in self.owned if owned.record.uuid == uuid), None)

    def names(self) -> set[str]:
        """Return every name in use, those of vanished volumes included."""
        return {owned.record.name for owned in self.owned} | {record.name for record in self.missing}


class Records:
    """The folder of records in the state directory *state*."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "records"

    def read(self) -> tuple[list[Record], list[Problem]]:
        """Return all records by age, and a problem for every file that is not one."""
        found: list[Record] = []
        problems: list[Problem] = []
        for path in sorted(self._folder.iterdir() if self._folder.is_dir() else ()):
            if path.name.startswith(".") or path.name.endswith(ASIDE):
                continue
            try:
                record = decode(path.read_bytes())
                if path.name != f"{record.uuid}.json":
                    raise ValueError("its name is not the uuid it speaks of")
                found.append(record)
            except FileNotFoundError:
                continue  # destroyed between the listing and the reading
            except (ValueError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                text = f"the record {path.name} cannot be understood: {why}; it is kept as it is"
                hint = f"snap-upgrade recover --abandon {shlex.quote(f'records/{path.name}')}"
                problems.append(Problem(text, hint))
        return found, problems

    def join(self, volumes: dict[str, Volume]) -> Inventory:
        """Return the records joined with *volumes* by uuid; what does not match is reported, not guessed."""
        found, problems = self.read()
        owned = [Owned(record, volumes[record.uuid]) for record in found if record.uuid in volumes]
        missing = [record for record in found if record.uuid not in volumes]
        for record in missing:
            text = f"{record.name} is recorded, but its volume is gone: someone else deleted it"
            problems.append(Problem(text, f"snap-upgrade destroy {shlex.quote(record.name)}"))
        for one in owned:
            if one.volume.path != one.record.path:
                text = f"{one.record.name} was moved by someone else from {one.record.path} to {one.volume.path}"
                problems.append(Problem(text, "snap-upgrade recover", "warning"))
        owned.sort(key=lambda one: (one.volume.created_generation, one.record.name))
        return Inventory(tuple(owned), tuple(missing), tuple(problems))

    def enrol(
        self,
        volume: Volume,
        kind: Kind,
        name: str,
        state: State,
        transaction: str,
        origin: str | None,
        description: str = "",
    ) -> None:
        """Record *volume*, which *transaction* made from *origin*; one that is on record at its place is left as is."""
        known = next((record for record in self.read()[0] if record.uuid == volume.uuid), None)
        if known is not None and known.path == volume.path:
            return  # this step was done before a crash
        self.write(
            Record(
                uuid=volume.uuid,
                kind=kind,
                name=name,
                path=volume.path,
                created=time.time(),
                origin=origin,
                transaction=transaction,
                state=state,
                description=description,
            )
        )

    def write(self, record: Record) -> None:
        """Write *record* durably."""
        files.write_durable(self._folder / f"{record.uuid}.json", encode(record))

    def update(self, record: Record, **changes: Any) -> Record:
        """Write *record* with *changes* durably and return it."""
        changed = replace(record, **changes)
        if changed != record:
            self.write(changed)
        return changed

    def drop(self, uuid: str) -> None:
        """Remove the record of *uuid* durably; one that is gone already is fine."""
        files.remove_durable(self._folder / f"{uuid}.json")
