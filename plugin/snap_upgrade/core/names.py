"""Names of environments: what is allowed, and how one is made up.

The rule: a name is one path component that no shell, terminal or path can misread; everything else is the user's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container

from snap_upgrade.core.errors import UsageError

MAX_BYTES = 200  # leaves room for the suffix of an environment that is kept aside, within the 255 of a file name
RESERVED = frozenset({"last", "-"})
# What commands and messages mean by these words. An environment that is called so already keeps its name.
WORDS = frozenset({"running", "next", "default", "pending"})

# Made by transactions. Were a user's environment called so, the end of that transaction would destroy it.
_TRANSACTIONS_OWN = re.compile(r"(snap|before|failed)-[0-9]+")


def check_name(name: str) -> str:
    """Return *name* if a user may give it to an environment; raise UsageError that says why not."""
    problem = name_problem(name)
    if problem is None and _TRANSACTIONS_OWN.fullmatch(name):
        problem = "transactions give such names themselves"
    if problem is None and name in WORDS:
        problem = "the word has a meaning of its own"
    if problem:
        raise UsageError(
            f"{name!r} cannot name a boot environment: {problem}", "choose another name, such as 2026-11-21"
        )
    return name


def name_problem(name: str) -> str | None:
    """Return why *name* cannot name an environment, or None if it can."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    checks = (
        (not name, "it is empty"),
        (size > MAX_BYTES, f"it has {size} bytes, the most is {MAX_BYTES}"),
        (name in {".", ".."}, "it means a directory"),
        ("/" in name, "it contains a slash"),
        (name.startswith("-"), "it begins with a dash"),
        (name != name.strip(), "it begins or ends with white space"),
        (
            any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp", "Cs"} for c in name),
            "it contains a control character",
        ),
        (name in RESERVED, "the word has a meaning of its own"),
        (name.isdecimal(), "a number alone names a transaction"),
    )
    return next((why for bad, why in checks if bad), None)


def fresh_name(day: str, taken: Container[str]) -> str:
    """Return *day* (``2026-11-21``), or the first of ``day-2``, ``day-3``... that is not *taken*."""
    if day not in taken:
        return day
    number = 2
    while f"{day}-{number}" in taken:
        number += 1
    return f"{day}-{number}"


def shown(text: str) -> str:
    """Return *text* with what would move a terminal's cursor made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


UNTOLD = "?//"  # in what stands for a path that cannot be told; no path has an empty part


def is_told(path: str) -> bool:
    """Whether *path* is a path, and not what a storage says of a volume whose path cannot be told."""
    return UNTOLD not in path
