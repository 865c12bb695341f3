"""``list``: the environments, which of them runs, which boots next, where they are mounted and what they came from.

The rule: it reads, and waits for nobody. What is half made, failed or gone is never shown as complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from snap_upgrade import manage
from snap_upgrade.cli.output import columns, human_bytes, iso_time, local_time
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors
from snap_upgrade.core.model import Kind, Record, State
from snap_upgrade.core.names import shown

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine
    from snap_upgrade.records import Inventory

HEADER = ("BE", "Active", "Mountpoint", "Space", "Created", "Origin")
MISSING = "missing"
NESTED = "nested"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the list. *state* is that of the record, or ``missing``; *space* is None where it costs to know."""

    name: str
    uuid: str
    kind: str
    active: str
    mountpoints: tuple[str, ...]
    space: int | None
    created: float
    origin: str | None
    origin_uuid: str | None
    transaction: str | None
    state: str
    pinned: bool
    adopted: bool
    description: str
    path: str


def run_list(session: Session) -> int:
    """Print the list."""
    options = session.options
    machine = session.machine()
    inventory = manage.survey(machine)
    rows = gather(machine, inventory, session)
    if options.snapshots:
        rows = [row for row in rows if row.kind == Kind.SNAPSHOT.value]
    elif not options.all:
        rows = [row for row in rows if row.kind == Kind.ENVIRONMENT.value]
    if session.out.is_json:
        session.out.json([asdict(row) for row in rows])
    elif options.is_plain:
        for row in rows:
            session.out.text(plain(row))
    else:
        _print_table(session, lineage(rows) if options.tree else [(0, row) for row in rows])
    if inventory.problems:
        session.out.note("some records and volumes do not match: see 'snap-upgrade status'")
    return errors.EXIT_DONE


def gather(machine: Machine, inventory: Inventory, session: Session) -> list[Row]:
    """Return a row for everything of ours, oldest first, and with ``-a`` for what is nested in it."""
    running = machine.storage.layout().running.uuid
    following = machine.storage.boots_next()
    try:
        default = manage.default_uuid(machine)
    except errors.StateDamaged as error:
        session.out.note(f"{error.message}; see 'snap-upgrade status'")
        default = None
    records = {one.record.uuid: one.record for one in inventory.owned} | {one.uuid: one for one in inventory.missing}
    mounted = machine.storage.mount_points(owned.volume for owned in inventory.owned)
    rows = []
    for owned in inventory.owned:
        record = owned.record
        row = make_row(record, records, machine.storage.exclusive_bytes(record.uuid))
        rows.append(
            replace(
                row,
                active=active_flags(record.uuid, running, following.uuid if following else None, default),
                mountpoints=tuple(str(path) for path in mounted.get(record.uuid, ())),
                path=owned.volume.path,
            )
        )
        if session.options.all and record.kind is Kind.ENVIRONMENT:
            rows += _nested(machine, inventory, record)
    return rows + [replace(make_row(record, records, None), state=MISSING) for record in inventory.missing]


def make_row(record: Record, records: dict[str, Record], space: int | None) -> Row:
    """Return the row of *record*, as of one that is neither active nor mounted."""
    origin = origin_of(record, records)
    return Row(
        name=record.name,
        uuid=record.uuid,
        kind=record.kind.value,
        active="",
        mountpoints=(),
        space=space,
        created=record.created,
        origin=origin.name if origin else None,
        origin_uuid=record.origin,
        transaction=record.transaction,
        state=record.state.value,
        pinned=record.pinned,
        adopted=record.adopted,
        description=record.description,
        path=record.path,
    )


def origin_of(record: Record, records: dict[str, Record]) -> Record | None:
    """Return the environment that *record* came from, through the snapshots between them."""
    seen = {record.uuid}
    current = records.get(record.origin or "")
    while current is not None and current.kind is Kind.SNAPSHOT and current.origin not in seen:
        seen.add(current.uuid)
        above = records.get(current.origin or "")
        if above is None:
            return current
        current = above
    return current


