"""Progress of apt as events, read from APT::Status-Fd.

The rule: a line that is not understood is ignored: progress decides nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from snap_upgrade.core.packages import Event, Report

# The subject may have a colon (libc6:i386), the percentage never has: the first number between colons is it.
_LINE = re.compile(r"(dlstatus|pmstatus|pmerror|pmconffile):([^ ]+?):(\d{1,3}(?:\.\d{1,9})?):(.*)", re.ASCII)
_FINISHED = ("Installed ", "Removed ", "Completely removed ", "Noting disappearance of ")


@dataclass(frozen=True, slots=True)
class StatusLine:
    """One line of APT::Status-Fd. *percent* is of the whole run; *subject* a package, or the number of a download."""

    kind: str
    subject: str
    percent: float
    text: str


def parse_status(line: str) -> StatusLine | None:
    """Return what *line* says, or None if it is no line of the protocol."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    percent = float(match[3])
    return StatusLine(match[1], match[2], percent, match[4]) if percent <= 100 else None


class Progress:
    """Turns status lines into events: bytes of *total_bytes* while downloading, packages of *total* while dpkg runs."""

    def __init__(self, report: Report, total_bytes: int = 0, total: int = 0) -> None:
        self._report = report
        self._total_bytes = total_bytes
        self._total = total
        self._bytes = 0
        self._finished: set[str] = set()
        self.errors: list[str] = []

    def hear(self, line: str) -> None:
        """Take a status line."""
        status = parse_status(line)
        if status is None:
            return
        if status.kind == "dlstatus":
            # apt takes a share back when a download is tried again; a bar that runs backwards helps nobody.
            self._bytes = max(self._bytes, round(status.percent * self._total_bytes / 100))
            self._report(Event("download", status.text, self._bytes, self._total_bytes))
            return
        if status.kind == "pmerror":
            self.errors.append(f"{status.subject}: {status.text}")
        if status.text.startswith(_FINISHED):
            self._finished.add(status.subject)
        done = min(len(self._finished), self._total) if self._total else len(self._finished)
        name = "" if status.subject == "dpkg-exec" else status.subject
        self._report(Event("package", name, done, self._total))

    def line(self, text: str) -> None:
        """Pass on a line that was printed."""
        if text.strip():
            self._report(Event("line", text.strip()))
