"""Programs are run cleanly, ended when they must be, and found on the fixed PATH only."""

import contextlib
import os
import select
from pathlib import Path

import pytest

from snap_upgrade.core.errors import CommandFailed
from snap_upgrade.packages.apt_archives import within
from snap_upgrade.system import command


def test_a_program_gets_nothing_of_the_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonesuch")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LD_PRELOAD", "/nonesuch.so")
    done = command.run(["env"])
    assert {"LC_ALL=C.UTF-8", f"PATH={command.PATH}"} <= set(done.stdout.split("\n"))
    assert "LD_PRELOAD" not in done.stdout
    assert command.run(["pwd"]).stdout == "/\n"


def test_a_program_on_the_terminal_gets_only_what_a_dialogue_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = {"TERM": "xterm", "LC_MESSAGES": "de_DE.UTF-8", "SUDO_UID": "1000", "DEBIAN_FRONTEND": "readline"}
    lost = {"LD_PRELOAD": "", "LD_LIBRARY_PATH": "/evil", "PYTHONPATH": "/evil", "PERL5LIB": "/evil", "IFS": "x",
            "BASH_ENV": "/evil", "TMPDIR": "/evil", "APT_CONFIG": "/evil", "DPKG_ROOT": "/evil"}  # fmt: skip
    for name, value in {**kept, **lost, "PATH": "/evil", "HOME": "/evil"}.items():
        monkeypatch.setenv(name, value)
    assert command.interact(["sh", "-c", f"/usr/bin/env > {tmp_path}/seen"]) == 0
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert not lost.keys() & seen.keys()
    assert seen.items() >= {**kept, "PATH": command.PATH, "HOME": "/root"}.items()


def test_a_failure_tells_program_status_and_words() -> None:
    with pytest.raises(CommandFailed, match="sh exited with 3: it broke") as caught:
        command.run(["sh", "-c", "echo it broke >&2; exit 3"])
    assert caught.value.status == 3
    assert command.run(["sh", "-c", "exit 3"], check=False).status == 3


@pytest.mark.parametrize("name", ["nonesuch-program", "./sh", "bin/sh", "/etc/passwd"])
def test_what_is_no_program_on_the_fixed_path_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(CommandFailed) as caught:
        command.run([name])
    assert caught.value.status == command.NOT_FOUND


def test_input_and_undecodable_output_pass_through() -> None:
    assert command.run(["cat"], input="a\udcffb").stdout == "a\udcffb"


def test_a_time_limit_kills_the_program_and_its_children(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(CommandFailed) as caught:
        command.run(["sh", "-c", script], timeout_s=2)
    assert caught.value.status == command.TIMED_OUT
    child = int((tmp_path / "pid").read_text())
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(child)
        ended = select.select([process], [], [], 60)[0]
        os.close(process)
        assert ended, "the child outlives the program that was killed"


def test_a_stream_hands_on_lines_and_ends_with_the_listener() -> None:
    lines: list[str] = []
    assert command.stream(["sh", "-c", r"printf '5%%\r100%%\r\nlast'; echo err >&2"], lines.append) == 0
    assert lines == ["100%", "lasterr"]

    def stop(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="begun"):
        command.stream(["sh", "-c", "echo begun; sleep 1000"], stop)
    with pytest.raises(CommandFailed, match="sh exited with 4: why"):
        command.stream(["sh", "-c", "echo why; exit 4"], lines.append)


@pytest.mark.parametrize(("links", "path", "found"), [
    ({}, "a/b", "a/b"),
    ({"a": "/x"}, "a/b", "x/b"),
    ({"x/a": "../../../../etc"}, "x/a/passwd", "etc/passwd"),
    ({"a": "b", "b": "c/d"}, "/a", "c/d"),
])  # fmt: skip
def test_a_link_in_an_environment_never_leads_out_of_it(
    tmp_path: Path, links: dict[str, str], path: str, found: str
) -> None:
    for name, target in links.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    assert within(tmp_path, path) == tmp_path / found


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    with pytest.raises(OSError, match="symbolic links"):
        within(tmp_path, "a")
