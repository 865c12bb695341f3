"""A block device whose requests a process of ours answers: /dev/loopN over a file that ``fuseserver.py`` serves.

The rule: nothing of it has a name that could be left behind. The FUSE mount is never attached to a directory; the
loop device holds it, our descriptor holds the loop device, and the server ends when the mount does. So closing one
descriptor takes everything down, also when the test runner is killed, and the end of the server is the proof of it.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import blockdev
from tests.lab.blockdev import Loop, StillHeld, call

_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6
_SERVER = Path(__file__).with_name("fuseserver.py")
_ANSWER_LIMIT_S = 60.0


class ServerGone(AssertionError):
    """The server ended without being asked to; what it printed is in the message."""


def _detached_mount(fuse_fd: int) -> int:
    """Return a descriptor of a FUSE mount that stands nowhere; its root is the regular file that is served."""
    context = call("fsopen", b"fuse", _FSOPEN_CLOEXEC)
    try:
        options = f"source=lab fd={fuse_fd} rootmode=100000 user_id=0 group_id=0"
        for option in options.split():
            key, value = option.encode().split(b"=")
            call("fsconfig", context, _FSCONFIG_SET_STRING, key, value, 0)
        call("fsconfig", context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return call("fsmount", context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


class ServedDevice:
    """``with ServedDevice(image) as dev:`` gives ``dev.path``, a block device over *image* answered by a process.

    On leaving, mounts of the device that the test left are taken down, and StillHeld says so. The image then has
    everything that was written.
    """

    def __init__(self, image: Path, log_dir: Path | None = None) -> None:
        self.image = image
        self.log_dir = log_dir

    @property
    def path(self) -> Path:
        """The block device."""
        return self._loop.path

    @property
    def server_pid(self) -> int:
        """The process that answers, for tests that kill it."""
        return self._server.pid

    def __enter__(self) -> Self:
        self._killed = False
        self._errors = tempfile.TemporaryFile()
        fuse_fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(_ANSWER_LIMIT_S)
        mount = -1
        try:
            mount = _detached_mount(fuse_fd)
            self._server = self._start(fuse_fd, theirs.fileno())
        except BaseException:
            self._control.close()
            self._errors.close()
            if mount >= 0:
                os.close(mount)
            raise
        finally:
            # The server has the only copies: when it dies, the kernel fails what is open instead of waiting for us.
            os.close(fuse_fd)
            theirs.close()
        try:
            self._loop = self._attach(mount)
        except BaseException:
            os.close(mount)
            self._end_server()
            raise
        os.close(mount)
        return self

    def _start(self, fuse_fd: int, control_fd: int) -> subprocess.Popen[bytes]:
        log_dir = str(self.log_dir.absolute()) if self.log_dir else ""
        return subprocess.Popen(
            [sys.executable, "-IS", str(_SERVER), str(fuse_fd), str(control_fd), str(self.image.absolute()), log_dir],
            pass_fds=(fuse_fd, control_fd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
        )

    def _attach(self, mount: int) -> Loop:
        try:
            served = os.open(f"/proc/self/fd/{mount}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ServerGone(self._story()) from error
        try:
            return blockdev.configure_loop(served, str(self.image), direct_io=True)
        finally:
            os.close(served)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = blockdev.unmount_all(self.path)
        os.close(self._loop.fd)
        self._end_server()
        if left and error is None:
            raise StillHeld(f"{self.path} was still mounted at {', '.join(left)}; taken down")

    def _end_server(self) -> None:
        """Wait until the server has ended because its mount is gone, and say so if it did not or failed."""
        try:
            try:
                code = self._server.wait(blockdev.RELEASE_LIMIT_S)
            except subprocess.TimeoutExpired:
                who = blockdev.holders(self.path)
                self._server.kill()
                self._server.wait()
                raise StillHeld(f"{self.image} ({self.path}) in use at the end; {who}; its server is killed") from None
            if code != 0 and not self._killed:
                raise ServerGone(self._story())
        finally:
            self._control.close()
            self._errors.close()

    def kill_server(self) -> None:
        """Kill the server as a crash would; every request from now on fails with an I/O error."""
        self._killed = True
        self._server.kill()
        self._server.wait()

    def command(self, text: str) -> None:
        """Have the server do *text*; it is done when this returns."""
        try:
            self._control.send(text.encode())
            answer = self._control.recv(16)
        except ConnectionError:
            answer = b""
        if answer != b"ok":
            raise ServerGone(self._story())

    def _story(self) -> str:
        self._errors.seek(0)
        printed = self._errors.read().decode(errors="replace").strip()
        return f"the server of {self.image} ended with {self._server.poll()}: {printed or 'it printed nothing'}"
