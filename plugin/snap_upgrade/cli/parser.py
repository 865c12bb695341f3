"""The command line: every command, its options, and help that teaches; and which module carries each command out.

The rule: of ours this module imports the errors and the version only. A command's module is loaded when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from snap_upgrade.core.errors import UsageError
from snap_upgrade.version import VERSION

PROGRAM = "snap-upgrade"
TAKE_ROOT = ("install", "remove", "upgrade", "image-update")

EXIT_CODES = """\
exit codes:
  0  done
  1  internal error: please report it
  2  usage: the command line, a name or the configuration is wrong
  3  refused before any change: no space, no snapshot, not supported here
  4  nothing to do
  5  failed; nothing was changed, or all of it was undone
  6  failed; restored and compared
  7  failed; a bootable way back is kept, the message names it
  8  done, but not activated
  9  interrupted work was found: run 'snap-upgrade recover'
  10 another transaction is at work
  11 failed, and a person must look: the message says at what
  12 a download failed; nothing was changed
  13 a signature is wrong or missing; nothing was changed"""

_DESCRIPTION = """\
Every package operation is a transaction: what goes wrong is taken back, or a bootable way back is kept.
An upgrade can be made in a clone of the system while the system runs; it is live after the next boot."""

_EPILOG = f"""\
examples:
  snap-upgrade image-update        upgrade a clone; it boots next
  snap-upgrade cancel              changed your mind: the running system boots next again
  snap-upgrade install nginx       install on the running system, behind a snapshot
  snap-upgrade rollback last       boot next into the system as it was before the last transaction
  snap-upgrade status              what runs, what boots next, what needs attention

{EXIT_CODES}"""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: *run* is ``module:function`` below snap_upgrade.cli; *add* gives its options to a parser."""

    name: str
    run: str
    help: str
    description: str
    epilog: str
    add: Callable[[argparse.ArgumentParser], None]
    aliases: tuple[str, ...] = ()


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that reads the same on every Python: 3.13 names the value once, the older ones after every name."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing and leaving: errors are shown in one place, also as JSON."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        # From 3.14 on argparse paints its help, and knows nothing of our --color.
        self.color = False

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message, f"{self.prog} --help")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return what *words* ask for; raise UsageError.

    The parsers of two dozen commands take longer to make than most commands to run: first only those are made whose
    names are among the words. What is refused then, and help, comes from the whole.
    """
    named = [command for command in COMMANDS if not {command.name, *command.aliases}.isdisjoint(words)]
    if named and not any(word.startswith("-") and "h" in word for word in words):
        try:
            return _checked(_parser_of(named).parse_args(words))
        except UsageError:
            pass
    return _checked(build_parser().parse_args(words))


def _checked(options: argparse.Namespace) -> argparse.Namespace:
    """Return *options*, or raise UsageError for a root that the command would not go by."""
    name = options.command_name
    if options.root is None or name in TAKE_ROOT:
        return options
    raise UsageError(f"{name} takes no -R DIR: only {', '.join(TAKE_ROOT[:-1])} and {TAKE_ROOT[-1]} work on an "
                     "environment that is mounted somewhere", f"{PROGRAM} {name} --help")  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; the manual and the completions are made from it too."""
    return _parser_of(COMMANDS)


