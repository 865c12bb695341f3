"""Records: what cannot be understood is kept and reported, and what does not match is not guessed at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade import records
from snap_upgrade.core.errors import NotFound
from snap_upgrade.core.model import Kind, Record, State, Volume
from snap_upgrade.core.names import name_problem
from snap_upgrade.records import Records

UUID = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32


def record(uuid: str = UUID, name: str = "new", path: str = ".snap-upgrade/be/new") -> Record:
    return Record(uuid, Kind.ENVIRONMENT, name, path, 1.5, OTHER, "7", State.READY, description="ü\n")


def volume(uuid: str = UUID, path: str = ".snap-upgrade/be/new", generation: int = 5) -> Volume:
    return Volume(uuid, 300, path, None, 5, False, generation, generation)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "records").mkdir()
    return tmp_path


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(records.encode(record())), **changes}).encode()


def without(key: str) -> bytes:
    data = json.loads(records.encode(record()))
    del data[key]
    return json.dumps(data).encode()


names = st.text(min_size=1, max_size=60).filter(lambda name: name_problem(name) is None)
any_record = st.builds(
    Record,
    uuid=st.text("0123456789abcdef", min_size=32, max_size=32),
    kind=st.sampled_from(Kind),
    name=names,
    path=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    created=st.floats(allow_nan=False),
    origin=st.none() | st.text("0123456789abcdef", min_size=1),
    transaction=st.none() | st.text("0123456789", min_size=1),
    state=st.sampled_from(State),
    adopted=st.booleans(),
    pinned=st.booleans(),
    description=st.text(st.characters(exclude_categories=["Cs"])),
)


@given(any_record)
def test_a_record_comes_back_as_it_was_written(one: Record) -> None:
    assert records.decode(records.encode(one)) == one


def test_a_record_truncated_at_any_byte_is_reported_and_kept(state: Path) -> None:
    content = records.encode(record())
    path = state / f"records/{UUID}.json"
    for cut in range(len(content) - 1):  # without its last newline it is still whole
        path.write_bytes(content[:cut])
        found, problems = Records(state).read()
        assert found == []
        assert len(problems) == 1
        assert UUID in problems[0].message
        assert path.read_bytes() == content[:cut]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 300,
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100000,
        b"9" * 5000,
        changed(version=2),
        changed(version="1"),
        without("version"),
        without("name"),
        without("kind"),
        without("state"),
        changed(name=""),
        changed(name=7),
        changed(name="../../etc"),
        changed(name="a\nb"),
        changed(path=None),
        changed(kind="environments"),
        changed(state="half"),
        changed(created="yesterday"),
        changed(created=None),
        changed(created=10**400),
        changed(adopted="no"),
        changed(pinned=1),
        changed(uuid=OTHER),
    ],
)
def test_what_is_no_record_is_reported_and_kept_and_the_others_are_read(state: Path, content: bytes) -> None:
    path = state / f"records/{UUID}.json"
    path.write_bytes(content)
    third = "3" * 32
    Records(state).write(record(third, "third"))
    found, problems = Records(state).read()
    assert [one.name for one in found] == ["third"]
    assert len(problems) == 1
    assert "kept as it is" in problems[0].message
    assert path.read_bytes() == content


def test_a_file_that_a_killed_writer_left_is_no_record(state: Path) -> None:
    (state / f"records/.{UUID}.json.4711.new").write_bytes(records.encode(record())[:20])
    assert Records(state).read() == ([], [])


def test_a_volume_that_somebody_deleted_is_reported_with_the_command_that_forgets_it(state: Path) -> None:
    Records(state).write(record())
    inventory = Records(state).join({})
    assert inventory.owned == ()
    assert [one.name for one in inventory.missing] == ["new"]
    assert inventory.problems[0].hint == "snap-upgrade destroy new"
    with pytest.raises(NotFound, match="someone else deleted"):
        inventory.find("new")
    assert inventory.names() == {"new"}


def test_a_volume_that_somebody_moved_is_found_by_its_uuid_and_reported(state: Path) -> None:
    Records(state).write(record())
    inventory = Records(state).join({UUID: volume(path="elsewhere")})
    assert inventory.find("new").volume.path == "elsewhere"
    assert [problem.severity for problem in inventory.problems] == ["warning"]


def test_volumes_without_a_record_are_not_ours(state: Path) -> None:
    inventory = Records(state).join({OTHER: volume(OTHER)})
    assert inventory.owned == ()
    assert inventory.problems == ()


def test_order_is_that_of_the_file_system_and_not_of_the_clock(state: Path) -> None:
    store = Records(state)
    store.write(record(UUID, "young"))
    store.update(record(OTHER, "old"), created=9e9)
    inventory = store.join({UUID: volume(generation=9), OTHER: volume(OTHER, generation=8)})
    assert [one.record.name for one in inventory.owned] == ["old", "young"]


def test_dropping_twice_is_fine(state: Path) -> None:
    store = Records(state)
    store.write(record())
    store.drop(UUID)
    store.drop(UUID)
    assert store.read() == ([], [])


def test_a_record_from_before_lives_were_written_down_was_not_lived_in() -> None:
    made = Record(UUID, Kind.ENVIRONMENT, "new", "p", 1.0, None, "7", State.READY, lived=True)
    assert records.decode(records.encode(made)).lived
    data = json.loads(records.encode(made))
    del data["lived"]
    assert not records.decode(json.dumps(data).encode()).lived
    with pytest.raises(ValueError, match="lived"):
        records.decode(json.dumps({**data, "lived": "yes"}).encode())
