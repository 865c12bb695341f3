"""One run of the program: what was asked, where it prints, and the machine it works on.

The rule: a command that only reads opens the machine without making anything; one that writes is refused
before the state directory is made.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snap_upgrade.cli.output import Output
from snap_upgrade.core import errors
from snap_upgrade.core.names import shown

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine
    from snap_upgrade.config import Config
    from snap_upgrade.core.steps import Step
    from snap_upgrade.flows import Result
    from snap_upgrade.manage import Planner

# What leads back to a machine that works: none of it may depend on a faultless configuration.
WAYS_BACK = frozenset({"recover", "rollback", "cancel", "activate", "list", "status", "history", "diff"})


@dataclass(slots=True)
class Session:
    """*command* is the command line as the user would type it again; *folder* and *umask* are the caller's.

    *settings_error* is what is wrong with the settings, once the machine was opened all the same.
    """

    options: argparse.Namespace
    out: Output
    command: str
    folder: str
    umask: int
    settings_error: errors.UsageError | None = None

    @property
    def is_dry_run(self) -> bool:
        """Whether nothing may be changed."""
        return bool(self.options.dry_run)

    def path(self, word: str) -> Path:
        """Return the path the caller means by *word*, whose folder is no longer ours."""
        return Path(os.path.realpath(os.path.join(self.folder, word)))

    @property
    def root(self) -> Path:
        """The root to work on."""
        return self.path(self.options.root) if self.options.root is not None else Path("/")

    def machine(self) -> Machine:
        """Return the machine, to read. Nothing is written, no lock is taken."""
        return self._open(create=False)

    def machine_to_write(self, check: Callable[[Machine], object]) -> Machine:
        """Return the machine with its state directory; where there is none yet, *check* may refuse before it is made.

        Where there is one, the check is made under the lock, after recovery, and not here.
        """
        from snap_upgrade import manage
        from snap_upgrade.detect import NO_STATE

        machine = self._open(create=False)
        if machine.state != NO_STATE:
            manage.require_version(machine.state)
            return machine
        check(machine)
        return self._open(create=True)

    def _open(self, create: bool) -> Machine:
        from snap_upgrade.detect import open_machine

        root = self.root
        if not root.is_dir():
            raise errors.UsageError(f"there is no directory {root}", "-R takes where an environment is mounted")
        return open_machine(root, create, self._settings())

    def _settings(self) -> Config:
        """Return the settings; a way back must not hang on a typing error in them, so what leads back warns only."""
        from snap_upgrade.config import Config, load

        try:
            return load()
        except errors.UsageError as error:
            if self.options.command_name not in WAYS_BACK:
                raise
            if self.settings_error is None:
                self.out.note(f"{error.message}; the defaults are used")
            self.settings_error = error
            return Config()

    def do(self, flow: str, planner: Planner, needs_layout: bool = True) -> list[Step]:
        """Plan and run, or with -n only show, a command on environments; return the steps."""
        from snap_upgrade import flows, manage

        if self.is_dry_run:
            machine = self.machine()
            manage.require_version(machine.state)
            steps = manage.preview(machine, planner)
            self.show_plan(steps)
            return steps

        def check(machine: Machine) -> None:
            if needs_layout:
                flows.require_layout(machine)
            manage.preview(machine, planner)

        machine = self.machine_to_write(check)
        return manage.execute(machine, flow, self.command, planner, needs_layout)

    def show_plan(self, steps: list[Step], **more: Any) -> None:
        """Print what would be done; *more* goes into the JSON."""
        from snap_upgrade.core.steps import describe, to_json

        if self.out.is_json:
            self.out.json({"dry_run": True, "steps": [to_json(step) for step in steps], **more})
            return
        for number, step in enumerate(steps, start=1):
            self.out.text(f"{number}. {shown(describe(step))}")

    def finish(self, message: str, hint: str = "", code: int = errors.EXIT_DONE, **data: Any) -> int:
        """Print how it ended, and return the exit code."""
        if self.out.is_json:
            self.out.json({"exit_code": code, "message": message, "hint": hint, **data}, is_line=True)
            return code
        self.out.say(message)
        if hint:
            self.out.say(f"hint: {hint}")
        return code

    def finish_result(self, result: Result) -> int:
        """Print what a flow returned, and return its exit code."""
        return self.finish(result.message, result.hint, result.exit_code, **result.data)

    def ask(self, question: str) -> bool:
        """Ask on the terminal and return whether the answer is yes; raise UsageError if nobody is there."""
        if sys.stdin is None or not sys.stdin.isatty():
            raise errors.UsageError(f"{question} There is no terminal to ask on", "say -y to go on without a question")
        self.out.note(f"{question} [y/N] ")
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
