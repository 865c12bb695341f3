"""Loop devices and mounts for tests, by system call, released whatever happens.

The rule: a loop device is configured with autoclear by a descriptor we hold, so the kernel takes it away with its last
user even when the test runner is killed; and no ``with`` block here ends before that has happened, or says who
still holds it.
"""

import ctypes
import errno
import fcntl
import os
import select
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE, _LOOP_GET_STATUS64 = 0x4C0A, 0x4C82, 0x4C05
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_MS_RDONLY, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_IN_CLOSE_WRITE, _IN_CLOSE_NOWRITE = 8, 16
_FICLONE = 0x40049409
RELEASE_LIMIT_S = 30.0

libc = ctypes.CDLL(None, use_errno=True)


class StillHeld(AssertionError):
    """Something a test opened, mounted or started is still there at its end."""


def call(name: str, *args: object) -> int:
    """Call libc's *name*, which says -1 and errno for failure; the error names the call and its arguments."""
    result = int(getattr(libc, name)(*args))
    if result < 0:
        code = ctypes.get_errno()
        words = ", ".join(a.decode() if isinstance(a, bytes) else repr(a) for a in args)
        raise OSError(code, f"{name}({words}): {os.strerror(code)}")
    return result


@dataclass(frozen=True)
class Loop:
    """A loop device in use: its path, and the descriptor that keeps it there."""

    path: Path
    fd: int
    backing: str

    @property
    def bound(self) -> bool:
        """Whether the device still has our backing file; by now its number may belong to somebody else."""
        return _backing_file(self.path) == self.backing


def _backing_file(device: Path) -> str | None:
    try:
        text = Path(f"/sys/block/{device.name}/loop/backing_file").read_text()
    except FileNotFoundError:
        return None
    return text.rstrip("\n").removesuffix(" (deleted)")


