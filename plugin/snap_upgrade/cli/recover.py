"""``recover``: finish or take back what was interrupted, and at boot put right what a boot has to.

The rule: it can be cut off and run again, and it tells what became of each transaction. At boot no trouble of ours
keeps the machine from coming up: it is told, and the exit code is honest.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from snap_upgrade import flows, journal, manage
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors
from snap_upgrade.core.names import shown
from snap_upgrade.core.steps import Step, describe
from snap_upgrade.detect import NO_STATE
from snap_upgrade.engine import Engine, Recovered, is_owner_alive

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine

_NOTHING = "nothing was interrupted"


def run_recover(session: Session) -> int:
    """Recover, and say what was done."""
    is_boot = session.options.boot
    try:
        machine = session.machine()
    except errors.Refused as error:
        if not is_boot:
            raise
        raise errors.NothingToDo(f"nothing to recover here: {error.message}") from error
    if machine.state == NO_STATE:
        raise errors.NothingToDo(_NOTHING)
    manage.require_version(machine.state, is_mended=session.options.abandon == manage.VERSION_FILE)
    if session.options.abandon:
        return _abandon(session, machine, session.options.abandon)
    if session.is_dry_run:
        return _preview(session, machine)
    engine = Engine(machine)
    with engine.exclusive(session.command):
        if is_boot:
            with suppress(errors.SnapUpgradeError, OSError):  # tried again after the recovery, and then told
                flows.adopt(machine)  # first: what runs is lived in, whatever the recovery comes to
        done = flows.recover(machine, engine)
        damaged = [found for found in journal.open_journals(machine.state) if isinstance(found, errors.StateDamaged)]
        steps = _after_boot(session, machine, engine) if is_boot else []
        moved = [] if is_boot else manage.follow_moves(machine)
    return _tell(session, done, steps, damaged, moved)


def _after_boot(session: Session, machine: Machine, engine: Engine) -> list[Step]:
    flows.adopt(machine)
    steps = manage.plan_boot(machine, manage.survey(machine))
    if steps:
        # Moving nested subvolumes and returning from one boot are never wrong to finish.
        engine.simple("boot", steps, session.command)
    return steps


def _abandon(session: Session, machine: Machine, ident: str) -> int:
    if ident.isascii() and ident.isdecimal():
        ident = str(int(ident))
    if ident not in _open_idents(machine):
        return _abandon_file(session, machine, ident)
    if session.is_dry_run:
        session.show_plan([], transactions=[{"id": ident, "way": "abandon"}])
        session.out.say(f"transaction {ident} would be closed as it is")
        return errors.EXIT_DONE
    question = f"Close transaction {ident} as it is? What it made stays, nothing is finished or taken back."
    if not (session.options.yes or session.ask(question)):
        return session.finish("nothing was changed", code=errors.EXIT_NOTHING_TO_DO)
    engine = Engine(machine)
    with engine.exclusive(session.command):
        engine.abandon(ident)
    return session.finish(f"transaction {ident} is closed as it was", "snap-upgrade status")


def _open_idents(machine: Machine) -> set[str]:
    return {str(number) for number in journal.numbers(machine.state / "journal")}


def _abandon_file(session: Session, machine: Machine, what: str) -> int:
    """Put aside a closed journal, a record or another small file of ours that cannot be understood."""
    if session.is_dry_run:
        session.show_plan([], files=[what])
        session.out.say(f"{what} would be put aside, if it cannot be understood")
        return errors.EXIT_DONE
    if not (session.options.yes or session.ask(f"Put {what} aside? It is kept, and not looked at any more.")):
        return session.finish("nothing was changed", code=errors.EXIT_NOTHING_TO_DO)
    with Engine(machine).exclusive(session.command):
        manage.set_aside(machine, what)
    return session.finish(f"{what} is put aside", "snap-upgrade status")


def _preview(session: Session, machine: Machine) -> int:
    from snap_upgrade.core import recovery
    from snap_upgrade.engine import progress

    found = []
    for one in journal.open_journals(machine.state):
        if isinstance(one, errors.StateDamaged):
            raise one
        if not is_owner_alive(one.entries):
            way = recovery.decide(one.entries.steps(), progress(one.entries)).way
            found.append({"id": one.entries.ident, "flow": one.entries.flow, "way": way.value})
    steps = manage.plan_boot(machine, manage.survey(machine)) if session.options.boot else []
    if not found and not steps:
        raise errors.NothingToDo(_NOTHING)
    if not session.out.is_json:
        for row in found:
            session.out.text(f"transaction {row['id']} ({shown(row['flow'])}): {_WAYS[row['way']]}")
    session.show_plan(steps, transactions=found)
    return errors.EXIT_DONE


_WAYS = {
    "judge": "judge what the package manager left, and keep a way back if it failed",
    "forward": "finish what was decided",
    "undo": "take it back",
    "end": "close it, nothing is left to do",
}


def _tell(
    session: Session, done: list[Recovered], steps: list[Step], damaged: list[errors.StateDamaged], moved: list[str]
) -> int:
    if damaged:
        for one in done:
            session.out.say(sentence(one))
        raise damaged[0]
    if not (done or steps or moved):
        raise errors.NothingToDo(_NOTHING)
    if session.out.is_json:
        session.out.json({
            "exit_code": errors.EXIT_DONE,
            "transactions": [asdict(one) for one in done],
            "steps": [describe(step) for step in steps],
            "moved": moved,
        })  # fmt: skip
        return errors.EXIT_DONE
    for one in done:
        session.out.say(sentence(one))
    for step in steps:
        session.out.say(f"at boot: {describe(step)}")
    for text in moved:
        session.out.say(text)
    return errors.EXIT_DONE


def sentence(one: Recovered) -> str:
    """Return what became of one transaction."""
    what = {"committed": "was finished", "undone": "was taken back"}.get(one.outcome, f"was closed as {one.outcome}")
    verdict = f", verdict {one.verdict}" if one.verdict else ""
    reasons = f": {'; '.join(one.reasons)}" if one.reasons else ""
    return f"transaction {one.ident} ({one.flow}) {what}{verdict}{reasons}"
