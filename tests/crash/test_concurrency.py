"""Several at once: the right order or exit 10, readers never wait, and no state file is ever broken.

Order is made with pipes: the first holds at a named point until the test lets it go.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snap_upgrade import journal, manage
from snap_upgrade.actions import Machine
from snap_upgrade.core import errors
from snap_upgrade.core.errors import StateDamaged
from snap_upgrade.core.steps import Packages, Step, TakeSnapshot
from snap_upgrade.engine import Engine
from snap_upgrade.journal import Journal
from snap_upgrade.system import failpoint
from tests.crash.test_kill import Disks
from tests.crash.world import World, started


@contextmanager
def waiting(play: Callable[[Callable[[], None]], int]) -> Iterator[int]:
    """Run *play* in another process up to where it calls its argument, yield its pid; it goes on after the block."""
    reached_r, reached_w = os.pipe()
    go_r, go_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reached_r)
            os.close(go_w)

            def stand() -> None:
                os.write(reached_w, b"x")
                os.read(go_r, 1)

            status = play(stand)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(reached_w)
    os.close(go_r)
    try:
        assert os.read(reached_r, 1) == b"x", "it ended before it came there"
        yield pid
    finally:
        os.close(go_w)
        os.close(reached_r)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@contextmanager
def held(world: World, flow: str, point: str) -> Iterator[int]:
    """Run *flow* in another process that stands still at the first *point* until the block ends."""

    def play(stand: Callable[[], None]) -> int:
        real = failpoint.reach
        left = [point]

        def stop(point: str) -> None:
            if point in left:
                left.clear()
                stand()
            real(point)

        failpoint.reach = stop
        return world.run_here(flow)

    with waiting(play) as pid:
        yield pid


@pytest.mark.parametrize("point", ["journal.create.empty", "packages.file", "action.clone.made", "journal.end.before"])
@pytest.mark.parametrize("second", ["image-update", "activate", "create-second", "recover", "prune", "live"])
def test_whoever_comes_second_is_turned_away_with_exit_10(point: str, second: str, disks: Disks, work: Path) -> None:
    with started(disks("exchange", "create"), "exchange", work) as world:
        with held(world, "image-update", point):
            ended = world.run(second)
            assert ended.code == errors.EXIT_LOCKED, ended
            assert "image-update" in ended.message
        world.check_settled()
        assert world.summary().boots == "updated"


def test_two_recoveries_at_once_do_the_work_once(disks: Disks, work: Path) -> None:
    with started(disks("exchange", "create"), "exchange", work) as world:
        assert world.run("image-update", "kill:packages.file#2").killed
        with held(world, "recover", "recover.undo"):
            assert world.run("recover").code == errors.EXIT_LOCKED
        world.check_settled()
        assert sorted(os.listdir(world.state / "history")) == ["1.json", "2.json"]


def test_a_command_while_a_hooks_transaction_has_a_living_owner_is_turned_away(disks: Disks, work: Path) -> None:
    def play(stand: Callable[[], None]) -> int:
        # As the hook leaves it: the lock is free, the owner alive, the package manager at work.
        machine = world.machine_here()
        source = machine.storage.layout().running.uuid
        plan: list[Step] = [TakeSnapshot(source, ".snap-upgrade/snap/2", "snap-2"), Packages("live", "apt")]
        transaction = Engine(machine).begin("live", lambda ident: plan, "apt upgrade")
        stand()
        transaction.close("undone", 0)
        return 0

    with started(disks("exchange", "create"), "exchange", work) as world:
        with waiting(play) as pid:
            for flow in ("create-second", "image-update", "activate", "live"):
                ended = world.run(flow)
                assert ended.code == errors.EXIT_LOCKED, ended
                assert f"process {pid}" in ended.message
            assert world.run("recover").code == 0
            assert os.listdir(world.state / "journal") == ["2"]
        assert world.run("create-second").code == 0


def test_20_readers_while_a_writer_works_see_whole_files_and_never_wait(disks: Disks, work: Path) -> None:
    with started(disks("exchange", "create"), "exchange", work) as world:
        go_r, go_w = os.pipe()
        readers = []
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    os.close(go_w)
                    status = read_until_closed(world.machine_here(), go_r)
                finally:
                    os._exit(status)
            readers.append(pid)
        os.close(go_r)
        try:
            for flow in ("image-update", "cancel", "rename", "create-second", "destroy-second"):
                ended = world.run(flow)
                assert ended.code in {0, errors.EXIT_NOTHING_TO_DO}, ended
        finally:
            os.close(go_w)
            ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in readers]
        assert ends == [0] * 20
        world.check_settled()


def test_readers_do_not_wait_for_a_writer_that_stands_still(disks: Disks, work: Path) -> None:
    def read(done: Callable[[], None]) -> int:
        machine = world.machine_here()
        names = {one.record.name for one in manage.survey(machine).owned}
        flows = [found.entries.flow for found in journal.open_journals(machine.state) if isinstance(found, Journal)]
        done()
        return 0 if names == {"initial", "other", "updated", "snap-2"} and flows == ["image-update"] else 3

    with started(disks("exchange", "create"), "exchange", work) as world:
        with held(world, "image-update", "packages.file"):
            with waiting(read):
                pass


def read_until_closed(machine: Machine, go: int) -> int:
    """Read everything there is until the pipe *go* is closed; 0 if all of it was whole."""
    os.set_blocking(go, False)
    while True:
        inventory = manage.survey(machine)
        if any("understood" in problem.message for problem in inventory.problems):
            return 3
        for found in journal.open_journals(machine.state):
            if isinstance(found, StateDamaged):
                return 4
        if any(isinstance(found, StateDamaged) for found in journal.history(machine.state)):
            return 5
        manage.temporary_return(machine)
        try:
            if os.read(go, 1) == b"":
                return 0
        except BlockingIOError:
            continue
