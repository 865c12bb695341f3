"""The commands on environments: create, destroy, activate, mount, rename, describe, pin, prune, roll back, cancel.

The rule: each is a planner of manage.py and a sentence; the sentence says only what the engine has verified.
"""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snap_upgrade import journal, manage
from snap_upgrade.actions import MOUNTS, make_mount_place
from snap_upgrade.cli.output import columns, local_time, plural
from snap_upgrade.cli.parser import PROGRAM
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors
from snap_upgrade.core.names import shown
from snap_upgrade.core.steps import Activate, Destroy, Step, Unmount, describe

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine
    from snap_upgrade.core.retention import Choice
    from snap_upgrade.records import Inventory


def run_create(session: Session) -> int:
    """Clone an environment."""
    options = session.options

    def planner(machine: Machine, inventory: Inventory) -> list[Step]:
        return manage.plan_create(machine, inventory, options.name, options.source, options.description)

    steps = session.do("create", planner)
    if session.is_dry_run:
        return errors.EXIT_DONE
    hint = shlex.join([PROGRAM, "activate", options.name])
    return session.finish(f"{options.name} is made", hint, **_done(steps))


def run_destroy(session: Session) -> int:
    """Destroy environments, after asking."""
    options = session.options
    wanted = list(dict.fromkeys(options.names))

    def planner(machine: Machine, inventory: Inventory) -> list[Step]:
        return manage.plan_destroy(machine, inventory, wanted)

    if not (session.is_dry_run or options.yes or options.force):
        manage.preview(session.machine(), planner)
        if not session.ask(f"Destroy {', '.join(wanted)}? This cannot be taken back."):
            return session.finish("nothing was destroyed", code=errors.EXIT_NOTHING_TO_DO)
    steps = session.do("destroy", planner, needs_layout=False)
    if session.is_dry_run:
        return errors.EXIT_DONE
    return session.finish(f"destroyed {', '.join(wanted)}; the space comes back in the background", **_done(steps))


def run_activate(session: Session) -> int:
    """Choose what boots next."""
    options = session.options

    def planner(machine: Machine, inventory: Inventory) -> list[Step]:
        return manage.plan_activate(machine, inventory, options.name, options.temporary)

    return _activated(session, session.do("activate", planner))


def run_rollback(session: Session) -> int:
    """Boot next into the system as it was."""
    which = session.options.which

    def planner(machine: Machine, inventory: Inventory) -> list[Step]:
        try:
            return manage.plan_rollback(machine, inventory, which)
        except errors.NotFound as error:
            if not which.isdecimal():
                raise
            what = f"there is no transaction {which} that can be gone back before"
            raise errors.NotFound(what, "snap-upgrade list -a") from error

    return _activated(session, session.do("rollback", planner), is_before=which in {"", "last"} or which.isdecimal())


def _activated(session: Session, steps: list[Step], is_before: bool = False) -> int:
    if session.is_dry_run:
        return errors.EXIT_DONE
    step = next(step for step in steps if isinstance(step, Activate))
    machine = session.machine()
    text = f"{step.name} boots next{_replaced(machine, step)}; what runs now stays until the reboot"
    if step.back:
        text = (
            f"the next boot is into {step.name}, once{_replaced(machine, step)}; as soon as it is up, {step.back} is "
            f"made to boot after it, and if it does not come up, {step.name} boots again; what runs now stays until "
            "the reboot"
        )
    text += _before_what(machine, step.name) if is_before else ""
    return session.finish(text + _drift(machine, step.name), "snap-upgrade cancel", **_done(steps))


def _before_what(machine: Machine, name: str) -> str:
    """Return what the transaction was that the environment *name* comes before, as the rest of a sentence."""
    ident = name.split("-")[1]
    try:
        command = str(journal.read(machine.state, ident).begin.get("command") or "")
    except (errors.NotFound, errors.StateDamaged):
        return ""
    return f"; transaction {ident} was: {shown(command)}" if command else ""


