"""What every package manager promises, held against each real one.

The rule: a case speaks of requests and outcomes only; what is special to one manager is in its own file.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from snap_upgrade.core import verdict
from snap_upgrade.core.errors import Locked, NetworkFailed, NothingToDo, Refused
from snap_upgrade.core.packages import PackageChange, Request, Verb
from snap_upgrade.packages import find_manager, open_manager
from tests.contract.managers import MANAGERS, Case, Maker

UPGRADE = Request(Verb.UPGRADE)


@pytest.fixture(scope="module", params=sorted(MANAGERS))
def maker(request: pytest.FixtureRequest) -> Iterator[Maker]:
    with MANAGERS[request.param]() as make:
        yield make


@pytest.fixture
def case(maker: Maker, tmp_path: Path) -> Iterator[Case]:
    with maker(tmp_path) as made:
        yield made


def _do(case: Case, request: Request) -> str:
    case.manager.refresh(case.root, case.report)
    case.manager.download(case.root, request, case.archives, case.report)
    return case.manager.apply(case.root, request, case.archives, case.log, case.report).verdict


def test_the_table_names_what_the_manager_calls_itself(case: Case) -> None:
    assert open_manager(case.manager.name).name == case.manager.name
    found = find_manager(case.root.path)
    assert found is not None
    assert found.name == case.manager.name


def test_an_empty_folder_has_no_manager(case: Case, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert find_manager(tmp_path / "empty") is None


def test_a_plan_names_exactly_what_the_run_then_changes(case: Case) -> None:
    case.manager.refresh(case.root, case.report)
    planned = case.manager.plan(case.root, UPGRADE)
    assert planned.changes == (PackageChange("good", "1.0", "2.0"),)
    assert planned.download_bytes > 0
    assert case.manager.installed(case.root.path)["good"] == "1.0"
    assert _do(case, UPGRADE) == verdict.SUCCESS
    assert case.manager.installed(case.root.path)["good"] == "2.0"
    assert case.manager.changes(case.pristine, case.root.path) == [PackageChange("good", None, "2.0")]
    with pytest.raises(NothingToDo):
        case.manager.plan(case.root, UPGRADE)


def test_remove_removes(case: Case) -> None:
    assert _do(case, Request(Verb.REMOVE, ("good",))) == verdict.SUCCESS
    assert "good" not in case.manager.installed(case.root.path)


def test_a_failing_script_is_no_success_and_is_found_broken(case: Case) -> None:
    assert case.manager.broken(case.root.path) == []
    assert _do(case, Request(Verb.INSTALL, ("bad",))) == verdict.FAILED
    assert case.manager.broken(case.root.path) != []


def test_a_package_nobody_has_is_refused(case: Case) -> None:
    case.manager.refresh(case.root, case.report)
    with pytest.raises(Refused):
        case.manager.plan(case.root, Request(Verb.INSTALL, ("nonesuch",)))


def test_a_dead_network_is_told_before_anything_starts_and_not_needed_after(case: Case) -> None:
    case.manager.refresh(case.root, case.report)
    case.manager.download(case.root, UPGRADE, case.archives, case.report)
    case.cut_network()
    with pytest.raises(NetworkFailed):
        case.manager.download(case.root, Request(Verb.INSTALL, ("bad",)), case.archives, case.report)
    outcome = case.manager.apply(case.root, UPGRADE, case.archives, case.log, case.report)
    assert outcome.verdict == verdict.SUCCESS


def test_the_lock_excludes_and_is_given_back(case: Case) -> None:
    for _ in range(2):
        with case.manager.lock(case.root.path), pytest.raises(Locked), case.manager.lock(case.root.path):
            pass


def test_any_command_fails_by_its_status(case: Case) -> None:
    good = case.manager.run(case.root, ["true"], case.log, case.report)
    bad = case.manager.run(case.root, ["sh", "-c", "exit 5"], case.log, case.report)
    assert (good.verdict, bad.verdict, bad.exit_status) == (verdict.SUCCESS, verdict.FAILED, 5)


def test_the_live_command_names_a_program_and_the_packages(case: Case) -> None:
    argv = case.manager.live_command(Request(Verb.INSTALL, ("good",)))
    assert argv[0].startswith("/")
    assert argv[-1] == "good"
