"""Nothing is lost without a word: whoever goes back is told how many files stay behind, and where."""

from __future__ import annotations

from pathlib import Path

from tests.lab.machine import Machine
from tests.system.clilab import su


def test_going_back_tells_what_stays_behind_and_names_the_command_that_lists_it(tmp_path: Path) -> None:
    with Machine(tmp_path) as machine:
        su(machine, "create", "earlier")
        assert "no file of the two differs" in su(machine, "activate", "earlier").stdout
        su(machine, "cancel")
        for name in ("one", "two"):
            machine.path(f"/root/{name}").write_text(name)
        told = su(machine, "activate", "earlier").stdout
        assert "2 files differ between the two, and initial keeps its own" in told
        assert "snap-upgrade diff --files earlier initial" in told
        listed = su(machine, "diff", "--files", "earlier", "initial").stdout
        assert "+ /root/one" in listed
        assert "+ /root/two" in listed
        machine.reboot()
        assert not machine.path("/root/one").exists()
        where = su(machine, "mount", "initial").stdout.strip()
        assert machine.run(["cat", f"{where}/root/two"]).stdout == "two"
