"""A block store behind the kernel: one file served over /dev/fuse, every request in order, logged or failed at will.

Started as a program of its own by ``served.py`` and by nothing else: a loop device stands on the file served here, and
whoever serves it must not be the process that waits for the loop device.

The rule: one thread, one request at a time. A write is in the log before it is in the image and before it is
answered, so the order of the log is the order the device saw, and a flush in the log stands after all that it covers.

Speaks the kernel's FUSE protocol itself (linux/fuse.h, 7.31): the root is a regular file, which needs ten
requests and no library. The descriptor comes from the parent; when the last user of the mount is gone the kernel says
ENODEV and the server ends. When the parent is gone, the server ends too and every request still open fails at once.
"""

import ctypes
import errno
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

WRITE, FLUSH, DISCARD, MARK = 1, 2, 3, 4
RECORD = struct.Struct("<QQQB7x")  # offset on the device, length, position in the data file, kind

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC = 2, 3, 4, 14, 15, 16, 17, 18, 20
_FLUSH, _INIT, _INTERRUPT, _DESTROY, _BATCH_FORGET, _FALLOCATE = 25, 26, 36, 38, 42, 43
_NO_ANSWER = frozenset({_FORGET, _INTERRUPT, _BATCH_FORGET})
_BIG_WRITES, _ASYNC_DIO, _MAX_PAGES = 1 << 5, 1 << 15, 1 << 22
_FOPEN_DIRECT_IO = 1
_MAX_WRITE = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16

Data = bytes | memoryview


class ToldToFail(Exception):
    """The test asked for this request to fail. Any other error is trouble of ours, and ends the server."""


@dataclass
class Faults:
    """Which requests fail from now on. A countdown of 0 fails the next one; None never."""

    writes_after: int | None = None
    reads: bool = False

    def check_write(self) -> None:
        if self.writes_after is None:
            return
        if self.writes_after == 0:
            raise ToldToFail
        self.writes_after -= 1

    def check_read(self) -> None:
        if self.reads:
            raise ToldToFail


@dataclass
class Log:
    """The two files of a block log. Written without a buffer of our own: a killed server loses nothing it answered."""

    index_fd: int
    data_fd: int
    position: int = 0

    def add(self, kind: int, offset: int, length: int, data: Data = b"") -> None:
        if data:
            write_all(self.data_fd, data, self.position)
        record = RECORD.pack(offset, length, self.position, kind)
        if os.write(self.index_fd, record) != len(record):
            raise OSError(errno.ENOSPC, "block log: short write of a record")
        self.position += len(data)


def write_all(fd: int, data: Data, offset: int) -> None:
    """Write all of *data* at *offset*, however many calls it takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make *length* bytes at *offset* read as zeros and free their blocks."""
    libc = ctypes.CDLL(None, use_errno=True)
    args = (fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_longlong(offset), ctypes.c_longlong(length))
    if libc.fallocate64(*args) != 0:
        raise OSError(ctypes.get_errno(), "fallocate of the image")


