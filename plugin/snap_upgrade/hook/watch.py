"""The process that waits until apt is done, however it ends, and sees to it that the transaction is closed.

The rule: it holds nothing of apt's, and gives promptness only: it may be killed, and then ``recover`` does its work.
"""

from __future__ import annotations

import _socket
import os
import select

from snap_upgrade.core.dpkgdb import BadDatabase
from snap_upgrade.core.request import BadRequest
from snap_upgrade.hook import closing, owner, settings, state, trouble
from snap_upgrade.hook.ancestry import FOLDER, RUN, Ancestor, address, is_alive
from snap_upgrade.system import failpoint, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import NoReturn
else:
    import _signal  # the module signal loads enum, which costs more than all else here

WHO = "the watcher"
PROGRAM = "/usr/sbin/snap-upgrade"
# A daemon that was not let to its post hook gives up its locks and lives on; only looking tells.
_LOOK_MS = 30_000
_ERRORS = (BadDatabase, BadRequest, state.BadState, settings.BadSetting, OSError)


def start(folder: int, root: int, ident: str, front: Ancestor, name: str) -> int:
    """Start the watcher of transaction *ident* and return its number when it listens.

    The caller's signals are held back, so that no other part of it is done in two processes.
    """
    for path, mode in ((RUN, 0o755), (FOLDER, 0o700)):
        try:
            os.mkdir(path, mode)
            os.chmod(path, mode)
        except FileExistsError:
            pass
    where = address(front)
    _leave(where)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    listener.bind(where)
    listener.listen(4)
    process = kernel.pidfd_open(front.pid)
    if pid := os.fork():
        os.close(process)
        listener.close()
        failpoint.reach("hook.watcher.forked")
        return pid  # our own end, which comes at once, makes the watcher a child of PID 1
    try:
        _signal.alarm(0)
        os.setsid()
        _let_go({folder, root, listener.fileno(), process})
        _watch(folder, root, ident, front, name, listener, process, where)
    except BaseException as error:
        trouble.note(folder, WHO, ident, error)
    finally:
        os._exit(1)


def stop(watcher: int, front: Ancestor) -> None:
    """End the watcher that ``start`` just started, and wait for its end."""
    os.kill(watcher, _signal.SIGKILL)
    os.waitpid(watcher, 0)
    _leave(address(front))


def _leave(where: str, socket: int = 0) -> None:
    """Remove the socket at *where*, or nothing if it is not the inode *socket*: the next watcher listens there."""
    try:
        if not socket or os.stat(where).st_ino == socket:
            os.unlink(where)
    except FileNotFoundError:
        pass  # the package was purged, and all in /run with it


