"""What apt is about to do, as it tells a ``DPkg::Pre-Install-Pkgs`` hook (protocol 3; 2 and 1 are understood).

The target of a package is the version on its line, ``-`` meaning gone, whatever the operation on that line is: apt
lists an upgrade twice and may remove a package for a while to install it again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

# The last word of a line instead of the path of an archive.
_MARKS = {"**REMOVE**": "remove", "**CONFIGURE**": "configure"}
ADMIN_DIR = "var/lib/dpkg"
_COMPARISONS = ("<", "=", ">")
_MULTI_ARCH = ("none", "no", "same", "foreign", "allowed")


class BadRequest(ValueError):
    """The text is not a request of a version that is understood, so the operation is unknown."""


class Target:
    """One package of a request: what it was before and what it is to be after; None stands for not there.

    ``operation`` is ``unpack``, ``configure`` (only finish what an earlier run left) or ``remove``.
    """

    __slots__ = ("name", "new_arch", "new_version", "old_arch", "old_version", "operation", "path")

    def __init__(
        self,
        name: str,
        old_version: str | None,
        old_arch: str | None,
        new_version: str | None,
        new_arch: str | None,
        operation: str,
        path: str | None = None,
    ) -> None:
        self.name = name
        self.old_version = old_version
        self.old_arch = old_arch
        self.new_version = new_version
        self.new_arch = new_arch
        self.operation = operation
        self.path = path

    @property
    def arch(self) -> str | None:
        """The architecture that tells it from its namesakes; None where the protocol (1, 2) does not say."""
        return self.old_arch if self.new_version is None else self.new_arch

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Target):
            return NotImplemented
        return all(getattr(self, slot) == getattr(other, slot) for slot in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Target({self.name}:{self.arch} {self.old_version} -> {self.new_version}, {self.operation})"


class Request:
    """One commit of a front end: the targets in apt's order, apt's configuration, the command line if apt knew it."""

    __slots__ = ("command_line", "config", "targets", "version")

    def __init__(self, version: int, config: dict[str, str], command_line: str, targets: list[Target]) -> None:
        self.version = version
        self.config = config
        self.command_line = command_line
        self.targets = targets


def parse_request(data: bytes) -> Request:
    """Return the request in the text that apt gives the hook. Raises BadRequest for anything else.

    A name of a file may hold any byte; undecodable ones are kept as ``os.fsdecode`` does.
    """
    text = data.decode("utf-8", "surrogateescape")
    if "\0" in text:
        raise BadRequest("the request of the package manager has a NUL byte in it")
    if text and not text.endswith("\n"):
        raise BadRequest(f"the request of the package manager is cut off after {text[-60:]!r}")
    first, _, rest = text.partition("\n")
    if not first.startswith("VERSION "):
        return Request(1, {}, "", [_archive(line) for line in text.split("\n")[:-1]])
    if first not in ("VERSION 2", "VERSION 3"):
        raise BadRequest(f"the package manager speaks {first[:60]!r} to its hooks; only 1, 2 and 3 are known")
    version = int(first[8:])
    config: dict[str, str] = {}
    lines = rest.split("\n")
    for number, line in enumerate(lines[:-1]):
        if not line:
            body = lines[number + 1 : -1]
            break
        key, equals, value = line.partition("=")
        if not equals:
            raise BadRequest(f"the request of the package manager has the configuration line {line[:60]!r}")
        key, value = unquote(key), unquote(value)
        # The items of a list all have the same key.
        config[key] = f"{config[key]}\n{value}" if key.endswith("::") and key in config else value
    else:
        raise BadRequest("the request of the package manager ends before its list of packages")
    parse = _line_3 if version == 3 else _line_2
    return Request(version, config, config.get("CommandLine::AsString", ""), merge([[parse(line) for line in body]]))


def admin_dir(config: dict[str, str], environ: Mapping[str, str]) -> str:
    """Return the folder of the package database that dpkg will work on, as apt's *config* and the environment tell it.

    ``-o Dir=`` alone is not among it: apt then reads one root, and dpkg changes the other.
    """
    folder = environ.get("DPKG_ADMINDIR", "")
    root = environ.get("DPKG_ROOT", "")
    if not folder:
        folder = f"{root.rstrip('/')}/{ADMIN_DIR}" if root else f"/{ADMIN_DIR}"
    options = next((value for key, value in config.items() if key.lower() == "dpkg::options::"), "").split("\n")
    for number, option in enumerate(options):
        name, equals, value = option.partition("=")
        if not equals:
            value = options[number + 1] if number + 1 < len(options) else ""
        if name == "--root":
            folder = f"{value.rstrip('/')}/{ADMIN_DIR}"
        elif name == "--admindir":
            folder = value
    return folder


def unquote(text: str) -> str:
    """Return *text* with apt's %XX escapes undone; what is no escape stays as it is."""
    if "%" not in text:
        return text
    parts = text.split("%")
    out = [parts[0].encode("utf-8", "surrogateescape")]
    for part in parts[1:]:
        digits = part[:2]
        if len(digits) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            out.append(bytes((int(digits, 16),)) + part[2:].encode("utf-8", "surrogateescape"))
        else:
            out.append(b"%" + part.encode("utf-8", "surrogateescape"))
    return b"".join(out).decode("utf-8", "surrogateescape")


