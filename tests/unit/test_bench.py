"""The benchmarks' arithmetic: a ratio that flatters is worse than none."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import stats
from tests.bench.report import Ratio, Report, interleave

POSITIVE = st.floats(min_value=0.001, max_value=1000, allow_nan=False)
ROUNDS = st.lists(st.fixed_dictionaries({"a": POSITIVE, "b": POSITIVE}), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("values", "middle"),
    [([3.0], 3.0), ([1.0, 9.0], 5.0), ([9.0, 1.0, 2.0], 2.0), ([4.0, 1.0, 100.0, 2.0], 3.0)],
)
def test_the_median_is_the_middle_and_one_outlier_does_not_move_it(values: list[float], middle: float) -> None:
    assert stats.median(values) == middle


def test_the_median_of_nothing_is_an_error_and_not_a_number() -> None:
    with pytest.raises(ValueError, match="nothing"):
        stats.median([])


def test_a_ratio_divides_medians() -> None:
    rounds = [{"a": 2.0, "b": 1.0}, {"a": 4.0, "b": 2.0}, {"a": 90.0, "b": 3.0}]
    assert stats.ratio("a", "b")(rounds) == 2.0


def test_what_is_added_is_compared_within_each_round() -> None:
    # The computer became slower from round to round; what is added stayed the same.
    rounds = [{"none": base, "ours": base + 30, "peer": base + 60} for base in (100.0, 200.0, 300.0)]
    assert stats.added("ours", "none")(rounds) == 30
    assert stats.added_ratio("ours", "peer", "none")(rounds) == 0.5


def test_a_peer_that_adds_nothing_never_makes_ours_look_small() -> None:
    rounds = [{"none": 100.0, "ours": 130.0, "peer": 99.0}]
    assert stats.added_ratio("ours", "peer", "none")(rounds) == float("inf")


def test_rounds_that_agree_leave_no_doubt() -> None:
    found = stats.estimate([{"a": 3.0, "b": 2.0}] * 5, stats.ratio("a", "b"))
    assert (found.low, found.value, found.high) == (1.5, 1.5, 1.5)


@given(ROUNDS)
def test_the_interval_lies_within_what_was_measured_and_is_the_same_every_time(rounds: list[dict[str, float]]) -> None:
    of = stats.ratio("a", "b")
    found = stats.estimate(rounds, of)
    assert found == stats.estimate(rounds, of)
    values = {name: stats.column(rounds, name) for name in ("a", "b")}
    assert min(values["a"]) / max(values["b"]) <= found.low <= found.high <= max(values["a"]) / min(values["b"])


def test_more_spread_in_the_rounds_gives_a_wider_interval() -> None:
    calm = [{"a": 10 + 0.1 * n, "b": 10.0} for n in range(9)]
    wild = [{"a": 10 + 2.0 * n, "b": 10.0} for n in range(9)]
    of = stats.ratio("a", "b")
    widths = [(found := stats.estimate(rounds, of)).high - found.low for rounds in (calm, wild)]
    assert widths[0] < widths[1]


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [(0.8, 0.9, 0.99, "met"), (0.8, 1.0, 1.0, "met"), (0.8, 0.9, 1.1, "met?"), (0.9, 1.1, 1.2, "missed?"),
     (1.01, 1.1, 1.2, "missed"), (float("inf"), float("inf"), float("inf"), "missed")],
)  # fmt: skip
def test_a_goal_that_the_interval_does_not_settle_says_so(low: float, value: float, high: float, verdict: str) -> None:
    assert Ratio("x", stats.Estimate(value, low, high), goal=1.0).verdict == verdict


def test_every_variant_is_measured_once_a_round_and_the_warm_up_is_not_counted() -> None:
    order: list[str] = []

    def measuring(name: str) -> dict[str, float]:
        order.append(name)
        return {"cpu": float(len(order))}

    variants = {name: functools.partial(measuring, name) for name in "abc"}
    rounds = interleave(variants, 2, lambda: order.append("-"))
    assert "".join(order) == "-a-b-c" + "-b-c-a" + "-c-a-b"
    assert [set(each) for each in rounds] == [{"a cpu", "b cpu", "c cpu"}] * 2
    assert rounds[0] == {"b cpu": 8.0, "c cpu": 10.0, "a cpu": 12.0}


def test_what_is_infinite_is_null_in_json_and_said_in_text() -> None:
    report = Report("x", "y")
    report.add("z", [{"a": 1.0, "b": 0.0}], stats.ratio("a", "b"), goal=2.0)
    assert report.as_json()["ratios"][0]["value"] is None
    assert any("inf" in line and "missed" in line for line in report.lines())
