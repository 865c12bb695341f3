"""The package files that all runs share, lent to an environment and taken back.

The rule: a file gets its name in the shared folder only when it is complete and on disk, and enters an environment
only if size and checksum are still apt's: apt itself believes what lies in its archives folder.

Lent by sharing blocks (a copy where that is impossible) and not by a mount: the shared folder is reached through a
detached mount, and Linux before 6.15 lets nobody bind a part of one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import pwd
from pathlib import Path

from snap_upgrade.core.packages import Root
from snap_upgrade.packages.apt_plan import Archive
from snap_upgrade.system.files import sync_dir

_FICLONE = 0x40049409
_NOT_SHARED = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM)
_CACHE = "var/cache/apt/archives"
_PIECE = 1 << 20
_INTACT: set[tuple[int, int, int, int, str]] = set()
_HASHES = {"MD5Sum": "md5", "SHA1": "sha1", "SHA256": "sha256", "SHA512": "sha512"}


def within(root: Path, path: str) -> Path:
    """Return where *path* of the environment at *root* is, links resolved as a process inside would resolve them."""
    done: list[str] = []
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    for _ in range(4096):
        if not todo:
            return root.joinpath(*done)
        part = todo.pop()
        if part == "..":
            del done[-1:]
            continue
        here = root.joinpath(*done, part)
        if not here.is_symlink():
            done.append(part)
            continue
        link = os.readlink(here)
        if link.startswith("/"):
            done.clear()
        todo += [word for word in reversed(link.split("/")) if word not in ("", ".")]
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(root / path))


def cache_of(root: Path) -> Path:
    """Return the archives folder of the environment, made as apt wants it."""
    folder = within(root, _CACHE)
    partial = folder / "partial"
    if not partial.is_dir():
        for parent in reversed([partial, *partial.parents]):
            if not parent.exists():
                parent.mkdir()
                parent.chmod(0o755)  # whatever the umask: the user _apt must pass
        partial.chmod(0o700)
        os.chown(partial, _fetcher(root), -1)
    return folder


def _fetcher(root: Path) -> int:
    """Return the number of the environment's user _apt, who fetches; the one of root where there is none."""
    passwd = within(root, "etc/passwd")
    for line in passwd.read_text(encoding="utf-8", errors="replace").split("\n"):
        words = line.split(":")
        if words[0] == "_apt" and len(words) > 2 and words[2].isdecimal():
            return int(words[2])
    return pwd.getpwuid(0).pw_uid


def lend(shared: Path, root: Root, wanted: list[Archive]) -> list[str]:
    """Put what *shared* has of *wanted* into the environment; return the names that were put there."""
    cache = cache_of(root.path)
    lent = []
    for archive in wanted:
        source, target = shared / archive.name, cache / archive.name
        if not target.exists() and _is_intact(source, archive):
            _copy(source, target, is_durable=not root.is_disposable)
            lent.append(archive.name)
    return lent


def take_back(root: Path, shared: Path, wanted: list[Archive]) -> None:
    """Keep in *shared* what the environment has of *wanted*; complete and durable on return."""
    shared.mkdir(mode=0o755, exist_ok=True)
    for torn in shared.glob(".new-*"):  # of a run that was killed; the lock lets only one run write here
        torn.unlink()
    cache = cache_of(root)
    taken = False
    for archive in wanted:
        source, target = cache / archive.name, shared / archive.name
        if _is_intact(source, archive) and not _is_intact(target, archive):
            _copy(source, target, is_durable=True)
            taken = True
    if taken:
        sync_dir(shared)


def discard(root: Path, names: list[str]) -> None:
    """Remove lent files from the environment."""
    cache = cache_of(root)
    for name in names:
        (cache / name).unlink(missing_ok=True)


def _is_intact(path: Path, archive: Archive) -> bool:
    """Whether *path* has apt's size and checksum for it (which one apt printed is its choice).

    A file that was found intact is read again only if it was written to since.
    """
    try:
        with path.open("rb") as file:
            now = os.fstat(file.fileno())
            kind, _, digest = archive.digest.partition(":")
            if now.st_size != archive.size or kind not in _HASHES:
                return False
            state = (now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns, archive.digest)
            if state not in _INTACT and hashlib.file_digest(file, _HASHES[kind]).hexdigest() == digest:
                _INTACT.add(state)
            return state in _INTACT
    except FileNotFoundError:
        return False


def _copy(source: Path, target: Path, is_durable: bool) -> None:
    """Make *target* a copy of *source* that shares its blocks where it can; never seen half written."""
    with source.open("rb") as old:
        # Only root writes in these folders, and of us one at a time: what has the name is of a run that was killed.
        name = target.with_name(f".new-{target.name}")
        name.unlink(missing_ok=True)
        try:
            with name.open("xb") as new:
                try:
                    fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
                except OSError as error:
                    if error.errno not in _NOT_SHARED:
                        raise
                    while data := old.read(_PIECE):
                        new.write(data)
                new.flush()
                os.fchmod(new.fileno(), 0o644)
                if is_durable:
                    os.fsync(new.fileno())
            name.rename(target)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
