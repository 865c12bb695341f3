"""`make mutants`: break the code one change at a time and see that the tests named for it turn red.

The one rule: only a test that failed is red. A change that does not apply, a test that is not there, a module that
cannot be imported and a fixture that breaks say nothing about the claim, and make the exit status 1 like a green test.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants import TOP, Mutant, read

RED, NOT_RED, STALE, WRONG = "red", "NOT red", "stale", "wrong"
LIMIT_S = 900
# Where a test, or what it tells, stands on the package in dist/ (tests/lab/install.py).
_PACKAGE = re.compile(r"install=\"deb\"|built_package|tests\.demo")


def judge(status: int, output: str) -> str:
    """Return what pytest's exit status and its closing line say: only a test that failed is red."""
    closing = output.strip().rpartition("\n")[2]
    if status == 1 and re.search(r"\b\d+ failed\b", closing):
        return RED
    return NOT_RED if status == 0 else WRONG


def copy_tree(target: Path) -> None:
    """Copy what git knows or would add to *target*, as it is in the working tree now."""
    words = ["git", "-C", str(TOP), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in sorted({name for name in listed.split("\0") if name and os.path.lexists(TOP / name)}):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TOP / name, target / name, follow_symlinks=False)


def run(tree: Path, words: Sequence[str]) -> tuple[int, str]:
    """Run a program in *tree*; return its exit status and its output. 124: it had not ended after LIMIT_S."""
    # An interrupt, so that pytest lets go of what its fixtures hold; in the foreground, so that Ctrl-C reaches it too.
    limited = ["timeout", "--foreground", "--signal=INT", "--kill-after=60", str(LIMIT_S), *words]
    # Without compiled files: one change may follow another within the second that they are told apart by.
    env = {**os.environ, "PYTHONPATH": str(tree / "plugin"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        limited, cwd=tree, env=env, check=False, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    return done.returncode, done.stdout


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[str, str]:
    """Run *tests* in *tree* until one fails, with a new package where they stand on it; return verdict and output."""
    files = {tree / word.partition("::")[0] for word in tests if word.startswith("tests/")}
    if any(file.is_file() and _PACKAGE.search(file.read_text()) for file in files):
        status, output = run(tree, ["packaging/build_deb.py", "dist"])
        if status != 0:
            return WRONG, output
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    status, output = run(tree, ["unshare", "--mount", *pytest])
    return judge(status, output), output


def try_one(tree: Path, mutant: Mutant) -> tuple[str, str]:
    """Break *tree* by *mutant*, run its tests and mend it; return the verdict and what pytest said."""
    path = tree / mutant.file
    before = path.read_bytes() if path.is_file() else b""
    changed = mutant.apply(before.decode())
    if changed is None:
        return STALE, f"its text must stand once in {mutant.file}, and does not"
    path.write_bytes(changed.encode())
    try:
        return run_tests(tree, mutant.tests)
    finally:
        path.write_bytes(before)


def report(mutant: Mutant, verdict: str, output: str, seconds: float) -> None:
    """Print a line for *mutant*, and for one that is not red where it is and what pytest said at last."""
    print(f"{verdict:<8} {seconds:4.0f} s  {mutant.section}: {mutant.claim}", flush=True)
    if verdict != RED:
        said = output.strip().splitlines()[-8:]
        print("".join(f"    {line}\n" for line in (mutant.file, " ".join(mutant.tests), *said)), flush=True)


def try_all(mutants: Sequence[Mutant], jobs: int, is_baseline: bool) -> bool:
    """Try *mutants* in *jobs* copies of the tree, and tell each and their counts; return whether all are red."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="snap-upgrade-mutants-") as folder:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            copy_tree(Path(folder, str(number)))
            trees.put(Path(folder, str(number)))
        if is_baseline and not is_green(Path(folder, "0"), mutants):
            return False

        def work(mutant: Mutant) -> None:
            tree, began = trees.get(), time.monotonic()
            try:
                verdict, output = try_one(tree, mutant)
            finally:
                trees.put(tree)
            counts[verdict] += 1
            report(mutant, verdict, output, time.monotonic() - began)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, mutants))
    print(f"{len(mutants)} mutants: " + ", ".join(f"{counts[word]} {word}" for word in (RED, NOT_RED, STALE, WRONG)))
    return counts[RED] == len(mutants)


def is_green(tree: Path, mutants: Sequence[Mutant]) -> bool:
    """Whether the tests of *mutants* pass in *tree* as it is; tell which do not."""
    failed = 0
    for tests in dict.fromkeys(mutant.tests for mutant in mutants):
        verdict, output = run_tests(tree, tests)
        if verdict != NOT_RED:
            failed += 1
            print(f"does not pass without a change: {' '.join(tests)}\n{output[-2000:]}", flush=True)
    return failed == 0


def main(argv: Sequence[str] | None = None) -> int:
    """List or try the mutants asked for; 0 if all of them are red, 1 if not, 2 if there is none."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-k", metavar="TEXT", default="", help="only those with TEXT in section, claim, file or tests")
    parser.add_argument("--list", action="store_true", help="print them and break nothing")
    parser.add_argument("-n", metavar="JOBS", type=int, default=1, help="how many at the same time (1)")
    parser.add_argument("--baseline", action="store_true", help="see first that their tests pass without a change")
    options = parser.parse_args(argv)
    mutants = [mutant for mutant in read() if mutant.is_named(options.k)]
    if options.list:
        for mutant in mutants:
            print(f"{mutant.section}: {mutant.claim}\n    {mutant.file}  {' '.join(mutant.tests)}")
    if not mutants:
        print(f"no mutant has {options.k!r} in it", file=sys.stderr)
        return 2
    return 0 if options.list or try_all(mutants, max(1, options.n), options.baseline) else 1


if __name__ == "__main__":
    sys.exit(main())
