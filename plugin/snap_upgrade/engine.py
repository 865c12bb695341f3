"""The engine: writes each step down, does it, writes that it is done; takes back or finishes what was cut off.

The rule: what it knows it reads from the journal. It may be killed between any two lines of this file,
and the next run goes on from what is on disk.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snap_upgrade import actions, housekeeping, journal
from snap_upgrade.actions import Machine
from snap_upgrade.core import recovery
from snap_upgrade.core.errors import (
    EXIT_DONE,
    EXIT_INTERNAL,
    EXIT_NEEDS_PERSON,
    EXIT_UNCHANGED,
    CommandFailed,
    FailedUnchanged,
    InternalError,
    InterruptedWork,
    Locked,
    NeedsPerson,
    NotFound,
    Refused,
    SnapUpgradeError,
    StateDamaged,
    StorageError,
    words,
)
from snap_upgrade.core.packages import Outcome
from snap_upgrade.core.recovery import Progress, Way
from snap_upgrade.core.steps import (
    Activate,
    CarryNested,
    Describe,
    Destroy,
    Mount,
    Packages,
    Promote,
    Step,
    TakeSnapshot,
    Unmount,
    describe,
    groups,
    to_json,
)
from snap_upgrade.journal import Entries, Journal
from snap_upgrade.system import failpoint, files, kernel, signals

Work = Callable[[], Outcome]
Decide = Callable[[Entries, str], list[Step]]

RECOVERY_PATIENCE_S = 30.0
# What a front end of apt holds while it is at work. A daemon gives them up and lives on.
_APT_LOCKS = (Path("/var/lib/dpkg/lock-frontend"), Path("/var/cache/apt/archives/lock"))


@dataclass(frozen=True, slots=True)
class Recovered:
    """What recovery did with one transaction; *verdict* is empty where there was nothing to judge."""

    ident: str
    flow: str
    outcome: str
    verdict: str
    reasons: tuple[str, ...]


def progress(entries: Entries) -> Progress:
    """Return what the journal says of its steps."""
    return Progress(
        planned=len(entries.begin["plan"]),
        total=len(entries.steps()),
        started=frozenset(entries.numbers("started")),
        done=frozenset(entries.numbers("done")),
        undone=frozenset(entries.numbers("undone")),
        is_decided=entries.last("decide") is not None,
        is_undoing=bool(entries.numbers("undoing")),
        on_crash=str(entries.begin.get("on_crash", "undo")),
        is_joined=entries.last("request") is not None,
    )


def is_owner_alive(entries: Entries) -> bool:
    """Whether the process that the transaction belongs to still runs, on this boot, and is not done with it."""
    if entries.begin.get("boot_id") != kernel.boot_id() or entries.last("released") is not None:
        return False
    owner = entries.owner
    try:
        is_running = owner.pid > 0 and kernel.process_start(owner.pid) == owner.start
    except (FileNotFoundError, ProcessLookupError):
        return False
    return is_running and not (_is_over(entries) and all(files.lock_pid(path) != owner.pid for path in _APT_LOCKS))


def _is_over(entries: Entries) -> bool:
    """Whether a front end that the hook found at work is done with its part: judged, or never let loose on packages."""
    if entries.begin.get("front_end") in (None, "", "snap-upgrade"):
        return False
    return entries.last("verdict") is not None or 1 not in entries.numbers("started")


def error_hint(error: Exception) -> str:
    """Return what to do about an error of the system."""
    number = getattr(error, "errno", 0)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return "make room with 'snap-upgrade prune'"
    return str(getattr(error, "hint", ""))


class Transaction:
    """One transaction, from its first line to its last. *outcome* is what the package work came to, if it did."""

    def __init__(self, machine: Machine, log: Journal) -> None:
        self._machine = machine
        self.journal = log
        self.outcome: Outcome | None = None

    @property
    def ident(self) -> str:
        """The number of the transaction."""
        return self.journal.entries.ident

    def run(self, work: Work | None = None) -> Outcome | None:
        """Do the plan; *work* is the package manager's step. On any error all is taken back, then it is raised:
        as FailedUnchanged if it has no exit code of its own."""
        try:
            steps = self.journal.entries.steps()
            for group in groups(steps, range(len(steps))):
                if isinstance(steps[group[0]], Packages):
                    self._work(group[0], work)
                else:
                    self._do(group, steps)
            signals.hold()  # what is left is short, and half of it would have to be taken back
        except (Exception, KeyboardInterrupt) as error:
            if self.works_on_what_stays():
                raise  # the package manager may have worked on a root that stays: only a verdict can say
            self._fail_back(error)
            if isinstance(error, OSError | StorageError | CommandFailed):
                raise FailedUnchanged(f"{words(error)}; all of it was undone", error_hint(error)) from error
            raise
        return self.outcome

    def _fail_back(self, error: BaseException) -> None:
        signals.hold()
        code = error.exit_code if isinstance(error, SnapUpgradeError) else EXIT_UNCHANGED
        try:
            self.undo()
            self.journal.close("undone", EXIT_UNCHANGED if code == EXIT_INTERNAL else code)
        except (SnapUpgradeError, OSError) as second:
            raise NeedsPerson(
                f"{words(error)}; taking transaction {self.ident} back failed as well, it stays open: {words(second)}",
                "snap-upgrade recover",
            ) from second

    def works_on_what_stays(self) -> bool:
        """Whether the package manager was let loose on a root that no undo can replace."""
        return any(isinstance(step, Packages) and step.place != "clone" for step in self._begun())

    def close(self, outcome: str, code: int) -> None:
        """Write the end. Raises NeedsPerson if that fails: the transaction is then still open."""
        try:
            self.journal.close(outcome, code)
        except OSError as error:
            raise NeedsPerson(
                f"all of transaction {self.ident} is done, but it stays open, its end could not be written: {error}",
                "snap-upgrade recover",
            ) from error

    def _begun(self) -> list[Step]:
        steps = self.journal.entries.steps()
        return [steps[number] for number in self.journal.entries.numbers("started")]

    def _work(self, number: int, work: Work | None) -> None:
        if work is None:
            raise InternalError("the plan has work for the package manager and nobody does it")
        self.journal.append("started", step=number)
        failpoint.reach("engine.work.started")
        self.outcome = work()
        failpoint.reach("engine.work.done")
        self.journal.append("done", step=number, result={})
        self.judge(self.outcome)

    def judge(self, outcome: Outcome) -> None:
        """Write the verdict down, if none is."""
        if self.journal.entries.last("verdict") is not None:
            return
        # The verdict is on disk at once, what it was read from is not: a cut of the power could take back the work and
        # leave a verdict that then makes half an environment complete.
        self._machine.storage.sync()
        self.journal.append(
            "verdict",
            verdict=outcome.verdict,
            reasons=list(outcome.reasons),
            changes=[[change.name, change.old, change.new] for change in outcome.changes],
            evidence={
                "exit": outcome.exit_status,
                "lines": list(outcome.evidence),
                "kept_conffiles": list(outcome.kept_conffiles),
            },
        )

    def _do(self, group: list[int], steps: list[Step]) -> None:
        """Do the steps of *group* that are not done, with one write before them, one commit and one write after."""
        entries = self.journal.entries
        done, started = set(entries.numbers("done")), set(entries.numbers("started"))
        left = [number for number in group if number not in done]
        fresh = [number for number in left if number not in started]
        for number in fresh:
            actions.check(steps[number], self._machine)
        self.journal.append_all([{"kind": "started", "step": number} for number in fresh])
        results = [self._perform_noted(number, steps[number]) for number in left]
        if left:
            self._settle_noted(left[-1], steps[left[-1]])
        self.journal.append_all(
            [{"kind": "done", "step": number, "result": result} for number, result in zip(left, results, strict=True)]
        )

    def _perform_noted(self, number: int, step: Step) -> dict[str, Any]:
        try:
            failpoint.reach(f"step.{step.kind}.before")
            result = self._perform(step)
            failpoint.reach(f"step.{step.kind}.after")
        except (SnapUpgradeError, OSError) as error:
            self._note_failure(number, error)
            raise
        return result

    def _settle_noted(self, number: int, step: Step) -> None:
        try:
            self._settle(step)
        except (SnapUpgradeError, OSError) as error:
            self._note_failure(number, error)
            raise

    def _note_failure(self, number: int, error: Exception) -> None:
        try:
            self.journal.append("failed", step=number, error=str(error))
        except OSError as second:
            # The line is for the reader of the history; that it is missing must not hide what went wrong.
            error.add_note(f"the journal could not be written either: {second}")

    def _perform(self, step: Step) -> dict[str, Any]:
        if isinstance(step, Mount | Unmount) and self._is_of_another_boot():
            return {"skipped": "a mount does not outlive its boot"}
        if isinstance(step, Destroy) and self._is_of_another_boot() and actions.is_running(self._machine, step.name):
            # Cut off before it took effect, and this is what the machine then booted: it stays.
            return {"skipped": "it is running now"}
        if isinstance(step, Promote):
            actions.promote(step, self._machine, self._made(step.good), str(self._base()))
            result: dict[str, Any] = {}
        else:
            result = actions.do(step, self._machine, self.ident)
        return result

    def _settle(self, step: Step) -> None:
        """Make what *step* and those before it did survive a power cut before the journal says done (or undone)."""
        if not isinstance(step, Mount | Unmount | Describe):
            self._machine.storage.sync()

    def _is_of_another_boot(self) -> bool:
        return self.journal.entries.begin.get("boot_id") != kernel.boot_id()

    def _made(self, name: str) -> str:
        """Return the uuid of what this transaction made under *name*."""
        steps = self.journal.entries.steps()
        for line in self.journal.entries.lines:
            if (
                line["kind"] == "done"
                and getattr(steps[line["step"]], "name", "") == name
                and line["result"].get("uuid")
            ):
                return str(line["result"]["uuid"])
        raise InternalError(f"the journal of {self.ident} does not say what became of {name}")

    def _base(self) -> str | None:
        first = self.journal.entries.steps()[0]
        return first.source if isinstance(first, TakeSnapshot) else None

    def decide(self, steps: Sequence[Step]) -> None:
        """Write down what follows and do it. From here it only goes forward: an error leaves the transaction open."""
        if self.journal.entries.last("decide") is None:
            try:
                self.journal.append("decide", plan=[to_json(step) for step in steps])
            except OSError as error:
                raise NeedsPerson(
                    f"transaction {self.ident} stays open, what follows could not be written down: {words(error)}",
                    "free what it lacks, then run 'snap-upgrade recover'",
                ) from error
        self.forward()

    def forward(self) -> None:
        """Do every step that is not done."""
        steps = self.journal.entries.steps()
        for group in groups(steps, range(len(steps))):
            if isinstance(steps[group[0]], Packages):
                continue
            try:
                self._do(group, steps)
            except (SnapUpgradeError, OSError) as error:
                if not isinstance(error, NeedsPerson):
                    raise NeedsPerson(
                        f"transaction {self.ident} stays open, it could not {describe(steps[group[0]])}: "
                        f"{words(error)}",
                        "free what it lacks, then run 'snap-upgrade recover'",
                    ) from error
                raise

    def undo(self) -> None:
        """Take back every step that was begun, last first."""
        steps = self.journal.entries.steps()
        left = recovery.decide(steps, progress(self.journal.entries)).steps
        if not self.journal.entries.numbers("undoing"):
            now = progress(self.journal.entries)
            left = tuple(sorted((now.started | now.done) - now.undone, reverse=True))
        for group in groups(steps, left):
            self.journal.append_all([{"kind": "undoing", "step": number} for number in group])
            for number in group:
                self._undo(steps[number])
            self._settle(steps[group[-1]])
            failpoint.reach(f"undo.{steps[group[-1]].kind}.settled")
            self.journal.append_all([{"kind": "undone", "step": number} for number in group])

    def _undo(self, step: Step) -> None:
        if not (isinstance(step, Mount | Unmount) and self._is_of_another_boot()):
            actions.undo(step, self._machine, self.ident)
        failpoint.reach(f"undo.{step.kind}.after")


class Engine:
    """Begins transactions under the lock and recovers those that were cut off."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @contextmanager
    def exclusive(self, holder: str) -> Iterator[None]:
        """Hold the lock of the state directory; raise Locked if another command or a live operation has it."""
        try:
            lock = files.lock(self.machine.state / "lock", holder, RECOVERY_PATIENCE_S)
        except OSError as error:
            raise Refused(f"the state of snap-upgrade cannot be written: {error}; nothing was changed") from error
        try:
            yield
        finally:
            files.unlock(lock)

    def refuse_if_busy(self) -> None:
        """Raise Locked if a package operation is under way, InterruptedWork if one stays open."""
        for found in journal.open_journals(self.machine.state):
            if isinstance(found, StateDamaged):
                raise found
            if is_owner_alive(found.entries):
                owner = found.entries.owner
                raise Locked(
                    f"{owner.name or 'another program'} (process {owner.pid}) is in the middle of transaction "
                    f"{found.entries.ident}",
                    "wait until it is done",
                )
            raise InterruptedWork(f"transaction {found.entries.ident} is still open", "snap-upgrade recover")

    def begin(
        self, flow: str, compose: Callable[[str], list[Step]], command: str, on_crash: str = "undo", **more: Any
    ) -> Transaction:
        """Begin a transaction; *compose* returns its plan from its number. The caller holds the lock."""
        pid = os.getpid()

        def first_line(ident: str) -> dict[str, Any]:
            return {
                "flow": flow,
                "time": time.time(),
                "boot_id": kernel.boot_id(),
                "owner": {"pid": pid, "start": kernel.process_start(pid), "name": "snap-upgrade"},
                "command": command,
                "user": requesting_user(),
                "front_end": "snap-upgrade",
                "running": self.machine.storage.layout().running.uuid,
                "plan": [to_json(step) for step in compose(ident)],
                "on_crash": on_crash,
                "request": [],
                **more,
            }

        try:
            return Transaction(self.machine, Journal.create(self.machine.state, first_line))
        except OSError as error:
            raise Refused(f"the journal cannot be written: {error}; nothing was changed", error_hint(error)) from error

    def simple(self, flow: str, steps: Sequence[Step], command: str) -> Transaction:
        """Run a transaction without package work to its end.

        What destroys cannot be taken back, so it only goes forward. Of the rest an error takes all back; after a
        crash what was to boot is made to boot (it may run by then), and anything else is as if never begun.
        """
        destroys = any(isinstance(step, Destroy) for step in steps)
        is_lasting = any(isinstance(step, Activate | CarryNested | Unmount) for step in steps)
        transaction = self.begin(flow, lambda _: list(steps), command, "forward" if destroys or is_lasting else "undo")
        if destroys:
            signals.hold()
            transaction.forward()
        else:
            transaction.run()
        transaction.close("committed", EXIT_DONE)
        return transaction

    def recover(self, judge: Callable[[Entries], Outcome], decide: Decide) -> list[Recovered]:
        """Finish or take back every open transaction whose owner is gone. The caller holds the lock.

        *judge* says what a cut-off package operation left, *decide* what follows from that.
        A damaged journal is left as it is; ``status`` reports it.
        """
        done: list[Recovered] = []
        for folder in (self.machine.state, self.machine.state / "records"):
            files.sweep(folder)
        for path in journal.unbegun(self.machine.state):
            files.remove_durable(path)
        housekeeping.tidy(self.machine.state)
        for found in journal.open_journals(self.machine.state):
            if isinstance(found, StateDamaged) or is_owner_alive(found.entries):
                continue
            try:
                with signals.held():
                    done.append(self.recover_one(Transaction(self.machine, found), judge, decide))
            except OSError as error:
                raise NeedsPerson(
                    f"transaction {found.entries.ident} stays open: {words(error)}",
                    "free what it lacks, then run 'snap-upgrade recover'",
                ) from error
        return done

    def abandon(self, ident: str) -> None:
        """Put the open transaction *ident* among the closed ones as it is, for a person who has looked at it.

        What it made stays, and is neither taken back nor finished. A journal that cannot be understood is kept whole.
        The caller holds the lock.
        """
        path = self.machine.state / "journal" / ident
        try:
            found = Journal.open(path)
        except FileNotFoundError as error:
            raise NotFound(f"there is no open transaction {ident}", "snap-upgrade status") from error
        except StateDamaged:
            found = None
        if found is None:
            journal.set_aside(self.machine.state, ident)
            return
        if is_owner_alive(found.entries):
            raise Locked(f"transaction {ident} is at work", "wait until it is done")
        found.close("abandoned", EXIT_NEEDS_PERSON)

    def recover_one(self, transaction: Transaction, judge: Callable[[Entries], Outcome], decide: Decide) -> Recovered:
        """Finish or take back one transaction."""
        entries = transaction.journal.entries
        ended = entries.last("end")
        if ended is not None:
            transaction.journal.close(str(ended["outcome"]), int(ended["exit"]))
            return _recovered(entries, str(ended["outcome"]))
        way = recovery.decide(entries.steps(), progress(entries)).way
        failpoint.reach(f"recover.{way.value}")
        match way:
            case Way.JUDGE:
                if entries.last("verdict") is None:
                    transaction.judge(_judged(entries, judge))
                verdict = str((entries.last("verdict") or {})["verdict"])
                transaction.decide(decide(entries, verdict))
                outcome = "committed"
            case Way.FORWARD:
                transaction.forward()
                outcome = "committed"
            case Way.UNDO:
                transaction.undo()
                outcome = "undone"
            case Way.END:
                now = progress(entries)
                is_done = now.is_all_done or (now.is_forward and not now.is_undoing)
                outcome = "committed" if is_done else "undone"
        transaction.journal.close(outcome, 0)
        return _recovered(entries, outcome)


