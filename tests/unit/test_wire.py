"""wire agrees with the json module in everything, and a torn line counts as never written."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snap_upgrade.core import wire

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.booleans(), inner)
)
documents = values.map(json.dumps)
near_json = st.text(alphabet='{}[]:,"\\ \t\n0123456789.eE+-truefalsnlINiy\ufeff\x00é') | documents


def same(left: Any, right: Any) -> bool:
    """Equality that takes NaN for NaN and tells 1 from 1.0 and True."""
    return repr(left) == repr(right)


@given(values)
@example({"a": [1, 2.5, None, True, math.inf, -math.inf, math.nan], "": {}, "\ud800": "\x00\x7fé\U0001f600"})
def test_encodes_as_json_does(value: Any) -> None:
    assert wire.encode(value) == json.dumps(value, separators=(",", ":"))


@given(values)
def test_decodes_what_it_encoded(value: Any) -> None:
    text = wire.encode(value)
    assert same(wire.decode(text), json.loads(text))


@given(near_json)
@example(' \t\r\n{"a": 1} \n')
@example('{"a": 1, "a": 2}')
@example("1 2")
@example("")
@example("\ufeff1")
@example("[1e400, -0, -0.0]")
def test_decodes_and_refuses_as_json_does(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError as error:
        with pytest.raises(ValueError) as raised:
            wire.decode(text)
        assert str(raised.value) == str(error)
    else:
        assert same(wire.decode(text), expected)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", {"deep": [lambda: None]}, {(1, 2): 3}])
def test_what_json_has_no_form_for_is_refused_with_its_words(value: Any) -> None:
    with pytest.raises(TypeError) as expected:
        json.dumps(value)
    with pytest.raises(TypeError) as raised:
        wire.encode(value)
    assert str(raised.value) == str(expected.value)


def test_a_circle_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError):
        wire.encode(circle)


@given(values)
def test_a_line_comes_back(value: Any) -> None:
    data = wire.line(value)
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert same(wire.parse_line(data), json.loads(json.dumps(value)))


def test_the_form_of_a_line_is_the_documented_one() -> None:
    # The CRC-32 of {"kind":"done","step":0} was computed by gzip(1), not by this code.
    assert wire.line({"kind": "done", "step": 0}) == b'35bf7f4f {"kind":"done","step":0}\n'


@given(values)
def test_a_line_cut_off_anywhere_counts_as_never_written(value: Any) -> None:
    data = wire.line({"kind": "x", "value": value})
    assert [length for length in range(len(data)) if wire.parse_line(data[:length]) is not None] == []


@given(st.dictionaries(st.text(), st.integers()), st.data())
def test_a_line_with_one_changed_bit_counts_as_never_written(value: dict[str, int], data: st.DataObject) -> None:
    line = bytearray(wire.line(value))
    bit = data.draw(st.integers(0, len(line) * 8 - 1))
    line[bit // 8] ^= 1 << bit % 8
    assert wire.parse_line(bytes(line)) is None


@given(st.binary())
def test_no_bytes_make_parse_line_raise(data: bytes) -> None:
    wire.parse_line(data)


def pythons() -> list[str]:
    """Every Python from 3.11 on that runs here; the system's, which runs the hooks, first."""
    found = ["/usr/bin/python3", sys.executable]
    found += [path for minor in range(11, 20) if (path := shutil.which(f"python3.{minor}"))]
    probe = "import sys; sys.exit(sys.version_info < (3, 11))"
    return [
        path
        for path in dict.fromkeys(found)
        if subprocess.run([path, "-IS", "-c", probe], capture_output=True, check=False).returncode == 0
    ]


AGREES = r"""
import sys; sys.path.insert(0, sys.argv[1])
import json, random
from snap_upgrade.core import wire
assert wire.make_encoder and wire.make_scanner, "the accelerator is there but not used"
rng = random.Random(7)
def value(depth):
    kind = rng.randrange(9 if depth else 7)
    if kind < 3: return rng.choice([None, True, False, 0, -1, 1 << 70, 1.5, 1e300, float("inf")])
    if kind < 5: return rng.randrange(-10**9, 10**9) / 7
    if kind < 7: return "".join(chr(rng.choice([rng.randrange(128), rng.randrange(0x110000)])) for _ in range(8))
    if kind == 7: return [value(depth - 1) for _ in range(rng.randrange(4))]
    return {str(value(0)): value(depth - 1) for _ in range(rng.randrange(4))}
def outcome(decode, text):
    try: return repr(decode(text))
    except ValueError as error: return str(error)
for _ in range(3000):
    v = value(4)
    text = json.dumps(v, separators=(",", ":"))
    assert wire.encode(v) == text, text
    cut = text[: rng.randrange(len(text) + 1)] + rng.choice(["", "", " ", "x", "]"])
    for t in (text, cut): assert outcome(wire.decode, t) == outcome(json.loads, t), t
print("agrees")
"""


@pytest.mark.parametrize("python", pythons())
def test_it_agrees_with_json_on_every_python_here(python: str) -> None:
    command = [python, "-IS", "-c", AGREES, str(PLUGIN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("agrees\n", "")


def test_without_the_accelerator_json_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "make_encoder", None)
    monkeypatch.setattr(wire, "make_scanner", None)
    value = {"kind": "begin", "step": [1, "é"]}
    assert wire.parse_line(wire.line(value)) == value


# os, which -S does not load, is loaded beforehand: what it brings along differs from one Python to the next.
LIGHT = "import os, sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); import snap_upgrade.core.{0}; "
LIGHT += "print(*sorted(set(sys.modules) - before))"


@pytest.mark.parametrize("module", ["wire", "dpkgdb", "request", "verdict"])
def test_a_light_module_loads_nothing_that_costs(module: str) -> None:
    command = ["/usr/bin/python3", "-IS", "-c", LIGHT.format(module), str(PLUGIN)]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert f"snap_upgrade.core.{module}" in loaded
    outside = {name for name in loaded if not name.startswith("snap_upgrade")}
    assert outside <= {"__future__", "binascii", "_json"}
