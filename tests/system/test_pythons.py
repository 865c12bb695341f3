"""The product under the Python of another Debian than this one, with every warning an error.

The one rule: what is proven is what runs: the installed package, by its own first lines, under that Debian's
/usr/bin/python3. ``make check-pythons`` runs all unit and fuzz tests for each release that it is given.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Iterator

import pytest

from snap_upgrade.cli.parser import build_parser
from tests.lab import breaking
from tests.lab.debs import Deb
from tests.lab.install import REPOSITORY, built_package
from tests.lab.machine import Machine
from tests.lab.repo import local_repo
from tests.system.clilab import PROGRAM, names, su, su_json
from tests.system.test_apt_failures import settle

ASKED = os.environ.get("SNAP_UPGRADE_PYTHONS", "").split()
RELEASES = ASKED or ["trixie"]
TOOLS = ("python3-pytest", "python3-hypothesis")
# What tests/setup installs here and the unit tests run: the shells of the completions, man, dpkg's tools.
MORE_TOOLS = ("man-db", "bash-completion", "zsh", "fish", "dpkg-dev", "systemd", "debhelper", "dh-python")
# The quick ones, which go through every module that a hook loads, and through every parser.
QUICK = ("hook", "wire", "records", "dpkgdb", "request", "verdict", "config", "names", "apt_messages")
CODE = "/usr/lib/python3/dist-packages/snap_upgrade"
PROGRAMS = (PROGRAM, "/usr/lib/snap-upgrade/apt-hook")


@pytest.fixture(scope="module", params=RELEASES)
def m(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine in which apt has installed the package, whose programs take every warning for an error."""
    extra = TOOLS + MORE_TOOLS if ASKED else TOOLS
    folder = tmp_path_factory.mktemp("pythons")
    with Machine(folder, root=request.param, install="deb", extra=extra) as machine:
        for path in PROGRAMS:
            first, _, rest = machine.path(path).read_text().partition("\n")
            assert re.fullmatch("#!/usr/bin/python3 -IS?", first)
            machine.path(path).write_text(f"{first}Werror\n{rest}")
        yield machine


def test_every_file_compiles_without_a_warning(m: Machine) -> None:
    m.run(["python3", "-I", "-W", "error", "-m", "compileall", "-q", "-f", CODE])
    for path in PROGRAMS:
        m.run(["python3", "-I", "-W", "error", "-c", f"compile(open({path!r}).read(), {path!r}, 'exec')"])


def test_the_main_job_from_the_hook_to_the_roll_back(m: Machine) -> None:
    repo = local_repo(m.path("/"), [Deb("good"), Deb("breaks", "1.0")], method="copy")
    m.run(["apt-get", "update"])
    before = len(su_json(m, "history"))
    m.run(["apt-get", "install", "-y", "good", "breaks"])
    repo.add(breaking.fails_in("postinst", "breaks"), Deb("good", "2.0"))
    repo.publish()
    m.run(["apt-get", "update"])
    assert "2.0 half-configured" in m.run(["apt-get", "install", "-y", "breaks"], check=False).output
    rows = sorted(su_json(m, "history"), key=lambda row: int(row["id"]))[before:]
    assert [row["verdict"] for row in rows] == ["success", "failed"]
    settle(m)  # a command that only reads does not wait for the way back to be made
    su(m, "diff", "--files", f"before-{rows[1]['id']}")
    su(m, "rollback", "last")
    m.reboot()
    assert m.boot_log is not None and m.boot_log.returncode in (0, 4), m.boot_log
    assert m.run(["dpkg-query", "-W", "-f", "${Status} ${Version}", "breaks"]).stdout == "install ok installed 1.0"
    su(m, "image-update", "--be-name", "new", "--", "install", "good")
    assert "R" in names(m)["new"]["active"]
    assert su(m, "image-update", "--fresh", "--be-name", "worse", "--", "install", "breaks", code=5)
    assert "worse" not in names(m)
    for words in (["status"], ["check"], ["list", "--tree"], ["cancel"]):
        su(m, *words)


def texts(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the help of every command with the words that lead to it."""
    yield words, parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from texts(sub, *words, name)


def test_the_help_reads_the_same_and_is_not_painted(m: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a line breaks differs between Pythons, hence no breaks."""
    monkeypatch.setenv("COLUMNS", "1000")
    env = {"TERM": "xterm", "FORCE_COLOR": "1", "COLUMNS": "1000"}
    for words, expected in texts(build_parser()):
        said = m.run([PROGRAM, "--color=never", *words, "--help"], pty=True, env=env).stdout
        assert said.replace("\r\n", "\n") == expected, words


@pytest.fixture(scope="module")
def tree(m: Machine) -> str:
    """Where the working tree is in the machine."""
    ignore = shutil.ignore_patterns("__pycache__", ".*", "dist", "build")
    shutil.copytree(REPOSITORY, m.path("/root/snap-upgrade"), ignore=ignore, symlinks=True)
    return "/root/snap-upgrade"


if ASKED:  # it takes debhelper: what builds here is Debian 12's or 13's, and this is the other one

    def test_a_package_that_is_built_there_has_the_same_files(m: Machine, tree: str) -> None:
        built = m.run([f"{tree}/packaging/build_deb.py", "/root/built"], timeout=300).stdout.strip()
        m.run(["dpkg-deb", "--extract", built, "/root/there"])
        shutil.copy(built_package(), m.path("/root/here.deb"))
        m.run(["dpkg-deb", "--extract", "/root/here.deb", "/root/here"])
        # Gzip's output is its version's.
        m.run(["find", "/root/here", "/root/there", "-name", "*.gz", "-exec", "gunzip", "{}", "+"])
        m.run(["diff", "--recursive", "--no-dereference", "/root/here", "/root/there"])


def test_the_unit_tests_pass(m: Machine, tree: str) -> None:
    which = ["tests/unit", "tests/fuzz"] if ASKED else [f"tests/unit/test_{name}.py" for name in QUICK]
    command = ["python3", "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *which]
    done = m.run(command, cwd=tree, env={"PYTHONDONTWRITEBYTECODE": "1"}, timeout=900)
    assert re.search(r"^\d+ passed in ", done.stdout, re.MULTILINE), done.output
