"""`make bench`: run the benchmarks and print the ratios.

The one rule: what could not be measured is said, and makes the exit status 1; a missed goal is a result, not an error.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench import differ, flat, hook, image_update, listing, memory
from tests.bench.report import Report
from tests.lab.roots import cache_dir

BENCHMARKS: dict[str, Callable[..., Report]] = {
    "hook": hook.run,
    "image-update": image_update.run,
    "release-upgrade": image_update.run_release,
    "flat": flat.run,
    "listing": listing.run,
    "memory": memory.run,
    "diff": differ.run,
}


def here() -> dict[str, Any]:
    """Return what the computer is."""
    return {"kernel": platform.release(), "processors": os.cpu_count(), "load": [round(x, 2) for x in os.getloadavg()]}


def measure(
    names: Sequence[str], is_quick: bool, tell: Callable[[Report], None]
) -> tuple[list[Report], dict[str, str]]:
    """Run the benchmarks and *tell* each report when it is made; return all, and why others could not be made."""
    reports, failed = [], {}
    for name in names:
        print(f"measuring {name}...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=cache_dir()) as scratch:
            try:
                reports.append(BENCHMARKS[name](Path(scratch), is_quick=is_quick))
            except Exception as error:
                traceback.print_exc()
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            else:
                tell(reports[-1])
    return reports, failed


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--only", action="append", choices=sorted(BENCHMARKS), help="this one; may be given again")
    parser.add_argument("--quick", action="store_true", help="few rounds and small trees: does it work, not how fast")
    options = parser.parse_args(argv)
    before = here()

    def tell(report: Report) -> None:
        if not options.json:
            print("\n".join(report.lines()), flush=True)

    chosen = [name for name in BENCHMARKS if name in (options.only or BENCHMARKS)]
    reports, failed = measure(chosen, options.quick, tell)
    if options.json:
        computer = {"before": before, "after": here()}
        found = [report.as_json() for report in reports]
        print(json.dumps({"computer": computer, "reports": found, "failed": failed}, indent=1))
    else:
        print(f"computer before: {before}; after: {here()}")
    for name, why in failed.items():
        print(f"{name} could not be measured: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
