"""The flows of the design's table: facts in, plan out, engine, verdict, decision, and what the user is told.

The rule: whatever happens, a flow ends in one of two ways: the transaction is closed and what is said
about it was verified, or it is open and the user is told so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from snap_upgrade import config, journal
from snap_upgrade.actions import MOUNTS, Machine, still_inside
from snap_upgrade.core import errors, names, plan
from snap_upgrade.core.model import Kind, Method, Record, State
from snap_upgrade.core.packages import Event, Outcome, Report, Request, Root
from snap_upgrade.core.steps import Step
from snap_upgrade.engine import Engine, Recovered, Transaction, error_hint
from snap_upgrade.journal import Entries
from snap_upgrade.packages import PackageManager
from snap_upgrade.records import Inventory, Owned
from snap_upgrade.system import kernel, signals

_MUST_BE_THERE = ("usr/bin", "etc", "var/lib/dpkg", "var/lib/apt", "var/cache/apt", "var/log/apt", "opt")


@dataclass(frozen=True, slots=True)
class Result:
    """What a flow says when it did not fail: *data* is the form for scripts."""

    exit_code: int
    message: str
    hint: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def silent(event: Event) -> None:
    """Report progress to nobody."""


# --- what every flow begins with


def adopt(machine: Machine) -> Owned:
    """Return the running environment; record it, as not made by us, if it has no record yet.

    One that we made is recorded as lived in: from now on it may hold what exists nowhere else.
    """
    running = machine.storage.layout().running
    inventory = machine.inventory()
    found = inventory.by_uuid(running.uuid)
    if found is not None:
        is_told = found.record.lived or found.record.adopted
        return found if is_told or machine.root != Path("/") else _as_lived(machine, found)
    name = names.fresh_name("initial", inventory.names())
    now = time.time()
    record = Record(running.uuid, Kind.ENVIRONMENT, name, running.path, now, None, None, State.READY, adopted=True)
    _write(machine, record)
    return machine.inventory().find(name)


def _as_lived(machine: Machine, owned: Owned) -> Owned:
    record = replace(owned.record, lived=True)
    _write(machine, record)
    return replace(owned, record=record)


def _write(machine: Machine, record: Record) -> None:
    try:
        machine.records.write(record)
    except OSError as error:
        raise errors.Refused(
            f"{record.name} cannot be recorded: {error}; nothing was changed", error_hint(error)
        ) from error


def require_layout(machine: Machine) -> None:
    """Raise Refused where a roll back could not take effect."""
    layout = machine.storage.layout()
    if layout.method is Method.NONE:
        raise errors.Refused(f"{layout.refusal}; nothing was changed", layout.hint)


def require_manager(machine: Machine) -> PackageManager:
    """Return the package manager of this root; raise Refused if there is none that we know."""
    if machine.manager is None:
        raise errors.Refused(
            f"no package manager that snap-upgrade knows is in {machine.root}", "see 'Supported' in the manual"
        )
    return machine.manager


def next_environment(machine: Machine, inventory: Inventory) -> Owned | None:
    """Return the environment that boots next, or None if it is not one of ours."""
    volume = machine.storage.boots_next()
    return None if volume is None else inventory.by_uuid(volume.uuid)


@contextmanager
def ready(machine: Machine, holder: str) -> Iterator[Engine]:
    """Hold the lock with every older transaction finished, the layout proven and the running root on record."""
    with ready_at(machine, holder) as engine:
        require_layout(machine)
        adopt(machine)
        yield engine


def recover(machine: Machine, engine: Engine) -> list[Recovered]:
    """Finish what earlier runs left open. The caller holds the lock."""
    return engine.recover(partial(judge_cut_off, machine), partial(decide_cut_off, machine))


def judge_cut_off(machine: Machine, entries: Entries) -> Outcome:
    """Judge a package operation whose process is gone, from its snapshot and the root as it is now."""
    manager = require_manager(machine)
    snapshot = machine.inventory().find(plan.snapshot_name(entries.ident))
    with ExitStack() as stack:
        if entries.flow == "live" and entries.begin.get("boot_id") == kernel.boot_id():
            # A killed apt does not stop the dpkg it started: what that one is still doing cannot be judged yet.
            stack.enter_context(manager.lock(machine.root))
        before = stack.enter_context(machine.storage.opened(snapshot.record.uuid))
        after = stack.enter_context(_work_root(machine, entries))
        outcome = manager.judge(before, after, entries.requests(), None, entries.begin.get("since") or {})
    return _settled(entries, outcome, None)


@contextmanager
def _work_root(machine: Machine, entries: Entries) -> Iterator[Path]:
    """Yield the root that the transaction worked on: by its volume, for it may not be the one that runs now."""
    source = str(entries.begin["plan"][0]["source"])
    if source not in machine.storage.volumes():
        raise errors.NeedsPerson(
            f"the root that transaction {entries.ident} worked on is gone", "snap-upgrade history " + entries.ident
        )
    with machine.storage.opened(source) as path:
        yield path


def decide_cut_off(machine: Machine, entries: Entries, verdict: str) -> list[Step]:
    """Return what follows from *verdict* for a transaction that was cut off."""
    rules = machine.config.rules()
    if entries.flow == "alternate-root":
        begin = entries.begin
        return plan.after_alternate_root(
            entries.ident, verdict, str(begin["name"]), str(begin["path"]), str(begin["directory"]), rules
        )
    return plan.after_live(entries.ident, verdict, rules, _mount_place(entries.ident))


# --- image-update


@dataclass(frozen=True, slots=True)
class ImageUpdate:
    """What is asked of an image update. *request* is for the package manager; *program* instead runs any command."""

    command: str
    request: Request | None = None
    program: tuple[str, ...] = ()
    name: str = ""
    is_activated: bool = True
    is_fresh: bool = False


def image_update(machine: Machine, asked: ImageUpdate, report: Report = silent) -> Result:
    """Upgrade a clone while the machine runs and let it boot next; on error nothing of it remains."""
    manager = require_manager(machine)
    with ExitStack() as stack:
        engine = stack.enter_context(ready(machine, asked.command))
        stack.enter_context(manager.lock(machine.root))
        base, following, name = choose(machine, machine.inventory(), asked)
        transaction = engine.begin(
            "image-update",
            lambda ident: plan.image_update(
                ident, base.record.uuid, name, manager.name, f"{plan.UPDATE_TEXT}{base.record.name} by {asked.command}"
            ),
            asked.command,
            name=name,
            shown="run --clone" if asked.program else "",
        )
        worker = _Worker(machine, manager, asked, name, transaction, report)
        outcome = transaction.run(worker.work)
        return _finish_image_update(machine, transaction, asked, name, following.record.name, outcome)


def choose(machine: Machine, inventory: Inventory, asked: ImageUpdate) -> tuple[Owned, Owned, str]:
    """Return the base of an image update, what boots next until then, and what the clone is called; or refuse it."""
    running = inventory.by_uuid(machine.storage.layout().running.uuid)
    following = next_environment(machine, inventory)
    if running is None or following is None:
        raise errors.Refused(
            "what boots next is not an environment that snap-upgrade knows; nothing was changed",
            "snap-upgrade activate NAME",
        )
    base = running if asked.is_fresh else following
    if base.record.state is not State.READY:
        raise errors.Refused(f"{base.record.name} boots next but is not complete", "snap-upgrade cancel")
    _require_whole(machine, base)
    name = _clone_name(machine, inventory, asked.name)
    _require_free(machine, plan.clone_path(name))
    return base, following, name


def _require_whole(machine: Machine, base: Owned) -> None:
    """Raise Refused if the package manager would find a hole in the clone where it must write.

    A nested subvolume is not in a snapshot: in its place is an empty directory in which nothing can be made.
    """
    for nested in machine.storage.nested(base.record.uuid):
        relative = nested.path.removeprefix(f"{base.volume.path}/") if base.volume.path else nested.path
        needed = any(f"{place}/".startswith(f"{relative}/") for place in _MUST_BE_THERE)
        if needed and relative not in machine.config.clone_nested:
            raise errors.Refused(
                f"the nested subvolume {relative} would be missing in a clone, and packages cannot be changed without "
                "it; nothing was changed",
                f"add it to clone_nested in {config.PATH}, or move it out of the root and mount it by fstab",
            )


def _clone_name(machine: Machine, inventory: Inventory, wanted: str) -> str:
    taken = inventory.names()
    if not wanted:
        return names.fresh_name(time.strftime("%Y-%m-%d"), taken)
    names.check_name(wanted)
    if wanted in taken:
        raise errors.UsageError(f"there is an environment {wanted!r} already", "choose another --be-name")
    return wanted


def _require_free(machine: Machine, path: str) -> None:
    if machine.storage.at(path) is not None:
        raise errors.Refused(
            f"{path} is taken by a volume that is not on record; nothing was changed", "snap-upgrade status"
        )


class _Worker:
    """The package manager's step inside the clone."""

    def __init__(
        self,
        machine: Machine,
        manager: PackageManager,
        asked: ImageUpdate,
        name: str,
        transaction: Transaction,
        report: Report,
    ) -> None:
        self._machine = machine
        self._manager = manager
        self._asked = asked
        self._name = name
        self._log = machine.state / "logs" / f"{transaction.ident}.log"
        self._report = report

    def work(self) -> Outcome:
        """Refresh, plan, check the space, download, and only then let packages be unpacked."""
        storage, manager = self._machine.storage, self._manager
        uuid = self._machine.inventory().find(self._name).record.uuid
        with storage.opened(uuid) as path:
            # Recovery destroys the clone unless it has a verdict, and Transaction.judge syncs before it writes one.
            root = Root(path, partial(storage.mount, uuid), is_disposable=True)
            if self._asked.program:
                return _of_packages(manager.run(root, list(self._asked.program), self._log, self._report))
            request = self._asked.request
            if request is None:
                raise errors.InternalError("an image update has neither a request nor a program")
            self._report(Event("phase", "refresh"))
            manager.refresh(root, self._report)
            self._report(Event("phase", "plan"))
            planned = manager.plan(root, request)
            require_space(self._machine, planned.download_bytes + planned.written_bytes)
            archives = self._machine.state / "archives"
            self._report(Event("phase", "download"))
            manager.download(root, request, archives, self._report)
            self._report(Event("phase", "apply"))
            return manager.apply(root, request, archives, self._log, self._report)


