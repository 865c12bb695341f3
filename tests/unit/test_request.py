"""What apt tells a hook: every line of the protocol as recorded, and garbage refused with a reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade.core import request
from snap_upgrade.core.request import BadRequest, Target, merge, parse_request

HEADER = "VERSION 3\nAPT::Architecture=amd64\nAPT::Get::Purge=1\nCommandLine::AsString=apt-get%20install%20-y%20a=2\n\n"

# Recorded from apt 2.6.2 (facts/apt.md 1.5).
LINES = {
    "tgood 1.0 all none < 2.0 all none /srv/repo/./tgood_2.0_all.deb": Target(
        "tgood", "1.0", "all", "2.0", "all", "unpack", "/srv/repo/./tgood_2.0_all.deb"
    ),
    "tother - - none < 1.0 all none /srv/repo/./tother_1.0_all.deb": Target(
        "tother", None, None, "1.0", "all", "unpack", "/srv/repo/./tother_1.0_all.deb"
    ),
    "tgood 1.0 all none = 1.0 all none /srv/my repo/tgood_1%3a1.0_all.deb": Target(
        "tgood", "1.0", "all", "1.0", "all", "unpack", "/srv/my repo/tgood_1%3a1.0_all.deb"
    ),
    "tgood 2.0 all none > 1.0 amd64 same /r/tgood_1.0_all.deb": Target(
        "tgood", "2.0", "all", "1.0", "amd64", "unpack", "/r/tgood_1.0_all.deb"
    ),
    "tgood 1.0 all none > - - none **REMOVE**": Target("tgood", "1.0", "all", None, None, "remove"),
    "tpostinst 2.0 all none = 2.0 all none **CONFIGURE**": Target("tpostinst", "2.0", "all", "2.0", "all", "configure"),
    # Removed for a while to break a loop: the target is the version all the same.
    "tloop 1.0 all none < 2.0 all none **REMOVE**": Target("tloop", "1.0", "all", "2.0", "all", "remove"),
}


@pytest.mark.parametrize(("line", "target"), LINES.items(), ids=LINES.keys())
def test_each_kind_of_line_is_understood(line: str, target: Target) -> None:
    parsed = parse_request((HEADER + line + "\n").encode())
    assert parsed.targets == [target]
    assert (parsed.version, parsed.command_line) == (3, "apt-get install -y a=2")
    assert parsed.config["APT::Get::Purge"] == "1"


def test_the_two_lines_of_an_upgrade_are_one_target_whatever_their_order() -> None:
    unpack = "a 1.0 all none < 2.0 all none /r/a.deb\n"
    configure = "a 1.0 all none < 2.0 all none **CONFIGURE**\n"
    other = "b - - none < 1 all none /r/b.deb\n"
    for lines in (unpack + other + configure, configure + other + unpack):
        targets = {target.name: target for target in parse_request((HEADER + lines).encode()).targets}
        assert targets["a"] == Target("a", "1.0", "all", "2.0", "all", "unpack", "/r/a.deb")
        assert set(targets) == {"a", "b"}


def test_protocol_2_is_understood_without_architectures() -> None:
    text = "VERSION 2\nA=b\n\ntgood 1.0 < 2.0 /r/tgood.deb\ngone 1 > - **REMOVE**\n"
    parsed = parse_request(text.encode())
    assert parsed.version == 2
    assert parsed.targets == [
        Target("tgood", "1.0", None, "2.0", None, "unpack", "/r/tgood.deb"),
        Target("gone", "1", None, None, None, "remove"),
    ]


def test_protocol_1_is_understood_from_the_names_of_the_archives() -> None:
    parsed = parse_request(b"/srv/repo/./tgood_1%3a2.0_all.deb\n")
    assert parsed.version == 1
    assert parsed.targets == [
        Target("tgood", None, None, "1:2.0", "all", "unpack", "/srv/repo/./tgood_1%3a2.0_all.deb")
    ]
    # A removal is not told at all in protocol 1.
    assert parse_request(b"").targets == []


def test_names_that_are_no_utf8_survive() -> None:
    line = b"a - - none < 1 all none /r/\xff\xfe.deb\n"
    assert parse_request(HEADER.encode() + line).targets[0].path == "/r/\udcff\udcfe.deb"
    assert parse_request(b"VERSION 3\nK=%ff%zz%4\n\n").config["K"] == "\udcff%zz%4"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("VERSION 4\nA=b\n\n", "VERSION 4"),
        ("VERSION 3\nA=b\n", "before its list"),
        ("VERSION 3\nno equals sign\n\n", "no equals sign"),
        (HEADER + "a 1.0 all none < 2.0 all none\n", "a 1.0"),
        (HEADER + "a 1.0 all none ? 2.0 all none /x.deb\n", "a 1.0"),
        (HEADER + "a 1.0 all none < 2.0 all some /x.deb\n", "a 1.0"),
        (HEADER + "a 1.0 all none < 2.0 all none **DANCE**\n", "DANCE"),
        (HEADER + "a 1.0 all none < 2.0 all none /x.deb", "cut off"),
        (HEADER + "\n", "the line ''"),
        (HEADER + "a\0 1.0\n", "NUL"),
        ("VERSION 2\n\na 1.0 ! 2.0 /x.deb\n", "a 1.0"),
        ("some text\n", "some text"),
        ("/srv/no-version.deb\n", "no-version"),
    ],
)
def test_garbage_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(BadRequest) as raised:
        parse_request(text.encode())
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def target(name: str, old: str | None, new: str | None, operation: str = "unpack") -> Target:
    return Target(name, old, old and "all", new, new and "all", operation)


def test_the_last_of_several_requests_decides_and_the_first_says_what_was_before() -> None:
    first = [target("a", "1", "2"), target("b", None, "1"), target("c", "1", "1", "configure")]
    second = [target("a", "2", "3"), target("b", "1", None, "remove"), target("a", "2", "3", "configure")]
    merged = {item.name: item for item in merge([first, second])}
    assert (merged["a"].old_version, merged["a"].new_version, merged["a"].operation) == ("1", "3", "unpack")
    assert (merged["b"].old_version, merged["b"].new_version, merged["b"].operation) == (None, None, "remove")
    assert merged["c"] == first[2]


def test_a_package_that_changes_its_architecture_between_requests_is_one_target() -> None:
    first = Target("a", None, None, "1", "all", "unpack")
    second = Target("a", "1", "all", "2", "amd64", "unpack")
    assert merge([[first], [second]]) == [Target("a", None, None, "2", "amd64", "unpack")]


def test_two_architectures_of_one_name_are_two_targets() -> None:
    both = [Target("lib", "1", arch, "2", arch, "unpack") for arch in ("amd64", "i386")]
    assert merge([both]) == both


version = st.none() | st.text(min_size=1)
targets = st.lists(
    st.builds(
        Target,
        st.text(),
        version,
        version,
        version,
        version,
        st.sampled_from(["unpack", "configure", "remove"]),
        st.none() | st.text(),
    )
)


@given(targets)
def test_the_form_in_the_journal_comes_back(items: list[Target]) -> None:
    for item in items:
        if item.old_version is None:
            item.old_arch = None
        if item.new_version is None:
            item.new_arch = None
    assert request.from_json(json.loads(json.dumps(request.to_json(items)))) == items


@pytest.mark.parametrize(
    "items", [None, {}, "x", [1], [{}], [{"name": "a", "old": 1, "new": None, "op": "x", "path": None}]]
)
def test_a_journal_entry_that_is_no_request_is_refused(items: object) -> None:
    with pytest.raises(BadRequest):
        request.from_json(items)


@given(st.binary() | st.binary().map(lambda data: HEADER.encode() + data) | st.text().map(str.encode))
def test_no_bytes_make_the_parser_raise_anything_else(data: bytes) -> None:
    try:
        parse_request(data)
    except BadRequest:
        pass


json_values = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(json_values | st.lists(st.fixed_dictionaries(dict.fromkeys(["name", "old", "new", "op", "path"], json_values))))
def test_no_json_makes_the_reader_raise_anything_else(value: object) -> None:
    try:
        request.from_json(value)
    except BadRequest:
        pass


@pytest.mark.parametrize(
    ("options", "environ", "folder"),
    [
        ([], {}, "/var/lib/dpkg"),
        (["--force-confold"], {}, "/var/lib/dpkg"),
        (["--force-confold", "--root=/srv/r"], {}, "/srv/r/var/lib/dpkg"),
        (["--root", "/srv/r/"], {}, "/srv/r/var/lib/dpkg"),
        (["--root=/srv/r", "--admindir=/srv/db", "--force-confold"], {}, "/srv/db"),
        (["--root=/"], {}, "/var/lib/dpkg"),
        ([], {"DPKG_ROOT": "/srv/r"}, "/srv/r/var/lib/dpkg"),
        ([], {"DPKG_ROOT": "/srv/r", "DPKG_ADMINDIR": "/srv/db"}, "/srv/db"),
        (["--root=/"], {"DPKG_ROOT": "/srv/r"}, "/var/lib/dpkg"),
    ],
)  # fmt: skip
def test_the_database_that_dpkg_will_work_on_is_read_from_the_request(
    options: list[str], environ: dict[str, str], folder: str
) -> None:
    lines = "".join(f"DPkg::Options::={option}\n" for option in options)
    parsed = parse_request(f"VERSION 3\nDir=/elsewhere\n{lines}\n".encode())
    assert request.admin_dir(parsed.config, environ) == folder
