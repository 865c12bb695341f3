"""Which method makes another root boot, for the layouts that people have."""
# ruff: noqa: E501  (a table is read by its columns)

from __future__ import annotations

from typing import Any

import pytest

from snap_upgrade.core.layout import Facts, decide, fstab_root, kernel_words, look, numbers, select
from snap_upgrade.core.model import Method, Volume

UUID = "6db7db35-74c2-447e-a94f-f69107ce03d0"
OTHER = "00000000-74c2-447e-a94f-f69107ce03d0"


def facts(path: str = "@", kernel: str = "", fstab: str = "", **more: Any) -> Facts:
    running = Volume("a" * 32, 5 if not path else 256, path, None, 5, False, 9, 7)
    names = frozenset({"/dev/sda2", "/dev/mapper/vg-root", "/dev/vg/root", "LABEL=my disk", "PARTUUID=ab-02"})
    return Facts(running, more.pop("default_id", 5), kernel, fstab, UUID, names, **more)


OURS = f"root=UUID={UUID}"
EXCHANGE, DEFAULT, NONE = Method.EXCHANGE, Method.SET_DEFAULT, Method.NONE

TABLE = [
    ("debian", facts("@rootfs", f"{OURS} ro rootflags=subvol=@rootfs quiet\n"), EXCHANGE, "@rootfs"),
    ("ubuntu", facts("@", f"BOOT_IMAGE=/@/boot/vmlinuz {OURS} rootflags=subvol=@"), EXCHANGE, "@"),
    ("fedora", facts("root", f"{OURS} rootflags=subvol=root,compress=zstd:1"), EXCHANGE, "root"),
    ("deep, with slashes around", facts("a/b/root", f"{OURS} rootflags=subvol=/a//b/root/"), EXCHANGE, "a/b/root"),
    ("space, whole word quoted", facts("my root", f'{OURS} "rootflags=subvol=my root" ro'), EXCHANGE, "my root"),
    ("space, value quoted", facts("my root", f'{OURS} rootflags="subvol=my root" ro'), EXCHANGE, "my root"),
    ("unicode", facts("würzel", f"{OURS} rootflags=subvol=würzel"), EXCHANGE, "würzel"),
    ("upper case uuid", facts("@", f"root=UUID={UUID.upper()} rootflags=subvol=@"), EXCHANGE, "@"),
    ("by device", facts("@", "root=/dev/sda2 rootflags=subvol=@"), EXCHANGE, "@"),
    ("by logical volume", facts("@", "root=/dev/vg/root rootflags=subvol=@"), EXCHANGE, "@"),
    ("by label", facts("@", 'root="LABEL=my disk" rootflags=subvol=@'), EXCHANGE, "@"),
    ("by PARTUUID in capitals", facts("@", "root=PARTUUID=AB-02 rootflags=subvol=@"), EXCHANGE, "@"),
    ("the last word counts", facts("@", f"{OURS} rootflags=subvol=x rootflags=subvol=@"), EXCHANGE, "@"),
    ("the last root counts", facts("@", f"{OURS} rootflags=subvol=@ root=/dev/vda", f"UUID={UUID} / btrfs"), DEFAULT, None),
    ("default subvolume", facts("x/1/snapshot", OURS, default_id=256), DEFAULT, None),
    ("top level", facts("", OURS), DEFAULT, None),
    ("kernel line beats fstab", facts("@", OURS, f"UUID={UUID} / btrfs subvol=@ 0 0"), DEFAULT, None),
    ("number", facts("@", f"{OURS} rootflags=subvolid=256"), NONE, None),
    ("number in hex", facts("@", f"{OURS} rootflags=subvolid=0x100"), NONE, None),
    ("number of the top level", facts("", f"{OURS} rootflags=subvolid=5"), NONE, None),
    ("number beside the path", facts("@", f"{OURS} rootflags=subvolid=256,subvol=@"), NONE, None),
    ("top level by name", facts("", f"{OURS} rootflags=subvol=/"), NONE, None),
    ("garbage number", facts("@", f"{OURS} rootflags=subvolid=zzz"), NONE, None),
    ("container, fstab", facts("@", "root=/dev/vda", f"# x\nUUID={UUID} / btrfs defaults,subvol=@ 0 0\n"), EXCHANGE, "@"),
    ("container, fstab escapes", facts("a b", "root=/dev/vda", "LABEL=my\\040disk / btrfs subvol=a\\040b"), EXCHANGE, "a b"),
    ("container, fstab number", facts("@", "root=/dev/vda", f"UUID={UUID} / btrfs subvolid=256,subvol=/@"), NONE, None),
    ("container, no fstab", facts("@", "root=/dev/vda"), DEFAULT, None),
    ("container, fstab of another disk", facts("@", "root=/dev/vda", f"UUID={OTHER} / ext4"), NONE, None),
    ("another disk of that name", facts("@", f"root=UUID={OTHER} rootflags=subvol=@", f"UUID={UUID} / btrfs"), DEFAULT, None),
    ("other lines of fstab", facts("@", "", f"UUID={UUID} /home btrfs subvol=@home\nUUID={UUID} / btrfs subvol=@"), EXCHANGE, "@"),
    ("pending", facts(".snap-upgrade/be/x", f"{OURS} rootflags=subvol=@"), EXCHANGE, "@"),
    ("configured exchange", facts("@", OURS, configured="exchange"), EXCHANGE, "@"),
    ("configured exchange, pending", facts(".snap-upgrade/be/x", OURS, configured="exchange"), NONE, None),
    ("configured exchange, top level", facts("", OURS, configured="exchange"), NONE, None),
    ("configured default", facts("@", f"{OURS} rootflags=subvolid=9", configured="set-default"), DEFAULT, None),
    ("read-only", facts("@", f"{OURS} rootflags=subvol=@", writable=False), NONE, None),
    ("usr elsewhere", facts("@", f"{OURS} rootflags=subvol=@", elsewhere=("/usr",)), NONE, None),
    ("boot elsewhere", facts("@", f"{OURS} rootflags=subvol=@", elsewhere=("/boot",)), EXCHANGE, "@"),
    ("quoted uuid", facts("@", "", f'UUID="{UUID}" / btrfs subvol=@'), EXCHANGE, "@"),
    ("the last subvol counts", facts("@", f"{OURS} rootflags=subvol=x,subvol=@"), EXCHANGE, "@"),
    ("rpm elsewhere", facts("@", f"{OURS} rootflags=subvol=@", elsewhere=("/var/lib/rpm",)), NONE, None),
    ("a space that only Unicode knows", facts("a\u00a0b", "", f"UUID={UUID} / btrfs subvol=a\u00a0b"), EXCHANGE, "a\u00a0b"),
    ("the same on the kernel line", facts("a\u2003b", f"{OURS} rootflags=subvol=a\u2003b"), EXCHANGE, "a\u2003b"),
    ("a line end that only Unicode knows", facts("@", "", f"UUID={UUID} / btrfs\n#\u2028UUID={OTHER} / x"), DEFAULT, None),
    ("swap file", facts("@", f"{OURS} rootflags=subvol=@", swap_files=("/swapfile",)), NONE, None),
]  # fmt: skip


