"""The parser of dpkg's database agrees with dpkg-query, on this machine and in a database that was cut off."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade.core.dpkgdb import BadDatabase, Database, Package, merge_updates, parse_status, read_database

FORMAT = "${Package}\t${Architecture}\t${Version}\t${db:Status-Want}\t${db:Status-Eflag}\t${db:Status-Status}\n"


def stanza(
    name: str, version: str = "1.0", status: str = "install ok installed", arch: str = "all", more: str = ""
) -> str:
    return (
        f"Package: {name}\nStatus: {status}\nPriority: optional\nMaintainer: A\n"
        f"Architecture: {arch}\n{more}Version: {version}\nDescription: short\n long\n .\n Version: 9\n"
    )


def admin(folder: Path, status: str, updates: dict[str, str] | None = None) -> Path:
    (folder / "updates").mkdir()
    (folder / "info").mkdir()
    (folder / "available").touch()
    (folder / "status").write_text(status)
    for name, text in (updates or {}).items():
        (folder / "updates" / name).write_text(text)
    return folder


def as_dpkg_query_says(folder: Path | str) -> dict[str, tuple[str, ...]]:
    command = ["/usr/bin/dpkg-query", f"--admindir={folder}", "--show", f"--showformat={FORMAT}"]
    output = subprocess.run(command, capture_output=True, check=True, text=True, env={"LC_ALL": "C.UTF-8"}).stdout
    rows = [tuple(line.split("\t")) for line in output.splitlines()]
    return {f"{row[0]}:{row[1]}": row for row in rows}


def as_we_say(database: Database) -> dict[str, tuple[str, ...]]:
    # dpkg-query --show leaves out what is not installed.
    return {
        key: (p.name, p.arch, p.version, p.want, p.flag, p.state)
        for key, p in database.items()
        if p.state != "not-installed"
    }


def test_it_agrees_with_dpkg_query_on_the_database_of_this_machine() -> None:
    ours = as_we_say(read_database("/var/lib/dpkg"))
    assert len(ours) > 50
    assert ours == as_dpkg_query_says("/var/lib/dpkg")


CASES = {
    "nothing in the journal": {},
    "an upgrade was cut off": {"0000": stanza("one", "2.0", "install ok half-configured")},
    "the last of several entries counts": {
        "0000": stanza("one", "2.0", "install reinstreq half-installed"),
        "0001": stanza("one", "2.0", "install ok unpacked"),
        "0002": stanza("two", "1.0", "deinstall ok config-files"),
    },
    "a new package": {"0000": stanza("three", "1.0", "install ok unpacked")},
    "dpkg's unfinished file is ignored": {"tmp.i": stanza("one", "7")},
    "another architecture of a package that may be there twice": {
        "0000": stanza("lib", "2.0", "install ok unpacked", "i386", "Multi-Arch: same\n")
    },
    "a package that changed its architecture": {"0000": stanza("one", "2.0", "install ok unpacked", "amd64")},
    "a purged package": {"0000": "Package: two\nStatus: unknown ok not-installed\nArchitecture: all\n"},
}


@pytest.mark.parametrize("updates", CASES.values(), ids=CASES.keys())
def test_it_merges_the_journal_as_dpkg_query_does(tmp_path: Path, updates: dict[str, str]) -> None:
    status = [stanza("one"), stanza("two"), stanza("lib", "1.0", arch="amd64", more="Multi-Arch: same\n")]
    folder = admin(tmp_path, "\n".join(status), updates)
    database = read_database(str(folder))
    assert as_we_say(database) == as_dpkg_query_says(folder)
    assert database.journal == tuple(sorted(name for name in updates if name.isdigit()))


def test_an_open_folder_does_as_well_as_a_path(tmp_path: Path) -> None:
    folder = admin(tmp_path, stanza("one"), {"0000": stanza("one", "2.0", "install ok unpacked")})
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert read_database(fd) == read_database(str(folder))
        assert str(read_database(fd)["one:all"]) == "2.0 unpacked"
    finally:
        os.close(fd)


def test_a_missing_updates_folder_is_an_empty_journal(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(stanza("one"))
    assert read_database(str(tmp_path)).journal == ()


@pytest.mark.parametrize("break_it", ["no folder", "no status", "status is a folder", "entry is a folder"])
def test_a_database_that_cannot_be_read_is_an_error_of_its_own(tmp_path: Path, break_it: str) -> None:
    folder = tmp_path / "dpkg"
    folder.mkdir()
    admin(folder, stanza("one"))
    if break_it == "no folder":
        folder = tmp_path / "absent"
    elif break_it == "no status":
        (folder / "status").unlink()
    elif break_it == "status is a folder":
        (folder / "status").unlink()
        (folder / "status").mkdir()
    else:
        (folder / "updates" / "0000").mkdir()
    with pytest.raises(BadDatabase, match=str(folder)):
        read_database(str(folder))


@pytest.mark.parametrize(
    "text", ["Status: install ok installed\n", "Package: one\nStatus: install ok\n", "no database at all\n"]
)
def test_text_that_is_no_database_is_refused(text: str) -> None:
    with pytest.raises(BadDatabase):
        parse_status(text.encode())


def test_a_package_without_a_status_is_not_installed() -> None:
    assert not parse_status(b"Package: wanted\n")["wanted:"].is_present


@given(st.lists(st.binary(max_size=200)))
def test_no_bytes_make_the_parsers_raise_anything_else(texts: list[bytes]) -> None:
    try:
        database = parse_status(b"\n\n".join(texts))
        merge_updates(database, texts)
    except BadDatabase:
        return
    assert all(isinstance(package, Package) for package in database.values())


names = st.from_regex(r"[a-z0-9][a-z0-9+.-]{1,10}", fullmatch=True)
states = st.sampled_from(["installed", "unpacked", "half-configured", "config-files", "triggers-awaited"])


@given(st.dictionaries(names, st.tuples(st.from_regex(r"[0-9][0-9a-z.+~-]{0,8}", fullmatch=True), states), max_size=8))
def test_what_is_written_is_what_is_read(packages: dict[str, tuple[str, str]]) -> None:
    text = "\n".join(stanza(name, version, f"install ok {state}") for name, (version, state) in packages.items())
    database = parse_status(text.encode())
    assert {p.name: (p.version, p.state) for p in database.values()} == packages


def test_a_package_that_is_not_there_is_not_broken_whatever_its_flag() -> None:
    # Found by hypothesis in test_verdict: newly broken, and yet nothing had changed.
    assert not Package("b", "all", "1", "install", "reinstreq", "not-installed").is_broken
    assert Package("b", "all", "1", "install", "reinstreq", "half-installed").is_broken
    assert Package("b", "all", "1", "install", "reinstreq", "installed").is_broken
