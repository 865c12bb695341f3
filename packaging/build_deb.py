#!/usr/bin/python3 -I
"""Build the Debian package from the working tree into a folder: ``build_deb.py [--version V] OUTPUT``.

The rule: the tree is only read. Everything happens in a copy whose times are those of the
changelog, so that the same source gives the same package, bit for bit.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
SHIPPED = ("plugin", "hooks", "packaging", "README.md", "CHANGELOG.md", "LICENSE")
MAINTAINER = re.compile(r"^Maintainer: (.+)$", re.MULTILINE)
VERSION = re.compile(r'^VERSION = "([^"]+)"$', re.MULTILINE)
HEADING = re.compile(r"^## (\S+) \((\d{4}-\d{2}-\d{2})\)$", re.MULTILINE)


def debian_changelog(text: str, maintainer: str, version: str) -> str:
    """Return CHANGELOG.md as a debian/changelog whose newest entry is *version*.

    A *version* that it does not have is built for a test, and says so. Raises ValueError if there is no entry at all.
    """
    parts = HEADING.split(text)[1:]
    if not parts:
        raise ValueError("CHANGELOG.md has no heading of the form '## VERSION (YYYY-MM-DD)'")
    entries = [(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]
    if entries[0][0] != version:
        entries.insert(0, (version, entries[0][1], "- Built from a working tree, not a release.\n"))
    return "\n".join(_entry(*entry, maintainer) for entry in entries)


def _entry(version: str, day: str, body: str, maintainer: str) -> str:
    midnight = datetime.datetime.fromisoformat(f"{day}T00:00:00+00:00")
    date = midnight.strftime("%a, %d %b %Y %H:%M:%S +0000")
    items = re.split(r"^- ", body.strip(), flags=re.MULTILINE)[1:]
    fill = textwrap.TextWrapper(78, "  * ", "    ", break_long_words=False, break_on_hyphens=False)
    text = "\n".join(fill.fill(" ".join(item.replace("`", "'").split())) for item in items)
    return f"snap-upgrade ({version}) unstable; urgency=medium\n\n{text}\n\n -- {maintainer}  {date}\n"


def copy_tree(target: Path, version: str | None) -> str:
    """Copy what is shipped to *target*, with debian/ made of packaging/deb; return the version."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    target.mkdir()
    for name in SHIPPED:
        source = TOP / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.exists():
            shutil.copy(source, target / name)
    shutil.copytree(TOP / "packaging/deb", target / "debian", ignore=ignore)
    file = target / "plugin/snap_upgrade/version.py"
    found = VERSION.search(file.read_text())
    if found is None:
        raise ValueError(f"{file} has no VERSION")
    if version is not None:
        file.write_text(VERSION.sub(f'VERSION = "{version}"', file.read_text()))
    return version or found[1]


def build(work: Path, version: str | None) -> Path:
    """Build in the empty folder *work* and return the package there."""
    tree = work / "snap-upgrade"
    version = copy_tree(tree, version)
    maintainer = MAINTAINER.search((tree / "debian/control").read_text())
    if maintainer is None:
        raise ValueError("debian/control names no maintainer")
    changelog = tree / "debian/changelog"
    changelog.write_text(debian_changelog((TOP / "CHANGELOG.md").read_text(), maintainer[1], version))
    # Nothing of the caller's environment and umask gets into the package.
    os.umask(0o022)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(work)}
    epoch = subprocess.run(
        ["dpkg-parsechangelog", "--show-field", "Timestamp"],
        cwd=tree, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (int(epoch.stdout), int(epoch.stdout)))
    environment["SOURCE_DATE_EPOCH"] = epoch.stdout.strip()
    # build-essential is implied in every package's build dependencies; nothing here is compiled, and tests/setup has
    # installed the rest.
    command = ["dpkg-buildpackage", "--build=binary", "--no-sign", "--no-pre-clean", "--no-check-builddeps"]
    done = subprocess.run(
        command, cwd=tree, env=environment, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}")
    return work / f"snap-upgrade_{version}_all.deb"


def main() -> None:
    """Build, and put the package into the output folder under its own name when it is whole."""
    parser = argparse.ArgumentParser(description="Build the Debian package from the working tree.")
    parser.add_argument("--version", help="another version than plugin/snap_upgrade/version.py has, for tests")
    parser.add_argument("output", type=Path, help="the folder to put it into")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="snap-upgrade-deb-") as work:
        package = build(Path(work), options.version)
        target = options.output / package.name
        partial = options.output / f".{package.name}.{os.getpid()}"
        shutil.copy(package, partial)
        partial.replace(target)
    print(target)


if __name__ == "__main__":
    main()