@pytest.mark.parametrize(("given", "method", "path"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_layout(given: Facts, method: Method, path: str | None) -> None:
    found = decide(given)
    assert (found.method, found.boot_path) == (method, path)
    assert found.running == given.running
    assert bool(found.refusal) == bool(found.hint) == (method is NONE)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (facts("@", f"{OURS} rootflags=subvolid=256"), ("the kernel command line", "subvolid=256", "subvol=@")),
        (facts("@", "", f"UUID={UUID} / btrfs subvolid=7,subvol=@"), ("/etc/fstab", "subvolid=7", "remove subvolid=")),
        (facts("@", elsewhere=("/usr", "/var/lib/dpkg")), ("/usr and /var/lib/dpkg", "lie outside")),
        (facts("@", swap_files=("/a b/swap",)), ("/a b/swap", "subvolume of its own")),
        (facts("@", "", f"UUID={OTHER} / ext4"), ("neither", "/etc/fstab")),
        (facts("@", writable=False), ("read-only",)),
    ],
)
def test_a_refusal_says_what_is_in_the_way_and_what_to_do(given: Facts, words: tuple[str, ...]) -> None:
    found = decide(given)
    for word in words:
        assert word in f"{found.refusal}; {found.hint}"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (facts("@", f"{OURS} rootflags=subvol=@", elsewhere=("/boot",)), "/boot lies outside"),
        (facts("@", OURS, default_id=256), "GRUB does not follow"),
        (facts("@", OURS, "/swap\\040file none swap sw 0 0"), "/swap file"),
        (facts("@", "root=PARTUUID=ff-01", f"UUID={UUID} / btrfs subvol=@"), "root=PARTUUID=ff-01"),
    ],
)
def test_what_is_true_but_stops_nothing_is_a_warning(given: Facts, word: str) -> None:
    found = decide(given)
    assert found.method is not NONE
    assert any(word in warning for warning in found.warnings)
    assert all(look(warning) for warning in found.warnings)