def configure_loop(backing_fd: int, label: str, *, read_only: bool = False, direct_io: bool = False) -> Loop:
    """Put a loop device on *backing_fd*; it goes away with its last user. The caller closes ``Loop.fd``."""
    flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct_io else 0)
    name = os.fsencode(label)[-63:]
    config = struct.pack("<II5Q4I64s96x16x64x", backing_fd, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        # Between the calls another test takes the device, or it still goes away under the one before: ask for the next.
        for _ in range(1000):
            path = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            fd = -1
            try:
                fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                return Loop(path, fd, _backing_file(path) or "")
            except BaseException as error:
                if fd >= 0:
                    os.close(fd)
                if not (isinstance(error, OSError) and error.errno in (errno.EBUSY, errno.ENXIO, errno.ENODEV)):
                    raise
        raise OSError(errno.EBUSY, f"no free loop device for {label} in 1000 tries")
    finally:
        os.close(control)


def loop_label(device: Path) -> str | None:
    """Return the label *device* was configured with (its last 63 bytes), or None if it is free."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(232))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    finally:
        os.close(fd)
    return os.fsdecode(status[56:120].rstrip(b"\0"))


@contextmanager
def attached(image: Path, *, read_only: bool = False, direct_io: bool = False) -> Iterator[Path]:
    """Yield a loop device over *image*; on leaving it is gone, mounts of it first, or StillHeld is raised."""
    backing = os.open(image, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    watch = call("inotify_init1", os.O_CLOEXEC)
    try:
        try:
            loop = configure_loop(backing, str(image), read_only=read_only, direct_io=direct_io)
        finally:
            os.close(backing)
        call("inotify_add_watch", watch, os.fsencode(image), _IN_CLOSE_WRITE | _IN_CLOSE_NOWRITE)
        try:
            yield loop.path
        finally:
            left = unmount_all(loop.path)
            os.close(loop.fd)
            _await_release(loop, watch)
        if left:
            raise StillHeld(f"{loop.path} was still mounted at {', '.join(left)}; taken down")
    finally:
        os.close(watch)


def _await_release(loop: Loop, watch: int) -> None:
    """Wait until the kernel has closed the backing file, which inotify tells."""
    deadline = time.monotonic() + RELEASE_LIMIT_S
    while loop.bound:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise StillHeld(f"{loop.path} still in use after {RELEASE_LIMIT_S:.0f} s; {holders(loop.path)}")
        # The event comes just before the kernel removes the device from /sys, hence the look every 10 ms once seen.
        ready, _, _ = select.select([watch], [], [], min(remaining, 1.0))
        if ready:
            os.read(watch, 65536)
            _look_again(loop, min(deadline, time.monotonic() + 1.0))


def _look_again(loop: Loop, deadline: float) -> None:
    while loop.bound and time.monotonic() < deadline:
        time.sleep(0.002)  # no event exists for the last few instructions of loop_clr


def holders(device: Path, mount_point: str = "") -> str:
    """Name the processes that hold *device*, or a file under *mount_point*, as far as /proc tells."""
    found: list[str] = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            mounts = Path(entry.path, "mountinfo").read_text(errors="surrogateescape")
            opened = [os.readlink(fd.path) for fd in os.scandir(Path(entry.path, "fd"))]
            opened.append(os.readlink(Path(entry.path, "cwd")))
            name = Path(entry.path, "comm").read_text().strip()
        except OSError:  # it ended while we looked, so it holds nothing
            continue
        below = mount_point and any(path == mount_point or path.startswith(f"{mount_point}/") for path in opened)
        if below or str(device) in opened or f" {device} " in mounts:
            found.append(f"{name}({entry.name})")
    return "held by " + ", ".join(found) if found else "no process shows it: a detached mount or a kernel thread"


def mount_points(device: Path) -> list[str]:
    """Return where *device* is mounted in this mount namespace, last mounted first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")[:-1]:
        left, _, right = line.partition(" - ")
        if right.split(" ")[1] == str(device):
            points.append(left.split(" ")[4].encode().decode("unicode_escape").encode("latin-1").decode())
    return points[::-1]


def unmount_all(device: Path) -> list[str]:
    """Take down every mount of *device* seen here, busy or not, and return where they were."""
    points = mount_points(device)
    for point in points:
        call("umount2", os.fsencode(point), _MNT_DETACH | _UMOUNT_NOFOLLOW)
    return points


@contextmanager
def mounted_device(
    device: Path, *, fstype: str = "btrfs", options: str = "", read_only: bool = False
) -> Iterator[Path]:
    """Mount *device* on a fresh directory; a mount that is still busy at the end is taken down and reported."""
    with tempfile.TemporaryDirectory(prefix="lab-mount-") as directory:
        flags = _MS_RDONLY if read_only else 0
        call("mount", os.fsencode(device), os.fsencode(directory), fstype.encode(), flags, os.fsencode(options))
        try:
            yield Path(directory)
        finally:
            try:
                call("umount2", os.fsencode(directory), _UMOUNT_NOFOLLOW)
            except OSError as error:
                who = holders(device, directory)
                call("umount2", os.fsencode(directory), _MNT_DETACH | _UMOUNT_NOFOLLOW)
                raise StillHeld(f"{directory} ({device}) busy at the end; {who}; taken down") from error


@contextmanager
def mounted(image: Path, *, fstype: str = "btrfs", options: str = "", read_only: bool = False) -> Iterator[Path]:
    """Mount *image* through a loop device of its own. Two images with one fsid: one after the other, never at once."""
    with (
        attached(image, read_only=read_only) as device,
        mounted_device(device, fstype=fstype, options=options, read_only=read_only) as root,
    ):
        yield root


def syncfs(directory: Path) -> None:
    """Have the file system of *directory* write out all it has; on btrfs this commits the transaction."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call("syncfs", fd)
    finally:
        os.close(fd)


def reflink(source: Path, target: Path) -> None:
    """Make *target* a new file that shares the blocks of *source*; both on one btrfs or XFS."""
    with open(source, "rb") as src, open(target, "xb") as dst:
        fcntl.ioctl(dst, _FICLONE, src.fileno())


def sparse_copy(source: Path, target: Path) -> None:
    """Copy *source* to the new file *target*, data only; holes stay holes."""
    with open(source, "rb") as src, open(target, "xb") as dst:
        size = os.fstat(src.fileno()).st_size
        os.truncate(dst.fileno(), size)
        position = 0
        while position < size:
            try:
                start = os.lseek(src.fileno(), position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # lseek(2): nothing but a hole up to the end
                    return
                raise
            position = os.lseek(src.fileno(), start, os.SEEK_HOLE)
            _copy_range(src.fileno(), dst.fileno(), start, position)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        copied = os.copy_file_range(source, target, end - start, start, start)
        if copied == 0:
            raise OSError(errno.EIO, "the source became shorter while it was copied")
        start += copied
