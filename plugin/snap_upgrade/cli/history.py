"""``history``: what was done, by whom, what came of it, and how we know.

The rule: it tells what the journals say; one that is damaged is told of, too, and does not hide the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from snap_upgrade import journal
from snap_upgrade.cli.output import columns, iso_time, local_time, visible
from snap_upgrade.cli.session import Session
from snap_upgrade.core import errors
from snap_upgrade.core.names import shown
from snap_upgrade.core.plan import GOOD
from snap_upgrade.core.steps import Packages, describe

if TYPE_CHECKING:
    from pathlib import Path

    from snap_upgrade.journal import Entries

HEADER = ("ID", "When", "Flow", "Verdict", "User", "Packages", "Command")
_TAIL_BYTES = 4096
LAST = "last"


def run_history(session: Session) -> int:
    """Print the transactions, or everything about one."""
    ident = session.options.ident
    if ident not in {"", LAST} and not (ident.isascii() and ident.isdecimal()):
        raise errors.UsageError(f"{ident!r} is not the number of a transaction", "snap-upgrade history")
    machine = session.machine()
    if not ident:
        return _print_all(session, machine.state)
    if ident == LAST:
        ident = newest(machine.state)
    entries = journal.read(machine.state, str(int(ident)))
    log = tail(machine.state / "logs" / f"{entries.ident}.log")
    data = {**summary(entries), **details(entries), "log": log}
    if session.out.is_json:
        session.out.json(data)
        return errors.EXIT_DONE
    for line in detail_lines(data):
        session.out.text(line)
    return errors.EXIT_DONE


def _print_all(session: Session, state: Path) -> int:
    rows: list[dict[str, Any]] = []
    damaged: list[str] = []
    for found in all_entries(state):
        if isinstance(found, errors.StateDamaged):
            damaged.append(found.message)
        else:
            rows.append(summary(found))
    rows.sort(key=lambda row: int(row["id"]), reverse=True)
    if session.out.is_json:
        session.out.json(rows)
    else:
        lines = columns(HEADER, [table_row(row) for row in rows], right=frozenset({0, 5}))
        session.out.text(session.out.paint(lines[0], "bold"))
        for line, row in zip(lines[1:], rows, strict=True):
            session.out.text(session.out.paint(line, "red") if row["verdict"] in {"failed", "interrupted"} else line)
    for message in damaged:
        session.out.note(visible(message))
    return errors.EXIT_NEEDS_PERSON if damaged else errors.EXIT_DONE


def all_entries(state: Path) -> Iterator[Entries | errors.StateDamaged]:
    """Yield all transactions, those that are open before those that are closed."""
    for opened in journal.open_journals(state):
        yield opened if isinstance(opened, errors.StateDamaged) else opened.entries
    yield from journal.history(state)


def newest(state: Path) -> str:
    """Return the number of the newest transaction; raise NotFound if there is none."""
    used = [int(found.ident) for found in all_entries(state) if not isinstance(found, errors.StateDamaged)]
    if not used:
        raise errors.NotFound("there is no transaction yet", "snap-upgrade status")
    return str(max(used))


def flow_name(entries: Entries) -> str:
    """Return what the user knows a transaction's flow by."""
    return str(entries.begin.get("shown") or entries.flow)


def summary(entries: Entries) -> dict[str, Any]:
    """Return a transaction in one row, for scripts."""
    verdict = entries.last("verdict") or {}
    end = entries.last("end")
    user = entries.begin.get("user") or {}
    return {
        "id": entries.ident,
        "time": float(entries.begin.get("time") or 0),
        "flow": flow_name(entries),
        "command": str(entries.begin.get("command") or ""),
        "user": {"uid": user.get("uid"), "name": user_name(user.get("uid")), "source": user.get("source")},
        "front_end": str(entries.begin.get("front_end") or ""),
        "verdict": verdict.get("verdict"),
        "outcome": end["outcome"] if end else "open",
        "exit_code": _exit_code(verdict.get("verdict"), end),
        "packages": len(verdict.get("changes") or ()),
    }