def test_a_plain_layout_has_no_warnings() -> None:
    assert decide(facts("@", f"{OURS} rootflags=subvol=@", f"UUID={UUID} / btrfs subvol=@")).warnings == ()


def test_the_last_line_for_the_root_counts_and_comments_do_not() -> None:
    assert fstab_root("#a / btrfs x\na / btrfs x\nb / btrfs subvol=@ 0 0\n") == ("b", "subvol=@")
    assert fstab_root("a / btrfs x\n#b / btrfs subvol=@ 0 0\n") == ("a", "x")
    assert fstab_root("a /x btrfs y\n\n / \n") is None


def test_quotes_hold_words_of_the_kernel_line_together() -> None:
    assert kernel_words('a  "b=c d"\te="f g"\n') == ["a", "b=c d", "e=f g"]
    assert kernel_words('"unclosed x') == ["unclosed x"]


def test_the_selection_says_who_decides() -> None:
    chosen = select(facts("@", f"{OURS} rootflags=subvolid=0"))
    assert chosen is not None
    assert (chosen.ident, chosen.said_by) == (5, "the kernel command line")
    octal = select(facts("@", f"{OURS} rootflags=subvolid=010"))
    assert octal is not None
    assert octal.ident == 8


# --- volumes inside the root that fstab mounts on their own

AT = f"{OURS} rootflags=subvol=@"


def mounted(line: str, path: str = "@", kernel: str = AT, **more: Any) -> Facts:
    return facts(path, kernel, f"UUID={UUID} / btrfs subvol=@ 0 0\n{line}\n", **more)