def require_space(machine: Machine, needed: int) -> None:
    """Raise NoSpace unless *needed* bytes and the reserve fit."""
    space = machine.storage.space()
    reserve = machine.config.reserve_mib << 20
    if space.available < needed + reserve:
        raise errors.NoSpace(
            f"the file system has {_mib(space.available)} MiB, this needs {_mib(needed)} MiB and a reserve of "
            f"{_mib(reserve)} MiB; nothing was changed",
            "snap-upgrade prune",
        )


def _mib(size: int) -> int:
    return -(-size >> 20)


def _finish_image_update(
    machine: Machine,
    transaction: Transaction,
    asked: ImageUpdate,
    name: str,
    previous: str,
    outcome: Outcome | None,
) -> Result:
    if outcome is None:
        raise errors.InternalError("an image update came to an end without its work")
    rules = machine.config.rules()
    uuid = machine.inventory().find(name).record.uuid
    transaction.decide(
        plan.after_image_update(transaction.ident, outcome.verdict, name, previous, asked.is_activated, rules)
    )
    data = {"transaction": transaction.ident, "environment": name, **outcome_data(outcome)}
    if outcome.verdict not in plan.GOOD:
        transaction.close("undone", errors.EXIT_UNCHANGED)
        gone = "its clone is kept and not bootable" if rules.keep_failed else "its clone was destroyed"
        if not rules.keep_failed and uuid in machine.storage.volumes():
            raise errors.NeedsPerson(f"the clone {name} should be gone and is not", "snap-upgrade status")
        raise errors.FailedUnchanged(
            f"{asked.command} failed: {'; '.join(outcome.reasons) or outcome.verdict}; {gone}, the running system was "
            "not touched",
            f"snap-upgrade history {transaction.ident}",
        )
    code = errors.EXIT_DONE if asked.is_activated else errors.EXIT_NOT_ACTIVATED
    transaction.close("committed", code)
    if not asked.is_activated:
        return Result(code, f"{name} is ready and not activated", f"snap-upgrade activate {name}", data)
    return Result(code, f"{name} is ready and boots next; it is live after the next boot", "snap-upgrade cancel", data)


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """Return *outcome* as scripts read it."""
    return {
        "verdict": outcome.verdict,
        "reasons": list(outcome.reasons),
        "changes": [{"name": change.name, "old": change.old, "new": change.new} for change in outcome.changes],
        "kept_conffiles": list(outcome.kept_conffiles),
    }