def merge(requests: Iterable[Iterable[Target]]) -> list[Target]:
    """Return one target for each package of several lists: the first one's old version, the last one's new version.

    A later line about a package finds the earlier one by what that one was to make of it, also when the package
    changed its architecture in between.
    """
    merged: dict[tuple[str, str | None], Target] = {}
    for targets in requests:
        for target in targets:
            earlier = merged.pop((target.name, target.arch), None)
            if earlier is None and target.old_version is not None:
                earlier = merged.pop((target.name, target.old_arch), None)
            merged[target.name, target.arch] = target if earlier is None else _join(earlier, target)
    return list(merged.values())


def to_json(targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Return the form that the journal keeps as ``request``."""
    return [
        {
            "name": target.name,
            "old": None if target.old_version is None else [target.old_version, target.old_arch],
            "new": None if target.new_version is None else [target.new_version, target.new_arch],
            "arch": target.arch,
            "op": target.operation,
            "path": target.path,
        }
        for target in targets
    ]


def from_json(items: object) -> list[Target]:
    """Return the targets that :func:`to_json` wrote. Raises BadRequest if it did not write *items*."""
    if not isinstance(items, list):
        raise BadRequest("the request in the journal is no list")
    targets = []
    for item in items:
        try:
            old_version, old_arch = _pair(item["old"])
            new_version, new_arch = _pair(item["new"])
            name, operation, path = item["name"], item["op"], item["path"]
        except (TypeError, KeyError, IndexError, ValueError):
            raise BadRequest(f"the request in the journal has the entry {item!r}") from None
        if not (isinstance(name, str) and isinstance(operation, str) and (path is None or isinstance(path, str))):
            raise BadRequest(f"the request in the journal has the entry {item!r}")
        targets.append(Target(name, old_version, old_arch, new_version, new_arch, operation, path))
    return targets


def _pair(value: object) -> tuple[str | None, str | None]:
    if value is None:
        return None, None
    if not isinstance(value, list):
        raise ValueError(value)
    version, arch = value
    if not isinstance(version, str) or not (arch is None or isinstance(arch, str)):
        raise ValueError(value)
    return version, arch


def _join(earlier: Target, later: Target) -> Target:
    # "configure" only says what is done last; whether anything new was asked for decides how a failure is judged.
    real = earlier if later.operation == "configure" and earlier.operation == "unpack" else later
    return Target(
        later.name,
        earlier.old_version,
        earlier.old_arch,
        later.new_version,
        later.new_arch,
        "remove" if later.new_version is None else real.operation,
        real.path,
    )


def _archive(line: str) -> Target:
    """The target of a line of protocol 1: only the archive's path, whose name says the rest."""
    base = line.rpartition("/")[2]
    words = base.removesuffix(".deb").split("_")
    if not line.startswith("/") or not base.endswith(".deb") or len(words) != 3 or not all(words):
        raise BadRequest(f"the request of the package manager has the line {line[:60]!r}")
    # An epoch's colon is escaped in the names of archives.
    return Target(unquote(words[0]), None, None, unquote(words[1]), unquote(words[2]), "unpack", line)


def _line_2(line: str) -> Target:
    words = line.split(" ", 4)
    if len(words) != 5 or words[2] not in _COMPARISONS:
        raise BadRequest(f"the request of the package manager has the line {line[:60]!r}")
    name, old, _, new, last = words
    return _target(line, name, old, None, new, None, last)


def _line_3(line: str) -> Target:
    words = line.split(" ", 8)
    if len(words) != 9 or words[4] not in _COMPARISONS or words[3] not in _MULTI_ARCH or words[7] not in _MULTI_ARCH:
        raise BadRequest(f"the request of the package manager has the line {line[:60]!r}")
    name, old, old_arch, _, _, new, new_arch, _, last = words
    return _target(line, name, old, old_arch, new, new_arch, last)


def _target(line: str, name: str, old: str, old_arch: str | None, new: str, new_arch: str | None, last: str) -> Target:
    operation = _MARKS.get(last)
    if operation is None and last.startswith("/"):
        operation = "unpack"
    if operation is None or not name or not old or not new:
        raise BadRequest(f"the request of the package manager has the line {line[:60]!r}")
    return Target(
        name,
        None if old == "-" else old,
        None if old == "-" else old_arch,
        None if new == "-" else new,
        None if new == "-" else new_arch,
        "remove" if new == "-" else operation,
        last if operation == "unpack" else None,
    )
