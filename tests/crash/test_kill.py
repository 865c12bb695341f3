"""SIGKILL at every fail point of every flow, then recovery, then SIGKILL at every point of that recovery.

Looked at at the instant of the kill and when all is over: the result is what was before or what was asked for.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from snap_upgrade.config import Config
from tests.crash.driver import CLONED, CONFIG, MANY, NESTED
from tests.crash.world import LAYOUTS, Summary, World, started

Disks = Callable[[str, str], Path]
NEXT_BOOT = "00000000-0000-4000-8000-000000000000"


@dataclass(frozen=True)
class Case:
    """*flow* on a disk *prepared* by another; *exit* is what it says. *live* is the environment that may be half
    changed before recovery, because the flow works on it in place. *boot*: the flow runs after another boot."""

    flow: str
    prepared: str = ""
    fails: bool = False
    exit: int = 0
    live: str = ""
    config: Config = CONFIG
    layouts: tuple[str, ...] = ("exchange",)
    boot: str = ""

    def __str__(self) -> str:
        return self.flow + ("-fails" if self.fails else "") + ("-keep" if self.config.keep_failed else "") + (
            "-cloned" if self.config.clone_nested else "")  # fmt: skip


CASES = [
    Case("create"),
    Case("destroy", "create"),
    Case("activate", "create", layouts=LAYOUTS),
    Case("activate-once", "create", layouts=LAYOUTS),
    Case("activate-second-once", "create-both-arm"),
    Case("rename", "create"),
    Case("pin", "create"),
    Case("describe", "create"),
    Case("rollback", "live", layouts=LAYOUTS),
    Case("rollback", "live!", live="initial"),  # the failed operation left it half done
    Case("cancel", "image-update"),
    Case("prune", "create-both-old", config=Config(reserve_mib=1, keep_environments=0)),
    Case("image-update", layouts=LAYOUTS),
    Case("image-update", fails=True, exit=5),
    Case("image-update", fails=True, exit=5, config=Config(reserve_mib=1, keep_failed=True)),
    Case("live", live="initial"),
    Case("live", fails=True, exit=7, live="initial", layouts=LAYOUTS),
    Case("alternate", "create", live="other"),
    Case("alternate", "create", fails=True, exit=6, live="other"),
    Case("alternate", "create", fails=True, exit=6, live="other", config=Config(reserve_mib=1, keep_failed=True)),
    Case("recover", f"many-{MANY}", boot=NEXT_BOOT),
    # The same with a nested volume that travels along: a snapshot has its part of it, taken with it.
    Case("destroy-snapshot", "cloned:live", config=CLONED),
    Case("rollback", "cloned:live!", live="initial", config=CLONED),
    Case("image-update", fails=True, exit=5, config=CLONED),
    Case("live", fails=True, exit=7, live="initial", config=CLONED),
    Case("alternate", "cloned:create", fails=True, exit=6, live="other", config=CLONED),
]
ALL = [pytest.param(case, layout, id=f"{case}-{case.prepared}-{layout}") for case in CASES for layout in case.layouts]


def run(world: World, case: Case, failing: str = "log") -> int | None:
    return world.run(case.flow, failing, fails=case.fails, config=case.config, boot=case.boot).code


def recover(world: World, case: Case, failing: str = "log", boot: str = "") -> tuple[int | None, tuple[str, ...]]:
    ended = world.run("recover", failing, config=case.config, boot=boot)
    assert ended.code in {0, None}, ended.message
    return ended.code, ended.points


def allowed(disks: Disks, case: Case, layout: str, work: Path) -> tuple[set[Summary], list[str]]:
    """Return the states a cut may end in, from runs without one, and the fail points of the flow."""
    with started(disks(layout, case.prepared), layout, work) as world:
        recover(world, case)
        good = {world.summary()}
        recover(world, case, boot=NEXT_BOOT)  # uses up an activation for one boot that was in force before
        good.add(world.summary())
    with started(disks(layout, case.prepared), layout, work) as world:
        ended = world.run(case.flow, fails=case.fails, config=case.config, boot=case.boot)
        assert ended.code == case.exit, ended.message
        points = list(ended.points)
        world.check_instant(case.live)
        recover(world, case)
        good.add(world.summary())
        world.check_settled()
    if case.flow == "cancel":  # switched on again, the machine ran what was to be destroyed: it stays
        with started(disks(layout, case.prepared), layout, work) as world:
            before = world.summary()
        stays = [one for one in before.environments if one[0] != "snap-1"]
        good.add(Summary(frozenset(stays), "initial", "initial"))
    if case.live:  # cut off in the middle it is judged: the same as if it had failed
        with started(disks(layout, case.prepared), layout, work) as world:
            world.run(case.flow, fails=True, config=case.config)
            good.add(world.summary())
    return good, points


@pytest.mark.parametrize(("case", "layout"), ALL)
def test_a_kill_anywhere_leaves_what_was_or_what_was_asked_for(
    case: Case, layout: str, disks: Disks, work: Path
) -> None:
    good, points = allowed(disks, case, layout, work)
    master = disks(layout, case.prepared)
    assert len(points) > 8
    seen: set[str] = set()
    for number, point in enumerate(points):
        # Every other time the machine is switched on again in between: another boot, and the root is what boots.
        boot = case.boot or (NEXT_BOOT if number % 2 else "")
        with started(master, layout, work) as world:
            assert run(world, case, f"kill:{point}") is None, f"{point} was not reached again"
            world.check_instant(case.live)
            _, steps = recover(world, case, boot=boot)
            finish(world, case, good, point, boot)
        for step in [step for step in steps if step not in seen]:
            seen.add(step)
            with started(master, layout, work) as world:
                assert run(world, case, f"kill:{point}") is None
                assert recover(world, case, f"kill:{step}", boot)[0] is None, f"{point}, then {step} was not reached"
                world.check_instant(case.live)
                recover(world, case, boot=boot)
                finish(world, case, good, f"{point}, then {step}", boot)


def finish(world: World, case: Case, good: set[Summary], where: str, boot: str) -> None:
    """Check what is there after recovery, and that another one has nothing to do."""
    try:
        world.check_instant(case.live)
        world.check_settled()
        summary = world.summary()
        assert summary in good
        for _ in range(4 if boot else 1):
            # Another boot may be the first of another root (others' nested volumes follow it), or the last of one.
            before = history(world)
            recover(world, case, boot=boot)
            world.check_settled()
            if history(world) == before:
                break
        else:
            raise AssertionError("one boot after the other finds something to do")
        assert boot or world.summary() == summary
        assert not boot or (world.boots() / NESTED / "data").exists(), sorted(world.volumes().values())
        assert not case.boot or followed(world) == MANY
    except AssertionError as error:
        raise AssertionError(f"killed at {where}: {error}") from error


def followed(world: World) -> int:
    """Return how many nested volumes the root that boots has of the many."""
    return len(list(world.boots().glob("var/lib/many/*/which")))


def history(world: World) -> list[str]:
    return sorted(os.listdir(world.state / "history"))
