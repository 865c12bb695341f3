"""What apt knows of packages, for people: candidates, why a package is there, what its new version brings.

The rule: reading only, of the root that is named, with nothing kept on disk. python-apt is imported when it is
needed and never by a hook; it holds one configuration, so one process reads one root.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from snap_upgrade.core.errors import NotFound, Refused
from snap_upgrade.system import command

_READ: list[Path] = []
_SHOWN = 5


def candidate(root: Path, name: str) -> str | None:
    """Return the version of *name* that apt would install, None if there is none."""
    cache, depends = _open(root)
    best = depends.get_candidate_ver(_package(cache, name))
    return None if best is None else str(best.ver_str)


def sizes(root: Path, name: str) -> tuple[int, int]:
    """Return the bytes of *name*'s candidate to download, and installed."""
    cache, depends = _open(root)
    best = depends.get_candidate_ver(_package(cache, name))
    if best is None:
        raise NotFound(f"there is no version of {name} to install", "apt-get update")
    return int(best.size), int(best.installed_size)


def why(root: Path, name: str) -> str:
    """Return why *name* is installed: ``manual``, or ``automatic: needed by`` the installed packages that need it."""
    cache, depends = _open(root)
    package = _package(cache, name)
    if package.current_ver is None:
        raise NotFound(f"{name} is not installed")
    if not depends.is_auto_installed(package):
        return "manual"
    needed_by = sorted(
        {
            str(reverse.parent_pkg.name)
            for reverse in package.rev_depends_list
            if reverse.parent_pkg.current_ver == reverse.parent_ver
            and reverse.dep_type_untranslated in ("Depends", "PreDepends", "Recommends")
        }
    )
    if not needed_by:
        return "automatic: needed by nothing any more"
    more = f" and {len(needed_by) - _SHOWN} more" if len(needed_by) > _SHOWN else ""
    return f"automatic: needed by {', '.join(needed_by[:_SHOWN])}{more}"


def changelog(name: str, old: str | None, new: str) -> str:
    """Return what the changelog of *name* says of the versions after *old* up to *new*. Asks the network."""
    done = command.run(["apt-get", "--quiet", "changelog", f"{name}={new}"], timeout_s=60)
    return newer_entries(done.stdout, old)


def newer_entries(text: str, old: str | None) -> str:
    """Return the entries of a Debian changelog above the one for version *old*; all of them if it is not there."""
    kept = []
    started = False
    for line in text.split("\n"):
        is_head = bool(line) and not line.startswith(" ") and " (" in line and ")" in line
        if is_head and old is not None and line.partition(" (")[2].partition(")")[0] == old:
            break
        started = started or is_head
        if started:
            kept.append(line)
    return "\n".join(kept).strip("\n") + ("\n" if kept else "")


def _package(cache: Any, name: str) -> Any:
    try:
        return cache[name]
    except KeyError:
        raise NotFound(f"there is no package {name}", "apt-get update") from None


def _open(root: Path) -> tuple[Any, Any]:
    # A path through a descriptor may name another root later: the folder itself is the key.
    status = os.stat(root)
    return _read(root, status.st_dev, status.st_ino)


@lru_cache(maxsize=1)
def _read(root: Path, _device: int, _inode: int) -> tuple[Any, Any]:
    """Return apt's cache of *root* and its view of what depends on what."""
    import apt_pkg

    if _READ and _READ[0] != root:
        raise Refused(f"one process reads the packages of one root, this one has read {_READ[0]}")
    if not _READ:
        apt_pkg.init_config()
        _READ.append(root)
        settings = {
            "Dir": str(root),
            "Dir::State::status": str(root / "var/lib/dpkg/status"),
            # In memory: a reader leaves no trace in an environment.
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
        }
        for key, value in settings.items():
            apt_pkg.config.set(key, value)
        apt_pkg.init_system()
    cache = apt_pkg.Cache(None)
    return cache, apt_pkg.DepCache(cache)