def _parser_of(chosen: Sequence[Command]) -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    _add_globals(parser, is_top=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for command in chosen:
        sub = commands.add_parser(
            command.name,
            aliases=command.aliases,
            help=command.help,
            description=command.description,
            epilog=f"{command.epilog}\n\n{EXIT_CODES}",
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        command.add(sub)
        takes_root = command.name in TAKE_ROOT
        _add_globals(sub.add_argument_group("options of every command"), is_top=False, shows_root=takes_root)
        sub.set_defaults(command_name=command.name, run=command.run)
    return parser


def _add_globals(to: argparse.ArgumentParser | argparse._ArgumentGroup, is_top: bool, shows_root: bool = True) -> None:
    """Add what is accepted before and after the command; a default after it must not undo what was said before."""

    def default(value: Any) -> Any:
        return value if is_top else argparse.SUPPRESS

    root = "work on the environment mounted at DIR instead of the running one"
    if is_top:
        root += f" ({', '.join(TAKE_ROOT)})"
    to.add_argument(
        "-R", "--root", metavar="DIR", default=default(None), help=root if shows_root else argparse.SUPPRESS
    )
    to.add_argument("-n", "--dry-run", action="store_true", default=default(False),
                    help="show what would be done, and do nothing")  # fmt: skip
    to.add_argument("-y", "--yes", action="store_true", default=default(False),
                    help="do not ask; the answer is yes")  # fmt: skip
    to.add_argument("--json", action="store_true", default=default(False),
                    help="print JSON for scripts, errors too")  # fmt: skip
    to.add_argument("-q", "--quiet", action="store_true", default=default(False),
                    help="print nothing but errors and what was asked for")  # fmt: skip
    to.add_argument("-v", "--verbose", action="store_true", default=default(False),
                    help="print more")  # fmt: skip
    to.add_argument("--color", choices=("auto", "always", "never"), default=default("auto"),
                    help="colours; auto: on a terminal")  # fmt: skip
    to.add_argument("--no-progress", action="store_true", default=default(False),
                    help="do not show progress")  # fmt: skip
    to.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}", help="print the version and leave")


# --- the options of each command


def _nothing(parser: argparse.ArgumentParser) -> None:
    """Add no options."""


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-H", dest="is_plain", action="store_true",
                        help="for scripts: no header, tabs, ISO times, bytes; state and kind follow")  # fmt: skip
    parser.add_argument("-a", "--all", action="store_true",
                        help="snapshots and nested subvolumes too")  # fmt: skip
    parser.add_argument("-s", "--snapshots", action="store_true", help="snapshots only")
    parser.add_argument("--tree", action="store_true", help="show what was made from what")


def _create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--source", metavar="SOURCE", default="",
                        help="environment or snapshot to clone; default: the running environment")  # fmt: skip
    parser.add_argument("-d", "--description", metavar="TEXT", default="", help="say what it is for")
    parser.add_argument("name", metavar="NAME", help="of the new environment")


def _destroy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-F", dest="force", action="store_true", help="do not ask (as -y)")
    parser.add_argument("names", metavar="NAME", nargs="+", help="environment or snapshot")


def _activate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-t", "--temporary", action="store_true",
                        help="for the next boot only, then back to what boots now")  # fmt: skip
    parser.add_argument("name", metavar="NAME", help="the environment to boot next")


def _mount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-r", "--read-only", action="store_true", help="mount it read-only")
    parser.add_argument("name", metavar="NAME", help="environment or snapshot")
    parser.add_argument("directory", metavar="DIR", nargs="?", default="",
                        help="where; default: /run/snap-upgrade/mnt/NAME, made for it")  # fmt: skip


def _unmount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("which", metavar="NAME|DIR", help="an environment, or where it is mounted")


def _rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD", help="the environment as it is called now")
    parser.add_argument("new", metavar="NEW", help="its new name")


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("which", metavar="BE|ID|last", nargs="?", default="last",
                        help="an environment, or the number of the transaction to go back before; "
                        "last: the newest one that can be gone back before")  # fmt: skip


def _diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", action="store_true", help="files instead of packages")
    parser.add_argument("--changelog", action="store_true", help="with what each new version brings, from the network")
    parser.add_argument("a", metavar="A", help="environment, snapshot, transaction number (the state before it), "
                        "or 'running'")  # fmt: skip
    parser.add_argument("b", metavar="B", nargs="?", default="running", help="likewise; default: running")


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ident", metavar="ID|last", nargs="?", default="",
                        help="everything about this transaction; last: the newest")  # fmt: skip


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="environment or snapshot")


def _describe(parser: argparse.ArgumentParser) -> None:
    _name(parser)
    parser.add_argument("text", metavar="TEXT", help="the new description; '' removes it")


def _recover(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--boot", action="store_true",
                        help="as the boot does it: also return from 'activate -t'")  # fmt: skip
    parser.add_argument("--abandon", metavar="ID|FILE", default="",
                        help="close the open transaction ID as it is, nothing is undone; or put aside a file of "
                        "ours that 'status' calls damaged")  # fmt: skip


