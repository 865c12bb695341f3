"""What became of a package operation: requested against reached, and what is broken now that was not before.

No exit status, no log line and no audit alone decides: apt interrupted between two runs of dpkg says 0 with packages
missing, and 100 with everything installed when its terminal went away. They are evidence and kept as such.
"""

from __future__ import annotations

from . import request as requests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .dpkgdb import Database, Package
    from .request import Target

SUCCESS = "success"
# rpm goes on after a failed scriptlet and says so; dpkg has no such outcome. The name is shared by all.
SUCCESS_WITH_SCRIPT_ERRORS = "success-with-script-errors"
FAILED = "failed"
INTERRUPTED = "interrupted"
UNCHANGED = "unchanged"
KINDS = (SUCCESS, SUCCESS_WITH_SCRIPT_ERRORS, FAILED, INTERRUPTED, UNCHANGED)


class Evidence:
    """What the logs and the process table said. Counts are of what was written since the operation began.

    ``started`` and ``ended`` count the entries of apt's history (None: it keeps none), ``startups`` the runs of dpkg
    in its log (None: it keeps none), ``exit`` is the front end's exit status if it could be learned (negative: a
    signal), ``errors`` are apt's own words, ``term_tail`` the end of what dpkg and the scripts printed.
    """

    __slots__ = ("ended", "errors", "exit", "started", "startups", "term_tail")

    def __init__(
        self,
        started: int | None = None,
        ended: int | None = None,
        startups: int | None = None,
        exit: int | None = None,
        errors: Iterable[str] = (),
        term_tail: str = "",
    ) -> None:
        self.started = started
        self.ended = ended
        self.startups = startups
        self.exit = exit
        self.errors = tuple(errors)
        self.term_tail = term_tail

    @property
    def ran(self) -> bool:
        """Whether dpkg may have run. Without any log nobody can tell, and then it may have."""
        if self.started is None and self.startups is None:
            return True
        return bool(self.started) or bool(self.startups)

    @property
    def is_cut_off(self) -> bool:
        """Whether apt began an entry in its history and never ended it."""
        return (self.started or 0) > (self.ended or 0)

    def to_json(self) -> dict[str, Any]:
        """Return the form that the journal keeps."""
        return {slot: getattr(self, slot) for slot in self.__slots__}


class Verdict:
    """The judgement and its reasons; ``changes`` are ``[name:arch, before, now]``, None standing for not there."""

    __slots__ = ("as_before", "changes", "kind", "newly_broken", "ran", "reasons", "still_broken", "unmet")

    def __init__(
        self,
        kind: str,
        reasons: list[str],
        unmet: list[str],
        newly_broken: list[str],
        still_broken: list[str],
        changes: list[list[str | None]],
        ran: bool,
    ) -> None:
        self.kind = kind
        self.reasons = reasons
        self.unmet = unmet
        self.newly_broken = newly_broken
        self.still_broken = still_broken
        self.changes = changes
        self.as_before = not changes
        self.ran = ran

    @property
    def is_good(self) -> bool:
        """Whether nothing has to be undone: what was asked for is there, or nothing was touched."""
        return self.kind in (SUCCESS, SUCCESS_WITH_SCRIPT_ERRORS, UNCHANGED)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the journal's ``verdict`` line but its evidence."""
        return {
            "verdict": self.kind,
            "reasons": self.reasons,
            "unmet": self.unmet,
            "newly_broken": self.newly_broken,
            "still_broken": self.still_broken,
            "changes": self.changes,
            "as_before": self.as_before,
            "ran": self.ran,
        }


def judge(targets: Iterable[Target], before: Database, after: Database, evidence: Evidence) -> Verdict:
    """Say whether the operation that was to reach *targets* did, given dpkg's database before it and now.

    A package that was broken before, is broken still, and of which nothing new was asked makes no failure: undoing
    would not mend it. It is reported. One that was to get another version and did not is a failure like any other.
    """
    unmet: dict[str, str] = {}
    reached = left = 0
    for target in requests.merge([targets]):
        reason = _unmet(target, after)
        if reason is None:
            reached += 1
        elif _is_leftover(target, before, after):
            left += 1
        else:
            unmet[_label(target)] = reason
    newly = {key: package for key, package in sorted(after.items()) if package.is_broken and not _broken(before, key)}
    still = {key: package for key, package in sorted(after.items()) if package.is_broken and _broken(before, key)}
    changes = compare(before, after)
    reasons = [unmet[label] for label in sorted(unmet)]
    reasons += [_newly_reason(before.get(key), package) for key, package in newly.items() if key not in unmet]
    bad = bool(unmet or newly)
    # A journal that was there before and of which dpkg did not run to merge it says nothing about this operation.
    journal = after.journal if evidence.ran or after.journal != before.journal else ()
    if (bad or journal) and (journal or evidence.is_cut_off):
        kind = INTERRUPTED
        reasons += _cut_reasons(journal, evidence)
    elif not changes and (not evidence.ran or (left and not reached and not bad)):
        kind = UNCHANGED
        reasons = ["nothing was changed: dpkg did not run"] if not evidence.ran else ["nothing was changed"]
    elif bad:
        kind = FAILED
    else:
        kind = SUCCESS
    reasons += [f"{key} is still broken, as before: {package}" for key, package in still.items() if key not in unmet]
    return Verdict(kind, reasons, sorted(unmet), list(newly), list(still), changes, evidence.ran)


