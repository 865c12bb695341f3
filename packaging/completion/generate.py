#!/usr/bin/python3 -I
"""Write the completions for bash, zsh and fish, made from the parser itself: ``generate.py OUTPUT``.

The rule: nothing about a command or an option is said here. What is new in the parser is in the
completions with the next build, and only which words stand for environments is decided by this file.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
NAMES = "snap-upgrade list -H -a 2>/dev/null | cut -f 1"
ENVIRONMENTS = "snap-upgrade list -H 2>/dev/null | cut -f 1"
PACKAGES = "apt-cache --no-generate pkgnames 2>/dev/null"
# What a placeholder in the parser stands for; NEW is what the machine does not have yet.
KINDS = {
    "NAME": "names", "SOURCE": "names", "OLD": "names", "A": "names", "B": "names", "BE|ID|last": "names",
    "NAME|DIR": "names", "DIR": "folders", "PACKAGE": "packages", "-- COMMAND": "commands",
}  # fmt: skip
NEW = {("create", "name"), ("image-update", "be_name")}
# What boots, and what can be renamed, is an environment and no snapshot.
BOOTS = {("activate", "name"), ("rollback", "which"), ("rename", "old")}


@dataclass(frozen=True)
class Word:
    """An option (with *flags*) or a positional argument (without) of a command."""

    flags: tuple[str, ...]
    help: str
    takes_value: bool
    kind: str
    choices: tuple[str, ...]
    repeats: bool


@dataclass(frozen=True)
class Command:
    """A command under all its names; the one with no name is what stands before a command."""

    names: tuple[str, ...]
    help: str
    words: tuple[Word, ...]

    @property
    def options(self) -> tuple[Word, ...]:
        return tuple(word for word in self.words if word.flags)

    @property
    def positionals(self) -> tuple[Word, ...]:
        return tuple(word for word in self.words if not word.flags)


def _words(parser: argparse.ArgumentParser, command: str) -> Iterator[Word]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        where = (command, action.dest)
        kind = "" if where in NEW else "environments" if where in BOOTS else KINDS.get(metavar, "")
        yield Word(
            flags=tuple(action.option_strings),
            help=action.help or "",
            takes_value=action.nargs != 0,
            kind=kind,
            choices=tuple(str(choice) for choice in action.choices or ()),
            repeats=action.nargs in ("+", "*", argparse.REMAINDER),
        )


def read(parser: argparse.ArgumentParser) -> list[Command]:
    """Return what *parser* accepts: first what may stand before a command, then the commands."""
    commands = [Command((), "", tuple(_words(parser, "")))]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps: dict[str, str] = {choice.dest: choice.help or "" for choice in action._choices_actions}
            names: dict[int, list[str]] = {}
            for name, sub in action.choices.items():
                names.setdefault(id(sub), []).append(name)
            for own in names.values():
                sub = action.choices[own[0]]
                commands.append(Command(tuple(own), helps.get(own[0], ""), tuple(_words(sub, own[0]))))
    return commands


# --- bash

_BASH = r"""# bash completion for snap-upgrade(8); made by packaging/completion/generate.py

_snap_upgrade_offer() {
    local IFS=$'\n' word
    case $1 in
        names) set -- $(@NAMES@) ;;
        environments) set -- $(@ENVIRONMENTS@) ;;
        packages) set -- $(@PACKAGES@ | grep -F -- "$cur") ;;
        folders) COMPREPLY=($(compgen -d -- "$cur")); compopt -o filenames; return ;;
        commands) COMPREPLY=($(compgen -c -- "$cur")); return ;;
        words:*) IFS=' '; set -- ${1#words:} ;;
        *) return ;;
    esac
    for word; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$(printf %q "$word")")
    done
}