@pytest.mark.parametrize(
    ("given", "place", "command"),
    [
        (mounted(f"UUID={UUID} /data btrfs subvol=@/data 0 0"), "@/data", "2s#subvol=@/data#subvol=@data#"),
        (mounted(f"UUID={UUID} /media btrfs rw,subvol=/@/data/ 0 0"), "@/data", "2s#subvol=/@/data/#subvol=@data#"),
        (mounted("LABEL=my\\040disk /m auto subvol=@/a\\040b/c"), "@/a b/c", "2s#subvol=@/a\\\\040b/c#subvol=@a\\\\040b-c#"),
        (mounted("/dev/sda2\t/m\tbtrfs\tsubvol=@/x.y"), "@/x.y", "2s#subvol=@/x\\.y#subvol=@x.y#"),
        (mounted(f"UUID={UUID} /m btrfs subvolid=300", places={300: "@/data"}), "@/data", "umount /m && "),
        (mounted(f"UUID={UUID} /m btrfs subvolid=0x12c,subvol=@/q", places={300: "@/q"}), "@/q", "#subvol=@q#"),
        (mounted(f"UUID={UUID} /d btrfs subvol=@/d", ".snap-upgrade/be/x"), "@/d", "top/.snap-upgrade/be/x/d /run"),
        (mounted(f"UUID={UUID} /d btrfs subvolid=9", ".snap-upgrade/be/x", places={9: ".snap-upgrade/be/x/d"}),
         ".snap-upgrade/be/x/d", "top/.snap-upgrade/be/x/d /run"),
        (mounted(f"UUID={UUID} /d btrfs subvol=@/d", kernel="root=/dev/vda"), "@/d", "mount /d"),
        (mounted(f"UUID={UUID} /d btrfs subvol=@/d", kernel=OURS, configured="exchange"), "@/d", "mount /d"),
    ],
)  # fmt: skip
def test_a_mount_from_inside_a_root_that_changes_places_is_a_refusal(given: Facts, place: str, command: str) -> None:
    found = decide(given)
    assert (found.method, found.boot_path) == (NONE, None)
    assert found.refusal == (
        f"/etc/fstab mounts {place}, which lies inside the root and would not be there after a roll back"
    )
    assert command in found.hint
    assert place in found.selected


@pytest.mark.parametrize(
    "given",
    [
        mounted(f"UUID={UUID} /data btrfs subvol=@data 0 0"),
        mounted(f"UUID={UUID} /data btrfs subvol=@home/data 0 0"),
        mounted(f"UUID={OTHER} /data btrfs subvol=@/data 0 0"),
        mounted(f"#UUID={UUID} /data btrfs subvol=@/data 0 0"),
        mounted(f"UUID={UUID} /top btrfs subvol=/ 0 0"),
        mounted(f"UUID={UUID} /top btrfs subvolid=5", places={5: ""}),
        mounted(f"UUID={UUID} /again btrfs subvol=@"),
        mounted(f"UUID={UUID} /x btrfs subvolid=300", places={300: "x"}),
        mounted(f"UUID={UUID} /x btrfs subvolid=300"),
        mounted(f"UUID={UUID} /x btrfs"),
        mounted(f"UUID={UUID} /x"),
    ],
)
def test_a_mount_of_what_lies_elsewhere_stops_nothing(given: Facts) -> None:
    found = decide(given)
    assert (found.method, found.boot_path, found.warnings) == (EXCHANGE, "@", ())


@pytest.mark.parametrize("option", ["nofail", "noauto"])
def test_a_mount_that_may_fail_is_a_warning(option: str) -> None:
    found = decide(mounted(f"UUID={UUID} /data btrfs {option},subvol=@/data 0 0"))
    assert (found.method, found.boot_path) == (EXCHANGE, "@")
    assert len(found.warnings) == 1
    assert "@/data" in found.warnings[0]
    assert look(found.warnings[0]) == "cat /etc/fstab"


def test_a_root_by_default_keeps_what_is_mounted_from_inside_it_and_says_what_that_is() -> None:
    line = f"UUID={UUID} /data btrfs subvol=@/data\nUUID={UUID} /b btrfs subvolid=300\nUUID={OTHER} /c btrfs subvol=@/c"
    found = decide(facts("@", OURS, line, places={300: "@/b", 7: "@/q"}))
    assert found.method is DEFAULT
    assert found.selected == {"@/data", "@/b"}
    assert decide(facts("@", AT)).selected == {"@"}
    assert decide(facts("@", f"{OURS} rootflags=subvolid=9", places={9: "x"})).selected == {"x"}


def test_the_numbers_that_the_texts_name() -> None:
    fstab = "a /b btrfs subvolid=300,x\n#c /d btrfs subvolid=301\ne /f btrfs subvolid=zzz\n"
    assert numbers("rootflags=subvolid=0x100 quiet", fstab) == {256, 300}
