"""The entry point of the command line.

The rule: whatever happens, the user gets one message, a hint and an exit code that says what is true now.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from snap_upgrade.cli.output import Output, visible
from snap_upgrade.cli.parser import PROGRAM, build_parser, parse
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors
from snap_upgrade.system import signals

__all__ = ["build_parser", "main"]

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
READING = frozenset({"list", "status", "diff", "history", "check"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (by default the process's own) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    folder, umask = _start_safely()
    out = Output(is_json="--json" in _own_words(words))
    code = _guarded(words, out, folder, umask)
    out.end()
    if out.failure is not None:
        out.note(f"{PROGRAM}: the output could not be written: {out.failure.strerror}")
        return code or errors.EXIT_NEEDS_PERSON
    return code


def _own_words(words: list[str]) -> list[str]:
    """Return the words that are ours: what follows ``--`` belongs to another program."""
    return words[: words.index("--")] if "--" in words else words


def _start_safely() -> tuple[str, int]:
    """Leave nothing of the caller's to chance; return the caller's folder and umask, for what runs on his terminal."""
    sys.dont_write_bytecode = True
    # A process that soon ends: to look for garbage while modules are loaded finds none and costs a tenth of the start.
    gc.set_threshold(50_000)
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The next file we open would become our output, and be written into.
            os.open(os.devnull, os.O_RDWR)
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = "/"
    os.chdir("/")
    os.environ["PATH"] = PATH
    umask = os.umask(0o077)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    signals.install()
    return folder, umask


def _guarded(words: list[str], out: Output, folder: str, umask: int) -> int:
    verbose = "-v" in _own_words(words) or "--verbose" in _own_words(words)
    try:
        return _dispatch(words, out, folder, umask)
    except SystemExit as end:  # --help and --version
        return end.code if isinstance(end.code, int) else errors.EXIT_DONE
    except errors.SnapUpgradeError as error:
        if verbose and error.exit_code == errors.EXIT_INTERNAL:
            _traceback(out)
        return _show(out, error.message, error.hint, error.exit_code, error.message_id)
    except KeyboardInterrupt as error:
        return _interrupted(out, error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        if verbose:
            _traceback(out)
        return _show(out, f"{place}{error.strerror or error}", "", errors.EXIT_UNCHANGED, "system")
    except Exception as error:
        if verbose:
            _traceback(out)
        hint = "this is a bug: please report it with what 'snap-upgrade -v' prints"
        return _show(out, f"{type(error).__name__}: {error}", hint, errors.EXIT_INTERNAL, "internal")


def _dispatch(words: list[str], out: Output, folder: str, umask: int) -> int:
    import shlex

    options = parse(words)
    out.configure(options.json, options.quiet, options.color)
    # It is written into journals and locks: words that are no text must not make it unwritable.
    typed = shlex.join([PROGRAM, *words]).encode(errors="backslashreplace").decode()
    session = Session(options, out, typed, folder, umask)
    module, _, function = options.run.partition(":")
    run = cast(Callable[[Session], int], getattr(import_module(f"snap_upgrade.cli.{module}"), function))
    return run(session)


def _show(out: Output, message: str, hint: str, code: int, ident: str) -> int:
    """Show an error, in the form that was asked for, and return its code."""
    if out.is_json:
        out.json({"error": {"id": ident, "message": message, "hint": hint, "exit_code": code}}, is_line=True)
        return code
    if out.is_quiet and code == errors.EXIT_NOTHING_TO_DO:
        return code
    out.note(f"{PROGRAM}: {visible(message)}")
    if hint:
        out.note(f"hint: {visible(hint)}")
    return code


def _interrupted(out: Output, error: KeyboardInterrupt) -> int:
    """Tell what an interruption left: read from the journals, not assumed."""
    what = str(error) or "interrupted"
    try:
        is_open = _left_open()
    except (errors.SnapUpgradeError, OSError) as second:
        return _show(out, f"{what}; what it left cannot be read: {second}", "snap-upgrade recover",
                     errors.EXIT_INTERRUPTED, "interrupted")  # fmt: skip
    if is_open:
        return _show(out, f"{what}; its transaction is still open", "snap-upgrade recover",
                     errors.EXIT_INTERRUPTED, "interrupted")  # fmt: skip
    return _show(out, f"{what}; no transaction is left open", "", errors.EXIT_UNCHANGED, "interrupted")


def _left_open() -> bool:
    from snap_upgrade import journal
    from snap_upgrade.detect import open_machine

    machine = open_machine()
    return any(
        isinstance(found, errors.StateDamaged)
        or (found.entries.owner.pid == os.getpid() and found.entries.last("end") is None)
        for found in journal.open_journals(machine.state)
    )


def _traceback(out: Output) -> None:
    import traceback

    out.note(traceback.format_exc().rstrip())
