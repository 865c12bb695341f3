"""The package, in real machines: installed, upgraded, removed and purged by apt under its own hook.

The one rule: whatever happens to the package, apt works afterwards; and what stays of it is said.
"""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import btrfsutil
import pytest

from tests.lab import roots
from tests.lab.debs import Deb
from tests.lab.install import REPOSITORY, install_product
from tests.lab.machine import Layout, Machine, Result
from tests.lab.repo import local_repo
from tests.system.test_apt_failures import settle

HIGHER = "99.0"
CONFFILES = {"/etc/apt/apt.conf.d/80snap-upgrade", "/etc/snap-upgrade.conf"}
# All of the package that is neither a module nor a folder.
OTHER_FILES = CONFFILES | {
    "/usr/lib/snap-upgrade/apt-hook",
    "/usr/lib/systemd/system/snap-upgrade-prune.service",
    "/usr/lib/systemd/system/snap-upgrade-prune.timer",
    "/usr/lib/systemd/system/snap-upgrade-recover.service",
    "/usr/sbin/snap-upgrade",
    "/usr/share/bash-completion/completions/snap-upgrade",
    "/usr/share/doc/snap-upgrade/README.md.gz",
    "/usr/share/doc/snap-upgrade/changelog.Debian.gz",
    "/usr/share/doc/snap-upgrade/changelog.gz",
    "/usr/share/doc/snap-upgrade/copyright",
    "/usr/share/fish/vendor_completions.d/snap-upgrade.fish",
    "/usr/share/lintian/overrides/snap-upgrade",
    "/usr/share/man/man5/snap-upgrade.conf.5.gz",
    "/usr/share/man/man8/snap-upgrade.8.gz",
    "/usr/share/zsh/vendor-completions/_snap-upgrade",
}
WITHOUT_US = ["-o", "DPkg::Pre-Install-Pkgs::snap-upgrade="]


