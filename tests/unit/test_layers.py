"""Imports go one way, as docs/internals.md says: read from the code, with samples that prove the reading."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "plugin/snap_upgrade"
NAME = "snap_upgrade"

# What each part of the package may import, itself apart.
MIDDLE = {"journal", "records", "config", "storage", "boot", "packages"}
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "core": {"version"},
    "system": {"core"},
    **{part: {"core", "system"} for part in MIDDLE},
    "housekeeping": {"core", "system", "journal"},
    "nested": {"core", "system", *MIDDLE},
    "lineage": {"core", "system", "journal", "records"},
    "actions": {"core", "system", "nested", *MIDDLE},
    "engine": {"core", "system", "actions", "housekeeping", *MIDDLE},
    "flows": {"core", "system", "actions", "engine", *MIDDLE},
    "manage": {"core", "system", "nested", "lineage", "actions", "engine", "flows", *MIDDLE},
    "detect": {"core", "system", "actions", "engine", "flows", "manage", *MIDDLE},
    "cli": {"core", "system", "nested", "actions", "engine", "flows", "manage", "detect", "version", *MIDDLE},
    "cli.health": {
        "core",
        "system",
        "nested",
        "lineage",
        "engine",
        "manage",
        "detect",
        "cli",
        "hook",
        *MIDDLE,
    },  # its settings
    "hook": {"core", "system"},
    "hook.layout": {"core", "system", "storage"},  # once a boot, to decide as the commands do
    "__main__": {"cli"},
}
BACKENDS = {"storage": ("btrfs",), "boot": ("none",), "packages": ("apt",)}
ONLY_HERE = {"subprocess": "system.command", "multiprocessing": "nowhere", "pty": "nowhere"}
LIGHT = {"core.verdict", "core.dpkgdb", "core.request", "core.wire", "system.kernel", "system.failpoint"}
LIGHT_STANDARD = {"os", "sys", "fcntl", "ctypes", "errno", "binascii", "_json", "json", "struct", "time", "signal",
                  "select", "stat", "__future__"}  # fmt: skip


def imports(tree: ast.AST, module: str, is_package: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield (imported module, whether only for the type checker), names from packages as modules where they can be."""
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in hidden
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = len(parts) - node.level + (1 if is_package else 0)
                base = ".".join([*parts[:keep], *([base] if base else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", id(node) in hidden


def shortened(name: str) -> str:
    return name.removeprefix(f"{NAME}.")


def part_of(module: str) -> str:
    return shortened(module).split(".")[0]


def backend_of(module: str) -> str | None:
    parts = shortened(module).split(".")
    if parts[0] not in BACKENDS or len(parts) < 2:
        return None
    return next((f"{parts[0]}.{own}" for own in BACKENDS[parts[0]] if parts[1] == own or
                 parts[1].startswith(f"{own}_")), None)  # fmt: skip


def problems(source: str, module: str, is_package: bool = False) -> list[str]:
    """Return what is wrong with the imports of *source*, which is the module *module* (with the package's name)."""
    found = []
    own = part_of(module)
    for name, is_hidden in imports(ast.parse(source), module, is_package):
        if is_hidden:
            continue
        top = name.split(".")[0]
        for forbidden, home in ONLY_HERE.items():
            if top == forbidden and shortened(module) != home:
                found.append(f"{module} imports {forbidden}")
        if top == NAME:
            other = part_of(name)
            if other != own and other not in ALLOWED.get(shortened(module), ALLOWED[own]):
                found.append(f"{module} imports {name}: {own} stands below {other}")
            mine, theirs = backend_of(module), backend_of(name)
            if own == other and mine and theirs and mine != theirs:
                found.append(f"{module} imports its sibling {name}")
        if shortened(module) in LIGHT:
            is_light = top in LIGHT_STANDARD or {shortened(name).rpartition(".")[0], shortened(name)} & LIGHT
            if not is_light:
                found.append(f"the light {module} imports {name}")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def test_every_import_goes_down() -> None:
    found = []
    for module, path in modules():
        if module != NAME:
            found += problems(path.read_text(), module, path.name == "__init__.py")
    assert found == []


def test_every_part_and_every_light_module_is_known_here() -> None:
    names = [shortened(module) for module, _ in modules() if module != NAME]
    assert {part_of(name) for name in names} == {part_of(name) for name in ALLOWED} and set(ALLOWED) <= {
        *names, *map(part_of, names)}  # fmt: skip
    assert LIGHT - {"system.failpoint"} <= set(names)
    files = [name for name in names if "." in name and name.split(".")[0] in BACKENDS]
    assert [name for name in files if backend_of(name) is None] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.plan", "from snap_upgrade.system import files"),
        ("core.plan", "import snap_upgrade.journal"),
        ("core.plan", "from ..system import files"),
        ("system.files", "from snap_upgrade import engine"),
        ("system.files", "import subprocess"),
        ("system.files", "def f():\n    from subprocess import run"),
        ("journal", "from snap_upgrade.engine import Engine"),
        ("storage.btrfs", "from snap_upgrade.actions import Machine"),
        ("storage.btrfs", "from snap_upgrade.storage.apt import x"),
        ("engine", "from snap_upgrade.flows import ready"),
        ("engine", "from snap_upgrade import cli"),
        ("detect", "import snap_upgrade.cli.main"),
        ("cli.main", "import subprocess as harmless"),
        ("cli.main", "import multiprocessing"),
        ("hook.pre", "from snap_upgrade.storage.btrfs import BtrfsStorage"),
        ("hook.layout", "from snap_upgrade.engine import Engine"),
        ("core.wire", "import re"),
        ("core.wire", "from typing import Any"),
        ("system.kernel", "from snap_upgrade.core import errors"),
        ("core.request", "from dataclasses import dataclass"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "storage", ("btrfs", "apt"))
    assert problems(source, f"{NAME}.{module}") != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("system.command", "import subprocess"),
        ("cli.main", "from snap_upgrade import flows, journal"),
        ("engine", "from snap_upgrade.system import files"),
        ("storage.btrfs", "from snap_upgrade.storage import btrfs_state"),
        ("core.wire", "if TYPE_CHECKING:\n    from typing import Any"),
        ("core.verdict", "from snap_upgrade.core import dpkgdb"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert problems(source, f"{NAME}.{module}") == []
