"""The configuration: what is not understood is an error with its line, never a silent default."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade import config
from snap_upgrade.config import Config
from snap_upgrade.core.errors import UsageError

SHIPPED = Path(__file__).resolve().parents[2] / "packaging/snap-upgrade.conf"


def test_no_file_and_an_empty_file_mean_the_defaults(tmp_path: Path) -> None:
    assert config.load(tmp_path / "none") == Config() == config.parse("")


def test_every_setting_can_be_set() -> None:
    text = """
    enabled = no   # for now
    on_no_snapshot = warn
    policy = proposal
    keep_on_success=no
    keep_failed = yes
    activation = exchange
    conffiles = replace
    reboot = ask
    clone_nested = /srv/ var/lib/x
    keep_restore_points = 3
    keep_environments = 0
    reserve_mib = 1
    hook_timeout_s = 5
    script_timeout_s = 6
    """
    wanted = Config(False, "warn", "proposal", False, True, "exchange", "replace", "ask", ("srv", "var/lib/x"), 3, 0, 1,
                    5, 6)  # fmt: skip
    found = config.parse(text)
    assert found == wanted
    assert all(getattr(found, field.name) != getattr(Config(), field.name) for field in fields(Config))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("enabled", "key = value"),
        ("enable = yes", "no setting"),
        ("enabled = true", "yes or no"),
        ("enabled =", "yes or no"),
        ("policy = strict", "one of default, proposal"),
        ("reserve_mib = -1", "whole number"),
        ("reserve_mib = 1.5", "whole number"),
        ("reserve_mib = ٤", "whole number"),
        ("reserve_mib = " + "9" * 5000, "whole number"),
        ("enabled = yes\nenabled = no", "second time"),
        ("= yes", "no setting"),
        ("clone_nested = ../..", "inside the root"),
        ("clone_nested = srv /var/../..", "inside the root"),
        ("clone_nested = var//lib", "inside the root"),
        ("clone_nested = ./var", "inside the root"),
        ("clone_nested = /", "inside the root"),
    ],
)
def test_what_is_not_understood_names_file_and_line(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        config.parse(f"# first\n{text}\n", "some.conf")
    assert caught.value.message.startswith(f"some.conf, line {2 + text.count(chr(10))}: ")


def test_a_file_that_cannot_be_read_as_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"enabled = \xff\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        config.load(path)
    with pytest.raises(UsageError, match="not a regular file"):
        config.load(tmp_path)


def test_a_pipe_in_the_place_of_the_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        config.load(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        config.load(Path("/dev/zero"))


def test_the_file_we_ship_says_the_defaults() -> None:
    assert config.load(SHIPPED) == Config()


@given(st.text() | st.lists(st.sampled_from(["enabled", "policy", "reserve_mib", "=", " ", "yes", "1", "#", "\n"])).map(
    "".join))  # fmt: skip
def test_any_text_is_settings_or_a_usage_error(text: str) -> None:
    try:
        config.parse(text)
    except UsageError as error:
        assert ", line " in error.message