def _replaced(machine: Machine, step: Activate) -> str:
    """Return what was pending until now and does not boot any more, as the rest of a sentence."""
    inventory = manage.survey(machine)
    running = inventory.by_uuid(machine.storage.layout().running.uuid)
    is_pending = step.previous not in {"", step.name, step.back, running.record.name if running else ""}
    return f", in the place of {step.previous}, which was pending and does not boot any more" if is_pending else ""


def _drift(machine: Machine, name: str) -> str:
    """Return how far what boots next is from what runs now: nobody shall miss a file and not know where it is.

    It is activated already; that this cannot be counted (no space, say) is told and changes nothing of it.
    """
    inventory = manage.survey(machine)
    running = machine.storage.layout().running.uuid
    following = inventory.find(name).record.uuid
    owner = inventory.by_uuid(running)
    if following == running or owner is None:
        return ""
    try:
        count = sum(1 for _ in machine.storage.changed_files(following, running))
    except errors.SnapUpgradeError as error:
        return f"; how many files differ could not be counted ({error.message})"
    if not count:
        return "; no file of the two differs"
    return (
        f"; {plural(count, 'file')} {'differs' if count == 1 else 'differ'} between the two, and {owner.record.name} "
        f"keeps its own: {shlex.join([PROGRAM, 'diff', '--files', name, owner.record.name])}"
    )


def run_cancel(session: Session) -> int:
    """Let the running environment boot next again."""
    steps = session.do("cancel", manage.plan_cancel)
    if session.is_dry_run:
        return errors.EXIT_DONE
    activated = next(step for step in steps if isinstance(step, Activate))
    gone = [step.name for step in steps if isinstance(step, Destroy)]
    text = f"{activated.name}, which is running, boots next"
    text += f"; destroyed {', '.join(gone)}" if gone else _why_kept(session.machine(), activated.previous)
    return session.finish(text, **_done(steps))


def _why_kept(machine: Machine, name: str) -> str:
    """Return that *name*, which was pending, is still there and why, as the rest of a sentence."""
    inventory = manage.survey(machine)
    pending = next((owned for owned in inventory.owned if owned.record.name == name), None)
    why = manage.why_cancel_keeps(machine, inventory, pending) if pending else None
    return f"; {name} is kept: {why}" if why else ""


def run_mount(session: Session) -> int:
    """Mount an environment and print where."""
    options = session.options
    target = session.path(options.directory) if options.directory else MOUNTS / options.name
    if options.directory and not target.is_dir():
        raise errors.UsageError(f"there is no directory {target}", "make it, or leave it out")
    made: list[Path] = []

    def planner(machine: Machine, inventory: Inventory) -> list[Step]:
        steps = manage.plan_mount(machine, inventory, options.name, target, options.read_only)
        if options.directory and any(target.iterdir()):
            what = f"{target} is not empty, and what is in it would be hidden; nothing was changed"
            raise errors.UsageError(what, f"snap-upgrade mount {shlex.quote(options.name)}")
        if not (options.directory or session.is_dry_run):
            make_mount_place(target)
            made.append(target)
        return steps

    try:
        session.do("mount", planner, needs_layout=False)
    except BaseException:
        for place in made:
            _remove_own_place(place)
        raise
    if session.is_dry_run:
        return errors.EXIT_DONE
    if session.out.is_json:
        return session.finish(f"{options.name} is mounted", name=options.name, mountpoint=str(target))
    session.out.text(shown(str(target)))
    return errors.EXIT_DONE


def _remove_own_place(target: Path) -> None:
    """Remove a directory that was made for a mount and holds none now."""
    if target.parent == MOUNTS and target.is_dir() and not os.path.ismount(target) and not any(target.iterdir()):
        target.rmdir()