# --- the live root


def live(machine: Machine, command: str, execute: Callable[[], int], is_any_command: bool = False) -> Result:
    """Let *execute* work on the live root behind a snapshot; it returns the exit status of what it ran.

    With *is_any_command* it may change more than packages: then its exit status counts. On failure a bootable clone of
    the snapshot is kept and FailedWayBack names it. Nothing is rolled back here.
    """
    with ready(machine, command) as engine:
        manager = machine.manager
        running = machine.storage.layout().running.uuid
        transaction = engine.begin(
            "live",
            lambda ident: plan.live(ident, running, manager.name if manager else ""),
            command,
            any_command=is_any_command,
        )
        status: list[int] = []

        def work() -> Outcome:
            status.append(execute())
            return _judge_here(machine, transaction, machine.root, status[0])

        outcome, interruption = run_on_root(machine, transaction, work, machine.root)
        place = _mount_place(transaction.ident)
        transaction.decide(plan.after_live(transaction.ident, outcome.verdict, machine.config.rules(), place))
        raise_if_unchanged(transaction, outcome, interruption)
        return _finish_live(machine, transaction, command, outcome, status[0] if status else -1)


def run_on_root(
    machine: Machine, transaction: Transaction, work: Callable[[], Outcome], root: Path
) -> tuple[Outcome, BaseException | None]:
    """Run the plan; whatever interrupts the package manager's step, the root it worked on is judged.

    Returns the interruption too: where nothing was changed, it and no verdict is what the user must be told.
    """
    interruption: BaseException | None = None
    try:
        transaction.run(work)
    except (Exception, KeyboardInterrupt) as error:
        if not transaction.works_on_what_stays():
            raise
        signals.hold()  # to judge and to keep a way back is what the interruption asks for
        interruption = error
        _judge_interrupted(machine, transaction, root, error)
    if transaction.outcome is None:
        raise errors.InternalError("a live operation came to an end without its work")
    return transaction.outcome, interruption


