"""Real Debian packages, written byte by byte: no dpkg-deb, no clock, the same input gives the same file.

The one rule: dpkg must not be able to tell them from packages that were built as usual.
"""

import gzip
import io
import posixpath
import random
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path

_EPOCH = 1_700_000_000  # every file's time: fixed, and not in any machine's future


@dataclass(frozen=True)
class Deb:
    """One binary package. *scripts* maps "preinst", "postinst", "prerm", "postrm", "config" to their text.

    *files* maps absolute paths to content; a path that ends in "/" is a folder; files below a
    ``bin`` folder are executable. *size_padding* adds a file of that many bytes that do not compress.
    """

    name: str
    version: str = "1.0"
    depends: str = ""
    pre_depends: str = ""
    conflicts: str = ""
    replaces: str = ""
    breaks: str = ""
    provides: str = ""
    recommends: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    conffiles: tuple[str, ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)
    triggers: str = ""
    essential: bool = False
    multi_arch: str = ""
    arch: str = "all"
    size_padding: int = 0

    @property
    def filename(self) -> str:
        """The file's name in a repository: without the epoch, as dpkg-name would have it."""
        return f"{self.name}_{self.version.partition(':')[2] or self.version}_{self.arch}.deb"

    def fields(self) -> dict[str, str]:
        """Return the control fields, those without a value left out, in dpkg's order."""
        kibibytes = -(-sum(len(content) for content in self._content().values()) // 1024)
        known = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.arch,
            "Essential": "yes" if self.essential else "",
            "Multi-Arch": self.multi_arch,
            "Maintainer": "Laboratory <lab@localhost>",
            "Installed-Size": str(kibibytes),
            "Provides": self.provides,
            "Pre-Depends": self.pre_depends,
            "Depends": self.depends,
            "Recommends": self.recommends,
            "Conflicts": self.conflicts,
            "Breaks": self.breaks,
            "Replaces": self.replaces,
            "Section": "misc",
            "Priority": "optional",
            "Description": f"package {self.name} of the laboratory",
        }
        return {name: value for name, value in known.items() if value}

    def control(self) -> str:
        """Return the control file's text."""
        return "".join(f"{name}: {value}\n" for name, value in self.fields().items())

    def build(self, directory: Path) -> Path:
        """Write the package into *directory* and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / self.filename
        data = {f".{name}": (body, _mode(name)) for name, body in self._content().items()}
        members = {
            "debian-binary": b"2.0\n",
            "control.tar.gz": _tar_gz(self._control_members()),
            "data.tar.gz": _tar_gz(data, level=0 if self.size_padding else 1),
        }
        path.write_bytes(_ar(members))
        return path

    def _content(self) -> dict[str, bytes]:
        content = dict(self.files)
        if not content:
            content[f"/usr/share/{self.name}/version"] = f"{self.version}\n".encode()
        if self.size_padding:
            content[f"/usr/share/{self.name}/padding"] = _noise(self.size_padding)
        return content

    def _control_members(self) -> dict[str, tuple[bytes, int]]:
        sums = {name: body for name, body in self._content().items() if not name.endswith("/")}
        listed = "".join(
            f"{md5(body, usedforsecurity=False).hexdigest()}  {name.lstrip('/')}\n" for name, body in sums.items()
        )
        members = {
            "./control": (self.control().encode(), 0o644),
            "./md5sums": (listed.encode(), 0o644),
        }
        if self.conffiles:
            members["./conffiles"] = ("".join(f"{path}\n" for path in self.conffiles).encode(), 0o644)
        if self.triggers:
            members["./triggers"] = (self.triggers.rstrip("\n").encode() + b"\n", 0o644)
        for name, text in self.scripts.items():
            members[f"./{name}"] = (text.encode(), 0o755)
        return members


def _mode(name: str) -> int:
    return 0o755 if name.endswith("/") or posixpath.basename(posixpath.dirname(name)) in ("bin", "sbin") else 0o644


def _noise(size: int) -> bytes:
    """Return *size* bytes that neither gzip nor zstd makes smaller, the same every time."""
    return random.Random(0).randbytes(size)


def _tar_gz(members: Mapping[str, tuple[bytes, int]], level: int = 1) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for folder in _folders(members):
            archive.addfile(_member(folder, 0o755, None))
        for name, (body, mode) in members.items():
            if not name.endswith("/"):
                archive.addfile(_member(name, mode, body), io.BytesIO(body))
    return gzip.compress(raw.getvalue(), compresslevel=level, mtime=0)


def _folders(members: Mapping[str, object]) -> list[str]:
    """Return every folder that the members are in, parents first, as dpkg wants them: with ``./``."""
    folders = {"./"}
    for name in members:
        parent = name if name.endswith("/") else posixpath.dirname(name) + "/"
        while parent not in ("./", "/"):
            folders.add(parent)
            parent = posixpath.dirname(parent.rstrip("/")) + "/"
    return sorted(folders)


def _member(name: str, mode: int, body: bytes | None) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = mode
    member.mtime = _EPOCH
    member.uname = member.gname = "root"
    if body is None:
        member.type = tarfile.DIRTYPE
    else:
        member.size = len(body)
    return member


def _ar(members: Mapping[str, bytes]) -> bytes:
    """Return an ar(5) archive, the common format with 16 characters for a name."""
    out = io.BytesIO()
    out.write(b"!<arch>\n")
    for name, body in members.items():
        out.write(f"{name:<16}{_EPOCH:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode("ascii"))
        out.write(body + b"\n" * (len(body) % 2))
    return out.getvalue()