_snap_upgrade() {
    local cur=${COMP_WORDS[COMP_CWORD]} command= index=0 expects= i
    COMPREPLY=()
    # bash makes three words of --option=value.
    [[ $cur == = ]] && cur=
    for ((i = 1; i < COMP_CWORD; i++)); do
        local word=${COMP_WORDS[i]}
        if [[ $word == = ]]; then
            continue
        elif [[ $word == -- && -n $command ]]; then
            index=0 expects=
            command="$command --"
        elif [[ -n $expects ]]; then
            expects=
        elif [[ $word == -* && $command != *' --' ]]; then
            _snap_upgrade_value "$command" "$word"
        elif [[ -z $command ]]; then
            command=$word
        else
            index=$((index + 1))
        fi
    done
    if [[ -n $expects ]]; then
        _snap_upgrade_offer "$expects"
    elif [[ $cur == -* && $command != *' --' ]]; then
        _snap_upgrade_options "$command"
    else
        _snap_upgrade_argument "$command" "$index"
    fi
}

# What the option $2 of the command $1 is followed by.
_snap_upgrade_value() {
    case "$1 $2" in
@VALUES@
        *) expects= ;;
    esac
}

_snap_upgrade_options() {
    case $1 in
@OPTIONS@
    esac
}

_snap_upgrade_argument() {
    case "$1 $2" in
@ARGUMENTS@
    esac
}

complete -F _snap_upgrade snap-upgrade
"""


def _offer(word: Word) -> str:
    """Return what stands for the word's values; "nothing" is a value that cannot be known."""
    return "words:" + " ".join(word.choices) if word.choices else word.kind or "nothing"


def _pattern(names: tuple[str, ...], rest: str = "") -> str:
    return "|".join(f'"{name}{rest}"' for name in names or ("",))


def bash(commands: list[Command]) -> str:
    """Return the completion for bash."""
    values, options, arguments = [], [], []
    for command in commands:
        for word in command.options:
            if word.takes_value:
                patterns = "|".join(_pattern(command.names, f" {flag}") for flag in word.flags)
                values.append(f"        {patterns}) expects={shlex.quote(_offer(word))} ;;")
        flags = " ".join(flag for word in command.options for flag in word.flags)
        options.append(f"        {_pattern(command.names)}) _snap_upgrade_offer {shlex.quote('words:' + flags)} ;;")
        for index, word in enumerate(command.positionals):
            dashes = " --" if word.kind == "commands" else ""
            patterns = _pattern(command.names, f"{dashes} {index}")
            if word.repeats and word.kind != "commands":
                patterns = "|".join(f'"{name} "*' for name in command.names)
            arguments.append(f"        {patterns}) _snap_upgrade_offer {shlex.quote(_offer(word))} ;;")
    names = " ".join(name for command in commands for name in command.names)
    arguments.insert(0, f'        " 0") _snap_upgrade_offer {shlex.quote("words:" + names)} ;;')
    text = _BASH.replace("@NAMES@", NAMES).replace("@ENVIRONMENTS@", ENVIRONMENTS).replace("@PACKAGES@", PACKAGES)
    return (
        text.replace("@VALUES@", "\n".join(values))
        .replace("@OPTIONS@", "\n".join(options))
        .replace("@ARGUMENTS@", "\n".join(arguments))
    )


# --- zsh

_ZSH = r"""#compdef snap-upgrade
# zsh completion for snap-upgrade(8); made by packaging/completion/generate.py

_snap-upgrade_names() {
    local -a names=(${(f)"$(@NAMES@)"})
    compadd "$@" -a names
}

_snap-upgrade_environments() {
    local -a environments=(${(f)"$(@ENVIRONMENTS@)"})
    compadd "$@" -a environments
}

_snap-upgrade_packages() {
    local -a packages=(${(f)"$(@PACKAGES@)"})
    compadd "$@" -a packages
}

_snap-upgrade() {
    local curcontext=$curcontext state line
    typeset -A opt_args
    local -a commands=(
@COMMANDS@
    )
    _arguments -C -s @GLOBALS@ '1: :->command' '*:: :->arguments'
    case $state in
        command) _describe -t commands command commands ;;
        arguments)
            curcontext=${curcontext%:*:*}:snap-upgrade-$words[1]:
            case $words[1] in
@ARGUMENTS@
            esac
            ;;
    esac
}

_snap-upgrade "$@"
"""

_ZSH_ACTIONS = {
    "names": "_snap-upgrade_names",
    "environments": "_snap-upgrade_environments",
    "packages": "_snap-upgrade_packages",
    "folders": "_files -/",
}


