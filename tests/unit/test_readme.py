"""README.md has what was promised in the order that was promised, and names no command or setting that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from snap_upgrade.cli.parser import build_parser
from snap_upgrade.core.errors import UsageError

TOP = Path(__file__).parents[2]
README = (TOP / "README.md").read_text()
ORDER = ("make demo", "What is supported", "How it works", "Recovery in an emergency", "Configuration", "Comparison",
         "Developing")  # fmt: skip


def section(title: str) -> str:
    """Return the text under the heading *title*."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def test_its_parts_come_in_the_order_of_the_issue() -> None:
    what = re.findall(r"^\d\. .+$", README.partition("```")[0], re.MULTILINE)
    assert len(what) == 5
    assert "root@demo:~# snap-upgrade rollback" in README.split("```")[1]
    places = [README.index("```\nmake demo"), *(README.index(f"\n## {title}\n") for title in ORDER[1:])]
    assert places == sorted(places)
    assert README.index("root@demo") < places[0]
    assert re.findall(r"^make \w+", README.split("```")[3], re.MULTILINE) == ["make demo", "make check"]


def test_each_part_has_what_it_is_for() -> None:
    assert section("What is supported").count("\n|") > 5
    picture = section("How it works").split("```")[1]
    assert all(word in picture for word in ("apt install", "image-update", "journal", "verdict", "rollback"))
    assert "subvolid=5" in section("Recovery in an emergency")
    table = [line for line in section("Comparison").splitlines() if line.startswith("|")]
    others = ["snapper", "timeshift", "transactional-update", "zectl"]
    assert [cell.strip() for cell in table[0].strip("|").split("|")][1:] == ["snap-upgrade", *others]
    # Fair: where we lack what others have, it is in the table too.
    assert sum(row.split("|")[2].strip() in ("no", "not yet", "new") for row in table[2:]) >= 5


@pytest.mark.parametrize(
    "line", sorted(set(re.findall(r"(?:^|`|~# )snap-upgrade ([a-z][^`\n#]*)", README, re.MULTILINE)))
)
def test_every_command_it_shows_is_one(line: str) -> None:
    try:
        build_parser().parse_args(line.split())
    except (SystemExit, UsageError) as error:
        pytest.fail(f"snap-upgrade {line}: {error}")


def test_its_settings_are_the_settings_with_their_defaults() -> None:
    shipped = dict(re.findall(r"^#? ?(\w+) = ?(.*)$", (TOP / "packaging/snap-upgrade.conf").read_text(), re.MULTILINE))
    rows = [line.strip("|").split("|") for line in section("Configuration").splitlines() if line.startswith("| `")]
    assert len(rows) >= 5
    for keys, defaults, _ in rows:
        names = re.findall(r"`(\w+)`", keys)
        values = [value.strip(" `") for value in defaults.split(",")]
        assert len(names) == len(values)
        for name, value in zip(names, values, strict=True):
            assert shipped[name].strip() == value, name
