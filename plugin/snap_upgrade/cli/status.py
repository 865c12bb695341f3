"""``status`` and ``check``: what runs and boots next, what is under way, and what needs attention.

The rule: they only read. The exit code says the worst that was found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snap_upgrade import config, journal, manage
from snap_upgrade.cli import health
from snap_upgrade.cli.history import summary
from snap_upgrade.cli.output import human_bytes, local_time, plural
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors
from snap_upgrade.core.model import Method, Problem
from snap_upgrade.core.names import shown
from snap_upgrade.engine import is_owner_alive

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine
    from snap_upgrade.records import Inventory


def run_status(session: Session) -> int:
    """Print how the machine is."""
    machine = session.machine()
    inventory = manage.survey(machine)
    data = gather(machine, inventory, health.settings_problems(session.settings_error))
    code = worst(machine, [problem["severity"] for problem in data["problems"]])
    if session.out.is_json:
        session.out.json({"exit_code": code, **data})
        return code
    for line in status_lines(data, time.time()):
        session.out.text(line)
    _print_problems(session, data["problems"])
    _print_notes(session, data["notes"])
    return code


def gather(machine: Machine, inventory: Inventory, first: Sequence[Problem] = ()) -> dict[str, Any]:
    """Return the state of the machine, as scripts read it; *first* are problems that are known already."""
    space = machine.storage.space()
    fired, wrong = health.last_fired(machine.state)
    found = [*first, *health.problems(machine, inventory), *wrong]
    hooks = health.hook_files(machine)
    return {
        **selection(machine, inventory),
        "transactions": _open_transactions(machine),
        "packages_at_work": health.packages_at_work(machine) or None,
        "hooks": {
            "installed": not any(problem.severity == health.ERROR for problem in hooks),
            "enabled": machine.config.enabled,
            "last_fired": fired,
            "last_trouble": last_trouble(machine.state),
        },
        "space": {
            "total": space.total,
            "available": space.available,
            "unallocated": space.unallocated,
            "metadata_free": space.metadata_free,
            "pending_volumes": len(machine.storage.pending()),
        },
        "activation": machine.storage.layout().method.value,
        "problems": [problem_data(problem) for problem in found],
        "notes": health.notes(machine),
    }


def last_trouble(state: Path) -> dict[str, Any] | None:
    """Return what last went wrong in a hook where nobody saw it (hook/trouble.py), None if nothing did."""
    try:
        found = json.loads((state / "hook-trouble.json").read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        return {"text": f"hook-trouble.json cannot be understood: {error}"}
    return found if isinstance(found, dict) else {"text": "hook-trouble.json cannot be understood"}


def selection(machine: Machine, inventory: Inventory) -> dict[str, Any]:
    """Return the names of what runs, what boots next, what boots by default, and what is pending.

    A name is None for what is not on record: of what boots next the path says more, None only if nothing boots.
    """
    running = machine.storage.layout().running.uuid
    following = machine.storage.boots_next()
    next_uuid = following.uuid if following else None
    try:
        default = manage.default_uuid(machine)
    except errors.StateDamaged:
        default = None  # it is among the problems

    def name(uuid: str | None) -> str | None:
        owned = inventory.by_uuid(uuid) if uuid else None
        return owned.record.name if owned else None

    return {
        "running": name(running),
        "next": name(next_uuid),
        "default": name(default),
        "pending": name(next_uuid) if next_uuid != running else None,
        "next_path": following.path if following else None,
        "is_pending": following is not None and next_uuid != running,
    }


def _open_transactions(machine: Machine) -> list[dict[str, Any]]:
    found = []
    for one in journal.open_journals(machine.state):
        if not isinstance(one, errors.StateDamaged) and one.entries.last("end") is None:
            owner = one.entries.owner
            found.append({
                **summary(one.entries), "process": owner.pid, "program": owner.name,
                "is_interrupted": not is_owner_alive(one.entries),
            })  # fmt: skip
    return found


def problem_data(problem: Problem) -> dict[str, Any]:
    """Return *problem* as scripts read it."""
    return {"severity": problem.severity, "message": problem.message, "hint": problem.hint}


def status_lines(data: dict[str, Any], now: float) -> list[str]:
    """Return the state as text, without its problems."""
    unknown = "not an environment that snap-upgrade knows"
    following = data["next"] or _unrecorded(data["next_path"])
    lines = [
        f"running:   {shown(data['running'] or unknown)}",
        f"next:      {shown(following)}",
        f"default:   {shown(data['default'] or unknown)}",
        f"pending:   {shown(following)} (snap-upgrade cancel)" if data["is_pending"] else "pending:   nothing",
    ]
    for one in data["transactions"]:
        how = "interrupted" if one["is_interrupted"] else f"at work, {one['program']} (process {one['process']})"
        lines.append(f"open:      transaction {one['id']} ({shown(one['flow'])}), {shown(how)}")
    if data["packages_at_work"]:
        lines.append(f"packages:  being changed by {shown(data['packages_at_work'])}")
    lines.append(f"hooks:     {hooks_text(data['hooks'])}")
    for front_end, when in sorted(data["hooks"]["last_fired"].items()):
        lines.append(f"           {shown(front_end)}: {fired_text(when)}")
    if trouble := data["hooks"].get("last_trouble"):
        where = f"{trouble.get('who', 'a hook')}, transaction {trouble.get('transaction', '?')}"
        lines.append(f"           last trouble: {shown(where)}: {shown(str(trouble.get('text')))} (logs/hook.log)")
    space = data["space"]
    lines.append(
        f"space:     {human_bytes(space['available'])} free of {human_bytes(space['total'])}, "
        f"{human_bytes(space['unallocated'])} unallocated, {human_bytes(space['metadata_free'])} left for metadata"
    )
    if space["pending_volumes"]:
        lines.append(f"           {space['pending_volumes']} destroyed, their space is still coming back")
    return lines


def _unrecorded(path: str | None) -> str:
    """Return what a volume that boots next and is not on record is called."""
    if path is None:
        return "nothing: the volume that would boot is gone"
    return f"the volume {path}, which is not on record" if path else "the top level, which is not on record"


def hooks_text(hooks: dict[str, Any]) -> str:
    """Return whether the hooks are there and do anything."""
    if not hooks["installed"]:
        return "not installed"
    return "installed" if hooks["enabled"] else f"installed, switched off by 'enabled = no' in {config.PATH}"


def fired_text(when: object) -> str:
    """Return when a front end last fired our hooks."""
    if isinstance(when, dict):
        when = when.get("time")
    return f"last fired {local_time(float(when))}" if isinstance(when, int | float) else "unknown"


def _print_problems(session: Session, found: list[dict[str, Any]]) -> None:
    for problem in found:
        word = problem["severity"]
        painted = session.out.paint(f"{word}:", "red" if word == health.ERROR else "yellow")
        session.out.text(f"{painted}{' ' * (10 - len(word))}{shown(problem['message'])}")
        if problem["hint"]:
            session.out.text(f"           {shown(problem['hint'])}")


def _print_notes(session: Session, notes: list[str]) -> None:
    for note in notes:
        session.out.text(f"note:      {shown(note)}")


def run_check(session: Session) -> int:
    """Test the hooks and the layout."""
    machine = session.machine()
    inventory = manage.survey(machine)
    found = health.problems(machine, inventory) + health.hook_effect(machine) + health.last_fired(machine.state)[1]
    code = check_code(machine, found)
    if session.out.is_json:
        session.out.json({"exit_code": code, "problems": [problem_data(problem) for problem in found]})
        return code
    _print_problems(session, [problem_data(problem) for problem in found])
    bad = sum(problem.severity == health.ERROR for problem in found)
    session.out.say(f"{plural(bad, 'error')}, {plural(len(found) - bad, 'warning')}" if found else "all is well")
    return code


def check_code(machine: Machine, found: list[Problem]) -> int:
    """Return what the findings come to."""
    if machine.storage.layout().method is Method.NONE:
        return errors.EXIT_REFUSED
    return worst(machine, [problem.severity for problem in found])


def worst(machine: Machine, severities: list[str]) -> int:
    """Return the exit code for findings of these *severities*."""
    if health.interrupted(machine):
        return errors.EXIT_INTERRUPTED
    return errors.EXIT_NEEDS_PERSON if health.ERROR in severities else errors.EXIT_DONE
