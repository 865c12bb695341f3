"""What apt would do, read from ``apt-get --print-uris`` and, where that does not say all, ``apt-get --simulate``.

The rule: apt itself says what it would do, in the environment itself, with the arguments of the later run; nothing
is computed twice, and a list is believed only if it has as many packages as apt counted. Recorded from apt 2.6.1 and
3.0.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from snap_upgrade.core.dpkgdb import Database
from snap_upgrade.core.packages import PackageChange
from snap_upgrade.core.request import Target, merge

_ACTION = re.compile(
    r"(Inst|Conf|Remv|Purg) ([^ :]+)(?::([^ ]+))?(?: \[([^]]*)\])?(?: \(([^ )]+)(?: [^)]*?)?\[([^] ]+)\]\))?(?: .*)?"
)
_URI = re.compile(r"'([^']*)' ([^ /]+) (\d{1,18})(?: (.*))?", re.ASCII)
_SPACE = re.compile(
    r"After this operation, ([0-9.,]{1,20}) ([kMGTPE]?)B (?:of additional )?disk space will be (used|freed)\.", re.ASCII
)
# With APT::Get::Show-Versions: a package on each line, a star where it is purged.
_LISTED = re.compile(r"   ([^ :*]+)(?::([^ :*]+))?(\*?)(?: \((?:([^ ()]+)(?: => ([^ ()]+))?)?\))?")
_LISTS = {
    "The following NEW packages will be installed:": "newly installed",
    "The following packages will be upgraded:": "upgraded",
    "The following packages will be DOWNGRADED:": "downgraded",
    "The following packages will be REMOVED:": "to remove",
}
_COUNTS = re.compile(
    r"(\d{1,9}) upgraded, (\d{1,9}) newly installed, (?:(\d{1,9}) reinstalled, )?(?:(\d{1,9}) downgraded, )?"
    r"(\d{1,9}) to remove and \d{1,9} not upgraded\.",
    re.ASCII,
)
_UNFINISHED = "not fully installed or removed."
_FIELD = re.compile(r"^(Package|Architecture|Installed-Size): (\S+)$", re.MULTILINE)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}


@dataclass(frozen=True, slots=True)
class Archive:
    """A package file that apt would fetch: its name in the archives folder, its size, ``TYPE:hex`` of its content."""

    name: str
    size: int
    digest: str


def native_architecture(database: Database) -> str:
    """Return the architecture whose packages apt names without it: dpkg's own."""
    return next((package.arch for package in database.named("dpkg") if package.is_present), "")


def display_name(key: str, native: str) -> str:
    """Return ``name:arch`` as apt writes it: without the architecture where that is the native one or ``all``."""
    name, _, arch = key.partition(":")
    return name if arch in ("", "all", native) else key


def parse_lists(text: str, database: Database) -> list[Target] | None:
    """Return what the lists above apt's summary name as targets; None if they are not all of what apt would do.

    They leave out what is installed again and what is only configured; actions that install nothing have none. The
    architecture of what is no foreign package is not said (native or ``all``): see :func:`settle`.
    """
    found: dict[str, list[tuple[str, str | None, str | None, str | None]]] = {name: [] for name in _LISTS.values()}
    here, counts = "", None
    for line in text.split("\n"):
        if not line.startswith(" "):
            here = _LISTS.get(line, "")
            if line.endswith(_UNFINISHED):
                return None
            counts = _COUNTS.fullmatch(line) or counts
            continue
        match = _LISTED.fullmatch(line) if here else None
        if match is not None:
            found[here].append((match[1], match[2], match[4], match[5]))
    if counts is None or counts[3] is not None:
        return None
    said = [int(counts[1]), int(counts[2]), int(counts[4] or 0), int(counts[5])]
    if said != [len(found[name]) for name in ("upgraded", "newly installed", "downgraded", "to remove")]:
        return None
    native = native_architecture(database)
    targets = []
    for kind, packages in found.items():
        for name, arch, first, second in packages:
            old_version, old_arch = _present(database, name, arch or native)
            new = {"to remove": None, "newly installed": first}.get(kind, second)
            if kind != "to remove" and new is None:
                return None
            operation = "remove" if new is None else "unpack"
            targets.append(Target(name, old_version, old_arch, new, None if new is None else arch, operation))
    return targets


def settle(targets: list[Target], before: Database, after: Database) -> list[Target]:
    """Return the targets with the architecture that they have in *after*, or had, where apt did not say it."""
    native = native_architecture(before)

    def of(target: Target) -> str:
        known = (_present(database, target.name, native)[1] for database in (after, before))
        return next((arch for arch in known if arch is not None), native)

    return [
        t if t.new_version is None or t.new_arch is not None
        else Target(t.name, t.old_version, t.old_arch, t.new_version, of(t), t.operation)
        for t in targets
    ]  # fmt: skip


def parse_simulation(text: str, database: Database) -> list[Target]:
    """Return what ``apt-get --simulate`` printed as targets; *database* tells what there is now."""
    native = native_architecture(database)
    targets: list[Target] = []
    for line in text.split("\n"):
        match = _ACTION.fullmatch(line)
        if match is None:
            continue
        verb, name, arch, _, version, version_arch = match.groups()
        old_version, old_arch = _present(database, name, arch or native)
        if verb in ("Remv", "Purg"):
            targets.append(Target(name, old_version, old_arch, None, None, "remove"))
        elif version is not None:
            operation = "unpack" if verb == "Inst" else "configure"
            targets.append(Target(name, old_version, old_arch, version, version_arch, operation))
    return merge([targets])


def _present(database: Database, name: str, arch: str) -> tuple[str | None, str | None]:
    """Return version and architecture of what is there under a name that apt gave for *arch*."""
    for package in database.named(name):
        if package.is_present and package.arch in (arch, "all"):
            return package.version, package.arch
    return None, None


def changes_of(targets: list[Target], native: str) -> tuple[PackageChange, ...]:
    """Return the targets as changes, sorted by name."""
    changes = [
        PackageChange(display_name(f"{t.name}:{t.arch or ''}", native), t.old_version, t.new_version) for t in targets
    ]
    return tuple(sorted(changes, key=lambda change: change.name))


def parse_uris(text: str) -> list[Archive]:
    """Return the files in the output of ``--print-uris``; what is in the archives folder already is not among them."""
    matches = (_URI.fullmatch(line) for line in text.split("\n"))
    return [Archive(match[2], int(match[3]), match[4] or "") for match in matches if match]


def written_bytes(targets: list[Target], growth: int, status: str) -> int:
    """Return the bytes that new files take: by how much the root grows, and what of dpkg's *status* they replace.

    An entry without a size (it is optional) counts as nothing.
    """
    replaced = {(t.name, t.old_arch) for t in targets if t.operation != "configure" and t.old_version is not None}
    old = 0
    for stanza in status.split("\n\n") if replaced else ():
        fields = {match[1]: match[2] for match in _FIELD.finditer(stanza)}
        size = fields.get("Installed-Size", "")
        if (fields.get("Package"), fields.get("Architecture")) in replaced and size.isascii() and size.isdecimal():
            old += int(size) << 10 if len(size) < 16 else 0
    return max(0, growth + old)


def parse_growth(text: str) -> int:
    """Return by how many bytes apt says the root grows (three digits are exact); 0 where it says nothing."""
    match = _SPACE.search(text)
    if match is None:
        return 0
    try:
        size = round(float(match[1].replace(",", "")) * _UNITS[match[2]])
    except ValueError:
        return 0
    return -size if match[3] == "freed" else size
