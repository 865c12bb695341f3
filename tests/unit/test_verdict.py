"""The table of facts/apt.md 3.1: what each failure of apt leaves, and what it is judged to be."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snap_upgrade.core import wire
from snap_upgrade.core.dpkgdb import UNFINISHED, Database, Package
from snap_upgrade.core.request import Target
from snap_upgrade.core.verdict import Evidence, Verdict, compare, count_startups, judge, parse_history, tail


def db(text: str, journal: tuple[str, ...] = ()) -> Database:
    """A database from words such as ``a=1.0`` (installed) or ``a=1.0/deinstall,ok,half-installed``."""
    packages = []
    for word in text.split():
        name, _, rest = word.partition("=")
        version, _, status = rest.partition("/")
        want, flag, state = (status or "install,ok,installed").split(",")
        packages.append(Package(name, "all", version, want, flag, state))
    return Database(packages, journal)


def want(text: str) -> list[Target]:
    """Targets from words: ``a:1>2`` upgrade, ``a:>1`` install, ``a:1>`` remove, ``a:1!1`` only configure."""
    targets = []
    for word in text.split():
        name, _, versions = word.partition(":")
        mark = "!" if "!" in versions else ">"
        old, _, new = versions.partition(mark)
        operation = "configure" if mark == "!" else "unpack" if new else "remove"
        targets.append(Target(name, old or None, old and "all", new or None, new and "all", operation))
    return targets


RAN = Evidence(started=1, ended=1, startups=2)
CUT = Evidence(started=1, ended=0, startups=1, exit=-9)
NOT_RUN = Evidence(started=0, ended=0, startups=0)


@dataclass(frozen=True)
class Case:
    targets: str
    before: str
    after: str
    kind: str
    evidence: Evidence = RAN
    journal: tuple[str, ...] = ()
    as_before: bool = False
    unmet: list[str] = field(default_factory=list)
    newly: list[str] = field(default_factory=list)
    still: list[str] = field(default_factory=list)
    earlier: tuple[str, ...] = ()


HALF = "/install,ok,half-configured"
CASES = {
    "install": Case("a:>1", "x=1", "x=1 a=1", "success"),
    "upgrade, removal, purge of conffiles and a configuration left over": Case(
        "a:1>2 b:1> c:1> d:1!1",
        f"a=1 b=1 c=1/deinstall,ok,config-files d=1{HALF}",
        "a=2 b=1/deinstall,ok,config-files d=1",
        "success",
    ),
    "reinstall": Case("a:1>1", "a=1", "a=1", "success", as_before=True),
    "downgrade": Case("a:2>1", "a=2", "a=1", "success"),
    "a held package that was not asked for": Case(
        "a:1>2", "a=1 h=1/hold,ok,installed", "a=2 h=1/hold,ok,installed", "success"
    ),
    "preinst of a new package fails": Case(
        "a:>1", "x=1", "x=1 a=/install,ok,not-installed", "failed", as_before=True, unmet=["a:all"]
    ),
    "preinst of an upgrade fails": Case("a:1>2", "a=1", "a=1", "failed", as_before=True, unmet=["a:all"]),
    "prerm of the old version fails": Case("a:1>2", "a=1", "a=1", "failed", as_before=True, unmet=["a:all"]),
    "file conflict": Case("a:>1 b:>1", "x=1", "x=1 b=1 a=/install,ok,not-installed", "failed", unmet=["a:all"]),
    "no space while unpacking": Case(
        "a:1>2 b:1>2", "a=1 b=1", "a=1 b=1", "failed", as_before=True, unmet=["a:all", "b:all"]
    ),
    "removal, prerm fails": Case(
        "a:1>", "a=1", "a=1/deinstall,ok,installed", "failed", as_before=True, unmet=["a:all"]
    ),
    "removal, postrm fails": Case(
        "a:1>", "a=1", "a=1/deinstall,ok,half-installed", "failed", unmet=["a:all"], newly=["a:all"]
    ),
    "postinst fails": Case("a:1>2", "a=1", f"a=2{HALF}", "failed", unmet=["a:all"], newly=["a:all"]),
    "postinst of a package that another needs fails": Case(
        "a:>1 b:>1",
        "x=1",
        f"x=1 a=1{HALF} b=1/install,ok,unpacked",
        "failed",
        unmet=["a:all", "b:all"],
        newly=["a:all", "b:all"],
    ),
    "trigger of a package that was not asked for fails": Case(
        "a:>1", "t=1", f"t=1{HALF} a=1", "failed", newly=["t:all"]
    ),
    "a script kills dpkg": Case(
        "a:1>2", "a=1", f"a=2{HALF}", "interrupted", journal=("0000", "0001"), unmet=["a:all"], newly=["a:all"]
    ),
    "a script kills apt": Case(
        "a:1>2", "a=1", f"a=2{HALF}", "interrupted", CUT, ("0000",), unmet=["a:all"], newly=["a:all"]
    ),
    "dpkg is killed after its last package": Case("a:1>2", "a=1", "a=2", "interrupted", journal=("0000",)),
    "SIGTERM to apt": Case("a:1>2", "a=1", f"a=2{HALF}", "interrupted", CUT, unmet=["a:all"], newly=["a:all"]),
    "apt is killed before dpkg did anything": Case(
        "a:1>2", "a=1", "a=1", "interrupted", CUT, as_before=True, unmet=["a:all"]
    ),
    "apt is killed and dpkg finishes alone": Case("a:1>2", "a=1", "a=2", "success", CUT),
    "terminal closed, all done": Case("a:1>2", "a=1", "a=2", "success", Evidence(1, 1, 2, exit=100)),
    "Ctrl-C with one dpkg run left": Case("a:1>2", "a=1", "a=2", "success", Evidence(1, 1, 2, exit=0)),
    "Ctrl-C between dpkg runs, apt says 0": Case(
        "a:>1 b:>1 c:>1", "x=1", "x=1 a=1", "failed", Evidence(1, 1, 1, exit=0), unmet=["b:all", "c:all"]
    ),
    "power cut": Case(
        "a:1>2 b:1>2",
        "a=1 b=1",
        "a=2/install,ok,unpacked b=1",
        "interrupted",
        CUT,
        ("0000",),
        False,
        ["a:all", "b:all"],
        ["a:all"],
    ),
    "a later hook refuses": Case("a:>1", "x=1", "x=1", "unchanged", NOT_RUN, as_before=True, unmet=["a:all"]),
    "a later hook refuses a reinstall": Case("a:1>1", "a=1", "a=1", "unchanged", NOT_RUN, as_before=True),
    "a later hook refuses while a journal of an earlier dpkg lies about": Case(
        "a:1>2", "a=1", "a=1", "unchanged", NOT_RUN, ("0000",), as_before=True, unmet=["a:all"], earlier=("0000",)
    ),
    "a journal that nobody logged": Case(
        "a:1>2", "a=1", "a=1", "interrupted", NOT_RUN, ("0000",), as_before=True, unmet=["a:all"]
    ),
    "a package broken before fails again while another is installed": Case(
        "a:>1 p:2!2", f"p=2{HALF}", f"p=2{HALF} a=1", "success", still=["p:all"]
    ),
    "a package broken before, not asked for": Case("a:>1", f"p=2{HALF}", f"p=2{HALF} a=1", "success", still=["p:all"]),
    "a package broken before fails again, nothing else asked": Case(
        "p:2!2", f"p=2{HALF}", f"p=2{HALF}", "unchanged", as_before=True, still=["p:all"]
    ),
    "a package broken before does not reach its new version": Case(
        "p:2>3", f"p=2{HALF}", f"p=3{HALF}", "failed", unmet=["p:all"], still=["p:all"]
    ),
    "a package broken before cannot be removed": Case(
        "p:2>", f"p=2{HALF}", "p=2/deinstall,ok,half-installed", "failed", unmet=["p:all"], still=["p:all"]
    ),
    "a package broken before and one broken now": Case(
        "a:>1 p:2!2", f"p=2{HALF}", f"p=2{HALF} a=1{HALF}", "failed", unmet=["a:all"], newly=["a:all"], still=["p:all"]
    ),
    "needs to be installed again": Case(
        "a:1>2", "a=1", "a=1/install,reinstreq,half-installed", "failed", unmet=["a:all"], newly=["a:all"]
    ),
    "another version than the wanted one": Case("a:1>2", "a=1", "a=3", "failed", unmet=["a:all"]),
    "no log at all": Case("a:1>1", "a=1", "a=1", "success", Evidence(), as_before=True),
}


def judged(case: Case) -> Verdict:
    return judge(want(case.targets), db(case.before, case.earlier), db(case.after, case.journal), case.evidence)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_failure_of_apt_is_judged_right(case: Case) -> None:
    verdict = judged(case)
    assert (verdict.kind, verdict.as_before) == (case.kind, case.as_before)
    assert (verdict.unmet, verdict.newly_broken, verdict.still_broken) == (case.unmet, case.newly, case.still)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_whatever_is_wrong_is_named_in_the_reasons(case: Case) -> None:
    verdict = judged(case)
    text = "\n".join(verdict.reasons)
    named = case.still if verdict.kind == "unchanged" else [*case.unmet, *case.newly, *case.still]
    assert [key for key in named if key not in text] == []
    if verdict.kind in ("failed", "interrupted", "unchanged"):
        assert verdict.reasons


def test_a_reason_names_package_wanted_version_reached_version_and_state() -> None:
    assert judged(CASES["postinst fails"]).reasons == ["a:all should be 2, it is 2 half-configured"]
    assert judged(CASES["trigger of a package that was not asked for fails"]).reasons == [
        "t:all is now 1 half-configured, it was 1"
    ]
    assert judged(CASES["removal, postrm fails"]).reasons == ["a:all should have been removed, it is 1 half-installed"]


def test_changes_are_the_databases_compared_and_not_the_request() -> None:
    before = db(f"a=1 b=1 c=1 d=1{HALF}")
    after = db("a=2 b=1/deinstall,ok,config-files d=1 e=1 c=1/hold,ok,installed n=/install,ok,not-installed")
    assert compare(before, after) == [
        ["a:all", "1", "2"],
        ["b:all", "1", "1 config-files"],
        ["d:all", "1 half-configured", "1"],
        ["e:all", None, "1"],
    ]


def test_a_target_without_architecture_is_met_by_any_and_gone_only_when_all_are() -> None:
    both = Database([Package("a", "amd64", "2"), Package("a", "i386", "1")])
    assert judge([Target("a", "1", None, "2", None, "unpack")], both, both, RAN).kind == "success"
    assert judge([Target("a", "1", None, None, None, "remove")], both, both, RAN).unmet == ["a"]


def test_a_verdict_fits_into_the_journal() -> None:
    for case in CASES.values():
        line = {"kind": "verdict", **judged(case).to_json(), "evidence": case.evidence.to_json()}
        assert wire.parse_line(wire.line(line))["verdict"] == case.kind


# Properties. Few names and versions, so that requests and databases meet.
names = st.sampled_from("abcd")
versions = st.sampled_from(["1", "2"])
package_states = st.sampled_from([*UNFINISHED, "installed", "installed", "installed", "config-files", "not-installed"])
packages = st.builds(
    Package,
    names,
    st.just("all"),
    versions,
    st.just("install"),
    st.sampled_from(["ok", "ok", "ok", "reinstreq"]),
    package_states,
)
databases = st.builds(Database, st.lists(packages, max_size=6), st.just(()) | st.just(("0000",)))


def build_target(name: str, old: str | None, new: str | None, operation: str) -> Target:
    return Target(name, old, old and "all", new, new and "all", operation if new else "remove")


requested = st.lists(
    st.builds(
        build_target, names, st.none() | versions, st.none() | versions, st.sampled_from(["unpack", "configure"])
    ),
    unique_by=lambda target: target.name,
)
counts = st.none() | st.integers(0, 2)
evidences = st.builds(Evidence, counts, counts, counts, st.none() | st.sampled_from([0, 1, 100, -9]))


@given(requested, databases, databases, evidences)
def test_success_is_never_said_of_an_unmet_target_or_of_new_damage(
    targets: list[Target], before: Database, after: Database, evidence: Evidence
) -> None:
    verdict = judge(targets, before, after, evidence)
    if verdict.kind == "success":
        assert not verdict.unmet and not verdict.newly_broken
        for target in targets:
            package = after.get(f"{target.name}:all")
            if target.new_version is None:
                assert package is None or not package.is_present
            elif f"{target.name}:all" not in verdict.still_broken:
                assert package is not None and package.reached == (target.new_version, "ok", "installed")


@given(requested, databases, databases, evidences)
def test_no_change_and_only_that_is_called_unchanged(
    targets: list[Target], before: Database, after: Database, evidence: Evidence
) -> None:
    verdict = judge(targets, before, after, evidence)
    assert verdict.as_before == (not verdict.changes) == (compare(before, after) == [])
    if verdict.kind == "unchanged":
        assert verdict.as_before and not verdict.newly_broken
    if not evidence.ran and verdict.as_before and before.journal == after.journal:
        assert verdict.kind == "unchanged"


@given(requested, databases, evidences)
def test_where_nothing_differs_nothing_is_newly_broken(
    targets: list[Target], database: Database, evidence: Evidence
) -> None:
    verdict = judge(targets, database, database, evidence)
    assert not verdict.newly_broken and not verdict.changes
    if not evidence.ran:
        assert verdict.kind == "unchanged"


@given(databases, databases, evidences)
def test_a_package_broken_before_and_after_makes_no_failure_by_itself(
    before: Database, after: Database, evidence: Evidence
) -> None:
    after.journal = ()
    whole = Evidence(1, 1, evidence.startups)
    verdict = judge([], before, after, whole)
    assert (verdict.kind in ("failed", "interrupted")) == bool(verdict.newly_broken)
    assert not set(verdict.newly_broken) & set(verdict.still_broken)


@given(requested, databases, databases, evidences, st.randoms(use_true_random=False))
def test_the_order_of_targets_and_packages_is_irrelevant(
    targets: list[Target], before: Database, after: Database, evidence: Evidence, rng: random.Random
) -> None:
    shuffled = list(targets)
    rng.shuffle(shuffled)
    entries = list(after.values())
    rng.shuffle(entries)
    other = judge(shuffled, before, Database(entries, after.journal), evidence)
    assert other.to_json() == judge(targets, before, after, evidence).to_json()


HISTORY = b"""
Start-Date: 2026-11-21  03:54:08
Commandline: apt-get install -y tpostinst=2.0
Requested-By: u (1000)
Upgrade: tpostinst:amd64 (1.0, 2.0)
Error: Sub-process /usr/bin/dpkg returned an error code (1)
End-Date: 2026-11-21  03:54:09

