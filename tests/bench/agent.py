"""Runs one program inside a machine and says what it cost, with everything that it left running behind it.

Runs as ``python3 -IS agent.py OUTPUT PROGRAM...``; prints one JSON line and writes what the program wrote to OUTPUT.
The one rule: nothing escapes the count. This process is the one that orphans fall to, and it waits for the last of
them; what servers that were there before did meanwhile is read from their clocks.
"""

import errno
import os
import sys
import time

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
_STILL, _LOOK_S = 3, 0.02
_MARK = "SNAP_UPGRADE_BENCH_STAGE"


def _become_small_subreaper() -> None:
    """Set the attribute, then begin anew: it outlives exec, the memory that ctypes took does not.

    A child's peak memory is never less than its parent's at the time of the fork (exec in the kernel's
    fs/exec.c keeps it), so the parent must be as small as a Python can be.
    """
    if _MARK in os.environ:
        del os.environ[_MARK]
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    os.environ[_MARK] = "2"
    os.execv(sys.executable, [sys.executable, "-IS", *sys.argv])


def _clocks() -> dict[tuple[int, str], int]:
    """Return the processor time in ns of every process of this pid namespace but PID 1 and this one."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try:
                with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                    start = file.read().rpartition(")")[2].split()[19]
                # The clock of a whole process, its ended threads included: clock_getcpuclockid(3).
                found[int(name), start] = time.clock_gettime_ns((~int(name) << 3) | 2)
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            except OSError as error:
                if error.errno != errno.EINVAL:  # the clock of a process that ended meanwhile
                    raise
    return found


def _served(before: dict[tuple[int, str], int]) -> int:
    """Return what processes that are not ours have used since *before*, in ns, when they have come to rest.

    A server may go on after its client has its answer: snapperd compares the two snapshots then. There is no event
    to wait for, so their clocks are read until they stand still.
    """
    used, still = -1, 0
    while still < _STILL:
        now = sum(clock - before.get(key, 0) for key, clock in _clocks().items())
        still = still + 1 if now == used else 0
        used = now
        if used:
            time.sleep(_LOOK_S)
        else:
            still = _STILL
    return used


def _start(output: int, argv: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            null = os.open("/dev/null", os.O_RDONLY)
            for number, fd in enumerate((null, output, output)):
                os.dup2(fd, number)
            os.execvp(argv[0], argv)
        finally:
            os._exit(127)
    return pid


def main() -> None:
    """Run, wait for all, print."""
    _become_small_subreaper()
    output = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    servers = _clocks()
    began = time.monotonic_ns()
    pid = _start(output, sys.argv[2:])
    status, ended, foreground, background, memory, behind = -1, 0, 0.0, 0.0, 0, 0
    while True:
        try:
            done, code, usage = os.wait4(-1, 0)
        except ChildProcessError:
            break
        if done == pid:
            ended = time.monotonic_ns()
            status, memory = os.waitstatus_to_exitcode(code), usage.ru_maxrss
            foreground = usage.ru_utime + usage.ru_stime
        else:
            background += usage.ru_utime + usage.ru_stime
            behind = max(behind, usage.ru_maxrss)
    finished = time.monotonic_ns()
    served = _served(servers)
    print(
        f'{{"status": {status}, "wall": {(ended - began) / 1e9}, "foreground": {foreground}, '
        f'"background": {background}, "servers": {served / 1e9}, "finished": {(finished - began) / 1e9}, '
        f'"memory_kib": {memory}, "background_memory_kib": {behind}}}'
    )


main()