def _judge_interrupted(machine: Machine, transaction: Transaction, root: Path, error: BaseException) -> None:
    """Judge the root after *error*, unless the work itself came to its end before."""
    try:
        if transaction.outcome is None:
            is_begun = not isinstance(error, errors.NotStarted)
            transaction.outcome = _judge_here(machine, transaction, root, -1 if is_begun else None)
        transaction.judge(transaction.outcome)
    except (errors.SnapUpgradeError, OSError) as second:
        raise errors.NeedsPerson(
            f"{errors.words(error) or type(error).__name__}; transaction {transaction.ident} stays open, for "
            f"what it left could not be judged: {errors.words(second)}",
            "snap-upgrade recover",
        ) from second


def raise_if_unchanged(transaction: Transaction, outcome: Outcome, interruption: BaseException | None) -> None:
    """Close the transaction and raise *interruption* if there was one and it changed nothing."""
    if interruption is None or outcome.verdict != "unchanged":
        return
    code = interruption.exit_code if isinstance(interruption, errors.SnapUpgradeError) else errors.EXIT_UNCHANGED
    transaction.close("undone", code)
    if isinstance(interruption, OSError):
        raise errors.FailedUnchanged(f"{interruption}; nothing was changed", error_hint(interruption)) from interruption
    raise interruption