def _zsh_text(text: str) -> str:
    for special in "\\[]:":
        text = text.replace(special, "\\" + special)
    return text


def _zsh_spec(word: Word, index: int) -> Iterator[str]:
    action = f"({' '.join(word.choices)})" if word.choices else _ZSH_ACTIONS.get(word.kind, "")
    if word.kind == "commands":
        yield shlex.quote("*:::command:_normal")
    elif not word.flags:
        place = "*" if word.repeats else str(index)
        yield shlex.quote(f"{place}: :{action or ' '}")
    for flag in word.flags:
        equals = "=" if flag.startswith("--") else "+"
        value = f"{equals}: :{action or ' '}" if word.takes_value else ""
        name, mark = (flag, value) if not word.takes_value else (flag + equals, value.removeprefix(equals))
        yield shlex.quote(f"{name}[{_zsh_text(word.help)}]{mark}")


def zsh(commands: list[Command]) -> str:
    """Return the completion for zsh."""
    described, arguments = [], []
    for command in commands[1:]:
        for name in command.names:
            described.append("        " + shlex.quote(f"{name}:{_zsh_text(command.help)}"))
        specs = [spec for word in command.options for spec in _zsh_spec(word, 0)]
        for index, word in enumerate(command.positionals, start=1):
            specs += _zsh_spec(word, index)
        lines = " \\\n".join(f"                        {spec}" for spec in specs)
        arguments.append(f"                {'|'.join(command.names)}) _arguments -s \\\n{lines} ;;")
    top = " ".join(spec for word in commands[0].options for spec in _zsh_spec(word, 0))
    text = _ZSH.replace("@NAMES@", NAMES).replace("@ENVIRONMENTS@", ENVIRONMENTS).replace("@PACKAGES@", PACKAGES)
    text = text.replace("@GLOBALS@", top)
    return text.replace("@COMMANDS@", "\n".join(described)).replace("@ARGUMENTS@", "\n".join(arguments))


# --- fish

_FISH_ACTIONS = {
    "names": f"({NAMES})",
    "environments": f"({ENVIRONMENTS})",
    "packages": f"({PACKAGES})",
    "folders": "(__fish_complete_directories)",
    "commands": "(__fish_complete_command)",
}


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_line(condition: str, word: Word) -> str:
    line = f"complete -c snap-upgrade -n {_fish_quote(condition)}"
    for flag in word.flags:
        line += f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}"
    offers = " ".join(word.choices) if word.choices else _FISH_ACTIONS.get(word.kind, "")
    if word.flags and word.takes_value:
        line += " -x"
    if offers:
        line += f" -a {_fish_quote(offers)}"
    return line + (f" -d {_fish_quote(word.help)}" if word.flags else "")


def fish(commands: list[Command]) -> str:
    """Return the completion for fish."""
    lines = ["# fish completion for snap-upgrade(8); made by packaging/completion/generate.py", ""]
    lines.append("complete -c snap-upgrade -f")
    names = " ".join(name for command in commands for name in command.names)
    none = f"not __fish_seen_subcommand_from {names}"
    lines += [_fish_line(none, word) for word in commands[0].options]
    for command in commands[1:]:
        for name in command.names:
            lines.append(f"complete -c snap-upgrade -n {_fish_quote(none)} -a {name} -d {_fish_quote(command.help)}")
        seen = "__fish_seen_subcommand_from " + " ".join(command.names)
        lines += [_fish_line(seen, word) for word in command.options]
        offers = {_offer(word): word for word in command.positionals if word.kind}
        lines += [_fish_line(seen, word) for word in offers.values()]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Write the three files into the folder that is named."""
    sys.path.insert(0, str(TOP / "plugin"))
    sys.dont_write_bytecode = True
    from snap_upgrade.cli.parser import build_parser

    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    commands = read(build_parser())
    writers: dict[str, Any] = {"snap-upgrade.bash": bash, "_snap-upgrade": zsh, "snap-upgrade.fish": fish}
    for name, write in writers.items():
        (folder / name).write_text(write(commands), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
