"""Repositories, the misbehaving web server and the mirror finder, against real apt."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import roots
from tests.lab.breaking import INSTALL
from tests.lab.debs import Deb
from tests.lab.httpd import Corrupt, Cut, Fault, Server, Stall, Status
from tests.lab.machine import Machine
from tests.lab.repo import Repo, local_repo
from tests.lab.roots import Source

WEB = Deb("web", "1.0", size_padding=100_000)


@pytest.fixture(scope="module", params=roots.RELEASES)
def m(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine of each release for all tests here: none of them leaves a package behind."""
    with Machine(tmp_path_factory.mktemp("machine"), request.param, install=False) as machine:
        yield machine


@pytest.fixture
def server(tmp_path: Path, m: Machine) -> Iterator[Server]:
    """A web server with a repository that the machine knows and has no package of."""
    repo = Repo(tmp_path)
    repo.add(WEB)
    repo.publish()
    m.run(["apt-get", "purge", "-y", "web"], check=False)
    m.run(["apt-get", "clean"])
    with Server(tmp_path) as serving:
        repo.enable(m.path("/"), serving.url, only=True)
        m.run(["apt-get", "update"])
        yield serving


@pytest.mark.parametrize("signing", ["trusted", "signed"])
@pytest.mark.parametrize("method", ["file", "copy"])
def test_apt_accepts_a_good_repository(m: Machine, signing: str, method: str) -> None:
    # apt remembers that a source was signed, and then refuses it unsigned.
    m.run(["sh", "-c", "rm -f /var/lib/apt/lists/*_*"])
    local_repo(m.path("/"), [Deb("fine")], signing=signing, method=method)  # type: ignore[arg-type]
    update = m.run(["apt-get", "update"])
    assert "W:" not in update.output
    m.run([*INSTALL, "fine"])
    assert m.path("/usr/share/fine/version").read_text() == "1.0\n"
    m.run(["apt-get", "purge", "-y", "fine"])


def test_apt_refuses_a_repository_with_a_broken_signature(m: Machine) -> None:
    local_repo(m.path("/"), [Deb("forged")], signing="broken")
    update = m.run(["apt-get", "update", "-o", "APT::Update::Error-Mode=any"], check=False)
    assert update.returncode == 100
    assert "signature" in update.output
    assert m.run([*INSTALL, "forged"], check=False).returncode == 100


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Status(404), "404"),
        (Status(503), "503"),
        (Cut(5000), "Failed to fetch"),
        (Corrupt(5000), "Hash Sum mismatch"),
    ],
)
def test_a_fault_on_the_way_fails_the_download(m: Machine, server: Server, fault: Fault, says: str) -> None:
    server.fault("*.deb", fault)
    failed = m.run([*INSTALL, "-o", "Acquire::Retries=0", "web"], check=False)
    assert failed.returncode == 100
    assert says in failed.output
    assert server.wait_for_request("*.deb", 0).fault == fault
    server.heal()
    m.run([*INSTALL, "web"])


def test_a_stalled_download_waits_until_it_is_released(m: Machine, server: Server) -> None:
    server.fault("*.deb", Stall(after=100))
    with m.popen([*INSTALL, "-o", "Acquire::Retries=0", "web"]) as apt:
        server.wait_for_request("*.deb")
        assert apt.poll() is None
        server.release()
        assert apt.wait(60).returncode == 100


def test_the_server_serves_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as server:
        client = http.client.HTTPConnection(server.url.removeprefix("http://"))
        for path in ("/../secret", "/%2e%2e/secret", "/sub/../../secret"):
            client.request("GET", path)
            answer = client.getresponse()
            answer.read()
            assert answer.status == 404
        client.close()


def test_a_package_that_was_removed_is_unknown_after_publishing(m: Machine) -> None:
    repo = local_repo(m.path("/"), [Deb("one"), Deb("two")])
    repo.remove(Deb("two"))
    repo.publish()
    m.run(["apt-get", "update"])
    known = m.run(["apt-cache", "pkgnames"]).stdout.split()
    assert "one" in known
    assert "Unable to locate package two" in m.run([*INSTALL, "two"], check=False).output


DEB822 = """\
# the machine's own
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
 contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
LIST = """\
# deb http://comment.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://third.example/linux bookworm main # a third party's
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian/ bookworm main contrib
"""


def test_both_styles_of_sources_are_read() -> None:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert roots.parse_deb822(DEB822) == [
        Source("http://mirror.example/debian", suite, ("main", "contrib"), keyring)
        for suite in ("bookworm", "bookworm-updates")
    ]
    assert roots.parse_list(LIST) == [
        Source("https://third.example/linux", "bookworm", ("main",), "/k.gpg"),
        Source("http://mirror.example/debian/", "bookworm", ("main", "contrib"), ""),
    ]


def test_a_third_party_is_not_taken_for_the_mirror() -> None:
    third = Source("http://third.example/linux", "bookworm", ("main",), "")
    signed = Source("http://third.example/debian", "bookworm", ("main",), "/etc/apt/keyrings/third.gpg")
    ours = Source("http://mirror.example/debian/", "bookworm", ("main",), "")
    assert roots.find_mirror([third, signed, ours], "bookworm") == ours
    assert roots.find_mirror([third, signed], "bookworm") is None
    assert roots.find_mirror([ours], "bookworm-security") is None


def test_a_list_of_mirrors_is_followed_to_its_first(tmp_path: Path) -> None:
    (tmp_path / "mirrors").write_text(
        "# cloud image\nhttp://first.example/debian\thost:first\nhttp://second.example/d\n"
    )
    found = roots.parse_list(f"deb mirror+file:{tmp_path}/mirrors bookworm main\n")
    assert [source.uri for source in found] == ["http://first.example/debian"]


def test_two_runs_do_not_build_the_same_thing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entered = threading.Event()
    order = []

    def other() -> None:
        with roots.locked("thing"):
            order.append("other")
            entered.set()

    with roots.locked("thing"):
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_an_unknown_release_is_refused() -> None:
    with pytest.raises(ValueError, match="woody"):
        roots.root_tar("woody")


def test_the_front_ends_are_there_when_asked_for(tmp_path: Path) -> None:
    with Machine(tmp_path, install=False, extra=roots.FRONT_ENDS) as machine:
        for program in ("aptitude", "unattended-upgrade", "pkcon", "dbus-daemon"):
            machine.run(["sh", "-c", f"command -v {program}"])
