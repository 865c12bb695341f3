"""A disposable Debian machine in a file: real btrfs on a loop device, real apt, PID 1 of its own.

    with Machine(tmp_path, layout=Layout(subvol="@")) as m:
        m.run(["apt-get", "install", "-y", "hello"])
        m.reboot()

The one rule: everything a machine is made of hangs on descriptors of the process that
started it, so that nothing is left of it however that process ends.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import btrfsutil

from tests.lab import image, kernel, tree
from tests.lab.image import Layout
from tests.lab.install import built_package, install_product
from tests.lab.process import MachineDied, Process, ProgramFailed, Result

__all__ = ["Layout", "Machine", "MachineDied", "Process", "ProgramFailed", "Result"]

_INIT = Path(__file__).with_name("init.py")
_PRODUCT = "/usr/sbin/snap-upgrade"
_TAKE_LOCK = "import fcntl; fcntl.lockf(open('/var/lib/dpkg/lock', 'r+'), fcntl.LOCK_EX)"


class Machine:
    """A machine; running between ``start`` and ``close``, which ``with`` calls."""

    def __init__(self, tmp_path: Path, root: str = "bookworm", layout: Layout | None = None, size: str = "3G",
                 install: bool | Literal["deb"] = True, extra: tuple[str, ...] = (),
                 disk: Path | None = None, lists: bool = False) -> None:  # fmt: skip
        """Describe a machine with files in a new folder below *tmp_path*; ``start`` makes it.

        *root* is the release, *extra* names packages of the mirror it has from the start, *lists* gives it the
        mirror's lists. *install*: the product from the working tree, from the newest .deb that ``make deb``
        left in dist/, or not at all.
        With *disk* that file is its disk: used as it is if it exists, and kept at the end. It must be on
        the file system of *tmp_path*.
        """
        self.release = root
        self.layout = layout or Layout()
        self.size = size
        self.install = install
        self.extra = extra
        self.lists = lists
        self.boot_log: Result | None = None
        self.dir = Path(tempfile.mkdtemp(prefix="machine-", dir=tmp_path))
        self._keep = disk is not None
        self.image = disk or self.dir / "disk.img"
        self.fsid = image.fsid_of(self.image) if self.image.exists() else uuid.uuid4()
        self._loop: kernel.Loop | None = None
        self._top_fd = -1
        self._control: socket.socket | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._processes: list[Process] = []
        self._booted_id = 0
        self.init_pid = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- life

    def start(self) -> None:
        """Make the disk, install the product on it and boot."""
        (self.dir / "root").mkdir()
        if self.image.exists():
            self._attach(self.image)
            self._boot()
        else:
            self._make(self.dir / "disk.part")

    def _make(self, disk: Path) -> None:
        """Make the disk and boot from it; it gets its name, by which it can be kept, when all is well."""
        image.clone(image.master(self.release, self.extra, self.layout, self.size, self.lists), disk, self.fsid)
        try:
            self._attach(disk)
            root = self.top / (self.layout.subvol or "")
            image.configure(root, self.layout, self.fsid, image.subvolume_ids(self.top))
            if self.install is True:
                install_product(root)
            self._boot()
            if self.install == "deb":
                package = built_package()
                shutil.copy(package, self.path("/root"))
                self.run(["apt-get", "install", "-y", f"./{package.name}"])
                self.path(f"/root/{package.name}").unlink()
            disk.rename(self.image)
        finally:
            disk.unlink(missing_ok=True)

    def reboot(self) -> None:
        """End everything inside, unmount, and boot what would boot now; then recover, as the unit would."""
        self.halt()
        if self._loop is None:
            self._attach(self.image)
        self._boot()
        self.boot_log = None
        if os.path.lexists(self.path(_PRODUCT)):
            self.boot_log = self.run([_PRODUCT, "recover", "--boot"], check=False)

    def crash(self, *, power_cut: bool = False) -> None:
        """Kill everything inside without any clean-up; ``reboot`` starts it again.

        With *power_cut* the disk also forgets what the file system had not yet written to it.
        """
        if not power_cut:
            self.halt()
            return
        self._kill_all()
        # Our own mount keeps the file system from being unmounted, so nothing is written for the last time.
        survivor = self.dir / "survivor.img"
        image.copy(self.image, survivor)
        self._detach()
        survivor.replace(self.image)

    def halt(self) -> None:
        """End everything inside and unmount. Done already: nothing happens."""
        self._kill_all()
        self._detach()

    def close(self) -> None:
        """Stop the machine and delete its disk."""
        try:
            self.halt()
        finally:
            if not self._keep:
                self.image.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                (self.dir / "root").rmdir()
                self.dir.rmdir()

    # -- what runs in it

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 120,
            env: Mapping[str, str] | None = None, stdin: str | bytes | None = None,
            pty: bool = False, cwd: str = "/root") -> Result:  # fmt: skip
        """Run a program inside and return its result; ProgramFailed if it fails and *check* is true.

        After *timeout* seconds it is killed and TimeoutError raised, with what it had written.
        """
        with self.popen(argv, env=env, stdin=stdin, pty=pty, cwd=cwd) as process:
            result = process.wait(timeout)
        self._processes.remove(process)
        if check and result.returncode != 0:
            raise ProgramFailed(result)
        return result

    def popen(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str | bytes | None = None,
              pty: bool = False, cwd: str = "/root") -> Process:  # fmt: skip
        """Start a program inside; the machine's end is its end too."""
        if self._control is None:
            raise MachineDied(f"cannot start {argv[0]}: the machine is not running")
        process = Process(self._control, argv, cwd=cwd, env=env, stdin=stdin, pty=pty)
        self._processes.append(process)
        return process

    def wait_for_file(self, path: str, timeout: float = 60) -> None:
        """Wait until *path* exists inside (/run and /tmp too); its folder must exist."""
        kernel.wait_for_path(self.live(path), timeout)

    def wait_for_dpkg(self, timeout: float = 60) -> None:
        """Wait until no dpkg holds its lock: one whose front end was killed goes on by itself."""
        self.run(["/usr/bin/python3", "-IS", "-c", _TAKE_LOCK], timeout=timeout)

    def processes(self) -> dict[int, str]:
        """Return what runs inside but PID 1: pid outside to command line. The dead and unburied are not in it."""
        namespace = os.readlink(f"/proc/{self.init_pid}/ns/pid")
        found = {}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            # Gone meanwhile, or the host's own PID 1 that hides from root in some sandboxes: none of ours.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if pid != self.init_pid and os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    # -- what is on its disk

    @property
    def device(self) -> Path:
        """The machine's disk, a loop device."""
        if self._loop is None:
            raise MachineDied("the machine's disk is not attached")
        return self._loop.device

    @property
    def top(self) -> Path:
        """The top level (subvolume 5) of its file system. Valid until ``halt``, ``reboot``, ``crash`` or ``close``."""
        if self._top_fd < 0:
            raise MachineDied("the machine's disk is not mounted")
        return kernel.fd_path(self._top_fd)

    def subvolumes(self) -> dict[str, int]:
        """Return all subvolumes but the top level: path below the top level to id."""
        return image.subvolume_ids(self.top)

    @property
    def booted_id(self) -> int:
        """The id of the subvolume that is `/` inside."""
        return self._booted_id

    def booted(self) -> str:
        """Return where the subvolume that is `/` inside now is, below the top level ("" is the top level)."""
        if self._booted_id == image.TOP_LEVEL:
            return ""
        path: str = btrfsutil.subvolume_path(str(self.top), self._booted_id)
        return path

    def path(self, inside: str) -> Path:
        """Return the path from here of a file in the booted root subvolume (not of other mounts: see ``live``)."""
        return self.top / self.booted() / inside.lstrip("/")

    def live(self, inside: str) -> Path:
        """Return the path from here of a file as the machine's programs see it: /run, /tmp, /proc, /home included."""
        if self._control is None:
            raise MachineDied(f"{inside} cannot be seen: the machine is not running")
        return Path(f"/proc/{self.init_pid}/root") / inside.lstrip("/")

    def tree_hash(self, subpath: str | None = None) -> dict[str, tree.Entry]:
        """Return what is in the tree at *subpath* below the top level; the booted root if it is None.

        Two equal results are two trees that are the same byte for byte; `tree.differences` names what is not.
        """
        return tree.manifest(self.top / (self.booted() if subpath is None else subpath))

    def fill(self, leave_bytes: int) -> None:
        """Fill the disk until about *leave_bytes* are left, by a folder ``filler`` at the top level."""
        image.fill(self.top / "filler", leave_bytes)

    # -- behind it

    def _attach(self, disk: Path) -> None:
        self._loop = kernel.Loop(disk)
        self._top_fd = kernel.mount_detached(self._loop.device, "btrfs", {"compress": "zstd:1", "subvolid": "5"})

    def _boot(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        boots = image.what_boots(self.layout)
        spec = {
            "device": str(self.device),
            "mountpoint": str(self.dir / "root"),
            "subvol": boots.subvol,
            "subvolid": boots.subvolid,
            "options": "compress=zstd:1",
            "extra": self.layout.extra,
            "kernel_line": boots.kernel_line(self.fsid),
            "hostname": "lab",
        }
        self._control = near
        # A session of its own: Ctrl-C at the tests' terminal is for the tests, which then end the machine.
        self._supervisor = subprocess.Popen(
            [sys.executable, "-IS", str(_INIT), str(far.fileno())],
            pass_fds=[far.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        far.close()
        near.send(json.dumps(spec).encode())
        answer = near.recv(1 << 16)
        if b'"ready"' not in answer:
            self._kill_all()
            raise MachineDied(f"the machine does not boot: {answer.decode() or 'PID 1 ended without a word'}")
        children = Path(f"/proc/{self._supervisor.pid}/task/{self._supervisor.pid}/children").read_text().split()
        self.init_pid = int(children[0])
        self._booted_id = btrfsutil.subvolume_id(str(self.live("/")))

    def pids(self, *marks: bytes) -> list[int]:
        """Return the processes inside whose command line has one of *marks*.

        By the namespace, not by what /proc says of children: that list leaves some out while others end.
        """
        inside = os.readlink(f"/proc/{self.init_pid}/ns/pid")
        found = []
        # PID 1 is the laboratory's own, and the path of the Python that runs it may have any name in it.
        for name in {one for one in os.listdir("/proc") if one.isdecimal()} - {str(self.init_pid)}:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                line = Path(f"/proc/{name}/cmdline").read_bytes()
                if any(mark in line for mark in marks) and os.readlink(f"/proc/{name}/ns/pid") == inside:
                    found.append(int(name))
        return found

    def _kill_all(self) -> None:
        """Kill PID 1, and with it everything inside; return when the kernel has taken down its mounts."""
        if self._supervisor is not None:
            if self.init_pid and self._supervisor.poll() is None:
                os.kill(self.init_pid, signal.SIGKILL)
            if self._control is not None:
                self._control.close()
            self._supervisor.wait()
        for process in self._processes:
            process.close()
        self._processes.clear()
        self._control = self._supervisor = None
        self.init_pid = 0

    def _detach(self) -> None:
        if self._top_fd >= 0:
            os.close(self._top_fd)
            self._top_fd = -1
        if self._loop is not None:
            self._loop.close()
            self._loop = None
