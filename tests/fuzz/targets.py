"""Fuzz entry points: one ``fuzz_<name>(data)`` per parser of what another program wrote.

Each may refuse its input only by the parser's own error; anything else that escapes is a finding. They take bytes, so
that any fuzzer can drive them (``atheris.Setup(argv, fuzz_dpkg_status)``); CORPUS has inputs to start from.
"""

from __future__ import annotations

from collections.abc import Callable

from snap_upgrade.core import dpkgdb, request, verdict, wire

STANZA = b"Package: a\nStatus: install ok installed\nArchitecture: amd64\nMulti-Arch: same\nVersion: 1:2.0-1\n"
REQUEST_3 = (
    b"VERSION 3\nAPT::Architecture=amd64\nCommandLine::AsString=apt%20install%20a\n\n"
    b"a 1.0 all none < 2.0 all none /srv/a_2.0_all.deb\nb 1.0 amd64 same > - - none **REMOVE**\n"
)
HISTORY = b"\nStart-Date: 2026-11-21  03:54:08\nError: it broke\nEnd-Date: 2026-11-21  03:54:09\n"

CORPUS: dict[str, list[bytes]] = {
    "dpkg_status": [STANZA, STANZA + b"Description: x\n y\n\n" + STANZA.replace(b"amd64", b"i386"), b""],
    "dpkg_updates": [STANZA, STANZA.replace(b"installed", b"unpacked") + b"\n#padding\n"],
    "request": [
        REQUEST_3,
        b"VERSION 2\nA=b\n\na 1.0 < 2.0 /srv/a.deb\na 1.0 < 2.0 **CONFIGURE**\n",
        b"/srv/a_1%3a2_all.deb\n",
    ],
    "request_json": [b'[{"name":"a","old":["1","all"],"new":null,"arch":"all","op":"remove","path":null}]'],
    "journal_line": [wire.line({"kind": "begin", "version": 1, "id": "42", "plan": []})],
    "json": [b'{"a":[1,2.5,null,true,"\\u00e9"],"b":{}}', b" [NaN, -Infinity]\n"],
    "apt_history": [HISTORY],
    "dpkg_log": [b"2026-11-21 03:54:08 startup archives unpack\n2026-11-21 03:54:08 status installed a:all 1\n"],
    "term_log": [b"Log started: x\r\nReading 5%\rReading 100%\r\n\x1b[1mE:\x1b[0m failed\n"],
}


def fuzz_dpkg_status(data: bytes) -> None:
    try:
        database = dpkgdb.parse_status(data)
    except dpkgdb.BadDatabase:
        return
    verdict.compare(database, dpkgdb.Database())


def fuzz_dpkg_updates(data: bytes) -> None:
    database = dpkgdb.parse_status(STANZA)
    try:
        dpkgdb.merge_updates(database, [data])
    except dpkgdb.BadDatabase:
        return
    assert all(key == package.key for key, package in database.items())


def fuzz_request(data: bytes) -> None:
    try:
        parsed = request.parse_request(data)
    except request.BadRequest:
        return
    assert request.from_json(wire.decode(wire.encode(request.to_json(parsed.targets)))) == parsed.targets


def fuzz_request_json(data: bytes) -> None:
    try:
        value = wire.decode(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return
    try:
        request.from_json(value)
    except request.BadRequest:
        return


def fuzz_journal_line(data: bytes) -> None:
    value = wire.parse_line(data)
    assert value is None or wire.parse_line(wire.line(value)) == value


def fuzz_json(data: bytes) -> None:
    try:
        wire.decode(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return


def fuzz_apt_history(data: bytes) -> None:
    verdict.parse_history(data)


def fuzz_dpkg_log(data: bytes) -> None:
    verdict.count_startups(data)


def fuzz_term_log(data: bytes) -> None:
    assert all(line.isprintable() for line in verdict.tail(data).split("\n"))


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): function for name, function in globals().items() if name.startswith("fuzz_")
}
