"""System calls that Python lacks, one short function each, for the hooks and for the command line.

The rule: a light module. It imports os, fcntl, errno and struct, and ctypes only when a call needs it (3 ms);
no name of typing exists at run time. Every OSError raised here names the call and the path.
"""

import errno
import fcntl
import os
import struct

BTRFS_MAGIC = 0x9123683E
OVERLAY_MAGIC = 0x794C7630
TOP_LEVEL = 5
FIRST_FREE = 256  # the inode of every subvolume root, and the first number a subvolume can have

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_RDONLY = 1
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

_AT_FDCWD = -100
# Numbers from 424 on are the same on every architecture Debian has but alpha and mips.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_MOUNT_ATTR_RDONLY = 1

_SUBVOL_RDONLY = 1 << 1
_SUBVOL_BY_ID = 1 << 4
_ROOT_RDONLY = 1
_NAME_MAX = 255
_HOLDER_MOST = 150  # characters of who has a lock, which may be a command line


def _ioctl_number(direction: int, number: int, size: int, group: int = 0x94) -> int:
    """Return the number of an ioctl; *direction* is 0 none, 1 write, 2 read, 3 both (asm-generic/ioctl.h)."""
    if os.uname().machine.startswith(("ppc", "mips", "sparc")):
        return ((1, 4, 2, 6)[direction] << 29) | (size << 16) | (group << 8) | number
    return (direction << 30) | (size << 16) | (group << 8) | number


_SUBVOL_CREATE = _ioctl_number(1, 14, 4096)
_SNAP_DESTROY = _ioctl_number(1, 15, 4096)
_SNAP_DESTROY_V2 = _ioctl_number(1, 63, 4096)
_SNAP_CREATE_V2 = _ioctl_number(1, 23, 4096)
_SYNC = _ioctl_number(0, 8, 0)
_TREE_SEARCH_V2 = _ioctl_number(3, 17, 112)
_INO_LOOKUP = _ioctl_number(3, 18, 4096)
_DEFAULT_SUBVOL = _ioctl_number(1, 19, 8)
_SPACE_INFO = _ioctl_number(3, 20, 16)
_SUBVOL_SETFLAGS = _ioctl_number(1, 26, 8)
_DEV_INFO = _ioctl_number(3, 30, 4096)
_FS_INFO = _ioctl_number(2, 31, 1024)
_SEND = _ioctl_number(1, 38, 72)
_GET_SUBVOL_INFO = _ioctl_number(2, 60, 504)
_FIFREEZE = _ioctl_number(3, 119, 4, 0x58)
_FITHAW = _ioctl_number(3, 120, 4, 0x58)


class SubvolumeInfo:
    """What the kernel says of one subvolume; uuids are 32 hex digits, *parent_uuid* None where there is none."""

    __slots__ = ("created", "created_generation", "dirid", "generation", "ident", "name", "parent", "parent_uuid",
                 "read_only", "uuid")  # fmt: skip

    def __init__(self, raw: bytes) -> None:
        ident, name, parent, dirid, generation, flags, uuid, parent_uuid = struct.unpack_from("=Q256sQQQQ16s16s", raw)
        _ctransid, self.created_generation = struct.unpack_from("=QQ", raw, 344)
        # Four times follow the four transids: changed, created (otime), sent, received.
        seconds, nanoseconds = struct.unpack_from("=QI", raw, 392)
        self.created = seconds + nanoseconds / 1e9
        self.ident = ident
        self.name = name.split(b"\0", 1)[0]
        self.parent = parent
        self.dirid = dirid
        self.generation = generation
        self.read_only = bool(flags & _ROOT_RDONLY)
        self.uuid = uuid.hex()
        self.parent_uuid = parent_uuid.hex() if parent_uuid.strip(b"\0") else None


def _fail(number: int, call: str, what: object) -> OSError:
    """Return the OSError for *number*, with the call in its text and the path as its file name."""
    return OSError(number, f"{call}: {os.strerror(number)}", str(what))


