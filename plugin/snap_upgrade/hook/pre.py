"""``apt-hook pre``: before dpkg runs at all, the request on disk and a snapshot of the root, or no operation.

The rule: journal first; and whatever goes wrong or interrupts, nothing half-made stays and apt learns of it.
"""

from __future__ import annotations

import os
import sys
import time

from snap_upgrade.core import request, wire
from snap_upgrade.hook import layout, owner, settings, state, watch
from snap_upgrade.hook.ancestry import Ancestor, ancestors
from snap_upgrade.system import aptlogs, failpoint, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, NoReturn
else:
    import _signal  # the module signal loads enum, which costs more than all else here

_STOPS: dict[int, str] = {
    _signal.SIGALRM: "it took longer than hook_timeout_s in /etc/snap-upgrade.conf allows",
    _signal.SIGINT: "interrupted",
    _signal.SIGTERM: "terminated",
    _signal.SIGHUP: "the terminal was closed",
}
OWN = "snap-upgrade"  # our package
# apt passes its caller's on; what we start must not depend on it.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# How long an older operation's closing may take before we say that it is locked.
_PATIENCE_S = 10


class NoSnapshot(Exception):
    """Why there can be no snapshot; ``on_no_snapshot`` decides what that means."""


class NoWayBack(NoSnapshot):
    """Why no roll back could take effect, though there could be a snapshot; and a hint."""


class Stopped(BaseException):
    """A signal told us to stop; no handler for plain errors may take it."""


class TookTooLong(Exception):
    """Our own time limit is over: there is no snapshot."""


def main() -> int:
    """Do what the module says; the exit status is 0, or 1 for: apt must not go on."""
    for number in _STOPS:
        _signal.signal(number, _stop)
    try:
        data = _take_request()
        failpoint.reach("hook.asked")
        os.chdir("/")
        os.umask(0o077)
        os.environ["PATH"] = _PATH
        return _decide(data)
    except Stopped as stop:
        return _refuse(str(stop), True)


def _decide(data: bytes) -> int:
    """Protect the operation, or say why not and whether it may go on nevertheless."""
    asked, problem = None, ""
    try:
        asked = request.parse_request(data)
    except request.BadRequest as error:
        problem = str(error)
    # Nobody must need us in order to get rid of us, or to mend us.
    is_own = asked is not None and bool(asked.targets) and all(one.name == OWN for one in asked.targets)
    try:
        known = settings.load()
    except settings.BadSetting as error:
        if is_own or not error.refuses:
            return _go_on(f"no snapshot is made ({error})", is_own)
        _say(f"{error}: refusing the transaction")
        return _say("to go on without a snapshot: apt-get -o DPkg::Pre-Install-Pkgs::snap-upgrade= ...")
    if not known.is_enabled:
        return 0
    if _is_chroot():
        # A build's log need not have it; a person who upgrades a system from a rescue medium must not trust in us.
        if os.isatty(2):
            _say("this root is a chroot: what is done here is not protected, no snapshot is made")
        return 0
    if asked is None:
        return _refuse(problem, known.refuses)
    elsewhere = request.admin_dir(asked.config, os.environ)
    if not _is_same(elsewhere, f"/{request.ADMIN_DIR}"):
        _say(f"dpkg is told to work on the database in {elsewhere}, not on this system's: no snapshot is made")
        return 0
    refuses = known.refuses and not is_own
    _signal.alarm(known.hook_timeout_s)
    try:
        _protect(asked, known.activation, known.nested)
    except state.Locked as error:
        return _say(f"locked by {error}: refusing the transaction; try again when it is done")
    except NoWayBack as error:
        return _refuse(str(error.args[0]), refuses, is_own, *error.args[1:])
    except OSError as error:
        return _refuse(_words(error), refuses, is_own)
    except (NoSnapshot, TookTooLong, state.BadState) as error:
        return _refuse(str(error), refuses, is_own)
    finally:
        _signal.alarm(0)
    return 0


def _take_request() -> bytes:
    """Read all that apt has to say and let go of the pipe: a child that kept it open would block apt."""
    number = os.environ.get("APT_HOOK_INFO_FD", "0")
    fd = int(number) if number.isascii() and number.isdecimal() and len(number) < 6 else 0
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    try:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # a chroot with an empty /dev is none of our affair
        null, writer = os.pipe()
        os.close(writer)
    os.dup2(null, fd)
    os.close(null)
    return b"".join(parts)


def _is_chroot() -> bool:
    """Whether we are in a chroot, where somebody else's snapshot (or none) is the right one."""
    try:
        first, ours = os.stat("/proc/1/root"), os.stat("/")
    except FileNotFoundError:
        return True  # /proc is not mounted
    except PermissionError:
        _say("the root of process 1 cannot be seen, so this may be a chroot; it is taken for none")
        return False
    return (first.st_dev, first.st_ino) != (ours.st_dev, ours.st_ino)


