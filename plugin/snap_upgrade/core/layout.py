"""How the root is chosen at boot, decided from text: the kernel line, fstab, the default subvolume.

The rule: name a method only if it takes effect. Where neither an exchange of names nor another default
subvolume would change what boots, refuse with the reason, before any package is touched.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from snap_upgrade.core.model import Layout, Method, Volume

TOP_LEVEL = 5

# What a package writes must go back together: these may not lie outside the root volume.
TOGETHER = ("/usr", "/etc", "/var/lib/dpkg", "/var/lib/rpm")

_STATE = ".snap-upgrade/"
_SPACE = " \t\n\v\f\r"  # and no other space of Unicode: a name may hold those as they are


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read from the machine.

    *names* are all spellings by which a kernel line or fstab may name this file system (``/dev/sda2``,
    ``LABEL=x``, ``PARTUUID=…``); ``UUID=`` of *fs_uuid* need not be among them. *elsewhere* are those of TOGETHER
    and ``/boot`` that lie on another volume. *swap_files* are active and in the root volume. *places* says where
    the volumes lie whose `numbers` the texts name.
    """

    running: Volume
    default_id: int
    kernel_line: str
    fstab: str
    fs_uuid: str
    names: frozenset[str] = field(default_factory=frozenset)
    configured: str = "auto"
    writable: bool = True
    elsewhere: tuple[str, ...] = ()
    swap_files: tuple[str, ...] = ()
    places: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MountLine:
    """A line of fstab: its *number* from 1, and its words as they stand there."""

    number: int
    words: tuple[str, ...]

    @property
    def source(self) -> str:
        """What is mounted."""
        return unescape_fstab(self.words[0])

    @property
    def point(self) -> str:
        """Where it is mounted."""
        return unescape_fstab(self.words[1])

    @property
    def options(self) -> str:
        """The options, joined by commas."""
        return unescape_fstab(self.words[3]) if len(self.words) > 3 else ""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a mount of the root asks for, and which text says so: a *path*, a number, both, or neither (the default)."""

    path: str | None
    ident: int | None
    said_by: str


def kernel_words(line: str) -> list[str]:
    """Return the words of a kernel line; spaces within double quotes belong to the word, the quotes do not."""
    words: list[str] = []
    word, quoted = "", False
    for letter in line:
        if letter == '"':
            quoted = not quoted
        elif letter in _SPACE and not quoted:
            words.append(word)
            word = ""
        else:
            word += letter
    words.append(word)
    return [w for w in words if w]


def unescape_fstab(word: str) -> str:
    """Return a word of fstab with its octal escapes (``\\040``) resolved."""
    first, *others = os.fsencode(word).split(b"\\")
    out = [first]
    for part in others:
        digits = part[:3]
        octal = len(digits) == 3 and all(0x30 <= d <= 0x37 for d in digits) and digits[0] <= 0x33
        out.append(bytes((int(digits, 8),)) + part[3:] if octal else b"\\" + part)
    return os.fsdecode(b"".join(out))


def _fstab_lines(text: str) -> list[list[str]]:
    """Return the words of each line; fstab knows no separators but space and tab, nor ends of lines but one."""
    return [[word for word in line.replace("\t", " ").split(" ") if word] for line in text.split("\n")]


def fstab_mounts(text: str) -> Iterator[MountLine]:
    """Yield the lines that name a source and a place; comments do not."""
    for number, words in enumerate(_fstab_lines(text), 1):
        if len(words) >= 2 and not words[0].startswith("#"):
            yield MountLine(number, tuple(words))


def fstab_root(text: str) -> tuple[str, str] | None:
    """Return (source, options) of the line for ``/``, the last one if there are several, or None."""
    found = None
    for line in fstab_mounts(text):
        if line.point == "/":
            found = (line.source, line.options)
    return found


def fstab_swap_files(text: str) -> list[str]:
    """Return the swap files (not devices) that fstab switches on."""
    files = []
    for words in _fstab_lines(text):
        if len(words) >= 3 and words[2] == "swap" and words[0].startswith("/") and not words[0].startswith("/dev/"):
            files.append(unescape_fstab(words[0]))
    return files


def is_ours(token: str, facts: Facts) -> bool:
    """Return whether *token* (of ``root=`` or fstab) names this file system."""
    key, equals, value = token.partition("=")
    if not equals:
        return token in facts.names
    value = value.strip("\"'")
    if key == "UUID":
        return value.lower() == facts.fs_uuid.lower()
    return f"{key}={value}" in facts.names or (key == "PARTUUID" and f"{key}={value.lower()}" in facts.names)


def clean_path(path: str) -> str:
    """Return *path* without leading, trailing and doubled slashes; the top level is the empty string."""
    return "/".join(part for part in path.split("/") if part)


def _subvolume_options(options: str) -> tuple[str | None, int | None]:
    """Return the path and the number that btrfs *options* ask for; the last of each counts."""
    path: str | None = None
    ident: int | None = None
    for option in options.split(","):
        key, _, value = option.partition("=")
        if key == "subvol":
            path = clean_path(value)
        elif key == "subvolid" and value:
            # The kernel reads the number in C notation and takes 0 for the top level.
            try:
                ident = int(value, 8 if value.startswith("0") and value.isdigit() else 0) or TOP_LEVEL
            except ValueError:
                ident = -1
    return path, ident


def numbers(kernel_line: str, fstab: str) -> set[int]:
    """Return the numbers by which the two texts name volumes, of whatever file system."""
    flags = [word[10:] for word in kernel_words(kernel_line) if word.startswith("rootflags=")]
    found = (_subvolume_options(options)[1] for options in (*flags, *(line.options for line in fstab_mounts(fstab))))
    return {number for number in found if number is not None and number >= TOP_LEVEL}


def _selected(facts: Facts, path: str | None, ident: int | None) -> list[str]:
    """Return the places of the volume that *path* and *ident* select: two if these differ, and the mount fails."""
    places = [path, facts.places.get(ident) if ident is not None else None]
    return [place for place in dict.fromkeys(places) if place is not None]


def selected(facts: Facts) -> frozenset[str]:
    """Return the places of all volumes of this file system that the kernel line and fstab select by path or number."""
    found = set()
    for line in fstab_mounts(facts.fstab):
        if is_ours(line.source, facts):
            found.update(_selected(facts, *_subvolume_options(line.options)))
    root = select(facts)
    if root is not None:
        found.update(_selected(facts, root.path, root.ident))
    return frozenset(found)


def _inside(facts: Facts, boot_path: str) -> list[tuple[MountLine, str, str]]:
    """Return (line of fstab, place of the volume, path in the root) where fstab selects a volume inside the root."""
    found = []
    for line in fstab_mounts(facts.fstab):
        if line.point == "/" or not is_ours(line.source, facts):
            continue
        for place in _selected(facts, *_subvolume_options(line.options)):
            # While something else is pending, the running root and what is in it lie elsewhere.
            root = next((one for one in (boot_path, facts.running.path) if one and place.startswith(f"{one}/")), None)
            if root is not None:
                found.append((line, place, place[len(root) + 1 :]))
                break
    return found


def _may_fail(line: MountLine) -> bool:
    """Whether the boot goes on without this mount."""
    return not {"noauto", "nofail"}.isdisjoint(line.options.split(","))


def _stuck(facts: Facts, boot_path: str) -> tuple[str, str]:
    """Return the refusal for a mount that a roll back by exchange would make impossible, with a hint; or nothing."""
    for line, place, relative in _inside(facts, boot_path):
        if not _may_fail(line):
            return (
                f"/etc/fstab mounts {place}, which lies inside the root and would not be there after a roll back",
                _move_out(line, clean_path(f"{facts.running.path}/{relative}"), relative),
            )
    return "", ""


def _move_out(line: MountLine, place: str, relative: str) -> str:
    """Return the commands that move the volume at *place* to the top level and correct its *line* of fstab."""
    top, name = "/run/snap-upgrade-top", "@" + relative.replace("/", "-")
    point = shlex.quote(line.point)
    commands = [
        f"umount {point}",
        f'mount --mkdir -o subvolid={TOP_LEVEL} "$(findmnt -nvfo SOURCE /)" {top}',
        f"mv -T {shlex.quote(f'{top}/{place}')} {shlex.quote(f'{top}/{name}')}",
        f"umount {top}",
        f"mkdir -p {point}",
    ]
    old = next((word for word in reversed(line.words[3].split(",")) if word.startswith("subvol=")), None)
    if old is not None:
        new = "".join(f"\\{ord(letter):03o}" if letter in " \t\\" else letter for letter in f"subvol={name}")
        pattern, text = re.sub(r"([\\.*\[\]^$#])", r"\\\1", old), re.sub(r"([\\&#])", r"\\\1", new)
        commands.append(f"sed -i {shlex.quote(f'{line.number}s#{pattern}#{text}#')} /etc/fstab")
    return " && ".join([*commands, f"mount {point}"])


def select(facts: Facts) -> Selection | None:
    """Return what the next boot will ask for, or None if no text names this file system.

    The kernel line decides if its ``root=`` is this file system; in a container or a chroot it is not, and then
    the line for ``/`` in fstab decides. Without such a line a mount gets the default subvolume.
    """
    root, flags = "", ""
    for word in kernel_words(facts.kernel_line):
        if word.startswith("root="):
            root = word[5:]
        elif word.startswith("rootflags="):
            flags = word[10:]
    if root and is_ours(root, facts):
        return Selection(*_subvolume_options(flags), "the kernel command line")
    line = fstab_root(facts.fstab)
    if line is None:
        return Selection(None, None, "the default subvolume")
    source, options = line
    if is_ours(source, facts):
        return Selection(*_subvolume_options(options), "/etc/fstab")
    return None


def decide(facts: Facts) -> Layout:
    """Return how another volume is made to boot, or the refusal."""
    refusal, hint = _obstacle(facts)
    method, boot_path = Method.NONE, None
    if not refusal:
        method, boot_path, refusal, hint = _method(facts)
    inside = boot_path if method is Method.EXCHANGE else None
    if inside is not None:
        refusal, hint = _stuck(facts, inside)
        if refusal:
            method, boot_path = Method.NONE, None
    return Layout(
        running=facts.running,
        method=method,
        boot_path=boot_path,
        refusal=refusal,
        hint=hint,
        warnings=(*_warnings(facts, method), *_late(facts, inside)),
        selected=selected(facts),
    )


def _obstacle(facts: Facts) -> tuple[str, str]:
    """Return why no method can help here, with a hint; two empty strings if nothing stands in the way."""
    if not facts.writable:
        return "the file system of the root is read-only", "mount it writable, if the medium can be written"
    together = [path for path in facts.elsewhere if path in TOGETHER]
    if together:
        what = " and ".join(together)
        verb = "lie" if len(together) > 1 else "lies"
        return (
            f"{what} {verb} outside the root volume: a roll back would leave {what} as the upgrade left it",
            f"move {what} into the root volume",
        )
    if facts.swap_files:
        what = " and ".join(facts.swap_files)
        return (
            f"the active swap file {what} is inside the root volume, and btrfs makes no snapshot of such a volume",
            "move the swap file to a subvolume of its own, mounted by its own line in /etc/fstab",
        )
    return "", ""


def _method(facts: Facts) -> tuple[Method, str | None, str, str]:
    """Return (method, boot path, refusal, hint) from the selection and the configuration."""
    selection = select(facts)
    if facts.configured == "set-default":
        return Method.SET_DEFAULT, None, "", ""
    if facts.configured == "exchange":
        path = selection.path if selection and selection.path is not None else facts.running.path
        if not path or path.startswith(_STATE):
            reason = "the top level cannot change places with anything" if not path else f"{path} is not what boots"
            return Method.NONE, None, f"activation by exchange is configured, but {reason}", "set activation to auto"
        return Method.EXCHANGE, path, "", ""
    if selection is None:
        return (
            Method.NONE,
            None,
            "neither the kernel command line nor the line for / in /etc/fstab names this file system",
            "correct /etc/fstab, or set activation to exchange or set-default in the configuration",
        )
    if selection.ident is not None:
        return Method.NONE, None, _fixed(selection), _fixed_hint(selection, facts)
    if selection.path == "":
        return (
            Method.NONE,
            None,
            f"{selection.said_by} says subvol=/: the top level always boots and cannot change places with anything",
            "remove subvol=/ there, so that the default subvolume decides",
        )
    if selection.path is not None:
        return Method.EXCHANGE, selection.path, "", ""
    return Method.SET_DEFAULT, None, "", ""


def _fixed(selection: Selection) -> str:
    """Return the refusal for a number that no switch can change."""
    number = "an unreadable subvolid" if selection.ident == -1 else f"subvolid={selection.ident}"
    if selection.path is not None:
        # Linux compares the two and refuses the mount (EINVAL): after an exchange the machine would not boot.
        return f"{selection.said_by} says {number} beside subvol=: another volume at that path would not be mounted"
    return f"{selection.said_by} says {number}: that volume always boots, whatever its name or the default"


def _fixed_hint(selection: Selection, facts: Facts) -> str:
    if selection.path:
        return f"remove subvolid= there and keep subvol={selection.path}"
    path = facts.running.path
    if path and not path.startswith(_STATE):
        return f"write subvol={path} there instead of subvolid="
    return "remove subvolid= there, so that the default subvolume decides"


def _warnings(facts: Facts, method: Method) -> list[str]:
    """Return what is true and should be known, but stops nothing."""
    warnings = []
    if "/boot" in facts.elsewhere:
        warnings.append("/boot lies outside the root volume: kernels there do not go back with a roll back")
    if method is Method.SET_DEFAULT and "/boot" not in facts.elsewhere:
        warnings.append("GRUB does not follow the default subvolume: it loads the kernel from the path in its own menu")
    if facts.running.read_only:
        warnings.append("the running root is a read-only volume")
    inactive = [path for path in fstab_swap_files(facts.fstab) if path not in facts.swap_files]
    if inactive:
        warnings.append(f"/etc/fstab switches on the swap file {' and '.join(inactive)}: in the root volume it would"
                        " prevent snapshots while it is active")  # fmt: skip
    root = [word[5:] for word in kernel_words(facts.kernel_line) if word.startswith("root=")]
    if root and root[-1].startswith(("PARTUUID=", "PARTLABEL=")) and not is_ours(root[-1], facts):
        warnings.append(f"the kernel command line says root={root[-1]}, which is not known to be this file system")
    return warnings


def _late(facts: Facts, boot_path: str | None) -> list[str]:
    """Return the mounts that fail once at the boot after an exchange, and may."""
    return [
        f"/etc/fstab mounts {place}, which lies inside the root: at the first boot after a roll back {line.point} is "
        "not mounted"
        for line, place, _ in (_inside(facts, boot_path) if boot_path is not None else ())
        if _may_fail(line)
    ]


def look(warning: str) -> str:
    """Return the command that shows what *warning* speaks of: most are no fault, and nothing of ours mends them."""
    return next(command for words, command in _LOOKS if words in warning)


_LOOKS = (
    ("/boot lies", "findmnt --target /boot"),
    ("GRUB does", "grep -n subvol /boot/grub/grub.cfg"),
    ("read-only volume", "btrfs property get -ts / ro"),
    ("/etc/fstab", "cat /etc/fstab"),
    ("", "cat /proc/cmdline"),
)