def where(fd: int) -> str:
    """Return the path of *fd* for a message."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"


_LIBC: list = []  # type: ignore[type-arg]  # the C library, opened at the first call that needs it


def _call(function: str, what: object, *arguments: int | bytes | None) -> int:
    """Call *function* of the C library with integers as long and bytes as pointers; raise OSError on -1."""
    import ctypes

    if not _LIBC:
        _LIBC.append(ctypes.CDLL(None, use_errno=True))
    # syscall() is variadic and takes longs: a plain int would leave the upper half of the register undefined.
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    name = function.removeprefix("syscall:")
    entry = _LIBC[0].syscall if name != function else _LIBC[0][name]
    entry.restype = ctypes.c_long if name != function else ctypes.c_int
    result = int(entry(*passed))
    if result == -1:
        raise _fail(ctypes.get_errno(), name, what)
    return result


def _ioctl(call: str, fd: int, request: int, argument: bytearray | int = 0) -> None:
    """Do an ioctl; a bytearray is passed in place and read back."""
    try:
        if isinstance(argument, int):
            fcntl.ioctl(fd, request, argument)
        else:
            fcntl.ioctl(fd, request, argument, True)
    except OSError as error:
        raise _fail(error.errno or errno.EIO, call, where(fd)) from None


def detached_mount(device: str, subvolid: int, read_only: bool = False) -> int:
    """Return the descriptor of a mount of *subvolid* that is attached nowhere; the mount ends when it is closed.

    Ask for *read_only* exactly when the file system is mounted read-only already: otherwise Linux would
    switch the whole file system to writable to satisfy us.
    """
    context = _call("syscall:fsopen", "btrfs", _FSOPEN, b"btrfs", 1)
    try:
        for key, value in ((b"source", os.fsencode(device)), (b"subvolid", b"%d" % subvolid)):
            _call("syscall:fsconfig", device, _FSCONFIG, context, _SET_STRING, key, value, 0)
        if read_only:
            _call("syscall:fsconfig", device, _FSCONFIG, context, _SET_FLAG, b"ro", None, 0)
        _call("syscall:fsconfig", device, _FSCONFIG, context, _CMD_CREATE, None, None, 0)
        return _call("syscall:fsmount", device, _FSMOUNT, context, 1, _MOUNT_ATTR_RDONLY if read_only else 0)
    finally:
        os.close(context)


def open_volume(device: str, subvolid: int, read_only: bool = False) -> int:
    """Return a descriptor of the root of *subvolid*, through a mount nobody else sees; see detached_mount.

    Use it as dir_fd or through /proc/self/fd/N. The mount lives as long as the descriptor or a file below it.
    List it by os.listdir("/proc/self/fd/N"), never by os.listdir(N): btrfs fixes the end of a directory when it is
    opened, so the descriptor does not show later entries.
    """
    mount_fd = detached_mount(device, subvolid, read_only)
    try:
        # fsmount() returns an O_PATH descriptor: good for *at() calls, not for ioctls or listing.
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount_fd)
    finally:
        os.close(mount_fd)


def open_top_level(device: str, read_only: bool = False) -> int:
    """Return a descriptor of the top level (subvolume 5) of the btrfs on *device*; see open_volume."""
    return open_volume(device, TOP_LEVEL, read_only)


def open_inside(root: int, path: str) -> int:
    """Return a descriptor of the folder *path* as it is for a system whose ``/`` is the open folder *root*.

    No link leads out: an absolute one starts at *root* (openat2, RESOLVE_IN_ROOT).
    """
    how = struct.pack("=QQQ", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    return _call("syscall:openat2", path, _OPENAT2, root, os.fsencode(path), how, len(how))


def move_mount(mount_fd: int, target: str) -> None:
    """Attach the detached mount *mount_fd* at *target*."""
    _call("syscall:move_mount", target, _MOVE_MOUNT, mount_fd, b"", _AT_FDCWD, os.fsencode(target), 4)


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """Mount as mount(2)."""
    words = [os.fsencode(word) if word else None for word in (source, target, fstype)]
    _call("mount", target, words[0], words[1], words[2], flags, os.fsencode(data) if data else None)


def umount2(target: str, flags: int = 0) -> None:
    """Unmount what is mounted at *target*."""
    _call("umount2", target, os.fsencode(target), flags)


def unescape(word: str) -> str:
    """Return a word of mountinfo, fstab or /proc/swaps with its octal escapes (``\\040``) resolved."""
    first, *others = os.fsencode(word).split(b"\\")
    out = [first]
    for part in others:
        digits = part[:3]
        if len(digits) == 3 and all(0x30 <= d <= 0x37 for d in digits) and digits[0] <= 0x33:
            out.append(bytes((int(digits, 8),)) + part[3:])
        else:
            out.append(b"\\" + part)
    return os.fsdecode(b"".join(out))


def is_number(word: str) -> bool:
    """Return whether *word* is a number as the kernel writes it: digits of ASCII, and no more than 64 bits have."""
    return word.isascii() and word.isdecimal() and len(word) <= 20


def mount_fields(line: str) -> tuple[int, str, str, str, str, str, str] | None:
    """Return a mountinfo line as (id, root, mount point, mount options, type, source, super options), or None."""
    words = line.split(" ")
    try:
        dash = words.index("-", 6)
    except ValueError:
        return None
    if len(words) < dash + 4 or not is_number(words[0]):
        return None
    ident = int(words[0])
    root, point = unescape(words[3]), unescape(words[4])
    return (ident, root, point, words[5], unescape(words[dash + 1]), unescape(words[dash + 2]), words[dash + 3])


def mount_id(path: str) -> int:
    """Return the number of the mount that *path* is on, which no look at names can tell where mounts are stacked."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            for line in info:
                if line.startswith("mnt_id:"):
                    return int(line[7:])
    finally:
        os.close(fd)
    raise _fail(errno.ENODATA, "fdinfo", path)


