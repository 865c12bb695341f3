"""Debian roots to fill machines with, built by mmdebstrap from the mirror this computer itself uses.

The one rule: the name of a cached root is a hash of everything it was made from, and a
root gets its name only when it is complete; so a cached root is never stale and never half.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RELEASES = ("bookworm", "trixie")
UNRELEASED = ("forky", "sid")  # for the Python of tomorrow: no promise, and nothing of the suite depends on them
# Lists of an unreleased Debian are good for a week. "accept" takes older ones (their signatures are checked as ever):
# for a mirror that has stopped following. What is released is never taken when it has expired.
EXPIRED = "SNAP_UPGRADE_EXPIRED_LISTS"
FRONT_ENDS = ("aptitude", "unattended-upgrades", "packagekit", "packagekit-tools", "dbus")
_RECIPE = 1  # raise it when what this file does to a root changes
_PACKAGES = ("apt", "python3", "python3-apt", "python3-btrfsutil", "mount")
_STRIPPED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/lintian/*")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# What the host needs to reach its mirror, its machines need as well.
_NETWORK_OPTIONS = re.compile(r"Acquire::(Check-Valid-Until|Check-Date|ForceIPv[46]|https?::.*)\Z", re.IGNORECASE)


class NoMirror(Exception):
    """This computer's apt sources name no Debian mirror."""


@dataclass(frozen=True)
class Source:
    """One entry of apt's sources: an address, one suite of it and the keyring that signs it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str

    def line(self, suite: str, keyring: Path) -> str:
        """Return the entry as a classic line for *suite* in a root that has its own keyring."""
        return f"deb [signed-by={keyring}] {self.uri} {suite} {' '.join(self.components)}"


def cache_dir() -> Path:
    """Return the folder everything that is worth keeping between runs lives in; make it."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snap-upgrade"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock *name* of the cache: two runs never build the same thing twice."""
    fd = os.open(cache_dir() / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def root_tar(release: str, extra: tuple[str, ...] = (), *, lists: bool = False) -> Path:
    """Return a tar file of a minimal Debian *release* with *extra* packages, built if it is not cached.

    With *lists* the package lists of the mirror are left in it. Raises NoMirror, and
    subprocess.CalledProcessError after mmdebstrap printed why.
    """
    if release not in RELEASES + UNRELEASED:
        raise ValueError(f"unknown release {release}: the laboratory knows {', '.join(RELEASES + UNRELEASED)}")
    sources = _mirror_lines(release)
    command = _mmdebstrap(release, extra, sources, lists)
    recipe = json.dumps([_RECIPE, command, sources, _network_conf()])
    target = cache_dir() / f"root-{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    if target.exists():
        return target
    with locked(target.stem):
        if not target.exists():
            _build(command, sources, target)
    return target


def _mmdebstrap(release: str, extra: tuple[str, ...], sources: list[str], lists: bool) -> list[str]:
    packages = [*_PACKAGES, *extra]
    if any(" https:" in line for line in sources):
        packages.append("ca-certificates")
    return [
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar"),
        f"--include={','.join(packages)}",
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _STRIPPED),
        # A package installed later gets all of its files: what is proven about it must be true elsewhere.
        '--customize-hook=rm "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$1"/etc/apt/apt.conf.d/99mmdebstrap',
        "--customize-hook=copy-in ${NETWORK_CONF} /etc/apt/apt.conf.d",
        *(["--skip=cleanup/apt/lists"] if lists else []),
        *(['--aptopt=Acquire::Check-Valid-Until "false"'] if _takes_expired(release) else []),
        release,
    ]


def _takes_expired(release: str) -> bool:
    return release in UNRELEASED and os.environ.get(EXPIRED) == "accept"


def _build(command: list[str], sources: list[str], target: Path) -> None:
    """Run mmdebstrap into a temporary name, then rename."""
    work = Path(tempfile.mkdtemp(prefix="build-", dir=target.parent))
    try:
        conf = work / "01network"
        conf.write_text(_network_conf())
        command = [word.replace("${NETWORK_CONF}", str(conf)) for word in command]
        made = work / target.name
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TMPDIR": str(work)}
        subprocess.run([*command, str(made), *sources], check=True, env=env, stdin=subprocess.DEVNULL)
        made.rename(target)
    finally:
        shutil.rmtree(work)


def _network_conf() -> str:
    """Return this computer's apt options about reaching the mirror, as a configuration file."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    dump = subprocess.run(["apt-config", "dump"], check=True, env=env, capture_output=True, text=True).stdout
    options = [line for line in dump.splitlines() if _NETWORK_OPTIONS.match(line.split(" ", 1)[0])]
    return "".join(f"{line}\n" for line in ['Acquire::Languages "none";', *options])


def _mirror_lines(release: str) -> list[str]:
    """Return the lines of sources.list for *release*: main archive, updates, security (where the host has them).

    What is not released has the first only.
    """
    host = _host_release()
    lines = []
    for suffix, required in (("", True), ("-updates", False), ("-security", False)):
        if suffix and release in UNRELEASED:
            continue
        found = find_mirror(host_sources(), f"{host}{suffix}")
        if found is not None:
            lines.append(found.line(f"{release}{suffix}", _KEYRING))
        elif required:
            raise NoMirror(f"no Debian mirror for {host} found in /etc/apt/sources.list and /etc/apt/sources.list.d")
    return lines


def find_mirror(sources: list[Source], suite: str) -> Source | None:
    """Return the first source that is Debian's own *suite*, None if there is none.

    Third parties name their suites as Debian does; they are told apart by their key or,
    where none is given, by the last word of the address.
    """
    for source in sources:
        ours = (
            "debian-archive" in source.signed_by
            if source.signed_by
            else source.uri.rstrip("/").rsplit("/", 1)[-1] in ("debian", "debian-security", "security")
        )
        if ours and source.suite.replace("/updates", "-security") == suite and "main" in source.components:
            return source
    return None


def _host_release() -> str:
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise NoMirror("/etc/os-release has no VERSION_CODENAME: the laboratory needs a Debian host")


def host_sources(etc_apt: Path = Path("/etc/apt")) -> list[Source]:
    """Return what this computer's apt sources name, classic files and deb822 files, in apt's order."""
    found: list[Source] = []
    classic = [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*.list"))]
    for path in classic:
        if path.exists():
            found += parse_list(path.read_text(encoding="utf-8"))
    for path in sorted((etc_apt / "sources.list.d").glob("*.sources")):
        found += parse_deb822(path.read_text(encoding="utf-8"))
    return found


def parse_list(text: str) -> list[Source]:
    """Read one-line style sources (sources.list(5))."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+?)\s*(?:#.*)?", line)
        if match:
            options = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
            signed_by = options.get("signed-by", "")
            found.append(Source(_resolved(match[2]), match[3], tuple(match[4].split()), signed_by))
    return found


def parse_deb822(text: str) -> list[Source]:
    """Read deb822 style sources (sources.list(5))."""
    found = []
    for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        pairs = re.findall(r"(?m)^([\w-]+):[ \t]*((?:.*)(?:\n[ \t].*)*)", stanza)
        fields = {name.lower(): value.strip() for name, value in pairs}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        components = tuple(fields.get("components", "").split())
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                found.append(Source(_resolved(uri), suite, components, fields.get("signed-by", "")))
    return found


def _resolved(uri: str) -> str:
    """Follow ``mirror+file:`` (cloud images) to the first mirror in the list."""
    if uri.startswith("mirror+file:"):
        path = Path(uri.removeprefix("mirror+file:"))
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith("#"):
                return line.split()[0]
    return uri
