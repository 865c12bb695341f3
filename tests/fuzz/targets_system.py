"""Fuzz entry points for what the kernel, btrfs, the administrator and our own files say; see ``targets.py``.

The rule: beside not raising, each states what must hold of the result, so that a parser that guesses is found too.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from snap_upgrade import manage
from snap_upgrade.actions import POINTER, Machine
from snap_upgrade.boot import open_loader
from snap_upgrade.cli import health, status
from snap_upgrade.config import Config
from snap_upgrade.config import parse as parse_config
from snap_upgrade.core import layout, wire
from snap_upgrade.core.errors import StateDamaged, UsageError
from snap_upgrade.core.model import Method, Volume
from snap_upgrade.hook import owner, settings
from snap_upgrade.storage import btrfs_facts, btrfs_state, btrfs_stream
from snap_upgrade.storage.btrfs import BtrfsStorage
from snap_upgrade.system import aptlogs, chroot_init, kernel, mounts

UUID = "6db7db35-74c2-447e-a94f-f69107ce03d0"
DEEP = b"[" * 100_000  # more than any reader of JSON goes down


def _command(number: int, *paths: bytes) -> bytes:
    body = b"".join(struct.pack("<HH", kind, len(path)) + path for kind, path in zip((15, 16), paths, strict=False))
    return struct.pack("<IHI", len(body), number, 0) + body


STREAM = b"".join((
    b"btrfs-stream\0" + struct.pack("<I", 1),
    _command(3, b"o9-1-0"), _command(9, b"o9-1-0", b"a/b"), _command(18, b"a/b"), _command(9, b"d", b"e"),
    _command(11, b"e/x"), _command(20, b""), _command(21),
))  # fmt: skip
SEARCH = (
    bytes(64) + struct.pack("=I", 2) + bytes(44)
    + struct.pack("=QQQII", 7, 256, 0, 132, 3) + b"abc" + struct.pack("=QQQII", 7, 257, 1, 132, 0)
)  # fmt: skip

CORPUS: dict[str, list[bytes]] = {
    "mountinfo": [
        b"36 35 0:39 /a\\040b /mnt/x\\134\\012y rw master:1 - btrfs /dev/x rw,subvolid=300,subvol=/a,b\n",
        b"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 /@ / rw,noatime - btrfs /dev/b rw,subvolid=256,subvol=/@\n",
    ],
    "fstab": [f"# x\nUUID={UUID} / btrfs defaults,subvol=@ 0 0\n/a\\040b\tnone swap sw 0 0\n".encode()],
    "kernel_line": [
        f'BOOT_IMAGE=/@/vmlinuz root=UUID={UUID} ro "rootflags=subvol=my root" quiet'.encode(),
        f"root=UUID={UUID} rootflags=subvolid=0x100,subvol=/@/".encode(),
    ],
    "swaps": [b"Filename\t\tType\n/swap\\040file             file\t\t1020\t0\t-2\n/dev/a partition\t1\n"],
    "process_stat": [b"17 (a) b (c)) S 1 " + b" ".join(b"%d" % n for n in range(5, 53)) + b"\n"],
    "process_names": [b"17 (a) b (c)) S 1 2", b"3 (x) Z 1"],
    "tree_search": [SEARCH],
    "default_entry": [struct.pack("=QBQQHHB", 257, 132, 0, 9, 0, 7, 2) + b"default"],
    "quota": [struct.pack("<QQQQ", 1, 9, 1, 0) + struct.pack("<QQQQ", 9, 4096, 4096, 8192)],
    "subvolume_info": [bytes(range(250)) * 2 + b"abcd"],
    "send_stream": [STREAM],
    "device_link": [b"my\\x20disk\\x2f", b"plain"],
    "passing_name": [b"0f3c-11.42.777.256"],
    "pointer": [b'{"version": 1, "temporary": "aa", "back_to": "bb"}\n', DEEP],
    "hooks_json": [b'{"apt-get": 1795232888.0}\n', DEEP],
    "hook_trouble": [b'{"time": 1.5, "who": "the watcher", "transaction": "4", "text": "no\\u001b"}\n', b"[]", DEEP],
    "lock_holder": [f"snap-upgrade prune (process {os.getpid()})\n".encode(), b"the hook of apt (process 0)\n"],
    "log_positions": [b'{"/var/log/dpkg.log": [3, 40], "history_kept": true}', b'{"/var/log/apt/term.log": [-1, -9]}'],
    "apt_config": [b'DPkg::Pre-Install-Pkgs::snap-upgrade "/usr/lib/snap-upgrade/apt-hook pre";\nA::B "";\n'],
    "hook_settings": [b"# x\nenabled = yes\non_no_snapshot=warn\nhook_timeout_s = 90 # y\npolicy = proposal\n"],
    "caller": [b"/usr/bin/python3\0-u\0/usr/bin/unattended-upgrade\0", b"1000\0", b"-bash\0"],
}


def _text(data: bytes) -> str:
    return os.fsdecode(data)


def fuzz_mountinfo(data: bytes) -> None:
    text = _text(data)
    for mount in mounts.parse(text):
        assert mount.subvolume_id is None or mount.subvolume_id >= 0
        assert kernel.find_mount(text, "/nowhere", mount.ident)[0] == mount.ident
    with suppress(OSError):
        assert kernel.root_device(text, "/mnt")[1] is not None


def _facts(kernel_line: str, fstab: str) -> layout.Facts:
    return layout.Facts(Volume("a" * 32, 256, "@", None, 5, False, 9, 7), 5, kernel_line, fstab, UUID)


def _decide(kernel_line: str, fstab: str) -> None:
    facts = _facts(kernel_line, fstab)
    found, chosen = layout.decide(facts), layout.select(facts)
    assert bool(found.refusal) == bool(found.hint) == (found.method is Method.NONE)
    if found.method is Method.EXCHANGE:
        # Another volume gets this name: one that the text fixes by number, or none at all, would not boot by it.
        assert chosen is not None
        assert chosen.ident is None
        assert found.boot_path == chosen.path
        assert found.boot_path == layout.clean_path(found.boot_path or "") != ""


def fuzz_fstab(data: bytes) -> None:
    text = _text(data)
    _decide("root=/dev/another", text)
    assert all(path.startswith("/") for path in layout.fstab_swap_files(text))


def fuzz_kernel_line(data: bytes) -> None:
    text = _text(data)
    assert all(word and '"' not in word for word in layout.kernel_words(text))
    _decide(text, "")


def fuzz_swaps(data: bytes) -> None:
    for path in btrfs_facts.swap_paths(_text(data)):
        with suppress(OSError):
            os.stat(path)
    with suppress(OSError):
        btrfs_facts.swap_files(_text(data), "/proc")


def fuzz_process_stat(data: bytes) -> None:
    try:
        state, start = kernel.stat_fields(data)
    except OSError:
        return
    assert state
    assert start >= 0


def fuzz_process_names(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        entry = Path(folder) / "proc" / "17"
        entry.mkdir(parents=True)
        (entry / "stat").write_bytes(data)
        assert len(chroot_init._names(Path(folder))) <= 1


def fuzz_tree_search(data: bytes) -> None:
    data = data.ljust(112, b"\0")
    try:
        items = kernel.search_items(data)
    except OSError:
        return
    assert 112 + sum(32 + len(item[4]) for item in items) <= len(data)


def fuzz_default_entry(data: bytes) -> None:
    assert kernel.default_entry(data) == 0 or b"default" in data


def fuzz_quota(data: bytes) -> None:
    exclusive = btrfs_facts.quota_says(data[:32], data[32:])
    assert exclusive is None or exclusive >= 0


def fuzz_subvolume_info(data: bytes) -> None:
    info = kernel.SubvolumeInfo(data.ljust(504, b"\0")[:504])
    assert len(info.uuid) == 32
    assert b"\0" not in info.name


def fuzz_send_stream(data: bytes) -> None:
    try:
        found = btrfs_stream.changes(btrfs_stream.commands(data), lambda path: (b"kept",))
    except btrfs_stream.BadStream:
        return
    assert len({change.path for change in found}) == len(found)
    assert all(change.path.startswith("/") and "\0" not in change.path for change in found)


def fuzz_device_link(data: bytes) -> None:
    assert len(os.fsencode(btrfs_facts._udev_plain(_text(data)))) <= len(data)


def fuzz_passing_name(data: bytes) -> None:
    name = _text(data)
    found = btrfs_state.owner_of(name)
    assert found is None or name.split(".")[0] == found[0]


def fuzz_pointer(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / POINTER).write_bytes(data)
        storage = BtrfsStorage(Path("/"))  # it opens nothing before it is asked
        machine = Machine(Path("/"), storage, open_loader("none", Path("/")), Config(), Path(folder), None)
        with suppress(StateDamaged):
            assert manage.temporary_return(machine) is not None


def fuzz_hooks_json(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hooks.json").write_bytes(data)
        fired, problems = health.last_fired(Path(folder))
        assert isinstance(fired, dict)
        assert not (fired and problems)


def fuzz_hook_trouble(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hook-trouble.json").write_bytes(data)
        found = status.last_trouble(Path(folder))
        assert isinstance(found, dict)
        space = {"available": 1, "total": 2, "unallocated": 0, "metadata_free": 0, "pending_volumes": 0}
        hooks = {"installed": True, "enabled": True, "last_fired": {}, "last_trouble": found}
        shown: dict[str, Any] = dict.fromkeys(("running", "next", "default", "pending", "packages_at_work"), "")
        shown |= {"transactions": [], "space": space, "hooks": hooks, "next_path": "", "is_pending": True}
        assert all(line.isprintable() for line in status.status_lines(shown, 0.0))


def fuzz_lock_holder(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        found = kernel.read_holder(file.fileno())
        number = found.rpartition("(process ")[2].removesuffix(")")
        assert not found or os.path.exists(f"/proc/{int(number)}")


def fuzz_log_positions(data: bytes) -> None:
    """What the journal says of the logs is read from a file, and where they are read from follows from it."""
    try:
        since = wire.decode(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "var/log/apt").mkdir(parents=True)
        for name in aptlogs.LOGS:
            (Path(folder) / name[1:]).write_bytes(data)
        root = os.open(folder, os.O_RDONLY)
        try:
            assert aptlogs.collect(root, since).to_json()
        finally:
            os.close(root)


def fuzz_apt_config(data: bytes) -> None:
    assert all(key == key.lower() for key, _ in health.parse_dump(_text(data)))
    health.hook_settings(_text(data))


def fuzz_hook_settings(data: bytes) -> None:
    """The hooks accept whatever the command line accepts, and read the same out of it."""
    text = data.decode("utf-8", "replace")
    known: Config | None = None
    with suppress(UsageError):
        known = parse_config(text)
    try:
        found = settings.parse(text)
    except settings.BadSetting:
        assert known is None
        return
    if known is not None:
        refuses = known.on_no_snapshot == "refuse"
        assert (found.is_enabled, found.refuses, found.hook_timeout_s) == (known.enabled, refuses, known.hook_timeout_s)
        assert found.is_kept == (known.keep_on_success and known.policy != "proposal")


def fuzz_caller(data: bytes) -> None:
    words = [_text(word) for word in data.split(b"\0") if word]
    assert isinstance(owner.name(words, "comm"), str)
    value = _text(data.replace(b"\0", b""))
    assert owner.user({"SUDO_UID": value, "PKEXEC_UID": value, "PACKAGEKIT_CALLER_UID": value})["uid"] >= 0


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): function for name, function in globals().items() if name.startswith("fuzz_")
}