def compare(before: Database, after: Database) -> list[list[str | None]]:
    """Return what differs as ``[name:arch, before, now]``, sorted by name.

    Each side is None where dpkg knows nothing of the package, else the version, followed by a space and the state
    where that is not simply ``installed``.
    """
    changes: list[list[str | None]] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = _known(before, key), _known(after, key)
        if (old is None) != (new is None) or (old is not None and new is not None and old.reached != new.reached):
            changes.append([key, None if old is None else str(old), None if new is None else str(new)])
    return changes


def parse_history(data: bytes) -> tuple[int, int, list[str]]:
    """Return how many operations this part of apt's history.log starts and ends, and apt's own errors in it.

    A last line without its newline was cut off and is not counted.
    """
    started = ended = 0
    errors = []
    for line in data.split(b"\n")[:-1]:
        if line.startswith(b"Start-Date:"):
            started += 1
        elif line.startswith(b"End-Date:"):
            ended += 1
        elif line.startswith(b"Error:"):
            errors.append(_text(line[6:]).strip())
    return started, ended, errors


def count_startups(data: bytes) -> int:
    """Return how many dpkg runs this part of dpkg.log begins."""
    return sum(b" startup " in line for line in data.split(b"\n")[:-1])


def tail(data: bytes, lines: int = 20, width: int = 300) -> str:
    """Return the last *lines* of a terminal log in printable characters, each cut at *width*."""
    kept = [line for line in (_printable(raw) for raw in data[-64 * 1024 :].split(b"\n")) if line]
    return "\n".join(line[:width] for line in kept[-lines:])


def _printable(raw: bytes) -> str:
    # A progress line is rewritten by carriage returns; only its last form was left on the screen.
    text = _text(raw.rstrip(b"\r").rpartition(b"\r")[2])
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _known(database: Database, key: str) -> Package | None:
    package = database.get(key)
    return None if package is None or package.state == "not-installed" else package


def _broken(database: Database, key: str) -> bool:
    package = database.get(key)
    return package is not None and package.is_broken


def _label(target: Target) -> str:
    return target.name if target.arch is None else f"{target.name}:{target.arch}"


def _entries(target: Target, database: Database) -> list[Package]:
    """What the database has of a target: one architecture, or all of them where the request did not say which."""
    if target.arch is None:
        return [package for package in database.named(target.name) if package.state != "not-installed"]
    package = _known(database, _label(target))
    return [] if package is None else [package]


def _unmet(target: Target, after: Database) -> str | None:
    """Why *target* is not reached, or None if it is."""
    found = _entries(target, after)
    now = ", ".join(str(package) for package in found) or "not installed"
    if target.new_version is None:
        if not any(package.is_present for package in found):
            return None
        return f"{_label(target)} should have been removed, it is {now}"
    for package in found:
        if package.reached == (target.new_version, "ok", "installed"):
            return None
    return f"{_label(target)} should be {target.new_version}, it is {now}"


def _is_leftover(target: Target, before: Database, after: Database) -> bool:
    """Whether nothing new was asked of a package that was broken, and it is the same package, still broken."""
    old, new = _entries(target, before), _entries(target, after)
    return (
        len(old) == len(new) == 1
        and old[0].is_broken
        and new[0].is_broken
        and old[0].version == new[0].version == target.new_version
    )


def _newly_reason(old: Package | None, new: Package) -> str:
    was = "not there" if old is None or old.state == "not-installed" else str(old)
    return f"{new.key} is now {new}, it was {was}"


def _cut_reasons(journal: Iterable[str], evidence: Evidence) -> list[str]:
    reasons = []
    count = len(list(journal))
    if count:
        reasons.append(f"dpkg was cut off: its journal has {count} entries that it did not finish")
    if evidence.is_cut_off:
        reasons.append("the package manager was cut off: its history has no end of this operation")
    return reasons
