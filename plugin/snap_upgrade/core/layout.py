"""How the root is chosen at boot, decided from text: the kernel line, fstab, the default subvolume.

The rule: name a method only if it takes effect. Where neither an exchange of names nor another default
subvolume would change what boots, refuse with the reason, before any package is touched.
"""

from __future__ import annotations

import os
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
    and ``/boot`` that lie on another volume. *swap_files* are active and in the root volume.
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


def fstab_root(text: str) -> tuple[str, str] | None:
    """Return (source, options) of the line for ``/``, the last one if there are several, or None."""
    found = None
    for words in _fstab_lines(text):
        if len(words) >= 2 and not words[0].startswith("#") and unescape_fstab(words[1]) == "/":
            found = (unescape_fstab(words[0]), unescape_fstab(words[3]) if len(words) > 3 else "")
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
    return Layout(
        running=facts.running,
        method=method,
        boot_path=boot_path,
        refusal=refusal,
        hint=hint,
        warnings=tuple(_warnings(facts, method)),
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
