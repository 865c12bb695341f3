"""``image-update``, and ``run --clone``: work in a clone while the system runs.

The rule: the machine is rebooted only on request, and only after success was verified.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from snap_upgrade import config, flows, manage
from snap_upgrade.cli.diff import change_lines, summary_of
from snap_upgrade.cli.packages import at_root, own_arguments, plan_data, preview_root, show_package_plan
from snap_upgrade.cli.progress import Progress
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors, plan
from snap_upgrade.core.packages import Conffiles, PackageChange, Request, Root, Verb
from snap_upgrade.flows import ImageUpdate, Result

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine

# Options of apt-get whose value is the next word.
_WITH_VALUE = frozenset({"-o", "--option", "-c", "--config-file", "-t", "--target-release", "--default-release",
                         "-a", "--host-architecture", "-P", "--build-profiles"})  # fmt: skip


def run_image_update(session: Session) -> int:
    """Upgrade a clone, or with -R the environment mounted there."""
    options = session.options
    words = options.arguments
    if words and words[0] != "--":
        raise errors.UsageError(f"unexpected {words[0]!r}: what is for the package manager comes after --",
                                "snap-upgrade image-update -- ARGUMENTS")  # fmt: skip
    if options.no_activate and options.reboot in {"ask", "now"}:
        raise errors.UsageError("--no-activate and a reboot contradict each other", "leave one of them out")
    if options.root is not None:
        if options.be_name or options.no_activate or options.fresh or options.reboot:
            raise errors.UsageError("with -R the environment itself is updated, there is no clone to name, activate "
                                    "or boot", "leave -R or the other option out")  # fmt: skip
        request = request_of(session)
        return preview_root(session, request) if session.is_dry_run else at_root(session, request)
    name, is_activated = options.be_name, not options.no_activate
    return _update(
        session,
        ImageUpdate(session.command, request_of(session), (), name, is_activated, options.fresh),
        options.reboot,
    )


def request_of(session: Session) -> Request:
    """Return what is asked of the package manager."""
    arguments = tuple(own_arguments(session.options.arguments))
    conffiles = Conffiles(session.options.conffiles or config.load().conffiles)
    return Request(Verb.CUSTOM if has_verb(arguments) else Verb.UPGRADE, (), arguments, conffiles)


def has_verb(arguments: tuple[str, ...]) -> bool:
    """Whether apt-get's *arguments* say what it is to do; options alone only say how."""
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            return True
        if word in _WITH_VALUE:
            next(words, None)
    return False


def update_with_program(session: Session, program: tuple[str, ...]) -> int:
    """Run *program* in a clone that boots next."""
    return _update(session, ImageUpdate(session.command, None, program), "never")


def _update(session: Session, asked: ImageUpdate, reboot: str | None) -> int:
    if session.is_dry_run:
        return _preview(session, asked)
    machine = session.machine_to_write(_check)
    report = Progress(session.out, not session.options.no_progress)
    try:
        result = flows.image_update(machine, asked, report)
    finally:
        report.end()
    _tell(session, result)
    if result.exit_code == errors.EXIT_DONE:
        _reboot(session, reboot or machine.config.reboot, str(result.data["environment"]))
    return result.exit_code


def _check(machine: Machine) -> None:
    flows.require_manager(machine)
    flows.require_layout(machine)


def _tell(session: Session, result: Result) -> None:
    """Say what changed, what is left to a person, and last the one command that takes it back."""
    if not session.out.is_json:
        changes = [PackageChange(**one) for one in result.data["changes"]]
        if session.options.verbose:
            for line in change_lines(changes):
                session.out.say(line)
        session.out.say(summary_of(changes))
        for reason in result.data["reasons"]:
            session.out.say(f"note: {reason}")
        for kept in result.data["kept_conffiles"]:
            session.out.say(f"kept your {kept}; look whether the package's own should be merged into it")
    session.finish_result(result)


def _reboot(session: Session, when: str, name: str) -> None:
    if when == "never":
        return
    if when == "ask" and not session.options.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            session.out.note("there is no terminal to ask on: reboot when it suits you")
            return
        if not session.ask(f"Reboot into {name} now?"):
            return
    from snap_upgrade.system import command

    argv = ["systemctl", "reboot"] if os.path.isdir("/run/systemd/system") else ["reboot"]
    try:
        command.run(argv)
    except errors.CommandFailed as error:
        hint = "reboot when it suits you, or take it back with 'snap-upgrade cancel'"
        text = f"{name} boots next, but the reboot was not started: {error.message}"
        raise errors.NeedsPerson(text, hint) from error


def _preview(session: Session, asked: ImageUpdate) -> int:
    """Show the steps, and what the package manager would do in the clone: simulated on its base."""
    machine = session.machine()
    manager = flows.require_manager(machine)
    flows.require_layout(machine)
    base, following, name = flows.choose(machine, manage.survey(machine), asked)
    steps = plan.image_update("ID", base.record.uuid, name, manager.name)
    steps += plan.after_image_update(
        "ID", "success", name, following.record.name, asked.is_activated, machine.config.rules()
    )
    if asked.request is None:
        session.show_plan(steps, program=list(asked.program))
        return errors.EXIT_DONE
    uuid = base.record.uuid
    with machine.storage.opened(uuid) as path:
        planned = manager.plan(Root(path, partial(machine.storage.mount, uuid)), asked.request)
    session.show_plan(steps, **plan_data(planned))
    show_package_plan(session, planned)
    return errors.EXIT_DONE
