"""Boot environments as btrfs subvolumes, reached through a mount of the top level that nobody else sees.

The rule: a volume is its uuid. A path is only where it was found a moment ago, so every change is read back, and
nothing that is mounted, that runs or that boots is destroyed: Linux itself would let us.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import btrfsutil

from snap_upgrade.core import layout as layouts
from snap_upgrade.core.errors import NeedsPerson, NotFound, Refused, StorageError
from snap_upgrade.core.model import FileChange, Layout, Method, Space, Volume
from snap_upgrade.core.names import is_told
from snap_upgrade.storage import btrfs_diff, btrfs_facts, btrfs_move, btrfs_state, btrfs_tree
from snap_upgrade.storage.btrfs_errors import DMESG, explained, named
from snap_upgrade.system import kernel, mounts

STATE = ".snap-upgrade"
_UUID_TREE, _UUID_SUBVOL = 9, 251
_PLACEHOLDER = 2  # inode of the empty directory that a snapshot has where its source has a subvolume
_RDONLY = 1


class BtrfsStorage:
    """The Storage of the btrfs that holds *root*; texts that are not given are read from the machine."""

    kind = "btrfs"

    def __init__(
        self,
        root: Path,
        *,
        kernel_line: str | None = None,
        fstab: str | None = None,
        swaps: str | None = None,
        activation: str = "auto",
    ) -> None:
        self.root = root
        self.activation = activation
        self._kernel_line, self._fstab, self._swaps = kernel_line, fstab, swaps
        self._fd = -1
        self._device = ""
        self._writable = False

    def close(self) -> None:
        """Give up the private mount; a later call opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    # -- the way in

    def _top(self) -> int:
        """Return the descriptor of the top level, opened at the first call."""
        if self._fd < 0:
            self._open()
        return self._fd

    def _open(self) -> None:
        mount = mounts.mount_of(str(self.root))
        if mount.fstype != "btrfs":
            live = mount.fstype == "overlay"
            hint = "snap-upgrade works on the installed system, not on a live medium" if live else ""
            raise Refused(f"{self.root} is on {mount.fstype}, not on btrfs", hint)
        self._writable = "ro" not in mount.super_options[:1]
        root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fs_uuid = kernel.filesystem_info(root_fd)[2]
            candidates = [mount.source, *(path for _, _, path in btrfs_facts.devices(root_fd))]
            problem = f"cannot open the file system of {self.root}"
            for device in dict.fromkeys(candidates):
                try:
                    # Read-only where it is so already: otherwise Linux would make the whole file system writable.
                    fd = kernel.open_top_level(device, read_only=not self._writable)
                except OSError as error:
                    problem = f"{problem}; {error.strerror} ({device})"
                    continue
                if kernel.filesystem_info(fd)[2] == fs_uuid:
                    self._fd, self._device = fd, device
                    return
                os.close(fd)
                problem = f"{problem}; {device} is another file system"
            raise StorageError(problem)
        finally:
            os.close(root_fd)

    def _inside(self, path: str) -> str:
        """Return a path of this process for *path* of the top level."""
        return f"/proc/self/fd/{self._top()}/{path}"

    @staticmethod
    def _parts(path: str) -> list[str]:
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise StorageError(f"{path!r} is not a path below the top level", errno.EINVAL)
        return parts

    @contextmanager
    def _folder(self, path: str) -> Iterator[tuple[int, bytes]]:
        """Open the directory of *path* step by step, never through a symbolic link; yield it and the last name."""
        with btrfs_tree.folder(self._top(), [os.fsencode(part) for part in self._parts(path)]) as found:
            yield found

    @contextmanager
    def _place(self, volume: Volume) -> Iterator[tuple[int, bytes]]:
        """Open the directory that *volume* is in, also where its path cannot be told; yield it and the name there."""
        told = is_told(volume.path)
        parts = [os.fsencode(part) for part in self._parts(volume.path)] if told else None
        with btrfs_tree.folder(self._top(), parts or btrfs_tree.steps_to(self._top(), volume.ident)) as found:
            yield found

    # -- what is there

    def _volume(self, info: Any, path: str) -> Volume:
        # Volumes from before Linux 3.6, and the top level of old ones, have no uuid: their number serves instead.
        own = info.uuid.hex() if info.uuid.strip(b"\0") else f"{info.id:032x}"
        parent = info.parent_uuid.hex() if info.parent_uuid.strip(b"\0") else None
        return Volume(own, info.id, path, parent, info.parent_id, bool(info.flags & _RDONLY), info.ctransid,
                      info.otransid)  # fmt: skip

    def _by_id(self, ident: int) -> Volume | None:
        try:
            info = btrfsutil.subvolume_info(self._top(), ident)
            path = self._path(ident)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTTY) or "not found" in str(error).lower():
                return None
            raise
        return self._volume(info, path)

    def _path(self, ident: int) -> str:
        try:
            return "" if ident == kernel.TOP_LEVEL else btrfsutil.subvolume_path(self._top(), ident)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return btrfs_tree.path_of(self._top(), ident)

    def _find(self, uuid: str) -> Volume | None:
        """Return the volume *uuid*, by the tree of uuids: no walk through all volumes."""
        raw = bytes.fromhex(uuid)
        if not raw[:8].strip(b"\0"):
            return self._by_id(int(uuid, 16))
        key = (int.from_bytes(raw[:8], "little"), _UUID_SUBVOL, int.from_bytes(raw[8:], "little"))
        with explained(f"look for the volume {uuid}"):
            for _ in btrfs_facts.looks():
                items = kernel.tree_search(self._top(), _UUID_TREE, key, key)
                if not items:
                    return None
                for offset in range(0, len(items[0][4]) - 7, 8):
                    found = self._by_id(int.from_bytes(items[0][4][offset : offset + 8], "little"))
                    if found is not None and found.uuid == uuid:
                        return found
                # It exists but has no place: it is being moved at this moment, or its end is not written yet.
        return None

    def _require(self, uuid: str) -> Volume:
        try:
            found = self._find(uuid)
        except ValueError:
            found = None
        if found is None:
            raise StorageError(f"no volume has the uuid {uuid}", errno.ENOENT)
        return found

    def volumes(self) -> dict[str, Volume]:
        """Return every volume by uuid, the top level too."""
        with explained("list the volumes"):
            for _ in btrfs_facts.looks():
                alive = btrfs_facts.volume_numbers(self._top())
                found = self._list()
                # While a volume moves it has no place for an instant, and a walk by places does not come by it.
                if found is not None and alive <= found.keys():
                    return {volume.uuid: volume for volume in found.values()}
        raise StorageError("the volumes change faster than they can be listed", errno.EAGAIN)

    def _list(self) -> dict[int, Volume] | None:
        """Return every volume by number, or None if one went away in the middle."""
        found = btrfs_tree.volumes(self._top())
        if found is None:
            return None
        top = {kernel.TOP_LEVEL: self._volume(btrfsutil.subvolume_info(self._top(), kernel.TOP_LEVEL), "")}
        return top | {number: self._volume(info, path) for number, (info, path) in found.items()}

    def at(self, path: str) -> Volume | None:
        """Return the volume at *path* (empty: the top level), or None if there is nothing or something else."""
        with explained(f"look at {named(path)}"):
            if not path:
                return self._by_id(kernel.TOP_LEVEL)
            for _ in btrfs_facts.looks():
                try:
                    with self._folder(path) as (folder, name):
                        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                        fd = os.open(name, flags, dir_fd=folder)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        return None
                    raise
                try:
                    if not kernel.is_subvolume(fd):
                        return None
                    found = self._by_id(kernel.subvolume_id(fd))
                finally:
                    os.close(fd)
                # An exchange removes and writes the entry in the tree of roots one after the other, and while it
                # does a volume that can be opened has no place: look again.
                if found is not None:
                    return replace(found, path=path)
        raise StorageError(f"what is at {named(path)} keeps changing", errno.EAGAIN)

    def nested(self, uuid: str) -> list[Volume]:
        """Return the volumes inside *uuid*, deepest first."""
        outer = self._require(uuid)
        with explained(f"list what is inside {named(outer.path)}"):
            inside = btrfs_tree.inside(self._top(), outer.ident, outer.path)
        found = [self._volume(info, path) for info, path in inside]
        # In a root that is the top level itself our own state lies too, and is no part of it.
        return [volume for volume in found if outer.path or f"{volume.path}/".split("/", 1)[0] != STATE]

    def _running(self) -> Volume:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not kernel.is_subvolume(fd):
                raise Refused(f"{self.root} is a directory inside a subvolume, not a subvolume",
                              "a root can only be rolled back if it is a subvolume of its own")  # fmt: skip
            running = self._by_id(kernel.subvolume_id(fd))
        finally:
            os.close(fd)
        if running is None:
            raise NeedsPerson(f"the volume mounted at {self.root} was deleted")
        return running

    # -- what boots

    def _facts(self) -> layouts.Facts:
        top = self._top()
        names = btrfs_facts.names(top, [self._device, *(path for _, _, path in btrfs_facts.devices(top))])
        try:
            fstab = self._fstab if self._fstab is not None else _read(self.root / "etc/fstab")
        except FileNotFoundError:
            fstab = ""
        kernel_line = self._kernel_line if self._kernel_line is not None else _read(Path("/proc/cmdline"))
        named = [self._by_id(number) for number in layouts.numbers(kernel_line, fstab)]
        return layouts.Facts(
            running=self._running(),
            default_id=kernel.get_default(top),
            kernel_line=kernel_line,
            fstab=fstab,
            fs_uuid=kernel.filesystem_info(top)[2],
            names=names,
            configured=self.activation,
            writable=self._writable,
            elsewhere=btrfs_facts.elsewhere(str(self.root)),
            swap_files=btrfs_facts.swap_files(
                self._swaps if self._swaps is not None else _read(Path("/proc/swaps")), str(self.root)
            ),
            places={volume.ident: volume.path for volume in named if volume is not None},
        )

    def layout(self) -> Layout:
        """Return the running root and how another one would be made to boot; Refused where there is no btrfs root."""
        with explained("find out how the root is chosen at boot"):
            return layouts.decide(self._facts())

    def boots_next(self) -> Volume | None:
        """Return what would boot now, read back from the names, numbers and the default on the file system."""
        with explained("find out what boots next"):
            facts = self._facts()
            decided = layouts.decide(facts)
            if decided.method is Method.EXCHANGE:
                return self.at(decided.boot_path or "")
            if decided.method is Method.SET_DEFAULT:
                return self._by_id(facts.default_id)
            selection = layouts.select(facts)
            if selection is None:
                return None
            if selection.path is not None:
                there = self.at(selection.path)
                fits = there is not None and selection.ident in (None, there.ident)
                return there if fits else None
            return self._by_id(selection.ident if selection.ident is not None else facts.default_id)

    def activate(self, uuid: str) -> None:
        """Make *uuid* what boots next; repeated, it finds that so and only makes it durable."""
        volume = self._require(uuid)
        decided = self.layout()
        if decided.method is Method.NONE:
            raise Refused(f"cannot activate {named(volume.path)}: {decided.refusal}; nothing was changed", decided.hint)
        if volume.read_only:
            what = f"cannot activate {named(volume.path)}: it is read-only; nothing was changed"
            raise Refused(what, "activate a clone of it")
        if decided.method is Method.EXCHANGE:
            assert decided.boot_path is not None
            there = self.at(decided.boot_path)
            if there is None:
                self.rename(uuid, decided.boot_path)
            elif there.uuid != uuid:
                self.exchange(uuid, there.uuid)
        else:
            with explained(f"make {named(volume.path)} the default subvolume"):
                kernel.set_default(self._top(), volume.ident)
        self.sync()
        now = self.boots_next()
        if now is None or now.uuid != uuid:
            what = "nothing" if now is None else named(now.path)
            raise NeedsPerson(f"{named(volume.path)} was activated, but {what} is what would boot")

    # -- changes

    def _copy(self, source: str, path: str, read_only: bool) -> Volume:
        origin = self._require(source)
        verb = "snapshot" if read_only else "clone"
        shown = named(origin.path)
        there = self.at(path)
        if there is not None and there.parent_uuid == origin.uuid and there.read_only == read_only:
            return there
        if there is not None or self._occupied(path):
            raise StorageError(f"cannot {verb} {shown}: {named(path)} is taken by something else; nothing was changed",
                               errno.EEXIST)  # fmt: skip
        with explained(f"{verb} {shown} to {named(path)}"), self._folder(path) as (folder, name):
            source_fd = kernel.open_volume(self._device, origin.ident, read_only=not self._writable)
            try:
                kernel.snapshot(source_fd, folder, name, read_only)
            finally:
                os.close(source_fd)
        made = self.at(path)
        if made is None or made.read_only != read_only:
            raise StorageError(f"the {verb} of {shown} at {named(path)} is not there after it was made")
        return made

    def _occupied(self, path: str) -> bool:
        try:
            with self._folder(path) as (folder, name):
                os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(
                f"cannot use {named(path)}: {error.strerror}; nothing was changed", error.errno or 0
            ) from error
        return True

    def snapshot(self, source: str, path: str) -> Volume:
        """Make a read-only snapshot; one that is there already is returned."""
        return self._copy(source, path, True)

    def clone(self, source: str, path: str) -> Volume:
        """Make a writable clone; one that is there already is returned."""
        return self._copy(source, path, False)

    def destroy(self, uuid: str) -> None:
        """Destroy exactly this volume; ENOTEMPTY if others are inside, EBUSY if it runs, boots or is mounted."""
        volume = self._find(uuid)
        if volume is None:
            return
        shown = named(volume.path)
        inside = [named(inner.path) for inner in self.nested(uuid)]
        if inside:
            raise StorageError(f"cannot destroy {shown}: other volumes are inside: {', '.join(inside)}; nothing was "
                               "changed", errno.ENOTEMPTY)  # fmt: skip
        with explained(f"find out what uses {shown}"):
            why = self._in_use(volume)
        if why:
            raise StorageError(f"cannot destroy {shown}: {why}; nothing was changed", errno.EBUSY)
        with explained(f"destroy {shown}"):
            kernel.destroy_subvolume_id(self._top(), volume.ident)

    def _in_use(self, volume: Volume) -> str:
        """Return why *volume* must stay, or an empty string. Mounted counts in every mount namespace."""
        if volume.ident == kernel.TOP_LEVEL:
            return "it is the file system itself"
        if volume.ident == self._running().ident:
            return "it is the running root"
        if volume.ident == kernel.get_default(self._top()):
            return "it is the default subvolume"
        following = self.boots_next()
        if following is not None and following.ident == volume.ident:
            return "it boots next"
        device = mounts.mount_of(str(self.root)).device
        for seen in mounts.namespaces():
            for mount in seen:
                if mount.device == device and mount.subvolume_id == volume.ident:
                    return f"it is mounted at {mount.point}"
        return ""

    def rename(self, uuid: str, path: str) -> None:
        """Move the volume to *path*, which must be free or the empty directory a snapshot has in its place."""
        volume = self._require(uuid)
        if volume.path == path:
            return
        with explained(f"move {named(volume.path)} to {named(path)}"):
            with self._place(volume) as (old, old_name), self._folder(path) as (new, new_name):
                with suppress(FileNotFoundError):
                    if os.stat(new_name, dir_fd=new, follow_symlinks=False).st_ino == _PLACEHOLDER:
                        os.rmdir(new_name, dir_fd=new)
                with self._movable([volume], os.fstat(old), os.fstat(new)):
                    kernel.rename_noreplace(old, old_name, new, new_name)
        self._verify(uuid, path)

    @contextmanager
    def _movable(self, volumes: list[Volume], old: os.stat_result, new: os.stat_result) -> Iterator[None]:
        """Make those of *volumes* that are read-only writable for as long as they move from folder *old* to *new*."""
        frozen = [volume.ident for volume in volumes if volume.read_only]
        if not frozen or (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino):
            yield
            return
        with btrfs_move.writable(self.state_dir(create=True), frozen, self._opened_number):
            yield

    def _opened_number(self, number: int) -> int:
        return kernel.open_volume(self._device, number, read_only=not self._writable)

    def _verify(self, uuid: str, path: str) -> None:
        there = self.at(path)
        if there is None or there.uuid != uuid:
            raise NeedsPerson(f"{named(path)} was moved, but another volume is there now")

    def exchange(self, first: str, second: str) -> None:
        """Let the two volumes change places in one atomic operation; a mount of either follows its volume."""
        one, two = self._require(first), self._require(second)
        if not one.path or not two.path:
            raise StorageError("the top level cannot change places with anything; nothing was changed", errno.EINVAL)
        with explained(f"let {named(one.path)} and {named(two.path)} change places"):
            with self._folder(one.path) as (a, name_a), self._folder(two.path) as (b, name_b):
                with self._movable([one, two], os.fstat(a), os.fstat(b)):
                    kernel.exchange(a, name_a, b, name_b)
        self._verify(first, two.path)
        self._verify(second, one.path)

    # -- the state

    def state_dir(self, create: bool = False) -> Path:
        """Return the state directory; made at the first use, and completed if an earlier attempt was cut short."""
        state = self._inside(STATE)
        with explained("open the state subvolume"):
            there = self.at(STATE)
            if there is None and not create:
                raise NotFound("there is no state of snap-upgrade on this file system yet")
            if there is None:
                with suppress(FileExistsError):
                    kernel.create_subvolume(self._top(), os.fsencode(STATE))
                there = self.at(STATE)
            status = os.lstat(state)
            if there is None or status.st_uid != 0:
                raise NeedsPerson(f"{STATE} at the top level is not ours: it is no subvolume that belongs to root",
                                  "rename it")  # fmt: skip
            if create and self._writable:
                if btrfs_state.complete(Path(state)):
                    kernel.sync(self._top())
                btrfs_move.mend(Path(state), lambda n: self._opened_number(n) if self._by_id(n) else None)
        return Path(state)

    # -- mounts

    def mount(self, uuid: str, target: Path, read_only: bool = False) -> None:
        """Mount the volume at *target*; fine if it is mounted there already, EBUSY if something else is."""
        volume = self._require(uuid)
        shown = named(volume.path)
        with explained(f"mount {shown} at {target}"):
            present = mounts.mounted_on(target)
            if present is not None:
                if present.device == self._fs_device() and present.subvolume_id == volume.ident:
                    return
                raise StorageError(f"cannot mount {shown} at {target}: {present.source} is mounted there", errno.EBUSY)
            mounts.attach_volume(self._device, volume.ident, str(target), read_only or not self._writable)

    def unmount(self, target: Path, lazy: bool = False) -> None:
        """Unmount *target*; fine if nothing is mounted there, refused if it is not of this file system.

        If *lazy*, from under processes too, but never along with a mount that lies inside.
        """
        with explained(f"unmount {target}"):
            present = mounts.mounted_on(target)
            if present is None:
                return
            if present.device != self._fs_device():
                raise StorageError(f"cannot unmount {target}: {present.source} is not ours", errno.EINVAL)
            holds_mount = any(mount.parent == present.ident for mount in mounts.mounts())
            mounts.detach(str(target), lazy and not holds_mount)

    def _fs_device(self) -> str:
        self._top()
        return mounts.mount_of(str(self.root)).device

    def mounted_at(self, uuid: str) -> list[Path]:
        """Return where the volume as a whole is mounted in this mount namespace."""
        volume = self._find(uuid)
        return [] if volume is None else self.mount_points([volume]).get(uuid, [])

    def mount_points(self, volumes: Iterable[Volume]) -> dict[str, list[Path]]:
        """Return where each of *volumes* is mounted as a whole, by uuid; read once for all of them."""
        device = self._fs_device()
        known = {(volume.ident, f"/{volume.path}"): volume.uuid for volume in volumes}
        found: dict[str, list[Path]] = {}
        for mount in (one for one in mounts.mounts() if one.device == device):
            if uuid := known.get((mount.subvolume_id or 0, mount.root)):
                found.setdefault(uuid, []).append(Path(mount.point))
        return found

    @contextmanager
    def opened(self, uuid: str) -> Iterator[Path]:
        """Open the volume through a mount of its own; yield a path to its root, for this process only."""
        volume = self._require(uuid)
        with explained(f"open {named(volume.path)}"):
            fd = kernel.open_volume(self._device, volume.ident, read_only=not self._writable)
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    # -- space and differences

    def space(self) -> Space:
        """Return the space of the file system, chunks that are not allocated yet included."""
        with explained("read the space"):
            return btrfs_facts.space(self._top())

    def exclusive_bytes(self, uuid: str) -> int | None:
        """Return the exclusive bytes where quota is on and consistent; as of the last commit."""
        volume = self._require(uuid)
        with explained("read the quota"):
            return btrfs_facts.exclusive_bytes(self._top(), volume.ident)

    def pending(self) -> list[int]:
        """Return the numbers of destroyed volumes whose space is not back yet."""
        with explained("list destroyed volumes"):
            return list(btrfsutil.deleted_subvolumes(self._top()))

    def changed_files(self, old: str, new: str) -> Iterator[FileChange]:
        """Yield the files that differ; a writable volume is compared as it is now, through a passing snapshot."""
        first, second = self._require(old), self._require(new)
        if first.uuid == second.uuid:
            return
        with self._frozen(first) as (old_fd, old_id), self._frozen(second) as (new_fd, _):
            with explained(f"compare {named(first.path)} and {named(second.path)}"):
                found = btrfs_diff.changed_files((old_fd, old_id), new_fd)
        yield from found

    @contextmanager
    def _frozen(self, volume: Volume) -> Iterator[tuple[int, int]]:
        """Yield (descriptor, number) of *volume*, or of a passing read-only snapshot of it if it is writable."""
        passing = None
        if not volume.read_only:
            self.state_dir(create=True)
            self._sweep()
            name = btrfs_state.passing_name(volume.ident)
            passing = volume = self.snapshot(volume.uuid, f"{STATE}/diff/{name}")
        try:
            with explained(f"open {named(volume.path)}"):
                fd = kernel.open_volume(self._device, volume.ident, read_only=True)
            try:
                yield fd, volume.ident
            finally:
                os.close(fd)
        finally:
            if passing is not None:
                with explained(f"destroy the passing snapshot {named(passing.path)}"):
                    kernel.destroy_subvolume_id(self._top(), passing.ident)

    def _sweep(self) -> None:
        """Destroy passing snapshots whose process was killed."""
        with explained("list left-over snapshots"):
            names = btrfs_state.left_over(Path(self._inside(f"{STATE}/diff")))
        for name in names:
            there = self.at(f"{STATE}/diff/{name}")
            if there is not None:
                with explained(f"destroy the left-over snapshot {named(there.path)}"):
                    kernel.destroy_subvolume_id(self._top(), there.ident)

    def sync(self) -> None:
        """Commit: everything done so far survives a power cut, and GRUB sees it too.

        By syncfs and not by btrfs's own call, which commits and says nothing of file data that the device refused.
        That is said of what was refused since the top level was opened: before the work.
        """
        top = self._top()
        try:
            kernel.syncfs(top)
        except OSError as error:
            what = f"cannot commit the file system: {os.strerror(error.errno or 0)}; what was changed last may be lost"
            raise StorageError(what, error.errno or 0, DMESG) from error


def _read(path: Path) -> str:
    return os.fsdecode(path.read_bytes())
