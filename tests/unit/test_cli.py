"""The command line as a program: what it accepts, how it fails, what it loads.

The one rule: what concerns the process (streams, signals, start) is tested in a process.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from snap_upgrade.cli.main import build_parser, main
from snap_upgrade.cli.parser import COMMANDS, EXIT_CODES, parse
from snap_upgrade.cli.recover import sentence
from snap_upgrade.cli.update import request_of
from snap_upgrade.core import errors
from snap_upgrade.core.packages import Conffiles, Verb
from snap_upgrade.engine import Recovered

PLUGIN = Path(__file__).parents[2] / "plugin"
GLOBALS = ["-R", "/mnt", "-n", "-y", "--json", "-q", "-v", "--color", "never", "--no-progress"]
ARGUMENTS = {
    "create": ["x"], "destroy": ["x"], "activate": ["x"], "mount": ["x"], "unmount": ["x"], "rename": ["x", "y"],
    "describe": ["x", "y"], "pin": ["x"], "unpin": ["x"], "diff": ["x"], "install": ["x"], "remove": ["x"],
    "run": ["--", "x"],
}  # fmt: skip


def program(code: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
    """Start Python with the package on its path and nothing else of the caller's."""
    text = f"import sys; sys.path.insert(0, {str(PLUGIN)!r})\n{code}"
    argv = [sys.executable, "-I", "-c", text, *arguments]
    return subprocess.Popen(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


RUN = "from snap_upgrade.cli.main import main; sys.exit(main())"


def outcome(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


# --- what is accepted


def commands() -> list[str]:
    return [command.name for command in COMMANDS]


def test_every_command_of_the_issue_is_there() -> None:
    wanted = (
        "list create destroy activate mount unmount rename rollback diff history status pin unpin describe prune "
        "cancel recover check image-update install remove upgrade run"
    )
    assert set(commands()) == set(wanted.split())
    for alias in ("image_update", "update-image"):
        assert build_parser().parse_args([alias]).command_name == "image-update"
    assert build_parser().parse_args(["umount", "x"]).command_name == "unmount"


@pytest.mark.parametrize("name", commands())
def test_global_options_mean_the_same_before_and_after_the_command(name: str) -> None:
    words = ARGUMENTS.get(name, [])
    before = build_parser().parse_args([*GLOBALS, name, *words])
    after = build_parser().parse_args([name, *GLOBALS, *words])
    assert before == after
    assert (before.root, before.dry_run, before.yes, before.json, before.color) == ("/mnt", True, True, True, "never")
    without = build_parser().parse_args([name, *words])
    assert (without.root, without.dry_run, without.yes, without.json, without.color) == (
        None,
        False,
        False,
        False,
        "auto",
    )


@pytest.mark.parametrize("name", [*commands(), "image_update", "nothing"])
@pytest.mark.parametrize("more", [[], ["list"], ["--", "list", "-x"], ["--bad"], ["--fresh"], ["too", "much"]])
def test_a_command_line_means_the_same_whatever_parsers_were_made_for_it(name: str, more: list[str]) -> None:
    words = [*GLOBALS[2:], name, *ARGUMENTS.get(name, []), *more]  # of -R not every command wants to know
    assert meaning(parse, words) == meaning(build_parser().parse_args, words)


def meaning(read: Callable[[list[str]], argparse.Namespace], words: list[str]) -> object:
    """Return what came of reading *words*: the options, or what was said against them."""
    try:
        return vars(read(words))
    except errors.UsageError as error:
        return error.message, error.hint


@pytest.mark.parametrize("words", [["-h", "list"], ["-nh", "list"], ["--help", "list"], ["list", "-h"]])
def test_help_is_whole_whatever_parsers_were_made(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(words)
    told = capsys.readouterr().out
    with pytest.raises(SystemExit):
        build_parser().parse_args(words)
    assert told == capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=commands())
def test_every_command_has_a_function_that_carries_it_out(command: object) -> None:
    module, _, function = command.run.partition(":")  # type: ignore[attr-defined]
    assert callable(getattr(import_module(f"snap_upgrade.cli.{module}"), function))


@pytest.mark.parametrize("name", commands())
def test_the_help_of_every_command_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert EXIT_CODES in text
    assert "--dry-run" in text
    # Beside the exit codes, which all have.
    own = text.replace(EXIT_CODES, "")
    assert re.search(r"(example|how to go back|exit code|see what|every other)", own)
    (command,) = (command for command in COMMANDS if command.name == name)
    assert command.description.split(".")[0] in " ".join(own.split())
    parser = next(iter(build_parser()._subparsers._group_actions)).choices[name]  # type: ignore[union-attr, index]
    assert [action.dest for action in parser._actions if not action.help] == []


def test_the_exit_codes_in_the_help_are_those_of_the_errors() -> None:
    listed = {int(number) for number in re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)}
    assert listed == {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_what_is_after_two_dashes_belongs_to_the_other_program() -> None:
    parsed = build_parser().parse_args(["run", "-n", "--", "apt-get", "-y", "--", "--json"])
    assert parsed.arguments == ["--", "apt-get", "-y", "--", "--json"]
    assert (parsed.dry_run, parsed.yes, parsed.json) == (True, False, False)


class FakeSession:
    def __init__(self, words: list[str]) -> None:
        self.options = build_parser().parse_args(words)


@pytest.mark.parametrize(
    ("words", "verb", "arguments", "conffiles"),
    [
        (["image-update", "--keep-conffiles"], Verb.UPGRADE, (), Conffiles.KEEP),
        (["image-update", "--replace-conffiles"], Verb.UPGRADE, (), Conffiles.REPLACE),
        (["image-update", "--keep-conffiles", "--", "-o", "a=b", "install", "x"], Verb.CUSTOM,
         ("-o", "a=b", "install", "x"), Conffiles.KEEP),
    ],
)  # fmt: skip
def test_an_image_update_asks_for_what_was_said(
    words: list[str], verb: Verb, arguments: tuple[str, ...], conffiles: Conffiles
) -> None:
    request = request_of(FakeSession(words))  # type: ignore[arg-type]
    assert (request.verb, request.arguments, request.conffiles) == (verb, arguments, conffiles)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["list", "--jso"],
        ["list", "x"],
        ["create"],
        ["destroy"],
        ["install"],
        ["run"],
        ["run", "--"],
        ["image-update", "nginx"],
        ["image-update", "--no-activate", "--reboot=now"],
        ["image-update", "--reboot", "maybe"],
        ["image-update", "--keep-conffiles", "--replace-conffiles"],
        ["-R", "/mnt", "image-update", "--fresh"],
        ["-R", "/mnt", "run", "--clone", "--", "true"],
        ["install", "--", "-x"],
        ["install", ""],
        ["history", "--", "-1"],
        ["history", "..", "-q"],
        ["list", "--color", "blue"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_told_in_one_message_with_a_hint(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == errors.EXIT_USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.splitlines()
    assert re.fullmatch(r"snap-upgrade: .*[^.]", first)
    assert second.startswith("hint: snap-upgrade") or "out" in second


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was() -> object:
    folder, umask, handlers = os.getcwd(), os.umask(0o022), [(n, signal.getsignal(n)) for n in (1, 2, 15)]
    path, bytecode = os.environ["PATH"], sys.dont_write_bytecode
    yield
    os.chdir(folder)
    os.umask(umask)
    os.environ["PATH"], sys.dont_write_bytecode = path, bytecode
    for number, handler in handlers:
        signal.signal(number, handler)
    return None


def test_with_json_an_error_is_an_object_and_nothing_else_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["destroy", "--json"]) == errors.EXIT_USAGE
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert set(error) == {"id", "message", "hint", "exit_code"}
    assert (error["id"], error["exit_code"]) == ("usage", 2)
    assert shown.err == ""


def test_a_bug_of_ours_is_told_as_one_with_its_own_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_session: object) -> int:
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr("snap_upgrade.cli.listing.run_list", broken)
    assert main(["list"]) == errors.EXIT_INTERNAL == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("snap-upgrade: ZeroDivisionError: by accident\nhint: this is a bug: please report it")
    assert main(["list", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["id"] == "internal"
    assert main(["list", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_terminal_that_knows_no_unicode_gets_escapes_and_no_error() -> None:
    code = (
        "import io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='ascii')\n"
        "from snap_upgrade.cli import main as m\nm._start_safely()\nprint('\\u65e5')"
    )
    assert outcome(program(code)) == (0, "\\u65e5\n", "")


def test_json_among_the_words_of_another_program_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--clone", "-R", "/mnt", "--", "x", "--json"]) == errors.EXIT_USAGE
    assert capsys.readouterr().err.startswith("snap-upgrade: ")


# --- the process


def test_it_runs_as_a_module_and_leaves_no_bytecode(tmp_path: Path) -> None:
    copy = tmp_path / "snap_upgrade"
    subprocess.run(["cp", "-r", str(PLUGIN / "snap_upgrade"), str(copy)], check=True)
    subprocess.run(["find", str(copy), "-name", "__pycache__", "-exec", "rm", "-rf", "{}", "+"], check=True)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['snap_upgrade', '--version']\n"
    code += "import runpy; runpy.run_module('snap_upgrade', run_name='__main__')"
    # As a script would be: without -B, so that only the module itself keeps Python from writing.
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"snap-upgrade \d+\.\d+\.\d+\n", done.stdout)
    written = {path.relative_to(copy).as_posix() for path in copy.rglob("*.pyc")}
    # The package itself and its __main__ are compiled before the first line of ours runs.
    assert {path.split("/")[0] for path in written} <= {"__pycache__"}


def test_list_loads_no_package_manager_library_and_nothing_to_run_programs() -> None:
    code = "import snap_upgrade.cli.main, snap_upgrade.cli.listing; print(*sorted(sys.modules))"
    status, out, _ = outcome(program(code))
    loaded = set(out.split())
    assert status == 0
    assert not loaded & {"apt", "apt_pkg", "subprocess", "logging", "asyncio", "traceback"}
    assert not {name for name in loaded if name.startswith("snap_upgrade.packages.")}


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(PLUGIN)!r})\n{RUN}",
                                "--help"], stdout=write, stderr=subprocess.PIPE, text=True)  # fmt: skip
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_output_that_cannot_be_written_is_told() -> None:
    code = "from snap_upgrade.cli import main as m\nfrom snap_upgrade.cli.output import Output\n" + RUN
    with open("/dev/full", "w") as full:
        text = f"import sys; sys.path.insert(0, {str(PLUGIN)!r})\n{code}"
        done = subprocess.run([sys.executable, "-I", "-c", text, "list", "--json", "--bogus"], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60)  # fmt: skip
    assert done.returncode == errors.EXIT_USAGE
    assert "the output could not be written: No space left on device" in done.stderr
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-I", "-c", text, "--help"], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60)  # fmt: skip
    assert done.returncode == errors.EXIT_NEEDS_PERSON


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_stream_is_not_taken_by_the_next_file(closed: int) -> None:
    code = (
        "import os\nfrom snap_upgrade.cli import main as m\nm._start_safely()\n"
        "fd = os.open('/etc/passwd', os.O_RDONLY)\nos._exit(fd)"
    )
    process = program(code, preexec_fn=lambda: os.close(closed))
    process.communicate(timeout=60)
    assert process.returncode > 2


def test_nothing_of_the_callers_start_remains(tmp_path: Path) -> None:
    code = (
        "import os\nfrom snap_upgrade.cli import main as m\nprint(*m._start_safely())\n"
        "mask = os.umask(0)\nprint(os.getcwd(), oct(mask), os.environ['PATH'])"
    )
    status, out, _ = outcome(program(code, cwd=tmp_path, env={"PATH": "/tmp/evil"}, umask=0o002))
    assert status == 0
    assert out.splitlines() == [f"{tmp_path} 2", "/ 0o77 /usr/sbin:/usr/bin:/sbin:/bin"]


def test_a_folder_that_is_gone_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    process = program(
        f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); sys.argv[1:] = ['--version']\n{RUN}"
    )
    assert outcome(process)[0] == 0