@dataclass
class Server:
    """Answers the requests for one file."""

    fuse_fd: int
    image_fd: int
    control: socket.socket
    log: Log | None
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.size = os.fstat(self.image_fd).st_size
        self.buffer = bytearray(_MAX_WRITE + 4096)
        self.handlers: dict[int, Callable[[memoryview], bytes]] = {
            _INIT: self.init, _GETATTR: self.attributes, _SETATTR: self.attributes, _STATFS: self.statfs,
            _OPEN: lambda body: struct.pack("<QIi", 1, _FOPEN_DIRECT_IO, 0),
            _READ: self.read, _WRITE: self.write, _FSYNC: self.flush, _FALLOCATE: self.fallocate,
            _RELEASE: lambda body: b"", _FLUSH: lambda body: b"", _DESTROY: lambda body: b"",
        }  # fmt: skip

    def run(self) -> None:
        """Serve until the mount is gone or the parent is."""
        poll = select.poll()
        poll.register(self.fuse_fd, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if not (self.serve_fuse() if fd == self.fuse_fd else self.serve_control()):
                    return

    def serve_fuse(self) -> bool:
        try:
            length = os.readv(self.fuse_fd, [self.buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT):  # fuse(4): the request was taken back
                return True
            raise
        message = memoryview(self.buffer)[:length]
        _, opcode, unique, *_ = _IN.unpack_from(message)
        if opcode in _NO_ANSWER:
            return True
        handler = self.handlers.get(opcode)
        code, answer = errno.ENOSYS, b""
        if handler:
            try:
                code, answer = 0, handler(message[_IN.size :])
            except ToldToFail:
                code = errno.EIO
        os.writev(self.fuse_fd, [_OUT.pack(_OUT.size + len(answer), -code, unique), answer])
        return True

    def serve_control(self) -> bool:
        message = self.control.recv(65536)
        if not message:
            return False
        verb, _, argument = message.partition(b" ")
        if verb == b"mark":
            if self.log is not None:
                self.log.add(MARK, 0, len(argument), argument)
        elif verb == b"fail-writes":
            self.faults.writes_after = int(argument)
        elif verb == b"fail-all":
            self.faults = Faults(0, True)
        elif verb == b"heal":
            self.faults = Faults()
        else:
            raise ValueError(f"unknown command {message!r}")
        self.control.send(b"ok")
        return True

    def init(self, body: memoryview) -> bytes:
        _, _, readahead, flags = struct.unpack_from("<IIII", body)
        flags &= _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, readahead, flags, 64, 48, _MAX_WRITE, 1, 256, *[0] * 9)

    def attributes(self, body: memoryview) -> bytes:
        attr = struct.pack("<QQQQQQIIIIIIIIII", 1, self.size, self.size // 512, 0, 0, 0, 0, 0, 0,
                           stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0)  # fmt: skip
        return struct.pack("<QII", 3600, 0, 0) + attr

    def statfs(self, body: memoryview) -> bytes:
        return struct.pack("<QQQQQIIII24x", self.size // 4096, 0, 0, 1, 0, 4096, 255, 4096, 0)

    def read(self, body: memoryview) -> bytes:
        self.faults.check_read()
        _, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(self.image_fd, size, offset)

    def write(self, body: memoryview) -> bytes:
        self.faults.check_write()
        _, offset, size = struct.unpack_from("<QQI", body)
        data = body[40 : 40 + size]
        if self.log is not None:
            self.log.add(WRITE, offset, size, data)
        write_all(self.image_fd, data, offset)
        return struct.pack("<II", size, 0)

    def flush(self, body: memoryview) -> bytes:
        """Log a flush. Nothing is synced for real: the machine under this test does not lose power, the log does."""
        self.faults.check_write()
        if self.log is not None:
            self.log.add(FLUSH, 0, 0)
        return b""

    def fallocate(self, body: memoryview) -> bytes:
        """Take a discard or a write of zeros; both read as zeros afterwards, which a replay repeats."""
        self.faults.check_write()
        _, offset, length, mode = struct.unpack_from("<QQQI", body)
        if mode not in (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE | _KEEP_SIZE, _ZERO_RANGE):
            raise ValueError(f"fallocate mode {mode} of a loop device is not known here")
        if self.log is not None:
            self.log.add(DISCARD, offset, length)
        zero_range(self.image_fd, offset, length)
        return b""


def main(fuse_fd: int, control_fd: int, image: str, log_dir: str) -> None:
    log = None
    if log_dir:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        index_fd = os.open(os.path.join(log_dir, "index"), flags | os.O_APPEND, 0o600)
        log = Log(index_fd, os.open(os.path.join(log_dir, "data"), flags, 0o600))
    image_fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    os.set_blocking(fuse_fd, False)
    Server(fuse_fd, image_fd, socket.socket(fileno=control_fd), log).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