def _is_same(folder: str, other: str) -> bool:
    """Whether the two are one folder. Where ours is missing nothing else can be told from it."""
    try:
        wanted = os.stat(other)
    except FileNotFoundError:
        return True
    try:
        found = os.stat(folder)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _stop(number: int, _frame: object) -> NoReturn:
    for other in _STOPS:
        _signal.signal(other, _signal.SIG_IGN)  # what follows takes back what we made
    if number == _signal.SIGALRM:
        raise TookTooLong(_STOPS[number])
    raise Stopped(_STOPS[number])


def _raise_if_stopped() -> None:
    """Raise Stopped if a signal came while none was let through; the time limit is no reason once all is made."""
    for number in _signal.sigpending():
        if number in _STOPS and number != _signal.SIGALRM:
            raise Stopped(_STOPS[number])


def _say(text: str) -> int:
    sys.stderr.write(f"snap-upgrade: {text}\n")
    return 1


def _refuse(reason: str, refuses: bool, is_own: bool = False, hint: str | None = None) -> int:
    what = "no snapshot of the root could be made" if hint is None else "a roll back could not take effect"
    if not refuses:
        return _go_on(f"{what} ({reason})", is_own)
    _say(f"{what} ({reason}): refusing the transaction.")
    if hint:
        _say(f"hint: {hint}")
    _say("to go on without one: apt-get -o DPkg::Pre-Install-Pkgs::snap-upgrade= ...")
    return _say(f"to go on without one always: on_no_snapshot = warn in {settings.PATH}, or remove snap-upgrade")


def _go_on(what: str, is_own: bool) -> int:
    why = "for it is about snap-upgrade itself" if is_own else f"as {settings.PATH} says"
    text = f"{what}; going on without one, {why}"
    _say(text)
    if is_own:
        return 0
    _signal.alarm(0)
    try:
        device, _, options = kernel.root_device()
        if options.partition(",")[0] != "rw":
            return 0  # our mount would make the whole of a read-only file system writable
        top = kernel.open_top_level(device)
        folder = os.open(state.STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=top)
    except OSError:
        return 0  # there is no state that could keep it
    from snap_upgrade.hook import trouble

    trouble.note(folder, "the hook before dpkg", "none", text)  # nobody reads the output of a timer
    return 0


def _words(error: OSError) -> str:
    if state.is_full(error):
        return "no space left; make room with 'snap-upgrade prune'"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _protect(asked: request.Request, activation: str, nested: tuple[str, ...]) -> None:
    above = ancestors()
    front = owner.find(above)
    argv = owner.words(front.pid)
    name = owner.name(argv, front.comm)
    command = owner.shown(asked.command_line or " ".join(argv), 1000)
    top, root = _open_root(activation)
    folder = state.open_state(top)
    os.close(top)
    asks = request.to_json(asked.targets)
    entry = {"kind": "request", "request": asks, "command": command}
    is_any_open = bool(state.numbers(folder, "journal"))
    if is_any_open:
        from snap_upgrade.hook import earlier

        if earlier.join_ours(folder, above, entry):
            _note_fired(folder, name)
            return
        earlier.ask_watcher(folder, front)
    lock = _lock(folder, name)
    try:
        if is_any_open and earlier.settle(folder, root, above, front, entry):
            _note_fired(folder, name)
            return
        begin = {
            "flow": "live",
            "time": time.time(),
            "boot_id": kernel.boot_id(),
            "owner": {"pid": front.pid, "start": front.start, "name": name},
            "command": command,
            "user": owner.user(os.environ),
            "front_end": name,
            "running": kernel.subvolume_info(root).uuid,
            "on_crash": "undo",
            "request": asks,
            "since": aptlogs.positions(root, asked.config),
            "policy": {},
        }
        _make(folder, root, begin, nested, front)
    finally:
        os.close(lock)


def _make(folder: int, root: int, begin: dict[str, Any], nested: tuple[str, ...], front: Ancestor) -> None:
    """Make the transaction, its snapshot and its watcher, all of it or nothing. The lock is held."""
    name = begin["front_end"]
    # What was begun is made whole or taken back: a signal waits, and is looked at when there is something to decide.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _STOPS)
    ident, watcher = "", 0
    try:
        ident = _snapshot(folder, root, begin, nested)
        _note_fired(folder, name)
        try:
            watcher = watch.start(folder, root, ident, front, name)
        except OSError as error:
            _say(f"nothing will watch for the end of {name} ({error}); its last hook or 'snap-upgrade recover' judges")
        failpoint.reach("hook.watching")
        _raise_if_stopped()
        _adopt(folder, begin["running"])
    except BaseException:
        if watcher:
            watch.stop(watcher, front)
        if ident:
            _forget(folder, ident)
        _raise_if_stopped()
        raise