def _exit_code(verdict: str | None, end: dict[str, Any] | None) -> int | None:
    """Return the exit code of the process that did it; None while it is open and where nobody saw that process end.

    The hook and the recovery close what others did, apt for instance, and write 0 whatever became of it.
    """
    if end is None or (end["exit"] == 0 and verdict not in {None, *GOOD}):
        return None
    return int(end["exit"])


def user_name(uid: object) -> str | None:
    """Return the name of the user *uid*; its number as text if it has none."""
    if not isinstance(uid, int):
        return None
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def table_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a summary as a line of the table; without a verdict the outcome stands in its place."""
    return (
        row["id"],
        local_time(row["time"]),
        row["flow"],
        row["verdict"] or row["outcome"],
        row["user"]["name"] or "-",
        str(row["packages"]) if row["verdict"] else "-",
        row["command"],
    )


def details(entries: Entries) -> dict[str, Any]:
    """Return what a summary leaves out."""
    verdict = entries.last("verdict") or {}
    return {
        "running": entries.begin.get("running"),
        "reasons": list(verdict.get("reasons") or ()),
        "changes": [{"name": name, "old": old, "new": new} for name, old, new in verdict.get("changes") or ()],
        "evidence": verdict.get("evidence") or {},
        "commands": [line["command"] for line in entries.lines if line["kind"] == "request" and line.get("command")],
        "steps": step_states(entries),
    }


def step_states(entries: Entries) -> list[dict[str, Any]]:
    """Return every step in words with its state: planned, started, failed, done, undoing or undone."""
    states: dict[int, tuple[str, str]] = {}
    for line in entries.lines:
        if line["kind"] in {"started", "failed", "done", "undoing", "undone"}:
            states[line["step"]] = (line["kind"], str(line.get("error") or ""))
    found = []
    verdict = entries.last("verdict")
    for number, step in enumerate(entries.steps()):
        state, error = states.get(number, ("planned", ""))
        if isinstance(step, Packages) and verdict is not None and state in {"started", "done"}:
            # The work is not a step that the engine does: whether it went well is what the verdict says.
            state = "done" if verdict["verdict"] in {*GOOD, "unchanged"} else "failed"
        found.append({"step": number, "text": describe(step), "state": state, "error": error})
    return found


def tail(path: Path) -> list[str]:
    """Return the last lines of the log at *path*, none if there is no log."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = text.splitlines()
    return lines[1:] if size > _TAIL_BYTES else lines


def detail_lines(data: dict[str, Any]) -> list[str]:
    """Return everything about a transaction as text."""
    user = data["user"]
    who = f"{user['name'] or 'unknown'} (uid {user['uid']}, from {user['source']})"
    lines = [
        f"transaction {data['id']}: {shown(data['flow'])}",
        f"when:     {local_time(data['time'])} ({iso_time(data['time'])})",
        f"who:      {shown(who)}",
        f"command:  {shown(data['command'])}",
        *(f"          {shown(command)}" for command in data["commands"]),
        f"by:       {shown(data['front_end'])}",
        f"outcome:  {shown(data['outcome'])}",
        f"verdict:  {shown(data['verdict'] or '-')}",
        *(f"          {shown(reason)}" for reason in data["reasons"]),
    ]
    lines += _section("evidence", _evidence(data["evidence"]))
    changed = [(change["name"], change["old"] or "-", change["new"] or "-") for change in data["changes"]]
    lines += _section("packages", columns(("Package", "Old", "New"), changed) if changed else [])
    steps = [f"{step['state']:8} {step['text']}" + (f": {step['error']}" if step["error"] else "")
             for step in data["steps"]]  # fmt: skip
    lines += _section("steps", steps)
    return lines + _section("end of the log", data["log"])


def _evidence(evidence: dict[str, Any]) -> list[str]:
    found = [f"exit status {evidence['exit']}"] if evidence.get("exit") is not None else []
    found += [str(line) for line in evidence.get("lines") or ()]
    return found + [f"kept: {name}" for name in evidence.get("kept_conffiles") or ()]


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"{title}:", *(f"  {shown(line)}" for line in lines)] if lines else []
