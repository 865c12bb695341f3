"""What holds for every test of the run.

The one rule: a test that did not run did not pass. Whatever is skipped or expected to
fail counts as failed, so that the closing line of the run cannot be green without it.
"""

from collections.abc import Generator
from typing import Any

import pytest


def _as_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (report.skipped or hasattr(report, "wasxfail")):
        return
    reason = getattr(report, "wasxfail", None)
    if reason is None and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
    if hasattr(report, "wasxfail"):
        del report.wasxfail
    report.outcome = "failed"
    report.longrepr = f"no test may be skipped or expected to fail: {report.nodeid}: {reason or report.longrepr}"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside the wrapper that makes xfail of a failure
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _as_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    _as_failure(report)
    return report
