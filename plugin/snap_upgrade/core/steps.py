"""The steps that a plan is made of, and what takes each one back.

The rule: a step can be repeated without harm, and names everything it will make before it makes it,
so that whoever finds a half-done one knows what to look for.
Environments and snapshots are named by their record's name; paths are relative to the top level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, assert_never

from snap_upgrade.core.errors import StateDamaged
from snap_upgrade.core.model import State
from snap_upgrade.core.names import shown


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Make a read-only snapshot of the volume *source* (uuid) at *path*, recorded under *name*."""

    kind: ClassVar[str] = "snapshot"
    source: str
    path: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class MakeClone:
    """Make a writable clone of *origin* (a recorded name) at *path*, recorded under *name* with *state*."""

    kind: ClassVar[str] = "clone"
    origin: str
    path: str
    name: str
    state: str = State.BUILDING.value
    description: str = ""


@dataclass(frozen=True, slots=True)
class Packages:
    """Let the package manager work: on the ``live`` root, in the ``clone`` *name*, or on the ``root`` at -R DIR."""

    kind: ClassVar[str] = "packages"
    place: str
    manager: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Seal:
    """Say what became of the environment *name*: it is complete (``ready``), or kept though it ``failed``."""

    kind: ClassVar[str] = "seal"
    name: str
    state: str = State.READY.value


@dataclass(frozen=True, slots=True)
class Activate:
    """Make *name* boot next; *previous* boots next now.

    With *back* it is for one boot, and then *back* boots again. *previous_back* is what was to boot again after
    *previous*: without it, taking back an activation would turn one boot into all boots.
    """

    kind: ClassVar[str] = "activate"
    name: str
    previous: str
    back: str = ""
    previous_back: str = ""


@dataclass(frozen=True, slots=True)
class Promote:
    """Put *good* in the place of *failed*, which is *path*: they change places in one operation, and then names."""

    kind: ClassVar[str] = "promote"
    good: str
    failed: str
    path: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """Destroy what is recorded as *name*, with what we cloned inside it. Cannot be taken back."""

    kind: ClassVar[str] = "destroy"
    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """Call the environment *name* by the name *new*."""

    kind: ClassVar[str] = "rename"
    name: str
    new: str


@dataclass(frozen=True, slots=True)
class Describe:
    """Set one *field* of the record (``description``, ``pinned``) from *old* to *value*."""

    kind: ClassVar[str] = "describe"
    name: str
    field: str
    value: str
    old: str = ""


@dataclass(frozen=True, slots=True)
class Mount:
    """Mount the environment *name* at the directory *target*, where everybody sees it."""

    kind: ClassVar[str] = "mount"
    name: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Unmount:
    """Unmount the environment *name* from *target*."""

    kind: ClassVar[str] = "unmount"
    name: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class CarryNested:
    """Move the volume *uuid*, which nobody cloned, to *path* inside the running root, from *source*."""

    kind: ClassVar[str] = "carry"
    uuid: str
    source: str
    path: str


Step = (
    TakeSnapshot
    | MakeClone
    | Packages
    | Seal
    | Activate
    | Promote
    | Destroy
    | Rename
    | Describe
    | Mount
    | Unmount
    | CarryNested
)

_CLASSES: tuple[type[Step], ...] = (
    TakeSnapshot,
    MakeClone,
    Packages,
    Seal,
    Activate,
    Promote,
    Destroy,
    Rename,
    Describe,
    Mount,
    Unmount,
    CarryNested,
)
_BY_KIND: dict[str, type[Step]] = {cls.kind: cls for cls in _CLASSES}


def to_json(step: Step) -> dict[str, Any]:
    """Return *step* as the journal writes it."""
    return {"step": step.kind, **asdict(step)}


def from_json(data: object) -> Step:
    """Return the step that the journal wrote as *data*; raise StateDamaged if this version does not know it."""
    if not isinstance(data, dict):
        raise StateDamaged("the journal has a step that is not an object")
    cls = _BY_KIND.get(str(data.get("step")))
    if cls is None:
        raise StateDamaged(f"the journal names a step {data.get('step')!r} that this version does not know")
    types = {f.name: bool if f.type == "bool" else str for f in fields(cls)}
    known = set(types)
    unknown = set(data) - known - {"step"}
    if unknown:
        raise StateDamaged(f"the step {cls.kind} has the unknown field {sorted(unknown)[0]!r}")
    wrong = [key for key, value in data.items() if key != "step" and not isinstance(value, types[key])]
    if wrong:
        raise StateDamaged(f"the step {cls.kind} has a {wrong[0]} that is no {types[wrong[0]].__name__}")
    try:
        return cls(**{key: value for key, value in data.items() if key in known})
    except TypeError as error:
        raise StateDamaged(f"the step {cls.kind} is incomplete: {error}") from error


def inverse(step: Step) -> Step | None:
    """Return the step that takes *step* back, or None where there is nothing to take back.

    A destroyed volume does not come back: plans destroy only after their decision, from where they roll forward.
    """
    match step:
        case TakeSnapshot(name=name) | MakeClone(name=name):
            return Destroy(name)
        case Activate(name=name, previous=previous, back=back, previous_back=previous_back):
            return Activate(previous, name, previous_back, back)
        case Promote(good=good, failed=failed, path=path):
            return Promote(failed, good, path)
        case Rename(name=name, new=new):
            return Rename(new, name)
        case Describe(name=name, field=field, value=value, old=old):
            return Describe(name, field, old, value)
        case Mount(name=name, target=target, read_only=read_only):
            return Unmount(name, target, read_only)
        case Unmount(name=name, target=target, read_only=read_only):
            return Mount(name, target, read_only)
        case CarryNested(uuid=uuid, source=source, path=path):
            return CarryNested(uuid, path, source)
        case Packages() | Seal() | Destroy():
            return None
        case _:
            assert_never(step)


def groups(steps: Sequence[Step], numbers: Iterable[int]) -> list[list[int]]:
    """Return the step *numbers* in their order, those together that are done together: moves one after the other.

    Each move is atomic and can be repeated, so many of them can share what makes one durable.
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and all(isinstance(steps[one], CarryNested) for one in (number, found[-1][-1])):
            found[-1].append(number)
        else:
            found.append([number])
    return found


def describe(step: Step) -> str:
    """Return *step* in the user's words, as ``-n`` and the history show it.

    Anybody may have named a volume: what would move a terminal's cursor is made visible.
    """
    return shown(_words(step))


def _words(step: Step) -> str:
    match step:
        case TakeSnapshot(name=name):
            return f"take the snapshot {name}"
        case MakeClone(origin=origin, name=name):
            return f"clone {origin} as {name}"
        case Packages(place=place, name=name):
            return "let the package manager work on " + ("the live root" if place == "live" else name)
        case Seal(name=name, state=state):
            return f"mark {name} " + ("complete" if state == State.READY.value else state)
        case Activate(name=name, back=back):
            return f"make {name} boot next" + (", once" if back else "")
        case Promote(good=good, failed=failed):
            return f"put {good} in the place of {failed}"
        case Destroy(name=name):
            return f"destroy {name}"
        case Rename(name=name, new=new):
            return f"rename {name} to {new}"
        case Describe(name=name, field=field, value=value):
            return f"set the {field} of {name} to {value!r}"
        case Mount(name=name, target=target):
            return f"mount {name} at {target}"
        case Unmount(name=name, target=target):
            return f"unmount {name} from {target}"
        case CarryNested(source=source, path=path):
            return f"move the nested subvolume {source} to {path}"
        case _:
            assert_never(step)
