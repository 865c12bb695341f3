"""``diff``: the packages, or the files, in which two environments differ.

The rule: both sides are opened privately and read; nothing is mounted where others see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snap_upgrade import flows, manage
from snap_upgrade.cli.output import columns, plural
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors, plan
from snap_upgrade.core.names import shown
from snap_upgrade.core.packages import PackageChange
from snap_upgrade.packages import open_reader

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine
    from snap_upgrade.records import Inventory

RUNNING = "running"


def run_diff(session: Session) -> int:
    """Print what differs."""
    options = session.options
    machine = session.machine()
    inventory = manage.survey(machine)
    old, new = (resolve(machine, inventory, word) for word in (options.a, options.b))
    if options.files:
        return _files(session, machine, old, new)
    manager = flows.require_manager(machine)
    with machine.storage.opened(old) as before, machine.storage.opened(new) as after:
        changes = sorted(manager.changes(before, after), key=lambda change: change.name)
    if session.out.is_json:
        session.out.json([{"name": one.name, "old": one.old, "new": one.new} for one in changes])
        return errors.EXIT_DONE
    for line in change_lines(changes):
        session.out.text(line)
    if options.changelog:
        _changelogs(session, manager.name, changes)
    session.out.say(summary_of(changes))
    return errors.EXIT_DONE


def _changelogs(session: Session, manager: str, changes: list[PackageChange]) -> None:
    """Print what each new version brings; one that cannot be fetched is told in its place."""
    reader = open_reader(manager)
    for change in changes:
        if change.new is None:
            continue
        try:
            text = reader.changelog(change.name, change.old, change.new.partition(" ")[0])
        except errors.SnapUpgradeError as error:
            text = f"no changelog could be had: {error.message}"
        session.out.text(f"\n{shown(change.name)} {shown(change.new)}")
        for line in text.splitlines():
            session.out.text(f"  {shown(line)}")


def resolve(machine: Machine, inventory: Inventory, word: str) -> str:
    """Return the uuid of what *word* names; a number is a transaction, and means the state before it."""
    if word == RUNNING:
        return machine.storage.layout().running.uuid
    if not word.isdecimal():
        return inventory.find(word).record.uuid
    for name in (plan.snapshot_name(word), plan.way_back_name(word)):
        for owned in inventory.owned:
            if owned.record.name == name:
                return owned.record.uuid
    raise errors.NotFound(f"the state before transaction {word} is not kept", "snap-upgrade list -a")


def _files(session: Session, machine: Machine, old: str, new: str) -> int:
    changes = machine.storage.changed_files(old, new)
    if session.out.is_json:
        session.out.json([{"change": one.change.value, "path": one.path} for one in changes])
        return errors.EXIT_DONE
    count = 0
    for one in changes:
        session.out.text(f"{one.change.value} {shown(one.path)}")
        count += 1
    session.out.say(f"{plural(count, 'file')} changed")
    return errors.EXIT_DONE


def change_lines(changes: list[PackageChange]) -> list[str]:
    """Return a line for each package: its name, its old and its new version, "-" where it is absent."""
    rows = [(change.name, change.old or "-", change.new or "-") for change in changes]
    return columns(("Package", "Old", "New"), rows) if rows else []


def summary_of(changes: list[PackageChange]) -> str:
    """Return how many packages were added, removed and changed."""
    added = sum(change.old is None for change in changes)
    removed = sum(change.new is None for change in changes)
    return (
        f"{plural(len(changes), 'package')}: {added} added, {removed} removed, {len(changes) - added - removed} changed"
    )
