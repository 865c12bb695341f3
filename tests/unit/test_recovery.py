"""Recovery: whatever line of a journal was the last, and wherever recovery itself is cut, there is one end.

The one rule: only the disk is imitated. The plans, what a journal says and what follows from it come from the code
under test; what must follow is worked out here from the lines alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snap_upgrade import engine
from snap_upgrade.core import plan, recovery
from snap_upgrade.core.plan import Policy
from snap_upgrade.core.recovery import Recovery, Way
from snap_upgrade.core.steps import (
    Activate,
    CarryNested,
    Describe,
    Destroy,
    MakeClone,
    Mount,
    Packages,
    Rename,
    Step,
    Unmount,
    to_json,
)
from snap_upgrade.journal import Entries

BASE = "b" * 32
CLONE = MakeClone("old", ".snap-upgrade/be/new", "new", "ready")
ACTIVATE = Activate("new", "old")
CARRY = CarryNested("c" * 32, "@/var/lib/nested", ".snap-upgrade/be/new/var/lib/nested")
POLICIES = st.builds(Policy, st.booleans(), st.booleans(), st.booleans())
VERDICTS = st.sampled_from(["success", "success-with-script-errors", "failed", "interrupted", "unchanged"])
ROUNDS = 4  # judged, forward, end: more than these means that it never ends
SIMPLE: list[list[Step]] = [
    [CLONE],
    [ACTIVATE],
    [Activate("new", "old", "old")],
    [ACTIVATE, Destroy("old"), Destroy("snap-7")],
    [Destroy("a"), Destroy("b"), Destroy("c")],
    [Rename("new", "newer")],
    [Describe("new", "pinned", "yes", "no")],
    [Mount("new", "/mnt")],
    [Unmount("new", "/mnt")],
    [CARRY, ACTIVATE],
    [CLONE, Rename("new", "newer"), Describe("newer", "pinned", "yes", "no"), Mount("newer", "/mnt")],
    plan.rollback("7", "before-7", False, "old"),
    plan.rollback("7", "before-7", True, "old", "armed"),
]


@dataclass(frozen=True)
class Flow:
    """A plan, what a crash makes of it, and what follows from a verdict."""

    steps: list[Step]
    on_crash: str = "undo"
    after: Callable[[str], list[Step]] | None = None
    joined: int = -1  # the step after whose beginning a second commit joins


def _after(policy: Policy, which: str) -> Callable[[str], list[Step]]:
    if which == "image-update":
        return lambda verdict: plan.after_image_update("7", verdict, "new", "old", True, policy)
    if which == "live":
        return lambda verdict: plan.after_live("7", verdict, policy, "/run/x")
    return lambda verdict: plan.after_alternate_root("7", verdict, "alt", "@alt", "/mnt", policy)


def _simple(steps: list[Step], on_crash: str) -> Flow:
    # A plan that destroys is never taken back: that is the engine's to say, and its own test's to check.
    return Flow(steps, "forward" if any(isinstance(step, Destroy) for step in steps) else on_crash)


WORK = [
    ("live", plan.live("7", BASE, "apt")),
    ("image-update", plan.image_update("7", BASE, "new", "apt")),
    ("alternate-root", plan.alternate_root("7", BASE, "alt", "apt")),
]
works = st.builds(
    lambda one, policy, joined: Flow(one[1], "undo", _after(policy, one[0]), joined),
    st.sampled_from(WORK),
    POLICIES,
    st.integers(-1, 1),
)
flows = works | st.builds(_simple, st.sampled_from(SIMPLE), st.sampled_from(["undo", "forward"]))


class Cut(Exception):
    """The power is gone."""


@dataclass
class Disk:
    """What outlives a crash: the lines, and which steps are in effect. *left* events happen before the power goes."""

    flow: Flow
    lines: list[dict[str, Any]] = field(default_factory=list)
    in_effect: set[int] = field(default_factory=set)
    acts: list[tuple[str, int]] = field(default_factory=list)
    left: int = 1 << 30

    def tick(self) -> None:
        if self.left == 0:
            raise Cut
        self.left -= 1

    def line(self, kind: str, **data: Any) -> None:
        self.tick()
        self.lines.append({"kind": kind, **data})

    def act(self, what: str, number: int) -> None:
        self.tick()
        self.acts.append((what, number))
        (self.in_effect.add if what == "do" else self.in_effect.discard)(number)

    @property
    def entries(self) -> Entries:
        plan_lines = [to_json(step) for step in self.flow.steps]
        begin = {"id": "7", "flow": "any", "plan": plan_lines, "on_crash": self.flow.on_crash}
        return Entries(begin, list(self.lines))

    def has(self, kind: str) -> bool:
        return self.entries.last(kind) is not None

    def numbers(self, kind: str) -> set[int]:
        return set(self.entries.numbers(kind))

    def answer(self) -> Recovery:
        return recovery.decide(self.entries.steps(), engine.progress(self.entries))


# --- the engine, with nothing in its hands


def do(disk: Disk, numbers: Sequence[int], fail_at: int = -1) -> None:
    for number in numbers:
        if number not in disk.numbers("started"):
            disk.line("started", step=number)
            if number == disk.flow.joined:
                disk.line("request", request=[])
        if number == fail_at:
            disk.line("failed", step=number, error="no")
            raise OSError("no")
        disk.act("do", number)
        disk.line("done", step=number, result={})


def take_back(disk: Disk, numbers: Sequence[int]) -> None:
    for number in numbers:
        disk.line("undoing", step=number)
        disk.act("undo", number)
        disk.line("undone", step=number)


def judge_and_decide(disk: Disk, verdict: str) -> None:
    assert disk.flow.after is not None
    if not disk.has("verdict"):
        disk.line("verdict", verdict=verdict, reasons=[])
    written = str((disk.entries.last("verdict") or {})["verdict"])
    disk.line("decide", plan=[to_json(step) for step in disk.flow.after(written)])


def run(disk: Disk, verdict: str, fail_at: int = -1) -> None:
    """Write and do what the engine does for the flow; at *fail_at* a step raises."""
    outcome = "committed"
    try:
        do(disk, range(len(disk.flow.steps)), fail_at)
    except OSError:
        if not stays(disk):
            if any(isinstance(step, Destroy) for step in disk.flow.steps):
                return  # it stays open
            take_back(disk, sorted(disk.numbers("started"), reverse=True))
            outcome = "undone"
    if disk.flow.after is not None and outcome == "committed":
        judge_and_decide(disk, verdict)
        do(disk, range(len(disk.flow.steps), len(disk.entries.steps())))
    disk.line("end", outcome=outcome, exit=0)


def recover(disk: Disk, verdict: str = "interrupted") -> list[Way]:
    """Do what recovery says until it says that it is over; return what it said."""
    ways: list[Way] = []
    while not disk.has("end"):
        answer = disk.answer()
        ways.append(answer.way)
        assert len(ways) <= ROUNDS, f"no end in sight: {ways}"
        assert bool(answer.steps) == (answer.way in {Way.FORWARD, Way.UNDO})
        match answer.way:
            case Way.JUDGE:
                judge_and_decide(disk, verdict)
            case Way.FORWARD:
                do(disk, answer.steps)
            case Way.UNDO:
                take_back(disk, answer.steps)
            case Way.END:
                return ways
    return ways


# --- what must follow, from the lines alone


def is_work(step: Step) -> bool:
    return isinstance(step, Packages)


def stays(disk: Disk) -> bool:
    """Whether the package manager was let loose on a root that no undo can replace: by us, or by one that joined."""
    steps = disk.entries.steps()
    begun = disk.flow.steps if disk.has("request") else [steps[number] for number in disk.numbers("started")]
    return any(isinstance(one, Packages) and one.place != "clone" for one in begun)


def wanted_way(disk: Disk) -> str:
    if disk.has("end"):
        return "nothing"
    if disk.has("undoing"):
        return "back"
    if disk.has("decide") or (disk.flow.on_crash == "forward" and disk.has("started")):
        return "forward"
    if stays(disk):
        return "judge"
    # All done and no packages among it: only the end is missing, and who asked may have been told that it is done.
    steps = disk.entries.steps()
    is_all_done = disk.numbers("done") == set(range(len(steps))) and not any(map(is_work, steps))
    return "forward" if is_all_done else "back"


def lengths(flow: Flow, verdict: str, fail_at: int) -> int:
    """Return how many lines and effects the whole flow has."""
    disk = Disk(flow)
    run(disk, verdict, fail_at)
    return (1 << 30) - disk.left


def cut_after(flow: Flow, verdict: str, fail_at: int, events: int) -> Disk:
    disk = Disk(flow, left=events)
    try:
        run(disk, verdict, fail_at)
    except Cut:
        pass
    disk.left = 1 << 30
    return disk


def copied(disk: Disk, left: int = 1 << 30) -> Disk:
    return Disk(disk.flow, list(disk.lines), set(disk.in_effect), list(disk.acts), left)


def check_end(before: Disk, after: Disk, ways: list[Way]) -> None:
    """Check one recovery without a cut: *before* it and *after* it."""
    way = wanted_way(before)
    acts = after.acts[len(before.acts) :]
    undone = [number for what, number in acts if what == "undo"]
    forwarded = [number for what, number in acts if what == "do"]
    steps = after.entries.steps()
    assert not (undone and forwarded)
    assert (Way.JUDGE in ways) == (way == "judge")
    assert not any(is_work(steps[number]) for number in forwarded), "the package manager's step is nobody's to repeat"
    if way == "back":
        wanted = before.numbers("started") - before.numbers("undone")
        assert undone == sorted(wanted, reverse=True)
        assert forwarded == []
        assert after.in_effect == set()
        assert after.numbers("undone") == before.numbers("started")
    elif way in {"forward", "judge"}:
        assert undone == []
        assert forwarded == [n for n in range(len(steps)) if n not in before.numbers("done") and not is_work(steps[n])]
        assert {n for n in range(len(steps)) if not is_work(steps[n])} <= after.in_effect
        assert len([line for line in after.lines if line["kind"] == "verdict"]) == (before.flow.after is not None)
    else:
        assert acts == []


@settings(deadline=None)
@given(flows, VERDICTS, VERDICTS, st.integers(-1, 3))
def test_every_prefix_of_every_journal_has_the_end_that_its_lines_ask_for(
    flow: Flow, verdict: str, judged: str, fail_at: int
) -> None:
    for events in range(lengths(flow, verdict, fail_at) + 1):
        before = cut_after(flow, verdict, fail_at, events)
        after = copied(before)
        check_end(before, after, recover(after, judged))
        assert after.has("end") or after.answer() == Recovery(Way.END)


def test_what_is_being_taken_back_when_a_commit_joins_is_taken_back_to_the_end() -> None:
    disk = Disk(Flow(plan.live("7", BASE, "apt")))
    disk.line("started", step=0)
    disk.line("undoing", step=0)
    disk.line("request", request=[])
    assert disk.answer() == Recovery(Way.UNDO, (0,))


@settings(deadline=None, max_examples=300)
@given(flows, VERDICTS, VERDICTS, st.integers(-1, 3), st.data())
def test_recovery_cut_off_any_number_of_times_comes_to_the_same_end(
    flow: Flow, verdict: str, judged: str, fail_at: int, data: st.DataObject
) -> None:
    events = data.draw(st.integers(0, lengths(flow, verdict, fail_at)))
    first = cut_after(flow, verdict, fail_at, events)
    straight = copied(first)
    recover(straight, judged)
    cut = copied(first)
    for left in data.draw(st.lists(st.integers(0, 12), max_size=5)):
        cut.left = left
        try:
            recover(cut, judged)
        except Cut:
            continue
    cut.left = 1 << 30
    recover(cut, judged)
    assert cut.in_effect == straight.in_effect
    assert cut.entries.steps() == straight.entries.steps()
    for kind in ("started", "done", "undone", "verdict", "decide"):
        assert sorted(map(str, lines_of(cut, kind))) == sorted(map(str, lines_of(straight, kind)))
    check_whole_history(first, cut)


def lines_of(disk: Disk, kind: str) -> list[dict[str, Any]]:
    return [line for line in disk.lines if line["kind"] == kind]


def check_whole_history(first: Disk, disk: Disk) -> None:
    """Check what holds of all recoveries together."""
    acts = disk.acts[len(first.acts) :]
    undone = [number for what, number in acts if what == "undo"]
    assert undone == sorted(undone, reverse=True), "not the last first"
    assert not (undone and any(what == "do" for what, _ in acts))
    kinds = [line["kind"] for line in disk.lines]
    assert not ("decide" in kinds and "undoing" in kinds)
    assert kinds.count("verdict") <= 1 >= kinds.count("decide")


@pytest.mark.parametrize("fail_at", [-1, 0, 1])
@pytest.mark.parametrize("flow", [Flow(steps, "undo", _after(Policy(), name)) for name, steps in WORK])
def test_two_cuts_at_every_pair_of_lines_end_like_one(flow: Flow, fail_at: int) -> None:
    for events in range(lengths(flow, "failed", fail_at) + 1):
        first = cut_after(flow, "failed", fail_at, events)
        straight = copied(first)
        recover(straight)
        for left in range((1 << 30) - straight.left):
            twice = copied(first, left)
            with pytest.raises(Cut):
                recover(twice)
            between = copied(twice)
            twice.left = 1 << 30
            ways = recover(twice)
            check_end(between, twice, ways)
            assert (twice.in_effect, twice.entries.steps()) == (straight.in_effect, straight.entries.steps())
            check_whole_history(first, twice)
