"""Fuzz entry points for the memory of the engine: records, whole journals, steps, and the settings; see ``targets.py``.

The rule: what is accepted must be understood whole, so each states what holds of the result: an engine works on it.
Bytes that are changed seldom get past a checksum: ``…_values`` take them as the seed of changes to what was written.
"""

from __future__ import annotations

import binascii
import json
import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from snap_upgrade import config, engine, journal, records
from snap_upgrade.core import plan, recovery, steps, wire
from snap_upgrade.core.errors import StateDamaged, UsageError
from snap_upgrade.core.model import Kind, Record, State
from snap_upgrade.core.names import name_problem
from snap_upgrade.system import kernel

UUID = "b" * 32
DEEP = b"[" * 100_000  # more than any reader of JSON goes down
HUGE = b"9" * 5000  # more digits than Python makes a number of

RECORD = records.encode(
    Record(UUID, Kind.ENVIRONMENT, "new", ".snap-upgrade/be/new", 1.5, "a" * 32, "7", State.READY, description="\u00fc")
)
PLAN = [steps.to_json(step) for step in plan.alternate_root("7", UUID, "alt", "apt")]
DECIDED = [steps.to_json(step) for step in plan.after_alternate_root("7", "failed", "alt", "@", "/mnt", plan.Policy())]
BEGIN = wire.line({"kind": "begin", "version": 1, "id": "7", "flow": "alternate-root", "time": 1.5,
                   "boot_id": kernel.boot_id(), "owner": {"pid": 1, "start": 2, "name": "apt"}, "plan": PLAN,
                   "on_crash": "undo", "request": [{"name": "a"}]})  # fmt: skip
OPEN = BEGIN + b"".join(
    wire.line(line)
    for line in (
        {"kind": "started", "step": 0},
        {"kind": "done", "step": 0, "result": {"uuid": UUID}},
        {"kind": "started", "step": 1},
        {"kind": "request", "request": [], "command": "apt install a"},
        {"kind": "post", "time": 2.5},
    )
)
CLOSED = OPEN + b"".join(
    wire.line(line)
    for line in (
        {"kind": "verdict", "verdict": "failed", "reasons": ["a"], "changes": [["a", "1", None]], "evidence": {}},
        {"kind": "decide", "plan": DECIDED},
        {"kind": "started", "step": 2},
        {"kind": "failed", "step": 2, "error": "no"},
        {"kind": "end", "outcome": "committed", "exit": 6},
    )
)
UNDONE = OPEN + wire.line({"kind": "undoing", "step": 0}) + wire.line({"kind": "undone", "step": 0})

CORPUS: dict[str, list[bytes]] = {
    "record": [RECORD, RECORD.replace(b"environment", b"snapshot"), DEEP, RECORD.replace(b"1.5", HUGE)],
    "journal": [
        OPEN,
        CLOSED,
        UNDONE,
        BEGIN,
        BEGIN[:40],
        b"",
        # These were findings.
        BEGIN + wire.line({"kind": "post", "step": "x"}),
        wire.line({**wire.parse_line(BEGIN), "request": 1}),
        wire.line({**wire.parse_line(BEGIN), "since": [1]}),
    ],
    "journal_body": [data.replace(b"\n", b"") for data in (BEGIN[9:], OPEN.splitlines()[2][9:])] + [HUGE],
    "journal_values": [b"1", b"2"],
    "record_values": [b"1", b"2"],
    "step_values": [b"1", b"2"],
    "step": [json.dumps(step).encode() for step in PLAN + DECIDED] + [b"[]", HUGE],
    "config": [
        b"# x\nenabled = no\nclone_nested = var/lib/a /b/\nkeep_environments = 3 # y\npolicy = proposal\n",
        b"activation=set-default\r\nhook_timeout_s = 999999999\nreboot = ask\n",
        "keep_environments = \u00b2\n".encode(),
    ],
}


JUNK: list[Any] = [None, True, False, -1, 0, 1, 99, 10**30, 10**400, 1.5, float("nan"), "", "a/b", "..", "\ud800",
                   "é\n", [], [[]], {}, {"step": 1}, "7", "decide", "end", "begin", "undo"]  # fmt: skip