Start-Date: 2026-11-21  03:55:00
Commandline: apt-get install x
"""


def test_apts_history_tells_begun_ended_and_its_errors() -> None:
    assert parse_history(HISTORY) == (2, 1, ["Sub-process /usr/bin/dpkg returned an error code (1)"])
    assert parse_history(b"Start-Date: cut o") == (0, 0, [])


def test_dpkgs_log_tells_its_runs() -> None:
    log = b"2026-11-21 03:54:08 startup archives unpack\n2026-11-21 03:54:08 status half-installed a:all 1\n"
    assert count_startups(log) == 1
    assert count_startups(log * 3 + b"2026-11-21 03:54:09 startup packages confi") == 3


def test_the_tail_of_the_terminal_log_is_its_last_lines_in_printable_form() -> None:
    log = b"Setting up a ...\r\n\rReading 5%\rReading 100%\r\n\n\x1b[31mred\x1b[0m\xff\n" + b"x" * 1000 + b"\n"
    lines = tail(log, lines=4, width=50).split("\n")
    assert lines == ["Setting up a ...", "Reading 100%", "[31mred [0m\ufffd", "x" * 50]


@given(st.binary())
def test_no_bytes_make_the_log_parsers_raise(data: bytes) -> None:
    started, ended, errors = parse_history(data)
    assert started >= 0 and ended >= 0 and all(isinstance(error, str) for error in errors)
    assert count_startups(data) >= 0
    assert all(line.isprintable() for line in tail(data).split("\n"))