def mountinfo() -> str:
    """Return the text of /proc/self/mountinfo."""
    with open("/proc/self/mountinfo", "rb") as file:
        return os.fsdecode(file.read())


def find_mount(text: str, at: str, mount_id: int | None = None) -> tuple[int, str, str, str, str, str, str]:
    """Return the fields of the mount that *at* is on: number *mount_id*, or else the last one nearest above *at*."""
    best = None
    start = "" if mount_id is None else f"{mount_id} "
    for line in text.split("\n"):
        if not line.startswith(start):
            continue
        fields = mount_fields(line)
        if fields is None:
            continue
        if mount_id is not None:
            return fields
        point = fields[2]
        if (point in ("/", at) or at.startswith(point + "/")) and (best is None or len(point) >= len(best[2])):
            best = fields
    if best is None:
        raise _fail(errno.ENOENT, "mountinfo", at)
    return best


def root_device(mountinfo_text: str | None = None, at: str = "/") -> tuple[str, str, str]:
    """Return (device, path below the top level, options) of the file system mounted at *at*.

    The path starts with ``/`` and is ``/`` for the top level. The options are those of the file system
    (``rw,space_cache=v2,subvolid=256,subvol=/@``): the first word says whether it can be written at all.
    Raises ENOTSUP if it is not btrfs, with the type in the text.
    """
    fields = find_mount(mountinfo(), at, mount_id(at)) if mountinfo_text is None else find_mount(mountinfo_text, at)
    if fields[4] != "btrfs":
        raise OSError(errno.ENOTSUP, f"mountinfo: the file system is {fields[4]}, not btrfs", at)
    return fields[5], fields[1], fields[6]


def filesystem_magic(fd: int) -> int:
    """Return the type number of the file system of *fd* (statfs f_type); BTRFS_MAGIC for btrfs."""
    import ctypes

    buffer = ctypes.create_string_buffer(256)
    if not _LIBC:
        _LIBC.append(ctypes.CDLL(None, use_errno=True))
    if _LIBC[0].fstatfs(fd, buffer) == -1:
        raise _fail(ctypes.get_errno(), "fstatfs", where(fd))
    return int(struct.unpack_from("=L" if struct.calcsize("l") == 4 else "=Q", buffer.raw)[0]) & 0xFFFFFFFF


def is_subvolume(fd: int) -> bool:
    """Return whether *fd* is the root of a btrfs subvolume."""
    return os.fstat(fd).st_ino == FIRST_FREE and filesystem_magic(fd) == BTRFS_MAGIC


def subvolume_id(fd: int) -> int:
    """Return the number of the subvolume that *fd* lies in."""
    buffer = bytearray(4096)
    struct.pack_into("=QQ", buffer, 0, 0, FIRST_FREE)
    _ioctl("BTRFS_IOC_INO_LOOKUP", fd, _INO_LOOKUP, buffer)
    return int(struct.unpack_from("=Q", buffer)[0])


def inode_path(fd: int, subvolid: int, inode: int) -> bytes:
    """Return the path of directory *inode* below the root of *subvolid*: empty for the root, else ending in ``/``."""
    buffer = bytearray(4096)
    struct.pack_into("=QQ", buffer, 0, subvolid, inode)
    _ioctl("BTRFS_IOC_INO_LOOKUP", fd, _INO_LOOKUP, buffer)
    return bytes(buffer[16:]).split(b"\0", 1)[0]