def _judge_here(machine: Machine, transaction: Transaction, root: Path, status: int | None) -> Outcome:
    """Judge *root*; *status* is the work's exit status, -1 if it was cut off, None if it was never begun."""
    snapshot = machine.inventory().find(plan.snapshot_name(transaction.ident))
    manager = require_manager(machine)
    with machine.storage.opened(snapshot.record.uuid) as before:
        # From the disk: the package manager's hook wrote there what it was asked for, while we waited.
        entries = journal.read(machine.state, transaction.ident)
        outcome = manager.judge(before, root, entries.requests(), status, {})
    if status is None and not outcome.changes:
        return replace(outcome, verdict="unchanged")
    return _settled(entries, outcome, status)


def _settled(entries: Entries, outcome: Outcome, status: int | None) -> Outcome:
    """Return the outcome with what the journal knows and the package manager does not."""
    if entries.begin.get("any_command"):
        return _as_command(outcome, status)
    if outcome.verdict in plan.GOOD and not entries.requests() and not outcome.changes:
        return replace(outcome, verdict="unchanged")  # nothing was ever asked for, and nothing came of it
    return outcome


def _as_command(outcome: Outcome, status: int | None) -> Outcome:
    """Return the outcome of a command that may change more than packages: for it the exit status counts."""
    outcome = _of_packages(outcome)
    if outcome.verdict not in plan.GOOD | {"unchanged"}:
        return outcome
    if status == 0:
        return replace(outcome, verdict="success") if outcome.verdict == "unchanged" else outcome
    if status is None or status == -1:
        return replace(outcome, verdict="interrupted", reasons=("the command was cut off", *outcome.reasons))
    return replace(outcome, verdict="failed", reasons=(f"the command exited with {status}", *outcome.reasons))


def _of_packages(outcome: Outcome) -> Outcome:
    """Return the outcome of any command: that nothing was changed is known of the packages only."""
    reasons = ("no package was changed" if one.startswith("nothing was changed") else one for one in outcome.reasons)
    return replace(outcome, reasons=tuple(reasons))


def _mount_place(ident: str) -> str:
    return str(MOUNTS / plan.way_back_name(ident))


def _finish_live(machine: Machine, transaction: Transaction, command: str, outcome: Outcome, status: int) -> Result:
    ident = transaction.ident
    data = {"transaction": ident, "exit_status": status, **outcome_data(outcome)}
    if outcome.verdict == "unchanged":
        transaction.close("undone", errors.EXIT_NOTHING_TO_DO if status == 0 else errors.EXIT_UNCHANGED)
        if status != 0:
            raise errors.FailedUnchanged(
                f"{command} failed with {status}; no package was changed", "see its output above"
            )
        return Result(errors.EXIT_NOTHING_TO_DO, f"{command}: no package was changed", "", data)
    if outcome.verdict in plan.GOOD:
        transaction.close("committed", errors.EXIT_DONE)
        kept = "" if not machine.config.keep_on_success else f"snap-upgrade rollback {ident}"
        return Result(errors.EXIT_DONE, f"{command}: done as transaction {ident}", kept, data)
    name = plan.way_back_name(ident)
    made = machine.inventory().find(name)
    transaction.close("committed", errors.EXIT_WAY_BACK)
    raise errors.FailedWayBack(
        f"{command} failed: {'; '.join(outcome.reasons) or outcome.verdict}; {made.record.name} is a bootable clone "
        "of the system as it was before",
        f"snap-upgrade rollback {name}",
    )


# --- an environment mounted at -R DIR


