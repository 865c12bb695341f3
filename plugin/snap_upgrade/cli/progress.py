"""Progress: one updating line on a terminal, a line for each phase elsewhere, JSON lines for scripts.

The rule: what the package manager prints is shown, never interpreted, and cannot move the cursor.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict

from snap_upgrade.cli.output import Output, human_bytes
from snap_upgrade.core.names import shown
from snap_upgrade.core.packages import Event

PHASES = {
    "refresh": "fetching the lists of packages",
    "plan": "working out what changes",
    "download": "downloading",
    "apply": "working in the clone",
    "configure": "configuring",
}
_EVERY_S = 0.1  # a terminal needs no more


class Progress:
    """Takes events and shows them; `end` clears the line. Call it as the flows' report."""

    def __init__(self, out: Output, is_wanted: bool) -> None:
        self._out = out
        self._is_wanted = is_wanted and not out.is_quiet
        self._is_live = self._is_wanted and not out.is_json and _is_terminal()
        self._phase = ""
        self._count = ""
        self._line = ""
        self._shown_at = 0.0

    def __call__(self, event: Event) -> None:
        """Show *event*."""
        if not self._is_wanted:
            return
        if self._out.is_json:
            self._as_json(event)
        elif self._is_live:
            self._take(event)
            self._draw(is_forced=event.kind == "phase")
        elif event.kind == "phase":
            self._out.say(f"{phase_text(event.name)} ...")

    def end(self) -> None:
        """Clear the line, so that what is said next begins on an empty one."""
        if self._is_live:
            self._put("\r\x1b[K")

    def _as_json(self, event: Event) -> None:
        is_final = event.total > 0 and event.done >= event.total
        if event.kind == "download" and not is_final and time.monotonic() - self._shown_at < _EVERY_S:
            return
        self._shown_at = time.monotonic()
        self._out.json({"progress": asdict(event)}, is_line=True)

    def _take(self, event: Event) -> None:
        if event.kind == "phase":
            self._phase, self._count, self._line = phase_text(event.name), "", ""
        elif event.kind == "download":
            self._count = f"{human_bytes(event.done)} of {human_bytes(event.total)}"
        elif event.kind == "package":
            self._count = f"{event.done}/{event.total} {event.name}".rstrip()
        elif event.kind == "line":
            self._line = event.name

    def _draw(self, is_forced: bool) -> None:
        import shutil  # with all it knows of archives: for a terminal only

        now = time.monotonic()
        if not is_forced and now - self._shown_at < _EVERY_S:
            return
        self._shown_at = now
        width = shutil.get_terminal_size().columns - 1
        self._put("\r\x1b[K" + status_line(self._phase, self._count, self._line, width))

    def _put(self, text: str) -> None:
        self._out.draw(text)


def status_line(phase: str, count: str, line: str, width: int) -> str:
    """Return the one line that says how far it is, at most *width* characters."""
    text = "  ".join(part for part in (phase, count, line.strip()) if part)
    return shown(text)[: max(width, 0)]


def phase_text(name: str) -> str:
    """Return the phase *name* in words; one we do not know as it is."""
    return PHASES.get(name, name)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