def subvolume_info(fd: int) -> SubvolumeInfo:
    """Return what the kernel knows of the subvolume that *fd* lies in."""
    buffer = bytearray(504)
    _ioctl("BTRFS_IOC_GET_SUBVOL_INFO", fd, _GET_SUBVOL_INFO, buffer)
    return SubvolumeInfo(bytes(buffer))


def _volume_arguments(call: str, fd: int, flags: int, name: bytes) -> bytearray:
    """Return the argument of the calls that make a subvolume; refuse a name that is no single component."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise _fail(errno.EINVAL, call, os.fsdecode(name))
    if len(name) > _NAME_MAX:
        raise _fail(errno.ENAMETOOLONG, call, os.fsdecode(name))
    buffer = bytearray(4096)
    struct.pack_into("=qQQ", buffer, 0, fd, 0, flags)
    buffer[56 : 56 + len(name)] = name
    return buffer


def snapshot(source_fd: int, dest_dir_fd: int, name: bytes, read_only: bool) -> None:
    """Make a snapshot of the subvolume *source_fd*, named *name*, in the directory *dest_dir_fd*.

    Raises EEXIST if the name is taken, ETXTBSY if a swap file is active in the source.
    """
    call = "BTRFS_IOC_SNAP_CREATE_V2"
    buffer = _volume_arguments(call, source_fd, _SUBVOL_RDONLY if read_only else 0, name)
    _named_ioctl(call, dest_dir_fd, _SNAP_CREATE_V2, buffer, name)


def create_subvolume(dir_fd: int, name: bytes) -> None:
    """Make an empty subvolume *name* in the directory *dir_fd*."""
    _volume_arguments("BTRFS_IOC_SUBVOL_CREATE", dir_fd, 0, name)
    plain = bytearray(4096)
    plain[8 : 8 + len(name)] = name
    _named_ioctl("BTRFS_IOC_SUBVOL_CREATE", dir_fd, _SUBVOL_CREATE, plain, name)


def destroy_subvolume(dir_fd: int, name: bytes) -> None:
    """Destroy the subvolume *name* in *dir_fd*; ENOTEMPTY if another one is inside, its space comes back later."""
    _volume_arguments("BTRFS_IOC_SNAP_DESTROY", dir_fd, 0, name)
    plain = bytearray(4096)
    plain[8 : 8 + len(name)] = name
    _named_ioctl("BTRFS_IOC_SNAP_DESTROY", dir_fd, _SNAP_DESTROY, plain, name)


def destroy_subvolume_id(top_fd: int, subvolid: int) -> None:
    """Destroy exactly the subvolume *subvolid*, wherever it is below *top_fd*; Linux 5.7."""
    buffer = bytearray(4096)
    struct.pack_into("=qQQ", buffer, 0, 0, 0, _SUBVOL_BY_ID)
    struct.pack_into("=Q", buffer, 56, subvolid)
    _named_ioctl("BTRFS_IOC_SNAP_DESTROY_V2", top_fd, _SNAP_DESTROY_V2, buffer, b"subvolume %d" % subvolid)


def _named_ioctl(call: str, fd: int, request: int, buffer: bytearray, name: bytes) -> None:
    """Do an ioctl on a directory about one name in it; the error names both."""
    try:
        fcntl.ioctl(fd, request, buffer, True)
    except OSError as error:
        raise _fail(error.errno or errno.EIO, call, f"{where(fd).rstrip('/')}/{os.fsdecode(name)}") from None


def set_read_only(fd: int, read_only: bool) -> None:
    """Set or clear the read-only flag of the subvolume *fd*."""
    buffer = bytearray(struct.pack("=Q", _SUBVOL_RDONLY if read_only else 0))
    _ioctl("BTRFS_IOC_SUBVOL_SETFLAGS", fd, _SUBVOL_SETFLAGS, buffer)


def sync(fd: int) -> None:
    """Commit the btrfs of *fd*: all before this call survives a power cut, also for GRUB, which replays no log."""
    _ioctl("BTRFS_IOC_SYNC", fd, _SYNC)


def syncfs(fd: int) -> None:
    """Write out the file system of *fd*, of whatever type (syncfs(2))."""
    _call("syncfs", where(fd), fd)


def set_default(fd: int, subvolid: int) -> None:
    """Make *subvolid* what a mount without ``subvol=`` gets; not durable before sync()."""
    _ioctl("BTRFS_IOC_DEFAULT_SUBVOL", fd, _DEFAULT_SUBVOL, bytearray(struct.pack("=Q", subvolid)))


def get_default(fd: int) -> int:
    """Return the number of the default subvolume; TOP_LEVEL where none was ever set."""
    # The entry is a directory item named "default" in the directory 6 of the tree of roots (tree 1).
    for _object, _type, _offset, _transid, data in tree_search(fd, 1, (6, 84, 0), (6, 84, (1 << 64) - 1)):
        found = default_entry(data)
        if found:
            return found
    return TOP_LEVEL


def default_entry(data: bytes) -> int:
    """Return the volume that the directory item *data* names as the default; 0 if it says nothing of that."""
    if len(data) < 30 or data[30 : 30 + struct.unpack_from("=H", data, 27)[0]] != b"default":
        return 0
    return int(struct.unpack_from("=Q", data)[0])


def tree_search(
    fd: int, tree: int, low: tuple[int, int, int], high: tuple[int, int, int], min_transid: int = 0, size: int = 65536
) -> list[tuple[int, int, int, int, bytes]]:
    """Return one batch of items of *tree* between two keys (object, type, offset) as (*key, transid, data).

    Blocks older than *min_transid* are not read. An empty list means that there is nothing (more): ask again from
    the key after the last one. The range is of whole keys, so items of other types may lie in it.
    """
    buffer = bytearray(112 + size)
    struct.pack_into("=QQQQQQQIII", buffer, 0, tree, low[0], high[0], low[2], high[2], min_transid, (1 << 64) - 1,
                     low[1], high[1], 0xFFFFFFFF)  # fmt: skip
    struct.pack_into("=Q", buffer, 104, size)
    _ioctl("BTRFS_IOC_TREE_SEARCH_V2", fd, _TREE_SEARCH_V2, buffer)
    return search_items(buffer)


def search_items(answer: bytes | bytearray) -> list[tuple[int, int, int, int, bytes]]:
    """Return the items in the answer of a tree search; EIO if it ends within one."""
    found = []
    position = 112
    for _ in range(struct.unpack_from("=I", answer, 64)[0]):
        if position + 32 > len(answer):
            raise _fail(errno.EIO, "BTRFS_IOC_TREE_SEARCH_V2", "an answer that ends early")
        transid, object_id, offset, kind, length = struct.unpack_from("=QQQII", answer, position)
        position += 32
        if position + length > len(answer):
            raise _fail(errno.EIO, "BTRFS_IOC_TREE_SEARCH_V2", "an answer that ends early")
        found.append((object_id, kind, offset, transid, bytes(answer[position : position + length])))
        position += length
    return found


def space_info(fd: int) -> list[tuple[int, int, int]]:
    """Return (flags, total, used) of every kind of space; bytes before replication (BTRFS_IOC_SPACE_INFO)."""
    slots = 0
    while True:
        buffer = bytearray(16 + 24 * slots)
        struct.pack_into("=QQ", buffer, 0, slots, 0)
        _ioctl("BTRFS_IOC_SPACE_INFO", fd, _SPACE_INFO, buffer)
        total = struct.unpack_from("=Q", buffer, 8)[0]
        if slots and total <= slots:
            return [struct.unpack_from("=QQQ", buffer, 16 + 24 * n) for n in range(total)]
        slots = max(total, 1) if not slots else slots * 2


def filesystem_info(fd: int) -> tuple[int, int, str]:
    """Return (highest device number, number of devices, uuid with dashes) of the btrfs of *fd*."""
    buffer = bytearray(1024)
    _ioctl("BTRFS_IOC_FS_INFO", fd, _FS_INFO, buffer)
    highest, count, fsid = struct.unpack_from("=QQ16s", buffer)
    text = fsid.hex()
    return highest, count, "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def device_info(fd: int, number: int) -> tuple[int, int, str]:
    """Return (bytes, bytes allocated to chunks, path) of the device *number*; ENODEV if there is none."""
    buffer = bytearray(4096)
    struct.pack_into("=Q", buffer, 0, number)
    _ioctl("BTRFS_IOC_DEV_INFO", fd, _DEV_INFO, buffer)
    used, total = struct.unpack_from("=QQ", buffer, 24)
    return total, used, os.fsdecode(bytes(buffer[3072:4096]).split(b"\0", 1)[0])


def send_names(snapshot_fd: int, parent_id: int, out_fd: int) -> None:
    """Write to *out_fd* how the read-only *snapshot_fd* differs from the read-only *parent_id*, without file data."""
    # struct btrfs_ioctl_send_args: fd, number and address of clone sources, parent, flags (1: NO_FILE_DATA), version.
    arguments = bytearray(struct.pack("@qQPQQI28x", out_fd, 0, 0, parent_id, 1, 0))
    _ioctl("BTRFS_IOC_SEND", snapshot_fd, _SEND, arguments)


def exchange(dir_fd_a: int, name_a: bytes, dir_fd_b: int, name_b: bytes) -> None:
    """Let two names change places in one atomic operation (renameat2, RENAME_EXCHANGE)."""
    what = f"{os.fsdecode(name_a)} and {os.fsdecode(name_b)}"
    _call("renameat2", what, dir_fd_a, name_a, dir_fd_b, name_b, 2)


def rename_noreplace(dir_fd_a: int, name_a: bytes, dir_fd_b: int, name_b: bytes) -> None:
    """Rename; EEXIST if the new name is taken (renameat2, RENAME_NOREPLACE)."""
    what = f"{os.fsdecode(name_a)} to {os.fsdecode(name_b)}"
    _call("renameat2", what, dir_fd_a, name_a, dir_fd_b, name_b, 1)


def freeze(fd: int) -> None:
    """Stop all writing to the file system of *fd* until thaw(); everything is on disk, no journal to replay."""
    _ioctl("FIFREEZE", fd, _FIFREEZE)


def thaw(fd: int) -> None:
    """End a freeze()."""
    _ioctl("FITHAW", fd, _FITHAW)


def ofd_lock(fd: int, shared: bool = False) -> bool:
    """Take a lock on the whole file *fd*, owned by the open file, without waiting; False if another holds it."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise _fail(error.errno or errno.EIO, "F_OFD_SETLK", where(fd)) from None
    return True