def build(folder: Path, *options: str) -> Path:
    """Build the package of the working tree into *folder* with the program that ``make deb`` runs."""
    command = [str(REPOSITORY / "packaging/build_deb.py"), *options, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The package as it is, and one of a higher version."""
    folder = tmp_path_factory.mktemp("dist")
    return build(folder), build(folder, "--version", HIGHER)


@contextmanager
def installed(tmp_path: Path, debs: tuple[Path, Path], release: str = "bookworm",
              extra: tuple[str, ...] = ()) -> Iterator[Machine]:  # fmt: skip
    """A machine in which apt has installed the package, with both packages in /root."""
    with Machine(tmp_path, release, install=False, extra=extra) as m:
        for deb in debs:
            shutil.copy(deb, m.path("/root"))
        m.run(["apt-get", "install", "-y", f"./{debs[0].name}"])
        yield m


def history(m: Machine) -> list[tuple[str, str, str]]:
    """Return ID, verdict and front end of every transaction, oldest first."""
    rows = json.loads(m.run(["snap-upgrade", "history", "--json"]).stdout)
    return sorted((row["id"], row["verdict"], row["front_end"]) for row in rows)


def left_behind(m: Machine) -> list[str]:
    """Return every path inside the machine that has our name, /root (where the packages are) left out."""
    skipped = [word for path in ("/proc", "/sys", "/root") for word in ("-path", path, "-prune", "-o")]
    return m.run(["find", "/", *skipped, "-ipath", "*snap[-_]upgrade*", "-print"]).stdout.splitlines()


def apt_works(m: Machine) -> None:
    """Install and purge a package; the machine is as before."""
    local_repo(m.path("/"), [Deb("probe")])
    m.run(["apt-get", "update"])
    m.run(["apt-get", "install", "-y", "probe"])
    assert m.path("/usr/share/probe/version").read_text() == "1.0\n"
    m.run(["apt-get", "purge", "-y", "probe"])


def commands_in(said: Result) -> list[str]:
    """Return the commands that a removal tells; apt has dpkg write to a terminal, hence the carriage returns."""
    return re.findall(r"^    (\S.*?)\r?$", said.output.partition("snap-upgrade is removed. These")[2], re.MULTILINE)


def paths_in(said: Result) -> set[str]:
    """Return the volumes that a removal tells how to delete."""
    words = [shlex.split(line) for line in commands_in(said) if line.startswith("btrfs subvolume delete ")]
    return {word.removeprefix("/mnt/") for *_, word in words}


def test_lintian_of_debian_has_nothing_to_say(debs: tuple[Path, Path]) -> None:
    command = ["lintian", "--no-cfg", "--allow-root", "--fail-on", "warning", str(debs[0])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_the_same_source_gives_the_same_package(debs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_the_package_has_no_file_that_nobody_expects(debs: tuple[Path, Path]) -> None:
    listing = subprocess.run(["dpkg", "-c", str(debs[0])], capture_output=True, text=True, check=True).stdout
    rows = [re.split(r"\s+", line, maxsplit=5) for line in listing.splitlines()]
    assert {row[1] for row in rows} == {"root/root"}
    files = {row[5][1:]: row[0] for row in rows if not row[0].startswith("d")}
    modules = {path: mode for path, mode in files.items() if path.startswith("/usr/lib/python3/")}
    source = REPOSITORY / "plugin/snap_upgrade"
    sources = {path.relative_to(source.parent) for path in source.rglob("*.py")}
    sources.add(Path("snap_upgrade/py.typed"))
    assert set(modules) == {f"/usr/lib/python3/dist-packages/{path}" for path in sources}
    assert set(files) - set(modules) == OTHER_FILES
    programs = {path for path, mode in files.items() if mode == "-rwxr-xr-x"}
    assert programs == {"/usr/lib/snap-upgrade/apt-hook", "/usr/sbin/snap-upgrade"}
    assert {mode for path, mode in files.items() if path not in programs} == {"-rw-r--r--"}


def test_the_laboratory_installs_what_the_package_installs(debs: tuple[Path, Path], tmp_path: Path) -> None:
    """Every other test stands on install_product: what it places must be what dpkg places."""
    with installed(tmp_path, debs) as m, Machine(tmp_path, install=False) as other:
        install_product(other.path("/"))
        ours = {path for path in left_behind(other) if "__pycache__" not in path}
        package = set(m.run(["dpkg", "-L", "snap-upgrade"]).stdout.splitlines())
        assert ours <= package
        for path in ours:
            if other.path(path).is_file():
                assert other.path(path).read_bytes() == m.path(path).read_bytes(), path
        for path in OTHER_FILES:
            if not path.startswith("/usr/share/"):
                assert path in ours, path


@pytest.mark.parametrize("release", roots.RELEASES)
def test_own_upgrade_under_the_own_hook_is_a_good_transaction(
    release: str, debs: tuple[Path, Path], tmp_path: Path
) -> None:
    with installed(tmp_path, debs, release) as m:
        m.run(["apt-get", "install", "-y", f"./{debs[1].name}"])
        assert m.run(["snap-upgrade", "--version"]).stdout == f"snap-upgrade {HIGHER}\n"
        assert history(m) == [("1", "success", "apt-get")]
        apt_works(m)
        assert [verdict for _, verdict, _ in history(m)] == ["success"] * 3
        m.run(["dpkg", "--verify", "snap-upgrade"])
        assert m.run(["snap-upgrade", "check"]).returncode == 0


@pytest.mark.parametrize("release", roots.RELEASES)
def test_after_removal_apt_works_and_what_stays_is_said(release: str, debs: tuple[Path, Path], tmp_path: Path) -> None:
    with installed(tmp_path, debs, release) as m:
        apt_works(m)
        m.run(["snap-upgrade", "create", "my clone"])
        removal = m.run(["apt-get", "remove", "-y", "snap-upgrade"])
        settle(m)
        # The one that watched the removal had all in memory that it needs to judge it.
        assert list((m.top / ".snap-upgrade/journal").iterdir()) == []
        said = paths_in(removal)
        there = {path for path in m.subvolumes() if re.match(r"\.snap-upgrade/(be|snap)/", path)}
        assert said == there and len(said) == 4
        assert removal.output.count("snap-upgrade is removed. These") == 1
        assert m.path("/etc/apt/apt.conf.d/80snap-upgrade").exists()
        assert not m.path("/usr/lib/python3/dist-packages/snap_upgrade").exists()
        local_repo(m.path("/"), [Deb("probe")])
        m.run(["apt-get", "update"])
        # Its configuration is left behind, and says nothing any more.
        for command in (["install", "-y", "probe"], ["purge", "-y", "probe"]):
            assert re.findall("apt-hook|snap-upgrade", m.run(["apt-get", *command]).output) == []


@pytest.mark.parametrize("release", roots.RELEASES)
def test_after_a_purge_only_environments_stay_and_are_said(
    release: str, debs: tuple[Path, Path], tmp_path: Path
) -> None:
    with installed(tmp_path, debs, release, ("btrfs-progs",)) as m:
        purge = m.run(["apt-get", "purge", "-y", "snap-upgrade"])
        assert purge.output.count("snap-upgrade is removed. These") == 1
        assert left_behind(m) == []
        assert paths_in(purge) == {".snap-upgrade/snap/1"}
        assert {path for path in m.subvolumes() if path.startswith(".snap-upgrade/")} == {".snap-upgrade/snap/1"}
        apt_works(m)
        follow_the_instructions(m, purge)
        assert not (m.top / ".snap-upgrade").exists()


def follow_the_instructions(m: Machine, said: Result) -> None:
    """Do by hand what the removal said, to the letter."""
    mount, *delete, umount = commands_in(said)
    (rest,) = re.findall("'(rm -rf .+)' when none is left", said.output)
    m.run(["sh", "-exc", "\n".join([mount, *delete, rest, umount])])


def test_what_is_nested_can_be_deleted_as_the_removal_says(debs: tuple[Path, Path], tmp_path: Path) -> None:
    with installed(tmp_path, debs, extra=("btrfs-progs",)) as m:
        for name in ("one", "two"):
            btrfsutil.create_subvolume(str(m.path(f"/srv/{name}")))
        m.path("/etc/snap-upgrade.conf").write_text("clone_nested = srv/one srv/two\n")
        apt_works(m)
        m.run(["snap-upgrade", "create", "mine"])
        mine = m.top / ".snap-upgrade/be/mine"
        (mine / "opt/deep/er").mkdir(parents=True)
        btrfsutil.create_subvolume(str(mine / "opt/deep/er/it's a name"))
        forged = mine / "x\n    rm -rf '\nmnt"
        btrfsutil.create_subvolume(str(forged))
        removal = m.run(["apt-get", "remove", "-y", "snap-upgrade"])
        settle(m)
        assert {line.split()[0] for line in commands_in(removal)} == {"mount", "btrfs", "umount"}
        there = {path for path in m.subvolumes() if re.match(r"\.snap-upgrade/(be|snap)/[^\n]+$", path)}
        assert paths_in(removal) == there
        assert len(there) == 3 * 3 + 4
        forged.rmdir()
        follow_the_instructions(m, removal)
        assert not (m.top / ".snap-upgrade").exists()


def test_the_removal_says_to_leave_what_runs(debs: tuple[Path, Path], tmp_path: Path) -> None:
    with installed(tmp_path, debs) as m:
        btrfsutil.create_subvolume(str(m.path("/srv/mine")))
        m.run(["snap-upgrade", "create", "other"])
        m.run(["snap-upgrade", "activate", "other"])
        m.halt()
        m._attach(m.image)
        (m.top / "@").rename(m.top / "gone")
        m.layout = Layout(".snap-upgrade/be/initial")
        m.reboot()
        removal = m.run(["apt-get", "remove", "-y", "snap-upgrade"])
        assert "# /mnt/.snap-upgrade/be/initial is the running system" in " ".join(commands_in(removal))
        assert not [path for path in paths_in(removal) if path.startswith(".snap-upgrade/be/initial")]


def test_a_purge_with_nothing_left_takes_the_state_along(debs: tuple[Path, Path], tmp_path: Path) -> None:
    with installed(tmp_path, debs) as m:
        apt_works(m)
        m.run(["snap-upgrade", "destroy", "-F", "snap-1", "snap-2"])
        purge = m.run(["apt-get", *WITHOUT_US, "purge", "-y", "snap-upgrade"])
        assert "snapshots and environments" not in purge.output
        assert left_behind(m) == []
        assert not (m.top / ".snap-upgrade").exists()


def test_a_purge_never_reaches_into_a_mounted_environment(debs: tuple[Path, Path], tmp_path: Path) -> None:
    with installed(tmp_path, debs) as m:
        m.run(["snap-upgrade", "create", "precious"])
        where = m.run(["snap-upgrade", "mount", "precious"]).stdout.strip()
        before = m.tree_hash(".snap-upgrade/be/precious")
        passing = {"archives", "hooks.json", "layout.json"}
        apt_works(m)
        assert passing <= {path.name for path in (m.top / ".snap-upgrade").iterdir()}
        purge = m.run(["apt-get", "purge", "-y", "snap-upgrade"])
        assert not passing & {path.name for path in (m.top / ".snap-upgrade").iterdir()}
        assert "/run/snap-upgrade is still in use" in purge.output
        assert m.run(["test", "-e", f"{where}/etc/snap-upgrade.conf"]).returncode == 0
        assert m.tree_hash(".snap-upgrade/be/precious") == before


def test_a_removal_cut_off_midway_leaves_apt_working(debs: tuple[Path, Path], tmp_path: Path) -> None:
    """dpkg removes in the reverse order of its list: the hook goes before the modules, so it never lacks one."""
    with installed(tmp_path, debs) as m:
        order = m.run(["dpkg", "-L", "snap-upgrade"]).stdout.splitlines()
        hook = order.index("/usr/lib/snap-upgrade/apt-hook")
        assert all(order.index(path) < hook for path in order if path.endswith(".py"))


@pytest.mark.parametrize("state", ["install ok installed", "install reinstreq half-installed", "install ok unpacked"])
def test_an_upgrade_cut_off_midway_can_be_mended_by_apt(state: str, debs: tuple[Path, Path], tmp_path: Path) -> None:
    """A power cut between two files of the package; without dpkg knowing of it, the refusal says how to go on."""
    with installed(tmp_path, debs) as m:
        shutil.rmtree(m.path("/usr/lib/python3/dist-packages/snap_upgrade/core"))
        status = m.path("/var/lib/dpkg/status")
        before, ours, after = status.read_text().partition("Package: snap-upgrade\n")
        status.write_text(before + ours + after.replace("Status: install ok installed", f"Status: {state}", 1))
        result = m.run(["apt-get", "install", "-y", f"./{debs[1].name}"], check=False)
        if state == "install ok installed":
            assert result.returncode == 100
            hint = re.search(r"^hint: apt-get (.+) install --reinstall snap-upgrade$", result.output, re.MULTILINE)
            assert hint is not None and "Traceback" not in result.output
            m.run(["apt-get", *hint[1].split(), "install", "-y", f"./{debs[1].name}"])
        else:
            assert result.returncode == 0
            assert "WITHOUT a snapshot" in result.output
        apt_works(m)
        assert [verdict for _, verdict, _ in history(m)] == ["success"] * 2


# What a module of another version may raise, at its import or when it is called.
WRONG = {
    "no such name": ("hook/owner.py", "def words(", "def other_words("),
    "no such name to import": ("hook/ancestry.py", "def ancestors(", "def other_ancestors("),
    "other arguments": ("hook/state.py", "def open_state(top: int)", "def open_state(top: int, other: int)"),
    "cut off": ("core/request.py", "def merge(", "def merge(("),
}


@pytest.mark.parametrize(("module", "old", "new"), WRONG.values(), ids=WRONG.keys())
def test_an_upgrade_cut_off_between_modules_of_two_versions_can_be_mended(
    module: str, old: str, new: str, debs: tuple[Path, Path], tmp_path: Path
) -> None:
    """What dpkg knows of it is in its journal, as after a power cut."""
    with installed(tmp_path, debs) as m:
        path = m.path(f"/usr/lib/python3/dist-packages/snap_upgrade/{module}")
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        refused = m.run(["apt-get", "install", "-y", f"./{debs[1].name}"], check=False)
        assert refused.returncode == 100
        assert "our own package is not whole" in refused.output and "Traceback" not in refused.output
        stanza = m.run(["dpkg-query", "--status", "snap-upgrade"]).stdout
        cut = stanza.replace("Status: install ok installed", "Status: install reinstreq half-installed")
        m.path("/var/lib/dpkg/updates/0001").write_text(cut)
        # Apt asks for this before anything else: it merges the journal, and calls no hook.
        m.run(["dpkg", "--configure", "-a"], check=False)
        result = m.run(["apt-get", "install", "-y", f"./{debs[1].name}"])
        assert "going on WITHOUT a snapshot, to mend it" in result.output
        assert m.run(["snap-upgrade", "--version"]).stdout == f"snap-upgrade {HIGHER}\n"
        apt_works(m)
        # The refused one was taken back, or never began.
        assert [verdict for _, verdict, _ in history(m)] == ["success"] * 2


def unsupported(tmp_path: Path) -> Machine:
    return Machine(tmp_path, install=False, layout=Layout(kernel_line="subvolid"))


@pytest.mark.parametrize("action", ["install", "remove", "purge"])
def test_what_is_only_about_the_package_itself_is_never_refused(
    action: str, debs: tuple[Path, Path], tmp_path: Path
) -> None:
    with unsupported(tmp_path) as m:
        for deb in debs:
            shutil.copy(deb, m.path("/root"))
        m.run(["apt-get", "install", "-y", f"./{debs[0].name}"])
        m.path("/etc/snap-upgrade.conf").write_text("on_no_snapshot = refuse\n")
        what = f"./{debs[1].name}" if action == "install" else "snap-upgrade"
        result = m.run(["apt-get", action, "-y", "-o", "Dpkg::Options::=--force-confold", what])
        assert "a roll back could not take effect (the kernel command line says subvolid=256" in result.output
        assert "going on without one, for it is about snap-upgrade itself" in result.output
        if action != "install":
            apt_works(m)
            return
        assert m.run(["snap-upgrade", "--version"]).stdout == f"snap-upgrade {HIGHER}\n"
        local_repo(m.path("/"), [Deb("probe")])
        m.run(["apt-get", "update"])
        both = ["apt-get", "install", "--reinstall", "--allow-downgrades", "-y", f"./{debs[0].name}", "probe"]
        assert m.run(both, check=False).returncode == 100
        assert not m.path("/usr/share/probe").exists()


def test_a_broken_configuration_keeps_nobody_from_removing_the_package(debs: tuple[Path, Path], tmp_path: Path) -> None:
    with installed(tmp_path, debs) as m:
        m.path("/etc/snap-upgrade.conf").write_text("nonsense\n")
        result = m.run(["apt-get", "remove", "-y", "snap-upgrade"])
        assert "line 1: 'nonsense' is not 'key = value'); going on" in result.output
        apt_works(m)


def test_an_installation_says_where_the_package_cannot_protect(debs: tuple[Path, Path], tmp_path: Path) -> None:
    with unsupported(tmp_path) as m:
        shutil.copy(debs[0], m.path("/root"))
        said = m.run(["apt-get", "install", "-y", f"./{debs[0].name}"]).output
        assert "snap-upgrade: it cannot protect this system: the kernel command line says subvolid=256" in said
        assert "on_no_snapshot = warn in /etc/snap-upgrade.conf" in said
        assert "apt-get purge snap-upgrade" in said
    with Machine(tmp_path, install=False) as m:
        shutil.copy(debs[0], m.path("/root"))
        assert "snap-upgrade: " not in m.run(["apt-get", "install", "-y", f"./{debs[0].name}"]).output


def test_the_units_are_enabled_and_systemd_understands_them(debs: tuple[Path, Path], tmp_path: Path) -> None:
    with installed(tmp_path, debs, extra=("systemd",)) as m:
        for unit in ("snap-upgrade-recover.service", "snap-upgrade-prune.timer"):
            assert m.run(["systemctl", "is-enabled", unit]).stdout == "enabled\n"
        units = [path for path in OTHER_FILES if path.startswith("/usr/lib/systemd/")]
        result = m.run(["systemd-analyze", "verify", "--man=no", *sorted(units)])
        assert "snap-upgrade" not in result.output
        for start in re.findall(r"^ExecStart=(.+)$", "".join(m.path(unit).read_text() for unit in units), re.MULTILINE):
            assert m.run([*start.split(), "--dry-run"], check=False).returncode in (0, 4)


PYTHON_APT = """
import apt
cache = apt.Cache()
cache["probe"].mark_install()
cache.commit()
"""
FRONT_ENDS = {
    "apt": ["apt", "install", "-y", "probe"],
    "apt-get": ["apt-get", "install", "-y", "probe"],
    "aptitude": ["aptitude", "install", "-y", "probe"],
    "with-python-apt": ["/usr/bin/python3", "/root/with-python-apt"],
    "unattended-upgrade": ["unattended-upgrade", "-v"],
    "packagekitd": ["sh", "-c", "mkdir -p /run/dbus && dbus-daemon --system --fork && pkcon -y install probe"],
}


@pytest.mark.parametrize("release", roots.RELEASES)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_every_front_end_makes_one_good_transaction(
    front_end: str, release: str, debs: tuple[Path, Path], tmp_path: Path
) -> None:
    with installed(tmp_path, debs, release, extra=roots.FRONT_ENDS) as m:
        if front_end == "unattended-upgrade":
            packages = [Deb("probe", "0.9"), Deb("other", "0.9")]
            local_repo(m.path("/"), packages)
            m.run(["apt-get", "update"])
            m.run(["apt-get", *WITHOUT_US, "install", "-y", "probe", "other"])
            (m.path("/etc/apt/apt.conf.d") / "99all").write_text(
                'Unattended-Upgrade::Origins-Pattern { "origin=*"; };\n'
            )
            packages = [Deb("probe"), Deb("other")]
        else:
            packages = [Deb("probe")]
        local_repo(m.path("/"), packages)
        m.run(["apt-get", "update"])
        m.path("/root/with-python-apt").write_text(PYTHON_APT)
        m.run(FRONT_ENDS[front_end])
        for deb in packages:
            assert m.path(f"/usr/share/{deb.name}/version").read_text() == "1.0\n"
        found = history(m)
        assert len(found) == 1
        assert found[0][1] == "success"
        assert front_end in found[0][2]
