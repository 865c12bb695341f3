"""Packages that break, each in one way, and what real apt and dpkg leave behind when they do.

    case = breaking.CASES["postinst-fails"]
    case.prepare(m)
    result = m.run(case.argv, check=False)

The one rule: what a case expects is what `facts/apt.md` 3.1 says it leaves, found by experiment on
both releases, not what our code makes of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.lab.debs import Deb
from tests.lab.machine import Machine
from tests.lab.repo import Repo, local_repo

INSTALL = ("apt-get", "install", "-y")
REPOSITORY = "/srv/repo"


def _script(*lines: str) -> str:
    return "\n".join(("#!/bin/sh", "set -e", *lines, ""))


FAIL = _script("echo 'this script fails on purpose' >&2", "exit 1")


def good(name: str = "good", version: str = "1.0", depends: str = "") -> Deb:
    """Return a package with nothing wrong with it."""
    return Deb(name, version, depends=depends)


def fails_in(script: str, name: str, version: str = "2.0") -> Deb:
    """Return a package one of whose maintainer scripts always fails."""
    return Deb(name, version, scripts={script: FAIL})


def hanging(name: str = "hangs", version: str = "2.0") -> Deb:
    """Return a package whose postinst makes /run/NAME.hangs and waits until something is written to /run/NAME.gate."""
    body = _script(f"mkfifo /run/{name}.gate", f": > /run/{name}.hangs", f"read answer < /run/{name}.gate")
    return Deb(name, version, scripts={"postinst": body})


def kills_dpkg(name: str = "kills-dpkg", version: str = "2.0", signal: str = "KILL") -> Deb:
    """Return a package whose postinst kills the dpkg that runs it."""
    return Deb(name, version, scripts={"postinst": _script(f"kill -{signal} $PPID", "exit 0")})


def kills_apt(name: str = "kills-apt", version: str = "2.0", signal: str = "KILL") -> Deb:
    """Return a package whose postinst kills the front end: the first ancestor above dpkg that is not dpkg."""
    walk = (
        "pid=$PPID",
        'while test "$(cat /proc/$pid/comm)" = dpkg; do',
        "    pid=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$pid/status)",
        "done",
        f"kill -{signal} $pid",
        # Not before it is gone does dpkg's next status message find the pipe closed.
        "while kill -0 $pid; do :; done 2>/dev/null",
        "exit 0",
    )
    return Deb(name, version, scripts={"postinst": _script(*walk)})


def chain(length: int = 20, version: str = "1.0", *, fails_at: int = 0, waits_at: int = 0) -> tuple[Deb, ...]:
    """Return packages chain01... each of which pre-depends on the one before: one dpkg run each.

    The postinst of number *fails_at* fails; that of *waits_at* hangs as ``hanging`` does.
    """
    debs = []
    for number in range(1, length + 1):
        name = f"chain{number:02}"
        scripts: Mapping[str, str] = {}
        if number == fails_at:
            scripts = {"postinst": FAIL}
        elif number == waits_at:
            scripts = hanging(name).scripts
        before = f"chain{number - 1:02} (= {version})" if number > 1 else ""
        debs.append(Deb(name, version, pre_depends=before, scripts=scripts))
    return tuple(debs)


def with_conffile(version: str, name: str = "configured", content: bytes | None = None) -> Deb:
    """Return a package whose configuration file /etc/NAME.conf is another in each version."""
    path = f"/etc/{name}.conf"
    body = content if content is not None else f"setting = {version}\n".encode()
    return Deb(name, version, files={path: body}, conffiles=(path,))


def trigger_pair() -> tuple[Deb, Deb]:
    """Return a package whose trigger fails, and one that sets it off; the first installs well before the second."""
    postinst = _script('if test "$1" = triggered; then echo "the trigger fails on purpose" >&2; exit 1; fi')
    watching = Deb("watching", "1.0", scripts={"postinst": postinst}, triggers="interest /usr/share/lab-trigger\n")
    return watching, Deb("touching", "2.0", files={"/usr/share/lab-trigger/touched": b"touched\n"})


@dataclass(frozen=True)
class Case:
    """One way to break. *before* is installed first; *after* joins the repository; then *argv* goes wrong.

    *apt_rc*: its exit status as Python tells it, negative for a signal. *audit*: whether ``dpkg --audit``
    has something to say. *states*: ``dpkg-query -W -f '${Status} ${Version}'`` of the packages after it.
    *journal*: whether files with numbers for names are left in /var/lib/dpkg/updates. *fill*: bytes to
    leave free on the disk.
    """

    name: str
    argv: tuple[str, ...]
    apt_rc: int
    audit: bool
    states: Mapping[str, str]
    before: tuple[Deb, ...] = ()
    after: tuple[Deb, ...] = ()
    journal: bool = False
    fill: int | None = None

    def prepare(self, machine: Machine) -> Repo:
        """Bring the machine to the point where running *argv* breaks; return the repository it uses."""
        repo = local_repo(machine.path("/"), self.before, inside=REPOSITORY)
        machine.run(["apt-get", "update"])
        if self.before:
            machine.run([*INSTALL, *(f"{deb.name}={deb.version}" for deb in self.before)])
        repo.add(*self.after)
        repo.publish()
        machine.run(["apt-get", "update"])
        if self.fill is not None:
            machine.fill(self.fill)
        return repo


def _upgrade(name: str, old: Deb, new: Deb, state: str, *, audit: bool, rc: int = 100, journal: bool = False) -> Case:
    argv = (*INSTALL, f"{new.name}={new.version}")
    return Case(name, argv, rc, audit, {new.name: state}, (old,), (new,), journal)


def _cases() -> tuple[Case, ...]:
    installed, half = "install ok installed 1.0", "install ok half-configured 2.0"
    big = Deb("big", "2.0", size_padding=96 << 20)
    stuck = Deb("stuck", "1.0", scripts={"prerm": FAIL})
    leaving = Deb("leaving", "1.0", scripts={"postrm": FAIL})
    owner = Deb("owner", "1.0", files={"/usr/share/contested": b"owner\n"})
    thief = Deb("thief", "2.0", files={"/usr/share/contested": b"thief\n"})
    watching, touching = trigger_pair()
    unmet = Deb("unmet", "2.0", depends="nowhere-to-be-found")
    triggered = {"watching": "install ok half-configured 1.0", "touching": "install ok installed 2.0"}
    return (
        _upgrade("preinst-fails", good("p-preinst"), fails_in("preinst", "p-preinst"), installed, audit=False),
        _upgrade("postinst-fails", good("p-postinst"), fails_in("postinst", "p-postinst"), half, audit=True),
        _upgrade("prerm-old-fails", Deb("p-prerm", "1.0", scripts={"prerm": FAIL}), good("p-prerm", "2.0"),
                 installed, audit=False),
        _upgrade("prerm-new-fails", Deb("p-prerms", "1.0", scripts={"prerm": FAIL}), fails_in("prerm", "p-prerms"),
                 installed, audit=False),
        Case("remove-prerm-fails", ("apt-get", "remove", "-y", "stuck"), 100, False,
             {"stuck": "install ok installed 1.0"}, (stuck,)),
        Case("remove-postrm-fails", ("apt-get", "remove", "-y", "leaving"), 100, True,
             {"leaving": "deinstall ok half-installed 1.0"}, (leaving,)),
        Case("trigger-fails", (*INSTALL, "touching"), 100, True, triggered, (watching,), (touching,)),
        Case("file-conflict", (*INSTALL, "thief"), 100, False,
             {"thief": "install ok not-installed ", "owner": installed}, (owner,), (thief,)),
        Case("no-space", (*INSTALL, "big=2.0"), 100, False, {"big": installed}, (good("big"),), (big,),
             fill=48 << 20),
        Case("unmet-dependency", (*INSTALL, "unmet"), 100, False, {}, (), (unmet,)),
        _upgrade("kills-dpkg", good("kills-dpkg"), kills_dpkg(), half, audit=True, journal=True),
        _upgrade("kills-apt", good("kills-apt"), kills_apt(), half, audit=True, rc=-9, journal=True),
    )  # fmt: skip


CASES: Mapping[str, Case] = {case.name: case for case in _cases()}