def run_unmount(session: Session) -> int:
    """Unmount an environment from wherever it is."""
    which = session.options.which
    place = str(session.path(which)) if "/" in which else which

    def planner(machine: Machine, inventory: Inventory) -> list[Step]:
        return manage.plan_unmount(machine, inventory, place)

    steps = session.do("unmount", planner, needs_layout=False)
    if session.is_dry_run:
        return errors.EXIT_DONE
    unmounted = [step for step in steps if isinstance(step, Unmount)]
    for step in unmounted:
        _remove_own_place(Path(step.target))
    text = ", ".join(f"{step.name} from {step.target}" for step in unmounted)
    return session.finish(f"unmounted {text}", **_done(steps))


def run_rename(session: Session) -> int:
    """Rename an environment."""
    options = session.options

    def planner(machine: Machine, inventory: Inventory) -> list[Step]:
        return manage.plan_rename(machine, inventory, options.old, options.new)

    steps = session.do("rename", planner, needs_layout=False)
    if session.is_dry_run:
        return errors.EXIT_DONE
    return session.finish(f"{options.old} is called {options.new} now", **_done(steps))


def run_describe(session: Session) -> int:
    """Say what an environment is for."""
    return _set(session, "describe", "description", session.options.text, "described")


def run_pin(session: Session) -> int:
    """Keep an environment for good."""
    return _set(session, "pin", "pinned", "yes", "pinned; nothing destroys it until 'snap-upgrade unpin'")


def run_unpin(session: Session) -> int:
    """Take a pin back."""
    return _set(session, "unpin", "pinned", "no", "no longer pinned")


def _set(session: Session, flow: str, field: str, value: str, what: str) -> int:
    name = session.options.name

    def planner(machine: Machine, inventory: Inventory) -> list[Step]:
        return manage.plan_describe(inventory, name, field, value)

    steps = session.do(flow, planner, needs_layout=False)
    return errors.EXIT_DONE if session.is_dry_run else session.finish(f"{name} is {what}", **_done(steps))


# --- prune


def run_prune(session: Session) -> int:
    """Destroy what is beyond what is kept; only what was shown when the question was asked."""
    machine = session.machine()
    choices = manage.choose_prune(machine, manage.survey(machine))
    if session.is_dry_run:
        _show_choices(session, choices)
        return errors.EXIT_DONE if any(choice.is_pruned for choice in choices) else errors.EXIT_NOTHING_TO_DO
    agreed: set[str] | None = None
    if not session.options.yes:
        agreed = {choice.record.name for choice in choices if choice.is_pruned}
        if not agreed:
            raise errors.NothingToDo("nothing to prune")
        if not session.ask(f"Destroy {', '.join(sorted(agreed))}? This cannot be taken back."):
            return session.finish("nothing was destroyed", code=errors.EXIT_NOTHING_TO_DO)
    steps = session.do("prune", partial(_agreed, agreed), needs_layout=False)
    names = [step.name for step in steps if isinstance(step, Destroy)]
    return session.finish(f"destroyed {', '.join(names)}; the space comes back in the background", **_done(steps))


def _agreed(agreed: set[str] | None, machine: Machine, inventory: Inventory) -> list[Step]:
    steps = manage.plan_prune(machine, inventory)
    chosen = [step for step in steps if agreed is None or (isinstance(step, Destroy) and step.name in agreed)]
    if not chosen:
        raise errors.NothingToDo("nothing to prune")
    return chosen


def _show_choices(session: Session, choices: list[Choice]) -> None:
    if session.out.is_json:
        session.out.json([
            {**manage.summary(choice.record), "is_pruned": choice.is_pruned, "reason": choice.reason}
            for choice in choices
        ])  # fmt: skip
        return
    rows = [
        (choice.record.name, choice.record.kind.value, local_time(choice.record.created),
         "destroy" if choice.is_pruned else "keep", choice.reason)
        for choice in choices
    ]  # fmt: skip
    for line in columns(("BE", "Kind", "Created", "Fate", "Reason"), rows):
        session.out.text(line)
    session.out.say(f"{plural(sum(choice.is_pruned for choice in choices), 'volume')} would be destroyed")


def _done(steps: list[Step]) -> dict[str, Any]:
    """Return the steps in words, as scripts get them with every result."""
    return {"steps": [describe(step) for step in steps]}
