"""The completions, asked in the shells themselves: bash, zsh and fish."""

import importlib.util
import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from snap_upgrade.cli.parser import COMMANDS, build_parser

GENERATOR = Path(__file__).parents[2] / "packaging/completion/generate.py"
NAMES = ("before", "my root", "it's")
# What `list -H -a` prints on a machine with these environments: names in the first column.
LISTING = "".join(f"{name}\\t-\\t-\\t0\\t-\\t-\\n" for name in NAMES)
SNAPSHOT = "snap-41"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three files, and a ``snap-upgrade`` for the search path that lists environments and can do nothing else."""
    path = tmp_path_factory.mktemp("completion")
    subprocess.run([GENERATOR, path], check=True)
    listing = path / "bin/snap-upgrade"
    listing.parent.mkdir()
    quoted = shlex.quote(LISTING)
    listing.write_text(
        f'#!/bin/sh\ncase $* in "list -H") ;; "list -H -a") echo {SNAPSHOT} ;; *) exit 2 ;; esac\nprintf {quoted}\n'
    )
    listing.chmod(0o755)
    return path


@pytest.fixture
def here(folder: Path, tmp_path: Path) -> Path:
    """The folder of the completions, with an ``apt-cache`` that knows two packages and can do nothing else."""
    packages = folder / "bin/apt-cache"
    packages.write_text('#!/bin/sh\ntest "$*" = "--no-generate pkgnames" || exit 2\nprintf "nginx\\nnano\\n"\n')
    packages.chmod(0o755)
    (folder / "snapshots-here").mkdir(exist_ok=True)
    return folder


def test_packages_and_folders_are_offered_where_they_stand(here: Path) -> None:
    assert ask_bash(here, "snap-upgrade", "install", "ngi") == ["nginx"]
    assert ask_bash(here, "snap-upgrade", "upgrade", "nginx", "na") == ["nano"]
    assert ask_bash(here, "snap-upgrade", "-R", f"{here}/snapsh") == [f"{here}/snapshots-here"]
    assert ask_bash(here, "snap-upgrade", "mount", "before", f"{here}/snapsh") == [f"{here}/snapshots-here"]
    assert ask_fish(here, "snap-upgrade install ngi") == ["nginx"]
    assert f"{here}/snapshots-here/" in ask_fish(here, f"snap-upgrade -R {here}/snapsh")
    assert "nginx" in ask_zsh(here, "snap-upgrade install ngi", "nginx")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", GENERATOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    return module


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": str(folder), "LC_ALL": "C.UTF-8", "TERM": "dumb", "XDG_CONFIG_HOME": str(folder)}


def ask_bash(folder: Path, *line: str) -> list[str]:
    """Return what bash offers for the last word of *line*, split as bash splits it."""
    # compopt works only where bash itself asks.
    script = f"compopt() {{ :; }}; source {folder}/snap-upgrade.bash\n"
    script += 'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _snap_upgrade\n'
    script += 'for word in "${COMPREPLY[@]}"; do printf "%s\\n" "$word"; done'
    command = ["bash", "--norc", "--noprofile", "-c", script, "bash", *line]
    result = subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout.splitlines()


def ask_fish(folder: Path, line: str) -> list[str]:
    """Return what fish offers for *line*, without the descriptions."""
    script = f"source {folder}/snap-upgrade.fish; complete -C {shlex.quote(line)}"
    command = ["fish", "--no-config", "-c", script]
    result = subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return [row.partition("\t")[0] for row in result.stdout.splitlines()]


def ask_zsh(folder: Path, line: str, wanted: str) -> str:
    """Type *line* and a tab in an interactive zsh; return what is on its terminal when *wanted* is, or at the end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve("/usr/bin/zsh", ["zsh", "-f", "-i"], environment(folder))
    try:
        setup = f"fpath=({folder} $fpath); autoload -U compinit; compinit -u -D; PS1=; unsetopt zle_bracketed_paste"
        os.write(terminal, f"{setup}; print REA''DY\n".encode())
        read_until(terminal, "READY")
        os.write(terminal, f"{line}\t".encode())
        return read_until(terminal, wanted)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def read_until(terminal: int, wanted: str) -> str:
    """Return what came until *wanted* did; without it after 20 seconds, too: the caller compares."""
    text = ""
    end = time.monotonic() + 20
    while wanted not in text and select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
        text += os.read(terminal, 4096).decode(errors="replace")
    return text


def test_bash_offers_every_command(folder: Path) -> None:
    names = {name for command in COMMANDS for name in (command.name, *command.aliases)}
    assert set(ask_bash(folder, "snap-upgrade", "")) == names
    assert set(ask_fish(folder, "snap-upgrade ")) == names


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_shell_offers_every_option(folder: Path, command: str) -> None:
    commands = generator().read(build_parser())
    words = next(one for one in commands if command in one.names).options
    flags = {flag for word in words for flag in word.flags}
    assert set(ask_bash(folder, "snap-upgrade", command, "-")) == flags
    long = {flag for flag in flags if flag.startswith("--")}
    assert long <= {word.rstrip("=") for word in ask_fish(folder, f"snap-upgrade {command} --")}
    text = (folder / "_snap-upgrade").read_text()
    section = text.partition(f"                {command}")[2].partition(";;")[0]
    assert all(f"'{flag}[" in section or f"'{flag}=" in section or f"'{flag}+" in section for flag in flags)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["image-update", "--reboot", "=", "a"], ["ask"]),
        (["image-update", "--reboot", "="], ["never", "ask", "now"]),
        (["--color", "a"], ["auto", "always"]),
        (["-q", "activate", ""], ["before", "my\\ root", "it\\'s"]),
        (["destroy", "before", "m"], ["my\\ root"]),
        (["create", "-e", "b"], ["before"]),
        (["create", "-e", "s"], ["snap-41"]),
        (["mount", "s"], ["snap-41"]),
        (["activate", "s"], []),
        (["rollback", "s"], []),
        (["-R", "status", "rename", "i"], ["it\\'s"]),
        (["create", "b"], []),
        (["rename", "before", "b"], []),
        (["image-update", "--be-name", "b"], []),
        (["image-update", "--", "-"], []),
        (["run", "--clone", "--", "dpkg-quer"], ["dpkg-query"]),
    ],
)
def test_bash_offers_what_fits_the_place(folder: Path, line: list[str], offered: list[str]) -> None:
    assert sorted(set(ask_bash(folder, "snap-upgrade", *line))) == sorted(offered)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("image-update --reboot=n", ["--reboot=never", "--reboot=now"]),
        ("activate b", ["before"]),
        ("activate m", ["my root"]),
        ("destroy snap", ["snap-41"]),
        ("activate snap", []),
        ("rollback snap", []),
        ("list --tr", ["--tree"]),
        ("create b", []),
    ],
)
def test_fish_offers_what_fits_the_place(folder: Path, line: str, offered: list[str]) -> None:
    assert ask_fish(folder, f"snap-upgrade {line}") == offered


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("image-up", "image-update"),
        ("image-update --be", "--be-name"),
        ("image-update --reboot=ne", "--reboot=never"),
        ("activate bef", "activate before"),
        ("rollback my", "rollback my\\ root"),
        ("list --tr", "--tree"),
    ],
)
def test_zsh_completes_what_is_unique(folder: Path, line: str, completed: str) -> None:
    missing = completed[-3:]
    seen = ask_zsh(folder, f"snap-upgrade {line}", missing)
    assert missing in seen
