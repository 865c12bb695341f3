"""The benchmarks measure what they say: each check of theirs is seen to refuse a run in which nothing happened.

The one rule: real machines; how fast it is does not matter here and is not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import differ, flat, hook, image_update, listing, peers
from tests.bench.meter import Cost, Meter, Unmeasurable
from tests.bench.report import Report
from tests.lab.machine import Machine

DOCUMENT = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text()
NOTHING = Cost(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, "nothing was done")


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meter]:
    with Machine(tmp_path_factory.mktemp("bench"), extra=peers.PACKAGES) as machine:
        peers.set_up_snapper(machine)
        hook.prepare(machine)
        yield Meter(machine)


def test_every_line_of_the_issue_has_a_benchmark_and_its_results_are_written_down() -> None:
    assert set(bench.BENCHMARKS) == {"hook", "image-update", "release-upgrade", "flat", "listing", "memory", "diff"}
    (named,) = re.findall(r"--only hook --json' +# one of ([\w, -]+)", DOCUMENT)
    assert named.split(", ") == list(bench.BENCHMARKS)
    with_table = set(re.findall(r"^### ([\w-]+): ", DOCUMENT, re.MULTILINE))
    assert set(bench.BENCHMARKS) - with_table == {"release-upgrade"}, "whose numbers are in the text"
    assert "`--only release-upgrade`" in DOCUMENT
    rows = re.findall(r"^\| (.+?) \|", DOCUMENT, re.MULTILINE)
    for part in ("ours / snapper", "ours / the floor", "500,000 files / 1,000", "1,000, CPU: `list`", "hook, pre",
                 "1,000, CPU: `status`", "create, wall: 100,000", "activate, wall", "rollback, wall"):  # fmt: skip
        assert [row for row in rows if part in row], part


def test_a_reinstall_is_measured_only_with_the_snapshots_that_it_is_to_cost(meter: Meter) -> None:
    envs = hook.environments(meter.machine)
    made = {
        "ours": (hook.snapshots_of_ours, 1),
        "snapper": (peers.snapper_numbers, 2),
        "floor": (hook.floor_snapshots, 1),
    }
    for name, (count, number) in made.items():
        found = hook.variant(meter, envs[name], count, number)()
        assert found["cpu"] > 0 and found["wall"] > 0 and found["end"] >= found["wall"]
        with pytest.raises(Unmeasurable, match=f"0 snapshots were made, not {number}"):
            hook.variant(meter, envs["none"], count, number)()


def test_a_comparison_is_measured_only_when_it_names_every_changed_file(meter: Meter) -> None:
    machine = meter.machine
    folder = machine.path("/srv/files")
    flat.add_files(folder, 300)
    machine.run(["snap-upgrade", "create", "first"])
    differ.change_files(folder, 300)
    machine.run(["snap-upgrade", "create", "second"])
    words = ("snap-upgrade", "diff", "--files", "first")
    assert differ.comparison(meter, *words, "second")()["cpu"] > 0
    with pytest.raises(Unmeasurable, match="names 0 files, not 100"):
        differ.comparison(meter, *words, "first")()
    with pytest.raises(Unmeasurable, match="printed too little"):
        listing.command(meter, "snap-upgrade", "list", lines=99)()
    with pytest.raises(Unmeasurable, match="ended with 4, not 0"):
        listing.command(meter, "snap-upgrade", "cancel")()
    listing.add_environments(machine, 5)
    assert len(listing.listed(machine)) == 5


def test_create_activate_and_rollback_are_measured_only_when_they_were_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Machine(tmp_path, extra=peers.PACKAGES) as machine:
        site = flat.Site(machine, 10)
        found = site.measure()
        assert {name.rpartition(" ")[0] for name in found} == {"ioctl", "create", "activate", "rollback"}
        assert len(list(machine.path("/srv/files").rglob("*"))) == 11
        monkeypatch.setattr(flat, "_OPERATIONS", {**flat._OPERATIONS, "rollback": ["true"]})
        with pytest.raises(Unmeasurable, match="left this"):
            site.measure()


def test_an_upgrade_is_measured_only_when_the_root_is_upgraded(tmp_path: Path) -> None:
    disk = tmp_path / "base.img"
    image_update.make_disk(tmp_path, disk, 2, 20)
    for measure in (image_update.plain, image_update.ours):
        assert measure(tmp_path, disk, image_update._require_upgraded)["cpu"] > 0
        (tmp_path / "run.img").unlink()
    with Machine(tmp_path, disk=disk) as machine, pytest.raises(Unmeasurable, match="not done"):
        image_update._require_upgraded(machine.path("/"), NOTHING)
    with pytest.raises(Unmeasurable, match="boots next, not the clone"):
        _ours_without_activation(tmp_path, disk)


def _ours_without_activation(scratch: Path, disk: Path) -> None:
    """Measure with a configuration in which the clone is made and then left."""
    with pytest.MonkeyPatch.context() as patch:
        measure = Meter.measure
        patch.setattr(Meter, "measure", lambda self, argv, **more: measure(self, [*argv, "--no-activate"], expect=8))
        image_update.ours(scratch, disk, image_update._require_upgraded)


def test_what_cannot_be_measured_is_told_and_everything_is_there_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def good(_scratch: Path, *, is_quick: bool) -> Report:
        report = Report("memory", "title", (f"quick {is_quick}",))
        report.add("x", [{"a": 3.0, "b": 2.0}], lambda rounds: rounds[0]["a"] / rounds[0]["b"], 2.0)
        return report

    def bad(_scratch: Path, *, is_quick: bool) -> Report:
        raise Unmeasurable(f"nothing happened, quick {is_quick}")

    monkeypatch.setitem(bench.BENCHMARKS, "memory", good)
    monkeypatch.setitem(bench.BENCHMARKS, "hook", bad)
    assert bench.main(["--json", "--quick", "--only", "memory"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["reports"]
    assert (report["name"], report["notes"], report["ratios"][0]["value"]) == ("memory", ["quick True"], 1.5)
    assert bench.main(["--json", "--only", "memory", "--only", "hook"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (len(told["reports"]), told["failed"]) == (1, {"hook": "Unmeasurable: nothing happened, quick False"})
    assert bench.main(["--only", "memory"]) == 0
    assert "| x | **1.50** |" in capsys.readouterr().out
