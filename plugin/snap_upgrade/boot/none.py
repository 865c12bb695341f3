"""No boot loader of ours: chroots, containers, and every machine until its loader has a backend.

The rule: say so. The storage's own selection (default subvolume or the name that boots) is the whole truth here.
"""

from __future__ import annotations

from pathlib import Path

from snap_upgrade.boot import BootEntry
from snap_upgrade.core.errors import Refused


class NoLoader:
    """The loader that has no menu: whatever the storage selects boots."""

    kind = "none"

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self) -> list[BootEntry]:
        """Return no entries: there is no menu."""
        return []

    def next_environment(self) -> str | None:
        """Return None: the storage's selection decides."""
        return None

    def set_once(self, environment: str) -> None:
        """Refuse: without a loader nothing can count boots before the root is mounted."""
        raise self._refusal(f"boot {environment} once")

    def set_default(self, environment: str) -> None:
        """Refuse: there is no menu with a default."""
        raise self._refusal(f"make {environment} the default of the boot menu")

    def add(self, environment: str, title: str) -> BootEntry:
        """Refuse: there is no menu to add to."""
        raise self._refusal(f"add {title} to the boot menu")

    def remove(self, environment: str) -> None:
        """Hold already: there is no entry to remove."""

    def fallback_problem(self) -> str | None:
        """Return the reason why nothing falls back by itself here."""
        return "no boot loader is managed here, so an environment that does not come up does not fall back by itself"

    def _refusal(self, what: str) -> Refused:
        return Refused(f"cannot {what}: no boot loader is managed on this machine", "activate it without -t")
