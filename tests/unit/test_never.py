"""What we never do, read from every line that we ship: no shell gets a string, no file has a guessable name in /tmp."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SHELLS = {"system", "popen", "spawnl", "spawnle", "spawnlp", "spawnlpe", "spawnv", "spawnve", "spawnvp", "spawnvpe",
          "getoutput", "getstatusoutput", "create_subprocess_shell"}  # fmt: skip
# Where a mount point of that name is made in a private namespace.
MOUNT_POINTS = {"plugin/snap_upgrade/system/chroot_mounts.py"}


def sources() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every Python file that is installed."""
    for path in (*TOP.glob("plugin/**/*.py"), TOP / "hooks/apt/apt-hook", TOP / "packaging/snap-upgrade"):
        yield str(path.relative_to(TOP)), path.read_text()


def wrong(name: str, source: str) -> list[str]:
    """Return what *source* does that we never do."""
    found = []
    tree = ast.parse(source)
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=called) | ast.Name(id=called)) if called in SHELLS:
                found.append(f"{name}:{node.lineno} calls {called}()")
            case ast.ImportFrom(names=taken) if SHELLS & {alias.name for alias in taken} and node.module in (
                "os", "posix", "subprocess"):  # fmt: skip
                found.append(f"{name}:{node.lineno} imports a shell")
            case ast.keyword(arg="shell"):
                found.append(f"{name}:{node.value.lineno} says shell=")
            case ast.List(elts=[ast.Constant(value=str() as text), *_]) if text.rpartition("/")[2] in {"sh", "bash"}:
                found.append(f"{name}:{node.lineno} runs a shell")
            case ast.Constant(value=str() as text) if text.startswith(("/tmp", "/var/tmp", "/dev/shm")):
                if id(node) not in documentation and name not in MOUNT_POINTS:
                    found.append(f"{name}:{node.lineno} names {text}")
    return found


def test_no_line_gives_a_shell_a_string_or_guesses_a_name_in_tmp() -> None:
    found = [one for name, source in sources() for one in wrong(name, source)]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.system('reboot')",
        "from os import popen",
        "command.run(['sh', '-c', 'x'])",
        "Popen('x', shell=True)",
        "open('/tmp/snap-upgrade.lock')",
        "path = '/var/tmp'",
    ],
)
def test_a_wrong_line_is_found(source: str) -> None:
    assert wrong("plugin/x.py", source) != []


def test_what_is_installed_takes_nothing_from_the_callers_python() -> None:
    """-I: neither PYTHONPATH nor the folder of the caller; -S, where every millisecond counts: no site packages."""
    first = {
        name: (TOP / name).read_text().splitlines()[0] for name in ("packaging/snap-upgrade", "hooks/apt/apt-hook")
    }
    assert first == {"packaging/snap-upgrade": "#!/usr/bin/python3 -I", "hooks/apt/apt-hook": "#!/usr/bin/python3 -IS"}