# --- signals

_WAIT = """
import os, signal
from snap_upgrade.cli import main as m
from snap_upgrade.system import signals
m._start_safely()
def wait():
    print("ready", flush=True)
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_one_exception_and_the_next_does_not_break_the_undo(number: signal.Signals) -> None:
    code = _WAIT + (
        "try:\n    wait()\n"
        "except KeyboardInterrupt as error:\n"
        "    for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n        os.kill(os.getpid(), again)\n"
        "    print('undone after', error, flush=True)\n"
    )
    process = program(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert outcome(process) == (0, f"undone after interrupted by {number.name}\n", "")


def test_a_signal_in_a_held_part_comes_after_it() -> None:
    code = _WAIT + (
        "try:\n    with signals.held():\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        print('whole', flush=True)\n"
        "    print('never')\n"
        "except signals.Interrupted as error:\n    print(error)\n"
    )
    assert outcome(program(code)) == (0, "whole\ninterrupted by SIGTERM\n", "")


def test_after_the_last_point_of_return_no_signal_breaks_in() -> None:
    code = _WAIT + "signals.hold()\nos.kill(os.getpid(), signal.SIGTERM)\nprint('finished')\n"
    assert outcome(program(code)) == (0, "finished\n", "")


def test_what_nohup_ignores_stays_ignored() -> None:
    code = "import os, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + _WAIT
    code += "os.kill(os.getpid(), signal.SIGHUP)\nprint('went on')\n"
    assert outcome(program(code)) == (0, "went on\n", "")


def test_an_exception_in_a_held_part_is_not_replaced_by_the_signal() -> None:
    code = _WAIT + (
        "try:\n    with signals.held():\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        raise ValueError('first')\nexcept ValueError as error:\n    print(error)\n"
    )
    assert outcome(program(code)) == (0, "first\n", "")


def test_recovery_is_told_in_a_sentence() -> None:
    one = Recovered("7", "live", "committed", "interrupted", ("dpkg was interrupted",))
    assert sentence(one) == "transaction 7 (live) was finished, verdict interrupted: dpkg was interrupted"
    assert sentence(Recovered("8", "create", "undone", "", ())) == "transaction 8 (create) was taken back"


def test_the_parser_is_the_one_that_packaging_reads() -> None:
    parser = build_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    assert parser.prog == "snap-upgrade"
