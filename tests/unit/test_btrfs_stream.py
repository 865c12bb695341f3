"""The send stream parser on streams built by hand, cut anywhere, and on garbage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade.storage.btrfs_stream import BadStream, changes, commands

MKFILE, MKDIR, RENAME, LINK, UNLINK, RMDIR, CHMOD, UTIMES, END, EXTENT = 3, 4, 9, 10, 11, 12, 18, 20, 21, 22


def stream(*listed: tuple[int, str] | tuple[int, str, str], end: bool = True) -> bytes:
    out = b"btrfs-stream\0" + struct.pack("<I", 1)
    for number, *paths in [*listed, *([(END,)] if end else [])]:
        body = b""
        for kind, path in zip((15, 16), map(str.encode, map(str, paths)), strict=False):
            body += struct.pack("<HH", kind, len(path)) + path
        out += struct.pack("<IHI", len(body), number, 0) + body
    return out


def read(data: bytes, below: dict[bytes, list[bytes]] | None = None) -> list[str]:
    return [f"{c.change.value}{c.path}" for c in changes(commands(data), lambda path: (below or {}).get(path, []))]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([], []),
        ([(UTIMES, ""), (UTIMES, "a/b")], []),
        ([(MKFILE, "o9-1-0"), (RENAME, "o9-1-0", "a/b"), (EXTENT, "a/b")], ["+/a/b"]),
        ([(UNLINK, "a"), (MKFILE, "o9"), (RENAME, "o9", "a")], ["M/a"]),
        ([(RENAME, "a", "o5-1-0"), (MKFILE, "a"), (UNLINK, "o5-1-0")], ["M/a"]),
        ([(RENAME, "a", "b")], ["-/a", "+/b"]),
        ([(RENAME, "a", "t"), (RENAME, "b", "a"), (RENAME, "t", "b")], ["M/a", "M/b"]),
        ([(RENAME, "a", "t"), (RENAME, "t", "a"), (CHMOD, "a")], ["M/a"]),
        ([(RENAME, "d", "e"), (CHMOD, "e/x"), (UNLINK, "e/y")], ["-/d", "-/d/x", "-/d/y", "+/e", "+/e/x"]),
        ([(UNLINK, "d/x"), (RMDIR, "d")], ["-/d", "-/d/x"]),
        ([(RENAME, "d", "o7"), (UNLINK, "o7/x"), (RMDIR, "o7")], ["-/d", "-/d/x"]),
        ([(LINK, "b"), (UNLINK, "a")], ["-/a", "+/b"]),
        ([(MKFILE, "a"), (UNLINK, "a")], []),
        ([(CHMOD, "")], ["M/"]),
        ([(CHMOD, "d/x"), (RMDIR, "d")], ["-/d", "-/d/x"]),
        ([(CHMOD, "a"), (MKFILE, "a")], ["M/a"]),
    ],
)
def test_only_where_everything_ends_up_is_a_change(listed: list[tuple[int, str]], expected: list[str]) -> None:
    assert read(stream(*listed)) == expected


def test_what_moves_along_with_a_directory_is_listed_unless_a_command_spoke_of_it() -> None:
    data = stream((RENAME, "d", "e"), (RENAME, "e/sub", "sub"), (UNLINK, "e/gone"))
    below = {b"/d": [b"kept", b"gone", b"sub", b"sub/deep"], b"/d/sub": [b"deep"]}
    assert read(data, below) == [
        "-/d", "-/d/gone", "-/d/kept", "-/d/sub", "-/d/sub/deep", "+/e", "+/e/kept", "+/sub", "+/sub/deep",
    ]  # fmt: skip


WHOLE = stream((MKDIR, "o9"), (RENAME, "o9", "a"), (MKFILE, "a/b"), (CHMOD, "a/b"))


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_stream_cut_anywhere_is_never_taken_for_whole(length: int) -> None:
    with pytest.raises(BadStream):
        read(WHOLE[:length])


@pytest.mark.parametrize(
    "listed",
    [(UNLINK, "a"), (CHMOD, "nul\0"), (RENAME, "x", "../y"), (CHMOD, "a//b"), (99, "a"), (RENAME, "d", "d/below")],
)
def test_impossible_commands_are_refused(listed: tuple[int, str]) -> None:
    with pytest.raises(BadStream):
        read(stream((MKFILE, "a"), (UNLINK, "a"), listed))


HEAD = b"btrfs-stream\0" + struct.pack("<I", 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"btrfs-stream\0" + struct.pack("<I", 2) + WHOLE[17:], "version 2"),
        (HEAD + struct.pack("<IHI", 9, END, 0), "within a command"),
        (HEAD + struct.pack("<IHI", 7, MKFILE, 0) + struct.pack("<HH", 15, 9) + b"abc" + WHOLE[17:], "longer than"),
        (HEAD + struct.pack("<IHI", 2, MKFILE, 0) + b"ab" + WHOLE[17:], "half an attribute"),
    ],
)
def test_lengths_and_versions_are_believed_only_as_far_as_they_hold(data: bytes, reason: str) -> None:
    with pytest.raises(BadStream, match=reason):
        read(data)


NAMES = st.sampled_from(["a", "b", "c", "a/b", "a/c", "b/a", "a/b/c", "o1-2-0", "", "..", "x\n"])


@given(st.lists(st.tuples(st.integers(0, 30), NAMES, NAMES), max_size=12))
def test_any_order_of_commands_is_read_or_refused(listed: list[tuple[int, str, str]]) -> None:
    try:
        found = read(stream(*listed))
    except BadStream:
        return
    assert len({line[1:] for line in found}) == len(found)


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)))
def test_garbage_is_read_or_refused(noise: bytes, place: int) -> None:
    try:
        read(WHOLE[:place] + noise + WHOLE[place:])
    except BadStream:
        return
