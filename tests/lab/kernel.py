"""System calls the laboratory needs and Python does not have: loop devices, detached mounts, inotify.

Whatever is made here hangs on a file descriptor of the calling process and is gone
when that descriptor is: no clean-up code has to run for nothing to be left behind.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# linux/loop.h
_LOOP_CLR_FD = 0x4C01
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_INFO64 = struct.Struct("=5Q4I64s64s32s2Q")
_LOOP_CONFIG_HEAD = struct.Struct("=2I")

# linux/mount.h
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSMOUNT_CLOEXEC = 1

# linux/inotify.h
_IN_CREATE = 0x100
_IN_MOVED_TO = 0x80
_IN_CLOEXEC = 0o2000000


def _call(name: str, *args: object) -> int:
    """Call the C library's *name*; raise OSError that names it if it returns -1."""
    result: int = getattr(_libc, name)(*args)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


class Loop:
    """A loop device over *image*, detached by the kernel when its last user is gone."""

    def __init__(self, image: Path) -> None:
        backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.fd, self.device = _attach(backing, image)
        finally:
            os.close(backing)

    def close(self) -> None:
        """Detach; raise OSError if something still uses the device, or it stays bound."""
        if self.fd < 0:
            return
        try:
            fcntl.ioctl(self.fd, _LOOP_CLR_FD)
            # With another opener the kernel only marks the device to be cleared at the last close.
            fcntl.ioctl(self.fd, _LOOP_GET_STATUS64, bytearray(_LOOP_INFO64.size))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        finally:
            os.close(self.fd)
            self.fd = -1


def _attach(backing: int, image: Path) -> tuple[int, Path]:
    flags = _LO_FLAGS_AUTOCLEAR
    info = _LOOP_INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(image)[:63], b"", b"", 0, 0)
    config = _LOOP_CONFIG_HEAD.pack(backing, 0) + info + bytes(64)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        # Between the calls another takes the device, or it still goes away under the one before: ask for the next.
        for _ in range(1000):
            device = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            fd = -1
            try:
                fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                return fd, device
            except OSError as error:
                if fd >= 0:
                    os.close(fd)
                if error.errno not in (errno.EBUSY, errno.ENXIO, errno.ENODEV):
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"no free loop device for {image} in 1000 tries")


def loops_over(folder: Path) -> list[str]:
    """Return the names of the loop devices whose file is below *folder*, be it deleted or not."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        # The device may be detached between the two looks: then it is not bound to anything.
        with contextlib.suppress(FileNotFoundError):
            if entry.read_text().startswith(f"{folder}/"):
                found.append(entry.parents[1].name)
    return found


def mount_detached(device: Path, filesystem: str, options: Mapping[str, str | None]) -> int:
    """Mount *device* without attaching it anywhere; return the descriptor that is its root.

    The path ``/proc/PID/fd/N`` leads into it, for child processes too. Unmounted when the
    descriptor is closed or its owner dies, so it can never be forgotten.
    """
    context = _call("fsopen", filesystem.encode(), _FSOPEN_CLOEXEC)
    try:
        for key, value in {"source": str(device), **options}.items():
            kind = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            _call("fsconfig", context, kind, key.encode(), None if value is None else value.encode(), 0)
        _call("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call("fsmount", context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def fd_path(fd: int) -> Path:
    """Return a path to an open directory that other processes of root can follow too."""
    return Path(f"/proc/{os.getpid()}/fd/{fd}")


def wait_for_path(path: Path, timeout_s: float) -> None:
    """Return when *path* exists; its folder must exist already. Raises TimeoutError."""
    watch = _call("inotify_init1", _IN_CLOEXEC)
    try:
        _call("inotify_add_watch", watch, os.fsencode(path.parent), _IN_CREATE | _IN_MOVED_TO)
        deadline = time.monotonic() + timeout_s
        while not os.path.lexists(path):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([watch], [], [], left)[0]:
                raise TimeoutError(f"{path} did not appear in {timeout_s} s")
            os.read(watch, 4096)
    finally:
        os.close(watch)


def outside_pid(pidfd: int) -> int:
    """Return the process's pid in our own pid namespace, -1 once it is reaped."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    raise ValueError(f"descriptor {pidfd} is not a pidfd")
