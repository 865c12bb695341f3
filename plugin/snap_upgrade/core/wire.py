"""JSON and journal lines at the price of no import: half of what a hook would pay is ``import json``.

The C functions behind the json module do the work; whatever they do not settle is given to json itself, so that
the two never disagree, neither in a value nor in an error. This module knows the form of a line, not its meaning.
"""

from __future__ import annotations

import binascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    import _json as accelerator
except ImportError:  # a Python without it: json has the same in Python
    accelerator = None  # type: ignore[assignment]

make_encoder: Any = getattr(accelerator, "make_encoder", None)
make_scanner: Any = getattr(accelerator, "make_scanner", None)
quote: Any = getattr(accelerator, "encode_basestring_ascii", None)

_WHITESPACE = " \t\n\r"
_CONSTANTS = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}


class _Context:
    """What the C scanner asks of a decoder: the settings of ``json.loads`` without arguments."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_CONSTANTS.__getitem__)


def _refuse(obj: object) -> object:
    # The words of json.JSONEncoder.default
    raise TypeError(f"Object of type {obj.__class__.__name__} is not JSON serializable")


def encode(obj: object) -> str:
    """Return *obj* as compact JSON in ASCII, as ``json.dumps(obj, separators=(",", ":"))`` would.

    Raises TypeError for what JSON has no form for and ValueError for a circle.
    """
    if make_encoder is not None:
        try:
            encoder = make_encoder({}, _refuse, quote, None, ":", ",", False, False, True)
        except TypeError:
            pass  # a later Python asks for other arguments: json knows which
        else:
            return "".join(encoder(obj, 0))
    import json

    return json.dumps(obj, separators=(",", ":"))


def decode(text: str) -> Any:
    """Return the value of one JSON document, as ``json.loads`` would. Raises its ValueError."""
    if make_scanner is not None:
        start = 0
        while text[start : start + 1] and text[start] in _WHITESPACE:
            start += 1
        try:
            value, end = make_scanner(_Context)(text, start)
        except (StopIteration, AttributeError):
            pass  # nothing there, or a later Python asks more of the context: json tells which
        else:
            if not text[end:].strip(_WHITESPACE):
                return value
    import json

    return json.loads(text)


def line(obj: object) -> bytes:
    """Return the journal line of *obj*: CRC-32 of the JSON in 8 hex digits, a space, the JSON, a newline."""
    body = encode(obj).encode("ascii")
    return b"%08x %s\n" % (binascii.crc32(body), body)


def parse_line(data: bytes) -> Any:
    """Return what a journal line says, or None if it is torn: short, without its newline, or with a wrong CRC."""
    if len(data) < 11 or data[8:9] != b" " or data[-1:] != b"\n":
        return None
    body = data[9:-1]
    # Compared as text: int(…, 16) would also take "+", "_" and blanks.
    if data[:8] != b"%08x" % binascii.crc32(body):
        return None
    try:
        return decode(body.decode("ascii"))
    except (ValueError, RecursionError):
        return None
