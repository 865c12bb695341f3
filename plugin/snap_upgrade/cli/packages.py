"""``install``, ``remove``, ``upgrade`` and ``run``: package work on the live root or at -R DIR, protected.

The rule: on the live root the package manager has the user's terminal, folder and umask. Our hook stays on: it
finds the transaction around it and writes into it what exactly was asked for, which the verdict needs.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snap_upgrade import flows, manage
from snap_upgrade.cli.diff import change_lines, summary_of
from snap_upgrade.cli.output import columns, human_bytes
from snap_upgrade.cli.progress import Progress
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors, plan
from snap_upgrade.core.names import shown
from snap_upgrade.core.packages import PackageChange, PackagePlan, Request, Verb
from snap_upgrade.packages import open_reader
from snap_upgrade.system import command

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine
    from snap_upgrade.core.steps import Step


def run_install(session: Session) -> int:
    """Install packages."""
    return _package_verb(session, Verb.INSTALL)


def run_remove(session: Session) -> int:
    """Remove packages."""
    return _package_verb(session, Verb.REMOVE)


def run_upgrade(session: Session) -> int:
    """Upgrade packages."""
    return _package_verb(session, Verb.UPGRADE)


def _package_verb(session: Session, verb: Verb) -> int:
    for name in session.options.packages:
        if not name or name.startswith("-"):
            raise errors.UsageError(f"{name!r} is not a package", f"snap-upgrade {verb.value} --help")
    is_live = session.options.root is None
    arguments = ("-y",) if session.options.yes and is_live else ()
    request = Request(verb, tuple(session.options.packages), arguments)
    if not is_live:
        return preview_root(session, request) if session.is_dry_run else at_root(session, request)
    if session.is_dry_run:
        machine = session.machine()
        flows.require_layout(machine)
        return _preview(session, machine, _live_steps(machine), request)
    machine = session.machine_to_write(_check)
    argv = flows.require_manager(machine).live_command(request)
    return session.finish_result(flows.live(machine, session.command, lambda: foreground(session, argv)))


def _check(machine: Machine) -> None:
    flows.require_manager(machine)
    flows.require_layout(machine)


def foreground(session: Session, argv: list[str], folder: str = "/") -> int:
    """Run *argv* on the user's terminal with the user's umask, and return its exit status.

    With --json what it prints goes to standard error: standard output is for the result.
    """
    previous = os.umask(session.umask)
    own_output = os.dup(1)
    try:
        if session.out.is_json:
            os.dup2(2, 1)
        return command.interact(argv, cwd=folder)
    except OSError as error:
        # A script whose interpreter is not there, a file that is no program: Linux says so when it is to begin.
        raise errors.NotStarted(f"{argv[0]} cannot be run: {error.strerror}; nothing was changed") from error
    finally:
        os.dup2(own_output, 1)
        os.close(own_output)
        os.umask(previous)


def at_root(session: Session, request: Request) -> int:
    """Do *request* on the environment mounted at -R DIR."""
    machine = session.machine_to_write(flows.require_manager)
    report = Progress(session.out, not session.options.no_progress)
    try:
        result = flows.alternate_root(machine, session.command, request, report)
    finally:
        report.end()
    return session.finish_result(result)


def preview_root(session: Session, request: Request) -> int:
    """Show what *request* would do on the environment mounted at -R DIR."""
    machine = session.machine()
    manager = flows.require_manager(machine)
    running = machine.storage.layout().running.uuid
    target = next(owned for owned in manage.survey(machine).owned if owned.record.uuid == running)
    return _preview(session, machine, plan.alternate_root("ID", running, target.record.name, manager.name), request)


def run_command(session: Session) -> int:
    """Run any command as a transaction."""
    words = own_arguments(session.options.arguments)
    if not words:
        raise errors.UsageError("run needs a command", "snap-upgrade run -- COMMAND")
    if session.options.clone:
        from snap_upgrade.cli.update import update_with_program

        return update_with_program(session, tuple(words))
    if session.is_dry_run:
        machine = session.machine()
        flows.require_layout(machine)
        session.show_plan(_live_steps(machine), program=words)
        session.out.say(f"what works on the live root is: {shown(shlex.join(words))}")
        return errors.EXIT_DONE
    machine = session.machine_to_write(_check)
    flows.require_manager(machine)
    argv = [_program(session, words[0]), *words[1:]]
    return session.finish_result(
        flows.live(machine, session.command, lambda: foreground(session, argv, session.folder), is_any_command=True)
    )


def _program(session: Session, word: str) -> str:
    """Return the program *word*: a path is the caller's, a bare name is looked up on the fixed PATH."""
    if "/" not in word:
        return command.find_program(word)
    path = Path(session.folder, word)
    why = "there is no such file" if not path.exists() else "it is no file" if not path.is_file() else ""
    if not why and not os.access(path, os.X_OK):
        why = "it is not executable"
    if why:
        raise errors.FailedUnchanged(
            f"{path} cannot be run: {why}; nothing was changed", f"ls -l {shlex.quote(str(path))}"
        )
    return str(path)


def own_arguments(words: list[str]) -> list[str]:
    """Return the words after ``--``."""
    return words[1:] if words[:1] == ["--"] else words


def _live_steps(machine: Machine) -> list[Step]:
    name = machine.manager.name if machine.manager else ""
    return plan.live("ID", machine.storage.layout().running.uuid, name)


def _preview(session: Session, machine: Machine, steps: list[Step], request: Request) -> int:
    """Show the steps, and what the package manager would do: simulated, nothing is written."""
    planned = flows.require_manager(machine).plan(flows.here(machine), request)
    session.show_plan(steps, **plan_data(planned))
    show_package_plan(session, planned)
    return errors.EXIT_DONE


def plan_data(planned: PackagePlan) -> dict[str, Any]:
    """Return what the package manager would do, for scripts."""
    return {
        "changes": [{"name": one.name, "old": one.old, "new": one.new} for one in planned.changes],
        "download_bytes": planned.download_bytes,
        "unpack_bytes": planned.unpack_bytes,
    }


def detail_lines(session: Session, changes: list[PackageChange]) -> list[str]:
    """Return a line for each package with what it weighs and why it is there, as the package manager knows it."""
    machine = session.machine()
    reader = open_reader(flows.require_manager(machine).name)
    rows = []
    for change in changes:
        weight = ("-", "-")
        if change.new is not None and reader.candidate(machine.root, change.name) == change.new:
            download, installed = reader.sizes(machine.root, change.name)
            weight = (human_bytes(download), human_bytes(installed))
        why = "new" if change.old is None else reader.why(machine.root, change.name)
        rows.append((change.name, change.old or "-", change.new or "-", *weight, why))
    return columns(("Package", "Old", "New", "Download", "Installed", "Why"), rows)


def show_package_plan(session: Session, planned: PackagePlan) -> None:
    """Print what the package manager would do."""
    if session.out.is_json:
        return
    changes = list(planned.changes)
    for line in detail_lines(session, changes) if session.options.verbose else change_lines(changes):
        session.out.text(line)
    size, growth = human_bytes(planned.download_bytes), human_bytes(planned.unpack_bytes)
    session.out.say(f"{summary_of(changes)}; {size} to download, {growth} more on disk")
