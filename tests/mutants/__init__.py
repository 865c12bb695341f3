"""Changes that break the product on purpose, each with the tests that must turn red.

The one rule: a mutant is here only because its tests were seen red. One whose text no longer stands in its file is
stale and an error (tests/unit/test_mutants.py): whoever changes the code writes it anew and sees it red again.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Mutant:
    """One change. *old* stands exactly once in *file*; *tests* are words for pytest; paths are relative to the tree."""

    section: str
    claim: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, text: str) -> str | None:
        """Return *text* with the change made; None if *old* is not in it exactly once, or nothing would change."""
        changed = text.replace(self.old, self.new)
        return changed if text.count(self.old) == 1 and changed != text else None

    def is_named(self, text: str) -> bool:
        """Whether *text* is part of its section, claim, file or tests."""
        return any(text.lower() in word.lower() for word in (f"{self.section}: {self.claim}", self.file, *self.tests))


def read() -> list[Mutant]:
    """Return all mutants, by section. Raises TypeError for a key that is missing or unknown."""
    return [
        Mutant(section=path.stem, **{**fields, "tests": tuple(fields["tests"])})
        for path in sorted(FOLDER.glob("*.toml"))
        for fields in tomllib.loads(path.read_text())["mutant"]
    ]