def _spoil(value: Any, rng: random.Random) -> Any:
    """Return *value* with one thing in it, somewhere, put in the place of another, taken out or doubled."""
    if not value or not isinstance(value, dict | list) or rng.random() < 0.15:
        return rng.choice(JUNK)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    changed: Any = value.copy()
    match rng.randrange(8):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, list):
            changed.insert(rng.choice(keys), value[key])
        case 1:
            changed[rng.choice(["unheard of", "step", "name", "request"])] = value[key]
        case 2:
            other = rng.choice(keys)
            changed[key], changed[other] = value[other], value[key]
        case _:
            changed[key] = _spoil(value[key], rng)
    return changed


def fuzz_record_values(data: bytes) -> None:
    rng = random.Random(data)
    fuzz_record(json.dumps(_spoil(json.loads(RECORD), rng)).encode())


def fuzz_step_values(data: bytes) -> None:
    rng = random.Random(data)
    _use_step(_spoil(rng.choice(PLAN + DECIDED), rng))


def fuzz_journal_values(data: bytes) -> None:
    rng = random.Random(data)
    lines: Any = [wire.parse_line(line + b"\n") for line in rng.choice([OPEN, CLOSED, UNDONE]).splitlines()]
    for _ in range(rng.randint(1, 2)):
        lines = _spoil(lines, rng)
    _use(b"".join(wire.line(line) for line in lines) if isinstance(lines, list) else wire.line(lines))


def fuzz_record(data: bytes) -> None:
    try:
        record = records.decode(data)
    except ValueError:
        return
    assert record.uuid
    assert isinstance(record.path, str)
    assert record.kind is Kind.PART or name_problem(record.name) is None
    # A number that is none ("NaN") is unequal to itself, so what is compared is the file.
    assert records.encode(records.decode(records.encode(record))) == records.encode(record)


def _use(data: bytes) -> None:
    """Ask of a journal what the engine asks."""
    try:
        entries, good = journal.parse(data, "7")
    except StateDamaged:
        return
    assert 0 <= good <= len(data)
    if entries is None:
        assert good == 0
        return
    again, length = journal.parse(data[:good], "7")
    assert again is not None
    assert (wire.encode(again.lines), length) == (wire.encode(entries.lines), good), (
        "cutting off the torn line changes what is read"
    )
    answer = recovery.decide(entries.steps(), engine.progress(entries))
    assert all(0 <= number < len(entries.steps()) for number in answer.steps)
    assert (entries.ident, bool(entries.flow)) == ("7", bool(entries.begin["flow"]))
    assert all(isinstance(one, list) for one in entries.requests()), "a request that nobody can walk through"
    assert isinstance(entries.begin.get("since", {}), dict)
    assert isinstance(engine.is_owner_alive(entries), bool)
    end, verdict = entries.last("end"), entries.last("verdict")
    assert end is None or isinstance(int(end["exit"]), int)
    assert verdict is None or tuple(verdict["reasons"]) is not None


def fuzz_journal(data: bytes) -> None:
    _use(data)


def fuzz_journal_body(data: bytes) -> None:
    """A line whose checksum is right says anything at all: as the first line, in the middle, and as the last."""
    body = data.replace(b"\n", b" ")
    line = b"%08x %s\n" % (binascii.crc32(body), body)
    for whole in (line, BEGIN + line, BEGIN + line + OPEN[len(BEGIN) :], CLOSED + line):
        _use(whole)


def fuzz_step(data: bytes) -> None:
    try:
        value = wire.decode(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return
    _use_step(value)


def _use_step(value: object) -> None:
    try:
        step = steps.from_json(value)
    except StateDamaged:
        return
    assert all(isinstance(getattr(step, one.name), bool if one.type == "bool" else str) for one in fields(step))
    assert steps.describe(step)
    assert steps.from_json(steps.to_json(step)) == step
    back = steps.inverse(step)
    assert back is None or steps.from_json(steps.to_json(back)) == back


def fuzz_config(data: bytes) -> None:
    try:
        found = config.parse(data.decode("utf-8", "replace"), "file")
    except UsageError as error:
        assert error.message.startswith("file, line ")
        return
    limits = found.limits()
    assert min(limits.restore_points, limits.environments, limits.free_bytes, found.hook_timeout_s) >= 0
    assert all(path and not path.startswith("/") for path in found.clone_nested)
    assert found.rules().to_the_letter == (found.policy == "proposal")


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): function for name, function in globals().items() if name.startswith("fuzz_")
}