def _judged(entries: Entries, judge: Callable[[Entries], Outcome]) -> Outcome:
    try:
        return judge(entries)
    except NotFound as error:
        raise NeedsPerson(
            f"transaction {entries.ident} cannot be judged and stays open, what it began with is gone: {error}",
            f"snap-upgrade recover --abandon {entries.ident}",
        ) from error


def _recovered(entries: Entries, outcome: str) -> Recovered:
    verdict = entries.last("verdict") or {}
    return Recovered(
        entries.ident, entries.flow, outcome, str(verdict.get("verdict", "")), tuple(verdict.get("reasons", ()))
    )


def requesting_user() -> dict[str, Any]:
    """Return who asked for this, and how we know: the variables apt itself goes by, else the login."""
    for variable in ("SUDO_UID", "PKEXEC_UID", "PACKAGEKIT_CALLER_UID"):
        value = os.environ.get(variable, "")
        if value.isascii() and value.isdecimal():
            return {"uid": int(value), "source": variable}
    try:
        with open("/proc/self/loginuid", encoding="ascii") as file:
            login = int(file.read())
    except (OSError, ValueError):
        login = 2**32 - 1
    if login != 2**32 - 1:
        return {"uid": login, "source": "loginuid"}
    return {"uid": os.getuid(), "source": "uid"}