def alternate_root(machine: Machine, command: str, request: Request, report: Report = silent) -> Result:
    """Do *request* on the environment mounted at the machine's root directory.

    On failure the clone of its snapshot takes its place, its name and its mount point.
    """
    manager = require_manager(machine)
    directory = machine.root
    with ExitStack() as stack:
        engine = stack.enter_context(ready_at(machine, command))
        lock = stack.enter_context(ExitStack())
        lock.enter_context(manager.lock(directory))
        target = machine.storage.layout().running
        owned = adopt(machine)
        transaction = engine.begin(
            "alternate-root",
            lambda ident: plan.alternate_root(ident, target.uuid, owned.record.name, manager.name),
            command,
            name=owned.record.name,
            path=target.path,
            directory=str(directory),
        )
        # Not disposable: after a power cut recovery judges by dpkg's database what is here, and may keep it.
        root = Root(directory, partial(_bind, directory))
        archives = machine.state / "archives"
        log = machine.state / "logs" / f"{transaction.ident}.log"

        def work() -> Outcome:
            manager.refresh(root, report)
            planned = manager.plan(root, request)
            require_space(machine, planned.download_bytes + planned.written_bytes)
            manager.download(root, request, archives, report)
            return manager.apply(root, request, archives, log, report)

        outcome, interruption = run_on_root(machine, transaction, work, directory)
        lock.close()  # its files are in what may have to be unmounted now
        steps = plan.after_alternate_root(
            transaction.ident, outcome.verdict, owned.record.name, target.path, str(directory), machine.config.rules()
        )
        wanted = _state_before(machine, manager, transaction)
        transaction.decide(steps)
        raise_if_unchanged(transaction, outcome, interruption)
        return _finish_alternate(machine, transaction, command, owned, outcome, wanted)


def _state_before(machine: Machine, manager: PackageManager, transaction: Transaction) -> tuple[str, dict[str, str]]:
    """Return what a restored environment is compared with: the snapshot's uuid, and its packages with versions."""
    snapshot = machine.inventory().find(plan.snapshot_name(transaction.ident)).record.uuid
    with machine.storage.opened(snapshot) as before:
        return snapshot, manager.installed(before)


@contextmanager
def ready_at(machine: Machine, holder: str) -> Iterator[Engine]:
    """As `ready`, for a root that need not be one that boots."""
    engine = Engine(machine)
    with engine.exclusive(holder):
        recover(machine, engine)
        engine.refuse_if_busy()
        yield engine


def here(machine: Machine) -> Root:
    """Return the machine's own root, to be planned for."""
    return Root(machine.root, partial(_bind, machine.root))


def _bind(directory: Path, target: Path) -> None:
    kernel.mount(str(directory), str(target), flags=kernel.MS_BIND)


def _finish_alternate(
    machine: Machine,
    transaction: Transaction,
    command: str,
    owned: Owned,
    outcome: Outcome,
    wanted: tuple[str, dict[str, str]],
) -> Result:
    data = {"transaction": transaction.ident, "environment": owned.record.name, **outcome_data(outcome)}
    if outcome.verdict in plan.GOOD:
        transaction.close("committed", errors.EXIT_DONE)
        return Result(
            errors.EXIT_DONE, f"{command}: done in {machine.root} as transaction {transaction.ident}", "", data
        )
    if outcome.verdict == "unchanged":
        transaction.close("undone", errors.EXIT_NOTHING_TO_DO)
        return Result(errors.EXIT_NOTHING_TO_DO, f"{command}: no package was changed in {machine.root}", "", data)
    transaction.close("undone", errors.EXIT_RESTORED)
    restored = machine.inventory().find(owned.record.name)
    if machine.root not in machine.storage.mounted_at(restored.record.uuid):
        raise errors.NeedsPerson(
            f"the clone that replaces {owned.record.name} is not mounted at {machine.root}", "snap-upgrade mount"
        )
    found = (restored.volume.parent_uuid, require_manager(machine).installed(machine.root))
    if found != wanted:
        raise errors.NeedsPerson(
            f"what is mounted at {machine.root} is not the clone of the snapshot taken before", "snap-upgrade status"
        )
    raise errors.FailedRestored(
        f"{command} failed: {'; '.join(outcome.reasons) or outcome.verdict}; {owned.record.name} at "
        f"{machine.root} is the clone of the snapshot taken before{still_inside(machine, owned.record.uuid)}",
        f"snap-upgrade history {transaction.ident}",
    )
