"""What a person sees on a terminal: how far an update is, and colours; and that neither goes anywhere else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable

import pytest

from snap_upgrade.cli import progress
from snap_upgrade.cli.output import Output
from snap_upgrade.cli.progress import Progress
from snap_upgrade.core.packages import Event


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, stream: str, act: Callable[[], None]) -> str:
    """Return what *act* writes to *stream*, which is a terminal meanwhile."""
    leader, follower = os.openpty()
    with open(follower, "w") as terminal, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "80")
        patch.setattr(f"sys.{stream}", terminal)
        act()
    drawn = b""
    with contextlib.suppress(OSError):  # EIO: that was all, and nobody writes any more
        while part := os.read(leader, 4096):
            drawn += part
    os.close(leader)
    return drawn.decode()


def test_bytes_packages_and_the_line_dpkg_is_at_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        report = Progress(Output(), True)
        report(Event("phase", "download"))
        report(Event("download", "", 1 << 20, 4 << 20))
        report(Event("phase", "apply"))
        report(Event("package", "nano", 1, 3))
        report(Event("line", "Setting up nano ..."))
        report.end()

    monkeypatch.setattr(progress, "_EVERY_S", -1.0)  # every event is drawn: none is lost to the clock
    drawn = on_a_terminal(monkeypatch, "stderr", act).split("\r\x1b[K")
    assert drawn == [
        "",
        "downloading",
        "downloading  1.0 MiB of 4.0 MiB",
        "working in the clone",
        "working in the clone  1/3 nano",
        "working in the clone  1/3 nano  Setting up nano ...",
        "",
    ]


def test_bytes_are_told_to_scripts_and_the_last_are_never_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    report = Progress(Output(is_json=True), True)
    for done in (0, 1, 2, 3):
        report(Event("download", "", done, 3))
    found = [json.loads(line)["progress"] for line in capsys.readouterr().out.splitlines()]
    assert (found[-1]["kind"], found[-1]["done"], found[-1]["total"]) == ("download", 3, 3)
    # So soon after one another the others need not all be told; that is what keeps a script's reader from drowning.
    assert len(found) <= 2 or len({one["done"] for one in found}) == len(found)


def test_nothing_is_drawn_where_the_terminal_cannot_or_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        monkeypatch.setenv("TERM", "dumb")
        report = Progress(Output(), True)
        report(Event("phase", "download"))
        report.end()

    assert on_a_terminal(monkeypatch, "stderr", act) == ""


@pytest.mark.parametrize(
    ("color", "variables", "is_painted"),
    [("auto", {}, True), ("never", {}, False), ("always", {}, True), ("auto", {"NO_COLOR": "1"}, False),
     ("always", {"NO_COLOR": "1"}, True)],
)  # fmt: skip
def test_colours_on_a_terminal_unless_the_user_wants_none(
    monkeypatch: pytest.MonkeyPatch, color: str, variables: dict[str, str], is_painted: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = Output()
    out.configure(False, False, color)
    drawn = on_a_terminal(monkeypatch, "stdout", lambda: out.text(out.paint("x", "red")))
    assert ("\x1b[31m" in drawn) == is_painted


def test_colours_never_reach_a_pipe_or_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.text(out.paint("x", "red"))
    out.configure(True, False, "always")
    out.text(out.paint("y", "red"))
    assert capsys.readouterr().out == "x\ny\n"