def _let_go(keep: set[int]) -> None:
    """Keep nothing of apt's: neither its terminal nor its pipes, its signals or its place in the tree."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in range(3):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor of the listing itself
    for number in (_signal.SIGINT, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)
    for number in (_signal.SIGTERM, _signal.SIGALRM):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _watch(
    folder: int,
    root: int,
    ident: str,
    front: Ancestor,
    name: str,
    listener: _socket.socket,
    process: int,
    where: str,
) -> NoReturn:
    joins = name.startswith(owner.UNATTENDED)
    socket = os.stat(where).st_ino
    poll = select.poll()
    poll.register(listener.fileno(), select.POLLIN)
    poll.register(process, select.POLLIN)
    is_over = False
    idle = 0
    while True:
        ready = {fd for fd, _ in poll.poll(_LOOK_MS)}
        if listener.fileno() in ready and not joins:
            _leave(where, socket)  # before the answer: with that, apt's next operation may come and listen there
        if listener.fileno() in ready and _answer(folder, root, ident, listener, joins):
            is_over = True
            listener.close()
            if state.lines(folder, ident) is None:
                os._exit(0)  # closed
            _wait_for_release(front, process)
            break
        if process in ready:
            break
        idle = idle + 1 if not ready and not _is_at_work(front.pid) else 0
        if idle == 2:
            break
    _wait_for_dpkg(front)
    try:
        judged = None if is_over else closing.finish(folder, root, ident)
    except _ERRORS as error:
        judged = None  # recover finds the same
        trouble.note(folder, WHO, ident, error)
    if not is_over:
        _leave(where, socket)
    if (judged is None or judged.is_open) and _is_ours(folder, ident, front, process):
        log = trouble.open_log(folder)
        for fd in (1, 2):
            os.dup2(log, fd)
        for fd in (folder, root):
            os.set_inheritable(fd, False)
        os.execve(  # noqa: S606 - a program of ours, by its full path, with an environment of ours
            PROGRAM, [PROGRAM, "recover"], {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        )
    os._exit(0)


def _answer(folder: int, root: int, ident: str, listener: _socket.socket, joins: bool) -> bool:
    """Tell a post hook what became of the operation; return whether there is nothing more to hear from it."""
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    peer = _socket.socket(fileno=fd)
    told: list[closing.Judged] = []

    def tell(judged: closing.Judged) -> None:
        told.append(judged)
        _send(peer, closing.message(judged, is_terminal and not joins), folder, ident)

    try:
        peer.settimeout(10)
        is_terminal = peer.recv(64) == b"post terminal"
        if closing.finish(folder, root, ident, not joins, tell) is None:
            _send(peer, "", folder, ident)
    except _ERRORS as error:
        trouble.note(folder, WHO, ident, error)
        if not told:
            text = f"snap-upgrade: transaction {ident} cannot be judged and stays open: {error}\n"
            _send(peer, text, folder, ident)
    finally:
        peer.close()
    return not joins


def _send(peer: _socket.socket, text: str, folder: int, ident: str) -> None:
    """Send the post hook what it is to print; what was judged is written whether or not it still listens."""
    try:
        peer.sendall(text.encode("utf-8", "replace")[:60000])
    except OSError as error:
        trouble.note(folder, WHO, ident, f"the post hook went away before it had its answer: {error}")


def _is_at_work(pid: int) -> bool:
    return pid in (owner.lock_holder(owner.FRONTEND_LOCK), owner.lock_holder(owner.ARCHIVES_LOCK))


def _wait_for_release(front: Ancestor, process: int) -> None:
    """Return when *front* has ended, or has no lock of apt's any more: a daemon, or aptitude's own screen, lives on."""
    for path in (owner.FRONTEND_LOCK, owner.ARCHIVES_LOCK):
        try:
            closing_of = kernel.watch_closing(path)
        except FileNotFoundError:
            continue
        try:
            poll = select.poll()
            poll.register(closing_of, select.POLLIN)
            poll.register(process, select.POLLIN)
            while owner.lock_holder(path) == front.pid and is_alive(front.pid, front.start):
                # Not for ever: a child of theirs may keep the file open, and then nothing tells of the lock's end.
                if closing_of in {fd for fd, _ in poll.poll(_LOOK_MS)}:
                    os.read(closing_of, 4096)
        finally:
            os.close(closing_of)


def _is_ours(folder: int, ident: str, front: Ancestor, process: int) -> bool:
    """Whether recovery may close the transaction: its front end is gone, or is told to be done with it, on disk.

    A front end that is at its next operation already is waited for.
    """
    while is_alive(front.pid, front.start):
        lock = state.wait_for_lock(folder)
        try:
            known = state.lines(folder, ident)
            if known is None or not any(line["kind"] == "verdict" for line in known[0]):
                return False
            if not _is_at_work(front.pid):
                state.append(folder, ident, {"kind": "released"})
                return True
        except _ERRORS as error:
            trouble.note(folder, WHO, ident, error)
            return False
        finally:
            os.close(lock)
        _wait_for_release(front, process)
    return True


def _wait_for_dpkg(front: Ancestor) -> None:
    """Return when no dpkg is at work: a killed apt leaves its dpkg running, or a script that hangs.

    *front* itself has that lock when it begins its next operation, and a daemon may outlive the lock by far.
    """
    while (holder := owner.lock_holder(owner.DPKG_LOCK)) not in (0, front.pid):
        try:
            process = kernel.pidfd_open(holder)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(process, select.POLLIN)
            poll.poll(_LOOK_MS)
        finally:
            os.close(process)
