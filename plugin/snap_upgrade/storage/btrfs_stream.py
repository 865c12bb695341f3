"""What a btrfs send stream without file data says about changed files.

The rule: a pure function on bytes. A stream that ends early or names what cannot be is BadStream, never a guess.
The commands are instructions that turn the old tree into the new one, with names that come and go on the way
(``o257-7-0``); only where everything ends up is a change.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from snap_upgrade.core.model import Change, FileChange

_MAGIC = b"btrfs-stream\0"
_HEADER = struct.Struct("<IHI")
_ATTRIBUTE = struct.Struct("<HH")

# linux/fs/btrfs/send.h: enum btrfs_send_cmd
SUBVOL, SNAPSHOT, RENAME, LINK, UNLINK, RMDIR, UTIMES, END = 1, 2, 9, 10, 11, 12, 20, 21
_MAKES = frozenset(range(3, 9))  # file, directory, device, fifo, socket, symbolic link
_CHANGES = frozenset((13, 14, 15, 16, 17, 18, 19, 22, 23, 24, 25, 26))  # attributes, data, mode, owner, ...
_PATH, _PATH_TO = 15, 16

Command = tuple[int, bytes, bytes]


class BadStream(ValueError):
    """The bytes are not a whole send stream."""


def commands(data: bytes | memoryview) -> Iterator[Command]:
    """Yield (number, path, second path) of the commands up to the end mark."""
    view = memoryview(data)
    if bytes(view[:13]) != _MAGIC or len(view) < 17:
        raise BadStream("no send stream")
    version = struct.unpack_from("<I", view, 13)[0]
    if version != 1:
        raise BadStream(f"send stream of version {version}")
    position = 17
    while True:
        if position + 10 > len(view):
            raise BadStream("the send stream ends early")
        length, number, _crc = _HEADER.unpack_from(view, position)
        position += 10
        if position + length > len(view):
            raise BadStream("the send stream ends within a command")
        paths = _paths(view[position : position + length])
        position += length
        if number == END:
            return
        yield number, paths.get(_PATH, b""), paths.get(_PATH_TO, b"")


def _paths(body: memoryview) -> dict[int, bytes]:
    """Return the paths among the attributes of one command."""
    found: dict[int, bytes] = {}
    position = 0
    while position < len(body):
        if position + 4 > len(body):
            raise BadStream("half an attribute in the send stream")
        kind, length = _ATTRIBUTE.unpack_from(body, position)
        position += 4
        if position + length > len(body):
            raise BadStream("an attribute is longer than its command")
        if kind in (_PATH, _PATH_TO):
            found[kind] = bytes(body[position : position + length])
        position += length
    return found


@dataclass(slots=True)
class _Node:
    """One name on the way from old to new. *origin* is its path in the old tree; None for what was made new."""

    origin: bytes | None
    children: dict[bytes, _Node | None] = field(default_factory=dict)  # None: what was there has gone
    modified: bool = False

    def child(self, name: bytes) -> _Node | None:
        """Return the entry *name*; what no command spoke of is as it was in the old tree."""
        if name not in self.children and self.origin is not None:
            self.children[name] = _Node(self.origin + b"/" + name)
        return self.children.get(name)


class _Tree:
    """The tree while the commands change it; only what they speak of is in memory."""

    def __init__(self) -> None:
        self.root = _Node(b"")
        self.displaced: set[bytes] = set()  # paths of the old tree whose entry is elsewhere, or nowhere, now

    def _parent(self, path: bytes) -> tuple[_Node, bytes]:
        parts = path.split(b"/")
        if any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
            raise BadStream(f"impossible path {path!r}")
        node = self.root
        for part in parts[:-1]:
            below = node.child(part)
            if below is None:
                raise BadStream(f"{path!r} lies in a directory that is not there")
            node = below
        return node, parts[-1]

    def node(self, path: bytes) -> _Node:
        if not path:
            return self.root
        parent, name = self._parent(path)
        node = parent.child(name)
        if node is None:
            raise BadStream(f"{path!r} is not there")
        return node

    def take(self, path: bytes) -> _Node:
        parent, name = self._parent(path)
        node = parent.child(name)
        if node is None:
            raise BadStream(f"{path!r} is not there")
        parent.children[name] = None
        return node

    def put(self, path: bytes, node: _Node) -> None:
        parent, name = self._parent(path)
        # Linux moves or unlinks what is in the way before it sends a command that makes the name anew.
        there = parent.children.get(name)
        if there is not None:
            self.lose(there)
        parent.children[name] = node

    def lose(self, node: _Node) -> None:
        """Note that *node* and what is known below it is nowhere in the new tree."""
        stack = [node]
        while stack:
            node = stack.pop()
            if node.origin:
                self.displaced.add(node.origin)
            stack.extend(below for below in node.children.values() if below is not None)


def _replay(stream: Iterable[Command]) -> _Tree:
    tree = _Tree()
    for number, path, second in stream:
        if number in _MAKES:
            tree.put(path, _Node(None))
        elif number == RENAME:
            tree.put(second, tree.take(path))
        elif number == LINK:
            # A further name of a file: new at this place, whatever it is elsewhere.
            tree.put(path, _Node(None))
        elif number in (UNLINK, RMDIR):
            tree.lose(tree.take(path))
        elif number in _CHANGES:
            tree.node(path).modified = True
        elif number not in (SUBVOL, SNAPSHOT, UTIMES):
            # Times alone are no change: reading a file may set them.
            raise BadStream(f"unknown command {number} in the send stream")
    return tree


def changes(stream: Iterable[Command], below: Callable[[bytes], Iterable[bytes]]) -> list[FileChange]:
    """Return the changes of *stream*, sorted by path.

    *below* gives the entries of a directory of the old tree (relative paths, all levels, directories included):
    it is asked only for what was moved as a whole, because each path in it has changed.
    """
    tree = _replay(stream)
    gone = set(tree.displaced)
    came: set[bytes] = set()
    modified: set[bytes] = set()
    stack: list[tuple[bytes, _Node]] = [(b"", tree.root)]
    while stack:
        path, node = stack.pop()
        if node.origin is None:
            came.add(path)
        elif node.origin != path:
            gone.add(node.origin)
            came.add(path)
            _moved(node, path, below, gone, came)
        elif node.modified:
            modified.add(path)
        for name, entry in node.children.items():
            if entry is not None:
                stack.append((path + b"/" + name, entry))
    if b"" in modified:
        modified = (modified - {b""}) | {b"/"}
    found = [FileChange(Change.ADDED, os.fsdecode(path)) for path in came - gone]
    found += [FileChange(Change.REMOVED, os.fsdecode(path)) for path in gone - came]
    found += [FileChange(Change.MODIFIED, os.fsdecode(path)) for path in (gone & came) | modified]
    return sorted(found, key=lambda change: change.path)


def _moved(
    node: _Node, path: bytes, below: Callable[[bytes], Iterable[bytes]], gone: set[bytes], came: set[bytes]
) -> None:
    """Add what went along with *node*, a directory that is at *path* now: all entries that no command spoke of."""
    assert node.origin is not None
    for entry in below(node.origin):
        # What a command spoke of is a node of its own, here or elsewhere, and judged with all below it there.
        if entry.split(b"/", 1)[0] not in node.children:
            gone.add(node.origin + b"/" + entry)
            came.add(path + b"/" + entry)