def _image_update(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--be-name", metavar="NAME", default="", help="of the clone; default: the date")
    parser.add_argument("--no-activate", action="store_true", help="leave what boots next as it is")
    parser.add_argument("--fresh", action="store_true",
                        help="clone the running environment even if another one is pending")  # fmt: skip
    parser.add_argument("--reboot", choices=("never", "ask", "now"), default=None,
                        help="after success; default: as configured (never)")  # fmt: skip
    conffiles = parser.add_mutually_exclusive_group()
    conffiles.add_argument("--replace-conffiles", dest="conffiles", action="store_const", const="replace",
                           help="replace configuration files that you and a package both changed")  # fmt: skip
    conffiles.add_argument("--keep-conffiles", dest="conffiles", action="store_const", const="keep",
                           help="keep yours, and list them at the end (default)")  # fmt: skip
    parser.add_argument("arguments", metavar="-- APT-ARGUMENT", nargs=argparse.REMAINDER,
                        help="what apt-get is to do in the clone instead of dist-upgrade")  # fmt: skip


def _packages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("packages", metavar="PACKAGE", nargs="+", help="as the package manager takes it")


def _upgrade(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("packages", metavar="PACKAGE", nargs="*", help="only these; default: all")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clone", action="store_true", help="in a clone that boots next, not on the running system")
    parser.add_argument("arguments", metavar="-- COMMAND", nargs=argparse.REMAINDER, help="the command, as it is")


_LIVE = """\
what happens:
  A snapshot of the running system is taken, then the package manager works on your terminal as always.
  If it fails, a bootable clone of the snapshot is kept and named. Nothing is rolled back behind your back.
  With -R DIR the environment mounted at DIR is changed, and on failure put back as it was.

how to go back:
  snap-upgrade rollback ID         boot next into the system as it was before transaction ID"""

COMMANDS: tuple[Command, ...] = (
    Command(
        "list", "listing:run_list", "list the environments",
        "List boot environments. Active: N is running now, R boots on reboot, T boots next only.",
        "examples:\n  snap-upgrade list -a            with snapshots and nested subvolumes\n"
        "  snap-upgrade list -aH           for scripts: name, active, mountpoint, space, created, origin, state, kind",
        _list,
    ),
    Command(
        "status", "status:run_status", "what runs, what boots next, what needs attention",
        "Show what runs and what boots next, open transactions, the hooks, space, and each problem with the command "
        "that mends it.",
        "exit code 9: interrupted work waits for 'snap-upgrade recover'; 11: something is wrong, a person must look",
        _nothing,
    ),
    Command(
        "image-update", "update:run_image_update", "upgrade a clone of the system; it boots next",
        "Clone the environment that boots next, upgrade the clone while the system runs, and let the clone boot next.",
        """\
what happens:
  Lists are fetched and packages downloaded before anything is unpacked. On any error the clone is destroyed and the
  running system was never touched. A pending environment is the base of the next image-update (see --fresh).

how to go back:
  snap-upgrade cancel             before the reboot: the running system boots next again
  snap-upgrade rollback last      after it

examples:
  snap-upgrade image-update
  snap-upgrade image-update -n                       what it would change
  snap-upgrade image-update --be-name before-trixie --no-activate
  snap-upgrade image-update -- install nginx         any other work for apt-get, in a clone""",
        _image_update, ("image_update", "update-image"),
    ),
    Command(
        "install", "packages:run_install", "install packages on the running system, protected",
        "Install packages on the running system behind a snapshot.", _LIVE, _packages,
    ),
    Command(
        "remove", "packages:run_remove", "remove packages from the running system, protected",
        "Remove packages from the running system behind a snapshot.", _LIVE, _packages,
    ),
    Command(
        "upgrade", "packages:run_upgrade", "upgrade packages of the running system, protected",
        "Upgrade packages of the running system behind a snapshot.", _LIVE, _upgrade,
    ),
    Command(
        "run", "packages:run_command", "run any command as a transaction",
        "Run a command behind a snapshot of the running system, or with --clone in a clone that boots next.",
        "how to go back:\n  snap-upgrade rollback ID\n\nexamples:\n  snap-upgrade run -- make install\n"
        "  snap-upgrade run --clone -- dpkg -i /root/new.deb",
        _run,
    ),
    Command(
        "rollback", "environments:run_rollback", "boot next into the system as it was before",
        "Make the system as it was before a transaction, or another environment, boot next. What runs stays as it is "
        "until the reboot.",
        "how to go back:\n  snap-upgrade cancel             the running system boots next again",
        _rollback,
    ),
    Command(
        "cancel", "environments:run_cancel", "forget the pending environment",
        "Let the running environment boot next again, and destroy the pending one if snap-upgrade made it and nobody "
        "pinned it.",
        "see what is pending with 'snap-upgrade status'",
        _nothing,
    ),
    Command(
        "create", "environments:run_create", "clone an environment",
        "Clone an environment or a snapshot. It costs no space until the two differ.",
        "examples:\n  snap-upgrade create before-the-experiment\n  snap-upgrade create -e snap-41 as-it-was",
        _create,
    ),
    Command(
        "destroy", "environments:run_destroy", "destroy environments or snapshots",
        "Destroy environments or snapshots. What runs, boots next, is pinned or mounted stays.",
        "how to go back: there is none; see first what would go with -n",
        _destroy,
    ),
    Command(
        "activate", "environments:run_activate", "choose what boots next",
        "Make an environment boot next, and read back that it will.",
        "how to go back:\n  snap-upgrade cancel             the running system boots next again",
        _activate,
    ),
    Command(
        "mount", "environments:run_mount", "mount an environment",
        "Mount an environment, and print where.", "how to go back:\n  snap-upgrade unmount NAME", _mount,
    ),
    Command(
        "unmount", "environments:run_unmount", "unmount an environment",
        "Unmount an environment from wherever it is mounted, or what is mounted at a directory.",
        "how to go back:\n  snap-upgrade mount NAME DIR", _unmount, ("umount",),
    ),
    Command(
        "rename", "environments:run_rename", "rename an environment",
        "Give an environment another name. It may be running.", "how to go back:\n  snap-upgrade rename NEW OLD",
        _rename,
    ),
    Command(
        "describe", "environments:run_describe", "say what an environment is for",
        "Set the description of an environment.", "example:\n  snap-upgrade describe 2026-11-21 'before the mailer'",
        _describe,
    ),
    Command(
        "pin", "environments:run_pin", "keep an environment for good",
        "Keep an environment or a snapshot from being destroyed, by anybody and by prune.",
        "how to go back:\n  snap-upgrade unpin NAME", _name,
    ),
    Command(
        "unpin", "environments:run_unpin", "let an environment go when its time comes",
        "Take back a pin.", "how to go back:\n  snap-upgrade pin NAME", _name,
    ),
    Command(
        "prune", "environments:run_prune", "destroy what is beyond what is kept",
        "Destroy restore points and environments beyond the numbers in /etc/snap-upgrade.conf.",
        "examples:\n  snap-upgrade prune -n            what would go or stay, with the reason for each",
        _nothing,
    ),
    Command(
        "diff", "diff:run_diff", "compare two environments",
        "Show the packages, or the files, that differ between two environments.",
        "examples:\n  snap-upgrade diff 41             what changed since before transaction 41\n"
        "  snap-upgrade diff initial 2026-11-21 --files",
        _diff,
    ),
    Command(
        "history", "history:run_history", "what was done, by whom, and its verdict",
        "List the transactions, newest first, or show everything about one.",
        "examples:\n  snap-upgrade history 41          who, what, verdict, evidence, every package and step",
        _history,
    ),
    Command(
        "recover", "recover:run_recover", "finish or take back what was interrupted",
        "Finish or take back every transaction that was cut off. It may itself be interrupted and run again.",
        "every other command that changes something does this first", _recover,
    ),
    Command(
        "check", "status:run_check", "test the hooks and the layout",
        "Test that the hooks are in place and active, that the state is whole and that a roll back can take effect.",
        "exit code 0: all is well; 3: this machine's layout is refused; 9: interrupted work; 11: something is wrong",
        _nothing,
    ),
)  # fmt: skip
