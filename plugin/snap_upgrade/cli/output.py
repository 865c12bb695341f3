"""What is printed: text for people, JSON for scripts.

The rule: output never ends the work. A reader that goes away is no error; any other failure to write
is remembered and told at the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from snap_upgrade.core.names import shown

_COLORS = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}


class Output:
    """Standard output and standard error. *color* is auto, always or never."""

    def __init__(self, is_json: bool = False) -> None:
        self._failed: OSError | None = None
        self.configure(is_json, False, "auto")

    def configure(self, is_json: bool, is_quiet: bool, color: str) -> None:
        """Take the options, once they are known to be right."""
        self.is_json = is_json
        self.is_quiet = is_quiet
        self._color = color

    @property
    def failure(self) -> OSError | None:
        """Why standard output could not be written, or None; a reader that closed its end is no failure."""
        return self._failed

    def text(self, line: str) -> None:
        """Print *line*, which was asked for: also when quiet."""
        self._write(sys.stdout, line)

    def say(self, line: str) -> None:
        """Print *line* for a person, harmless to his terminal: not when quiet, and not among JSON."""
        if not self.is_quiet and not self.is_json:
            self._write(sys.stdout, visible(line))

    def json(self, data: Any, is_line: bool = False) -> None:
        """Print *data* as JSON, on one line if *is_line*."""
        self._write(sys.stdout, json.dumps(data) if is_line else json.dumps(data, indent=2))

    def note(self, line: str) -> None:
        """Print *line* on standard error, harmless to a terminal."""
        self._write(sys.stderr, visible(line))

    def draw(self, text: str) -> None:
        """Put *text* on standard error as it is, without a newline."""
        self._write(sys.stderr, text, end="")

    def paint(self, text: str, color: str, stream: TextIO | None = None) -> str:
        """Return *text* in *color* where colours are wanted."""
        to = stream or sys.stdout
        is_wanted = self._color == "always" or (
            self._color == "auto" and to is not None and to.isatty() and "NO_COLOR" not in os.environ
        )
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m" if is_wanted and not self.is_json else text

    def end(self) -> None:
        """Write what is still in the buffers (argparse prints its help itself)."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                try:
                    stream.flush()
                except OSError as error:
                    self._silence(stream, error)

    def _write(self, stream: TextIO | None, line: str, end: str = "\n") -> None:
        if stream is None:
            return
        try:
            stream.write(line + end)
            stream.flush()
        except OSError as error:
            self._silence(stream, error)

    def _silence(self, stream: TextIO, error: OSError) -> None:
        """Send what is still to come to nowhere, the rest of the buffer too, so that Python's own end is quiet."""
        if not isinstance(error, BrokenPipeError) and stream is sys.stdout and self._failed is None:
            self._failed = error
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Return *rows* as aligned lines under *header*; the columns in *right* are aligned to the right."""
    table = [list(header), *[[shown(cell) for cell in row] for row in rows]]
    widths = [max(_width(row[number]) for row in table) for number in range(len(header))]
    lines = []
    for row in table:
        cells = [
            " " * (width - _width(cell)) + cell if number in right else cell + " " * (width - _width(cell))
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    """Return how many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in {"W", "F"} else 1 for c in text
    )


def human_bytes(size: int) -> str:
    """Return *size* in the largest binary unit that leaves a whole part, as ``1.4 GiB``."""
    if abs(size) < 1024:
        return f"{size} B"
    value, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def local_time(seconds: float) -> str:
    """Return a time since the epoch as the user's clock shows it, "-" for none."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds > 0 else "-"


def iso_time(seconds: float) -> str:
    """Return a time since the epoch in ISO 8601 with its offset, "-" for none."""
    if seconds <= 0:
        return "-"
    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
    return f"{text[:-2]}:{text[-2:]}"


def plural(count: int, noun: str) -> str:
    """Return *count* and *noun*, with an s where it belongs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def visible(text: str) -> str:
    """Return *text*, which may have several lines, with everything else that moves a cursor made visible."""
    return "\n".join(shown(line) for line in text.split("\n"))