def _open_root(activation: str) -> tuple[int, int]:
    """Return the top level and ``/``, or raise NoSnapshot with what stands against a snapshot or a roll back."""
    try:
        device, path, options = kernel.root_device()
    except OSError as error:
        raise NoSnapshot(error.strerror or str(error)) from None
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if options.partition(",")[0] != "rw" or os.statvfs("/").f_flag & os.ST_RDONLY:
        raise NoSnapshot("the root is mounted read-only")
    here = os.fstat(root)
    if here.st_ino != kernel.FIRST_FREE:
        raise NoSnapshot("/ is a folder of its subvolume, not the whole of it")
    try:
        if os.stat("/var/lib/dpkg").st_dev != here.st_dev:
            raise NoSnapshot("dpkg's database in /var/lib/dpkg is not in the subvolume of the root")
    except FileNotFoundError:
        raise NoSnapshot("there is no /var/lib/dpkg") from None
    top = kernel.open_top_level(device)
    try:
        reason, hint = layout.refusal(top, device, path, activation)
    except ImportError as error:
        raise NoSnapshot(f"how the root is chosen at boot cannot be found out: {error}") from error
    if reason:
        raise NoWayBack(reason, hint)
    return top, root


def _lock(folder: int, name: str) -> int:
    """Lock the state; an older operation that is just being closed is waited for, a command at work is not."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return state.lock(folder, f"the hook of {name}")
        except state.Locked as error:
            waited_for = (" recover", "the hook of", "another snap-upgrade")  # the last has not said who it is yet
            if not any(word in str(error) for word in waited_for):
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _snapshot(folder: int, root: int, begin: dict[str, Any], nested: tuple[str, ...]) -> str:
    """Write the journal's first lines, make the snapshot and its record, write that packages are next."""

    def compose(ident: str) -> list[dict[str, Any]]:
        path = f"{state.STATE}/snap/{ident}"
        plan = [
            {"step": "snapshot", "source": begin["running"], "path": path, "name": f"snap-{ident}"},
            {"step": "packages", "place": "live", "manager": "apt"},
        ]
        first = {"kind": "begin", "version": 1, "id": ident, **begin, "plan": plan}
        return [first, {"kind": "started", "step": 0}]

    ident = state.begin(folder, compose)
    try:
        failpoint.reach("hook.begin.after")
        uuid = _take(folder, root, ident, begin["running"], nested)
        done = {"kind": "done", "step": 0, "result": {"uuid": uuid}}
        state.append(folder, ident, done, {"kind": "started", "step": 1})
    except BaseException:
        _forget(folder, ident)
        raise
    return ident


def _take(folder: int, root: int, ident: str, running: str, wanted: tuple[str, ...]) -> str:
    snapshots = os.open("snap", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        kernel.snapshot(root, snapshots, ident.encode(), True)
        failpoint.reach("hook.snapshot.made")
        fd = os.open(ident, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=snapshots)
    finally:
        os.close(snapshots)
    try:
        uuid = str(kernel.subvolume_info(fd).uuid)
    finally:
        os.close(fd)
    if wanted:
        from snap_upgrade.hook import nested

        nested.record(folder, ident, nested.take(folder, root, ident, wanted))
    state.enrol(folder, uuid, "snapshot", f"snap-{ident}", f"{state.STATE}/snap/{ident}", running, ident)
    failpoint.reach("hook.record.written")
    return uuid


def _adopt(folder: int, running: str) -> None:
    """Record the running root if it has no record: by it the next root finds what is nested in this one."""
    if state.is_recorded(folder, running):
        return
    from snap_upgrade.hook import nested

    try:
        nested.adopt(folder, running)
    except OSError as error:
        _say(f"the running root could not be recorded, the next command does it: {_words(error)}")


def _forget(folder: int, ident: str) -> None:
    """Take back what was made for *ident*: no package was touched under its number."""
    try:
        state.forget(folder, ident)
    except (OSError, state.BadState) as error:
        _say(f"transaction {ident} could not be taken back, 'snap-upgrade recover' will: {error}")


def _note_fired(folder: int, name: str) -> None:
    """Remember when the hooks last ran for this front end. A file that is not understood is left as it is."""
    content = state.read(folder, "hooks.json")
    try:
        fired = {} if content is None else wire.decode(content.decode())
    except (ValueError, RecursionError):
        return  # status reports it
    if isinstance(fired, dict):
        fired[name] = time.time()
        state.write(folder, "hooks.json", (wire.encode(fired) + "\n").encode(), is_durable=False)