def unshare(flags: int) -> None:
    """Leave the namespaces *flags* for new ones."""
    _call("unshare", "this process", flags)


def die_with_parent(number: int) -> None:
    """Have the kernel send us signal *number* when the thread that forked us ends; a later fork does not inherit it."""
    _call("prctl", "this process", 1, number, 0, 0, 0)  # PR_SET_PDEATHSIG


def pidfd_open(pid: int) -> int:
    """Return a descriptor of the process *pid* that becomes readable when it ends; ESRCH if there is none."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise _fail(error.errno or errno.EIO, "pidfd_open", f"process {pid}") from None


def watch_closing(path: str) -> int:
    """Return a descriptor that becomes readable when anybody closes *path* after having had it open to write.

    A lock of the process on that file (fcntl) is gone by then.
    """
    fd = _call("inotify_init1", path, os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _call("inotify_add_watch", path, fd, os.fsencode(path), 0x8)  # IN_CLOSE_WRITE
    except BaseException:
        os.close(fd)
        raise
    return fd


def boot_id() -> str:
    """Return the identity of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def process_start(pid: int) -> int:
    """Return when *pid* started, in clock ticks since boot: with the pid and the boot it names one process for ever.

    Raises FileNotFoundError (or ProcessLookupError) if there is no such process, or only its exit status is left of it.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        state, start = stat_fields(file.read())
    if state in (b"Z", b"X"):
        raise ProcessLookupError(errno.ESRCH, "the process has ended", f"process {pid}")
    return start


def write_holder(lock: int, holder: str) -> None:
    """Write into the open lock file *lock*, which we have locked, that *holder*, in this process, has it."""
    os.ftruncate(lock, 0)
    shown = holder if len(holder) <= _HOLDER_MOST else holder[: _HOLDER_MOST - 1] + "…"
    os.pwrite(lock, f"{shown} (process {os.getpid()})\n".encode(errors="backslashreplace"), 0)


def read_holder(lock: int) -> str:
    """Return who says in the open lock file *lock* that he has it; empty where the text is of a process that is gone.

    A holder that was killed leaves its text, and whoever has the lock next has not replaced it yet.
    """
    text = os.pread(lock, 4096, 0).decode(errors="replace").strip()
    number = text.rpartition("(process ")[2].removesuffix(")")
    try:
        return text if is_number(number) and process_start(int(number)) else ""
    except OSError:
        return ""


def stat_fields(text: bytes) -> tuple[bytes, int]:
    """Return state and start time from the text of /proc/PID/stat; EIO if it is no such text."""
    # The name in parentheses may hold spaces and parentheses itself; nothing after it holds one.
    words = text.rpartition(b")")[2].split()
    if len(words) < 20 or not words[19].isdigit() or len(words[19]) > 20:
        raise OSError(errno.EIO, "what /proc says of a process is not understood")
    return words[0], int(words[19])