def active_flags(uuid: str, running: str, following: str | None, default: str | None) -> str:
    """Return N for what runs, R for what boots on every reboot, T for what boots at the next one only."""
    flags = "N" if uuid == running else ""
    flags += "R" if uuid == default else ""
    return flags + ("T" if uuid == following and default is not None and following != default else "")


def _nested(machine: Machine, inventory: Inventory, record: Record) -> list[Row]:
    """Return a row for each volume inside *record* that has no record of its own: it is listed and left alone."""
    found = []
    nested = [one for one in machine.storage.nested(record.uuid) if inventory.by_uuid(one.uuid) is None]
    homes = {one.record.uuid: one.volume.path for one in inventory.owned if one.record.kind is Kind.ENVIRONMENT}
    mounted = machine.storage.mount_points(nested) if nested else {}
    for volume in reversed(nested):
        around = (path for path in homes.values() if not path or volume.path.startswith(f"{path}/"))
        if max(around, key=len) != homes[record.uuid]:
            continue  # the top level holds other environments too, and these have their own
        places = tuple(str(path) for path in mounted.get(volume.uuid, ()))
        found.append(
                Row(volume.path, volume.uuid, NESTED, "", places, machine.storage.exclusive_bytes(volume.uuid), 0.0,
                    record.name, record.uuid, None, "", False, False, "not ours, left alone", volume.path)
            )  # fmt: skip
    return found


def lineage(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """Return *rows* with their depth, each under what it was made from; whose origin is not among them stands first."""
    names = {row.uuid for row in rows}
    by_name = {row.name: row.uuid for row in rows}
    children: dict[str | None, list[Row]] = {}
    for row in rows:
        parent = row.origin_uuid if row.origin_uuid in names else by_name.get(row.origin or "")
        children.setdefault(parent if parent != row.uuid else None, []).append(row)
    ordered: list[tuple[int, Row]] = []

    def visit(parent: str | None, depth: int) -> None:
        for row in children.pop(parent, []):
            ordered.append((depth, row))
            visit(row.uuid, depth + 1)

    visit(None, 0)
    # A loop of origins cannot be reached from above: damage, but nothing may be missing from a list.
    for left in [row for rest in children.values() for row in rest]:
        ordered.append((0, left))
    return ordered


def plain(row: Row) -> str:
    """Return *row* for scripts: tabs, "-" for what is not there, bytes, ISO time."""
    cells = (
        shown(row.name),
        row.active or "-",
        ",".join(shown(point) for point in row.mountpoints) or "-",
        "-" if row.space is None else str(row.space),
        iso_time(row.created),
        shown(row.origin) if row.origin else "-",
        row.state or NESTED,
        row.kind,
    )
    return "\t".join(cells)


def marks(row: Row) -> str:
    """Return what a person must know about *row* before relying on it."""
    words = [row.state] if row.state not in {State.READY.value, ""} else []
    words += ["snapshot"] if row.kind == Kind.SNAPSHOT.value else []
    words += [NESTED] if row.kind == NESTED else []
    words += ["pinned"] if row.pinned else []
    return f" ({', '.join(words)})" if words else ""


def origin_text(row: Row) -> str:
    """Return what *row* came from: "2026-11-20, transaction 41"."""
    parts = [row.origin] if row.origin else []
    parts += [f"transaction {row.transaction}"] if row.transaction else []
    return ", ".join(parts) or "-"


def _print_table(session: Session, rows: Sequence[tuple[int, Row]]) -> None:
    table = [
        (
            "  " * depth + row.name + marks(row),
            row.active or "-",
            ", ".join(row.mountpoints) or "-",
            "-" if row.space is None else human_bytes(row.space),
            local_time(row.created),
            origin_text(row),
        )
        for depth, row in rows
    ]
    lines = columns(HEADER, table, right=frozenset({3}))
    session.out.text(session.out.paint(lines[0], "bold"))
    for line, (_, row) in zip(lines[1:], rows, strict=True):
        is_bad = row.state not in {State.READY.value, ""}
        session.out.text(session.out.paint(line, "red") if is_bad else line)
        if session.options.verbose and row.description:
            session.out.text(f"    {shown(row.description)}")
