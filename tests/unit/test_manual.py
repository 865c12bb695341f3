"""The manual says what the program does: it is compared with the parser, the exit codes and the settings.

The one rule: nothing is listed here. What is new in the code and not in the manual is red, and the other way round.
"""

import argparse
import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snap_upgrade import config
from snap_upgrade.cli.parser import COMMANDS, EXIT_CODES, build_parser
from snap_upgrade.core import errors

PACKAGING = Path(__file__).parents[2] / "packaging"
MANUAL = PACKAGING / "man/snap-upgrade.8"
CONF_MANUAL = PACKAGING / "man/snap-upgrade.conf.5"
CONF = PACKAGING / "snap-upgrade.conf"


def plain(page: Path) -> str:
    """Return the text of a page without its markup, hyphens as they are typed."""
    text = page.read_text().replace("\\-", "-")
    text = re.sub(r"\\f[BIPR]", "", text)
    return re.sub(r"^\.(?:[BIR]{1,2}|SS|SH|TP|TH) ?", "", text, flags=re.MULTILINE).replace('"', " ")


def words(page: Path) -> set[str]:
    return set(re.findall(r"[^\s,()\[\].|]+", plain(page)))


def accepted(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield every command, alias and option that *parser* accepts."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield name
                yield from accepted(sub)


def constants() -> dict[str, int]:
    return {name[5:]: value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_every_command_and_option_is_in_the_manual() -> None:
    missing = set(accepted(build_parser())) - words(MANUAL)
    assert not missing


def options_told(page: str) -> dict[str, set[str]]:
    """Return the options that are explained below each heading of COMMANDS, by every word of the heading."""
    found: dict[str, set[str]] = {}
    lines = page.partition(".SH COMMANDS")[2].partition(".SH EXIT STATUS")[0].replace("\\-", "-").splitlines()
    depth, told = 0, set[str]()
    for line, before in zip(lines[1:], lines, strict=False):
        depth += {".RS": 1, ".RE": -1}.get(line, 0)
        if before == ".TP" and depth == 0:
            told = set()
            found |= dict.fromkeys(re.findall(r"[\w-]+", line), told)
        elif before == ".TP":
            told |= set(re.findall(r"(?<![\w-])-[\w-]+", line))
    return found


def test_every_option_of_a_command_is_told_where_the_command_is() -> None:
    found = options_told(MANUAL.read_text())
    parser = build_parser()
    everywhere = set(parser._option_string_actions)
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name in (command.name for command in COMMANDS):
        assert set(commands.choices[name]._option_string_actions) - everywhere <= found[name], name


def test_every_option_in_the_manual_is_accepted() -> None:
    known = set(accepted(build_parser())) | {"--", "-o"}  # -o is apt's
    before = plain(MANUAL).partition("EXIT STATUS")[0]
    assert set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", before)) <= known


def test_the_table_of_exit_codes_is_that_of_the_program() -> None:
    table = re.findall(r"^(\d+)\t(\w+)\tT\{$", MANUAL.read_text(), re.MULTILINE)
    assert {name: int(code) for code, name in table} == constants()
    assert len(table) == len(constants())


def test_help_and_manual_agree_on_what_the_exit_codes_mean() -> None:
    manual = dict(re.findall(r"^(\d+)\t\w+\tT\{\n(.+)\nT\}$", MANUAL.read_text(), re.MULTILINE))
    shown = dict(re.findall(r"^  (\d+) +(.+)$", EXIT_CODES, re.MULTILINE))
    assert set(manual) == set(shown) == {str(code) for code in constants().values()}
    for code, meaning in shown.items():
        # The wording may differ, the first thing said may not: done, refused, failed ...
        first = re.split(r"[:;,]", meaning)[0].lower()
        assert manual[code].lower().startswith(first), code


def settings_in(page: str) -> dict[str, str]:
    return dict(re.findall(r'^\.BR (\w+) " = " (.+)$', page, re.MULTILINE))


def test_every_setting_is_in_the_manual_with_its_values() -> None:
    found = settings_in(CONF_MANUAL.read_text())
    assert set(found) == {field.name for field in dataclasses.fields(config.Config)}
    for key, choices in config._CHOICES.items():
        assert tuple(found[key].split(" | ")) == choices


def test_the_defaults_in_the_manual_are_the_defaults() -> None:
    page = CONF_MANUAL.read_text()
    defaults = config.Config()
    for key in settings_in(page):
        section = page.partition(f'.BR {key} " = "')[2].partition("\n.TP")[0]
        said = re.search(r"Default:\s+(?:\.BR )?([\w-]+)", section)
        assert said is not None, key
        value = getattr(defaults, key)
        expected = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
        assert said[1] == ("none" if value == () else expected), key


def test_the_shipped_settings_name_every_key_with_its_default() -> None:
    uncommented = re.sub(r"^#(?=\w+ =)", "", CONF.read_text(), flags=re.MULTILINE)
    assert config.parse(CONF.read_text()) == config.Config()
    assert config.parse(uncommented) == config.Config()
    keys = re.findall(r"^(\w+) =", uncommented, re.MULTILINE)
    assert sorted(keys) == sorted(field.name for field in dataclasses.fields(config.Config))


@pytest.mark.parametrize("page", [MANUAL, CONF_MANUAL], ids=lambda page: page.name)
@pytest.mark.parametrize("width", ["80", "132"])
def test_man_has_nothing_to_complain_about(page: Path, width: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANROFFSEQ": "t", "MANWIDTH": width}
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
