"""Puts the product into a machine's root: every file where the package puts it.

The one rule: this mirrors packaging/; a path that is here and not there, or the other way round, is a bug.
"""

import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_PACKAGE = "usr/lib/python3/dist-packages/snap_upgrade"
_FILES = (
    ("hooks/apt/80snap-upgrade", "etc/apt/apt.conf.d/80snap-upgrade", 0o644),
    ("hooks/apt/apt-hook", "usr/lib/snap-upgrade/apt-hook", 0o755),
    ("packaging/snap-upgrade", "usr/sbin/snap-upgrade", 0o755),
    ("packaging/snap-upgrade.conf", "etc/snap-upgrade.conf", 0o644),
)


def install_product(root: Path) -> None:
    """Install the working tree's product into the root at *root*, compiled by that root's own Python."""
    package = root / _PACKAGE
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(REPOSITORY / "plugin/snap_upgrade", package, ignore=shutil.ignore_patterns("__pycache__"))
    for source, target, mode in _FILES:
        if (REPOSITORY / source).exists():
            _place(root / target, (REPOSITORY / source).read_bytes(), mode)
    for unit in sorted((REPOSITORY / "hooks/systemd").glob("snap-upgrade-*")):
        _place(root / "usr/lib/systemd/system" / unit.name, unit.read_bytes(), 0o644)
    compile_all = ["/usr/bin/python3", "-I", "-m", "compileall", "-q", f"/{_PACKAGE}"]
    subprocess.run(["chroot", str(root), *compile_all], check=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


def built_package() -> Path:
    """Return the newest package that ``make deb`` made. Raises FileNotFoundError if there is none."""
    packages = sorted((REPOSITORY / "dist").glob("snap-upgrade_*_all.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        raise FileNotFoundError(f"no snap-upgrade_*_all.deb in {REPOSITORY / 'dist'}: run 'make deb' first")
    return packages[-1]


def _place(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
