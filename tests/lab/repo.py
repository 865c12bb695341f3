"""A package repository in a folder, as apt wants it: signed, unsigned, or signed wrongly.

The one rule: ``publish`` replaces each index whole (temporary file, rename), Release last,
so a machine that refreshes meanwhile sees the old set or a mismatch that apt reports, never a torn file.
"""

import gzip
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.debs import Deb

Signing = Literal["trusted", "signed", "broken"]
_DATE = "Tue, 14 Nov 2023 22:13:20 UTC"
_TOOLS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class _Indexed:
    path: Path
    stanza: str


class Repo:
    """A flat repository. *signing*: "trusted" is unsigned and trusted by the source line; "broken" has
    a signature that does not match its Release file."""

    def __init__(self, directory: Path, signing: Signing = "trusted") -> None:
        self.dir = directory
        self.signing: Signing = signing
        self._packages: dict[str, _Indexed] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, *debs: Deb) -> None:
        """Build packages into the repository; ``publish`` makes them known."""
        for deb in debs:
            self.add_file(deb.build(self.dir), deb.control())

    def add_file(self, path: Path, control: str) -> None:
        """Take in a package file that is in the repository's folder already; *control* is its control text."""
        body = path.read_bytes()
        stanza = control + (
            f"Filename: ./{path.name}\nSize: {len(body)}\n"
            f"MD5sum: {hashlib.md5(body, usedforsecurity=False).hexdigest()}\n"
            f"SHA256: {hashlib.sha256(body).hexdigest()}\n"
        )
        self._packages[path.name] = _Indexed(path, stanza)

    def remove(self, deb: Deb) -> None:
        """Take a package out of the repository."""
        self._packages.pop(deb.filename).path.unlink()

    def publish(self) -> None:
        """Write Packages, Packages.gz, Release and, if signed, InRelease and its public key ``key.asc``."""
        text = "\n".join(entry.stanza for entry in self._packages.values()).encode()
        indexes = {"Packages": text, "Packages.gz": gzip.compress(text, mtime=0)}
        for name, body in indexes.items():
            _replace(self.dir / name, body)
        release = _release(indexes)
        if self.signing == "trusted":
            # apt prefers InRelease: one of an earlier repository in this folder would be believed.
            (self.dir / "InRelease").unlink(missing_ok=True)
        else:
            signed, key = _sign(release.encode())
            if self.signing == "broken":
                signed = signed.replace(b"Label: lab", b"Label: bad", 1)
            _replace(self.dir / "key.asc", key)
            _replace(self.dir / "InRelease", signed)
        _replace(self.dir / "Release", release.encode())

    def source(self, uri: str) -> str:
        """Return the deb822 source for a machine that reaches the repository at *uri*."""
        lines = ["Types: deb", f"URIs: {uri}", "Suites: ./"]
        if self.signing == "trusted":
            lines.append("Trusted: yes")
        else:
            key = (self.dir / "key.asc").read_text().splitlines()
            lines += ["Signed-By:", *(f" {line or '.'}" for line in key)]
        return "\n".join(lines) + "\n"

    def enable(self, root: Path, uri: str, *, only: bool = False) -> None:
        """Make the repository a source of the machine whose root is at *root*; the only one if *only*."""
        folder = root / "etc/apt/sources.list.d"
        folder.mkdir(parents=True, exist_ok=True)
        if only:
            (root / "etc/apt/sources.list").unlink(missing_ok=True)
            for other in folder.iterdir():
                other.unlink()
        (folder / "lab.sources").write_text(self.source(uri))


def local_repo(root: Path, debs: Iterable[Deb], *, inside: str = "/srv/repo", signing: Signing = "trusted",
               method: Literal["file", "copy"] = "file") -> Repo:  # fmt: skip
    """Put a repository into the machine whose root is at *root* (``m.path("/")``) as its only source.

    Run ``apt-get update`` inside before using it, and after every later ``publish``.
    """
    repo = Repo(root / inside.lstrip("/"), signing)
    repo.add(*debs)
    repo.publish()
    repo.enable(root, f"{method}:{inside}", only=True)
    return repo


def _release(indexes: dict[str, bytes]) -> str:
    lines = ["Origin: lab", "Label: lab", "Suite: lab", "Codename: lab", f"Date: {_DATE}", "Architectures: all amd64"]
    lines.append("SHA256:")
    lines += [f" {hashlib.sha256(body).hexdigest()} {len(body)} {name}" for name, body in indexes.items()]
    return "\n".join(lines) + "\n"


def _sign(release: bytes) -> tuple[bytes, bytes]:
    """Return *release* signed in clear by a key made for this, and the public key, armoured."""
    # Short path: gpg-agent's socket is in it, and a socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="gpg-", dir="/tmp") as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--no-autostart"]
        subprocess.run(["gpgconf", "--homedir", home, "--launch", "gpg-agent"], check=True, env=_TOOLS)
        try:
            subprocess.run([*gpg, "--passphrase", "", "--quick-generate-key", "lab", "ed25519", "sign", "never"],
                           check=True, env=_TOOLS, capture_output=True)  # fmt: skip
            signed = subprocess.run([*gpg, "--clearsign"], check=True, env=_TOOLS, input=release, capture_output=True)
            key = subprocess.run([*gpg, "--armor", "--export"], check=True, env=_TOOLS, capture_output=True)
        finally:
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=True, env=_TOOLS)
    return signed.stdout, key.stdout


def _replace(path: Path, body: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(body)
    os.replace(temporary, path)
