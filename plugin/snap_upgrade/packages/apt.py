"""apt seen from outside: apt-get runs in an environment's chroot, dpkg's database says what came of it.

The rule: everything apt needs is fetched before it may unpack anything, and no exit status alone makes a success.
"""

from __future__ import annotations

import os
import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from snap_upgrade.core import request as requests
from snap_upgrade.core import verdict
from snap_upgrade.core.dpkgdb import Database
from snap_upgrade.core.errors import FailedUnchanged, InternalError, NetworkFailed, NothingToDo, Refused
from snap_upgrade.core.packages import Conffiles, Outcome, PackageChange, PackagePlan, Report, Request, Root, Verb
from snap_upgrade.core.request import Target
from snap_upgrade.packages import apt_archives, apt_errors, apt_judge, apt_lock, apt_plan
from snap_upgrade.packages.apt_archives import within
from snap_upgrade.packages.apt_progress import Progress
from snap_upgrade.system import chroot
from snap_upgrade.system.chroot import End, Finished, Limits, Listener
from snap_upgrade.system.chroot_init import STATUS_FD

_KEPT_LINES = 5000
_SILENCE_S = 3600.0
_APT = [
    "apt-get", "--quiet", "--yes",
    *("-o", f"APT::Status-Fd={STATUS_FD}"),
    *("-o", "Dir::Cache::archives=/var/cache/apt/archives"),
    # The lock is ours already, on the very same file if the environment is mounted at -R DIR.
    *("-o", "Debug::NoLocking=true"),
    # Our own hooks would snapshot a clone that is thrown away on failure anyway.
    *("-o", "DPkg::Pre-Install-Pkgs::snap-upgrade=", "-o", "DPkg::Post-Invoke::snap-upgrade="),
]  # fmt: skip
# Others may do what they are asked for all the same (clean, from 2.6.1 on): they are simulated first.
_LISTED = ("install", "remove", "purge", "upgrade", "dist-upgrade", "full-upgrade", "autoremove", "autopurge")
_LISTING = ["--print-uris", "-o", "APT::Get::Show-Versions=true", "-o", "APT::Output-Version=0"]
# Whether what is installed fits together is in dpkg's database alone, and opening a whole archive's lists costs
# more than all else of the check. What was read is kept in memory: it is no cache for whoever has sources.
_CHECK = [
    *("-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=/dev/null"),
    *("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="),
    "check",
]
_POLICY = {
    # Where the package has a default it is taken, and else the administrator's file stays: in this order.
    Conffiles.KEEP: (["--force-confdef", "--force-confold"], {"UCF_FORCE_CONFFOLD": "1"}),
    Conffiles.REPLACE: (["--force-confnew"], {"UCF_FORCE_CONFFNEW": "1"}),
}
# dpkg syncs every file it unpacks, so that a power cut does not leave a database that knows of more than the disk has.
# Where whatever a cut leaves is destroyed unread (Root.is_disposable) that saves nobody, and it is most of the waiting.
_UNSYNCED = ["-o", "Dpkg::Options::=--force-unsafe-io"]
_WORDS = {Verb.UPGRADE: "upgrade the packages", Verb.INSTALL: "install packages", Verb.REMOVE: "remove packages",
          Verb.CUSTOM: "do what was asked"}  # fmt: skip
_ENDED = {
    End.INTERRUPTED: "it was interrupted",
    End.KILLED: "it was interrupted twice and killed",
    End.TOO_LONG: "it took longer than the time limit and was killed",
    End.TOO_QUIET: "nothing was heard of it for the time limit and it was killed",
}


@dataclass(frozen=True, slots=True)
class _Planned:
    """What a request means for an environment in one state."""

    database: Database
    targets: list[Target]
    archives: list[apt_plan.Archive]
    growth: int
    written: int
    native: str

    @property
    def download_bytes(self) -> int:
        return sum(archive.size for archive in self.archives)


# Not --no-download: with it apt cannot find what a file: source has in its own folder, and dpkg is given a bare name.
# A proxy that nobody listens at keeps apt from fetching what the download left out.
_OFFLINE = ["-o", "Acquire::Retries=0"]
for _method in ("http", "https", "ftp"):
    _OFFLINE += ["-o", f"Acquire::{_method}::Proxy=http://127.0.0.1:9/"]


class Apt:
    """The package manager of Debian. *limits* end a hung maintainer script, *network_timeout_s* a stalled server."""

    name = "apt"

    def __init__(self, limits: Limits | None = None, network_timeout_s: int = 30, retries: int = 2) -> None:
        self.limits = limits or Limits(silence_s=_SILENCE_S)
        self.network_timeout_s = network_timeout_s
        self.retries = retries
        self._plans: dict[object, _Planned] = {}

    def is_present(self, root: Path) -> bool:
        """Whether the environment at *root* has dpkg's database and apt-get."""
        return within(root, "var/lib/dpkg/status").is_file() and within(root, "usr/bin/apt-get").is_file()

    def lock(self, root: Path) -> AbstractContextManager[None]:
        """Hold dpkg's locks of the environment at *root*; raise Locked, naming the holder."""
        return apt_lock.held(root)

    def refresh(self, root: Root, report: Report) -> None:
        """Fetch the lists of packages. A list that could not be fetched fails the whole: half of the truth is none."""
        self._plans.clear()
        argv = [*self._apt(), "-o", "APT::Update::Error-Mode=any", "update"]
        done = self._fetch(root, argv, "fetch the lists of packages", report, 0)
        if done.status != 0:
            raise apt_errors.failure("fetch the lists of packages", done.status, done.stdout, done.stderr)

    def plan(self, root: Root, request: Request) -> PackagePlan:
        """Return what *request* would do; raise NothingToDo, or Refused with apt's reason."""
        planned = self._plan(root, request)
        if not planned.targets:
            raise NothingToDo("all packages are as asked already")
        changes = apt_plan.changes_of(planned.targets, planned.native)
        return PackagePlan(changes, planned.download_bytes, planned.growth, planned.written)

    def download(self, root: Root, request: Request, archives: Path, report: Report) -> None:
        """Fetch all packages of *request*; those that are complete are kept in *archives* also if one fails."""
        planned = self._plan(root, request)
        what = "download the packages"
        lent = apt_archives.lend(archives, root, planned.archives)
        if len(lent) == len(planned.archives):
            # All is there, or in a source that is a folder: no need to open the lists once more to hear that.
            apt_archives.discard(root.path, lent)
            return
        argv = [*self._apt(), "--download-only", *_words(request)]
        try:
            done = self._fetch(root, argv, what, report, planned.download_bytes)
        finally:
            apt_archives.take_back(root.path, archives, planned.archives)
            # apply() lends them again: an environment keeps no copy of what all share.
            apt_archives.discard(root.path, [archive.name for archive in planned.archives])
        if done.status != 0:
            raise apt_errors.failure(what, done.status, done.stdout, done.stderr)

    def apply(self, root: Root, request: Request, archives: Path, log: Path, report: Report) -> Outcome:
        """Do *request* without fetching anything, and judge the result by dpkg's database and ``apt-get check``."""
        planned = self._plan(root, request)
        self._plans.clear()
        before = apt_judge.note(root.path, planned.database)
        lent = apt_archives.lend(archives, root, planned.archives)
        options, env = _POLICY[request.conffiles]
        argv = [*_APT, *_OFFLINE, *(_UNSYNCED if root.is_disposable else [])]
        for option in options:
            argv += ["-o", f"Dpkg::Options::={option}"]
        progress = Progress(report, total=len(planned.targets))
        with _open_log(log) as file:
            done = self._work(root, [*argv, *_words(request)], file, progress, env)
            check = None if done.end in _ENDED else self._check(root, file)
        apt_archives.discard(root.path, lent)
        extra = [*progress.errors, *([] if done.status == 0 else apt_errors.reasons(done.stdout, done.stderr))]
        return _outcome("apt-get", planned.targets, before, root.path, done, check, extra)

    def run(self, root: Root, command: list[str], log: Path, report: Report) -> Outcome:
        """Run any command inside the environment; it fails by its exit status and by what it broke."""
        self._plans.clear()
        before = apt_judge.note(root.path)
        with _open_log(log) as file:
            sound = self._check(root, file)
            done = self._work(root, command, file, Progress(report), {})
            # Dependencies that were broken before are not the command's doing.
            check = None if done.end in _ENDED or sound is not None else self._check(root, file)
        return _outcome(command[0], [], before, root.path, done, check, [])

    def judge(
        self,
        before: Path,
        after: Path,
        asked: list[list[dict[str, Any]]],
        exit_status: int | None,
        since: dict[str, Any],
    ) -> Outcome:
        """Judge what apt did on a live root from its snapshot. Here the exit status is only a remark."""
        try:
            targets = requests.merge([requests.from_json(items) for items in asked])
        except requests.BadRequest as error:
            raise InternalError(f"the journal has a request that cannot be read: {error}") from error
        noted = replace(apt_judge.note(before), marks=apt_judge.marks_of(before, since))
        judged, proof, native = apt_judge.judge(targets, noted, after, apt_judge.read_database(after), exit_status)
        return apt_judge.outcome(judged, proof, native, [], apt_judge.new_leftovers(noted, after))

    def live_command(self, request: Request) -> list[str]:
        """Return the command for the live root. It asks as apt always asks; only REPLACE says what dpkg shall do."""
        replacing = request.conffiles is Conffiles.REPLACE
        options = ["-o", "Dpkg::Options::=--force-confnew"] if replacing else []
        return ["/usr/bin/apt-get", *options, *_words(request)]

    def installed(self, root: Path) -> dict[str, str]:
        """Return name to version; a foreign architecture is part of the name."""
        database = apt_judge.read_database(root)
        native = apt_plan.native_architecture(database)
        present = (package for package in database.values() if package.is_present)
        return {apt_plan.display_name(package.key, native): package.version for package in present}

    def changes(self, old: Path, new: Path) -> list[PackageChange]:
        """Return the packages that differ between two environments; a state that is not ``installed`` is told."""
        before, after = apt_judge.read_database(old), apt_judge.read_database(new)
        native = apt_plan.native_architecture(after)
        return [
            PackageChange(apt_plan.display_name(str(key), native), was, now)
            for key, was, now in verdict.compare(before, after)
        ]

    def broken(self, root: Path) -> list[str]:
        """Return what dpkg's database says is half done."""
        database = apt_judge.read_database(root)
        texts = [f"{package.key} is {package}" for key, package in sorted(database.items()) if package.is_broken]
        if database.journal:
            texts.append(f"dpkg was cut off: its journal has {len(database.journal)} entries that it did not finish")
        return texts

    # -- how apt-get is run

    def _apt(self) -> list[str]:
        words = [*_APT, "-o", f"Acquire::Retries={self.retries}"]
        for method in ("http", "https", "ftp"):
            words += ["-o", f"Acquire::{method}::Timeout={self.network_timeout_s}"]
        return words

    def _plan(self, root: Root, request: Request) -> _Planned:
        """Ask apt what it would do; the answer is good as long as the database and the lists stay as they are."""
        status = within(root.path, "var/lib/dpkg/status").stat()
        key = (str(root.path), status.st_dev, status.st_ino, status.st_mtime_ns, request)
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = self._ask(root, request)
        return found

    def _ask(self, root: Root, request: Request) -> _Planned:
        apt_archives.cache_of(root.path)
        # A question leaves no trace: apt writes the log of its planner even when it only simulates.
        asking = [*self._apt(), "-o", "Dir::Log::Planner=/dev/null"]
        words = _words(request)
        database = apt_judge.read_database(root.path)
        lists = [*asking, *_LISTING, *words]
        listed = self._query(root, lists, request) if words[0] in _LISTED else ""
        targets = apt_plan.parse_lists(listed, database)
        if targets is None:
            simulated = self._query(root, [*asking, "--simulate", *words], request)
            targets = apt_plan.parse_simulation(simulated, database)
            listed = listed or (self._query(root, lists, request) if targets else "")
        native, growth = apt_plan.native_architecture(database), apt_plan.parse_growth(listed)
        status = within(root.path, "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
        written = apt_plan.written_bytes(targets, growth, status)
        return _Planned(database, targets, apt_plan.parse_uris(listed), growth, written, native)

    def _query(self, root: Root, argv: list[str], request: Request) -> str:
        done = chroot.run(root, argv, limits=self.limits)
        if done.end in _ENDED:
            raise FailedUnchanged(f"cannot find out what apt would do: {_ENDED[done.end]}; nothing was changed")
        if done.status != 0:
            raise apt_errors.failure(_WORDS[request.verb], done.status, done.stdout, done.stderr)
        return done.stdout

    def _fetch(self, root: Root, argv: list[str], what: str, report: Report, total_bytes: int) -> Finished:
        progress = Progress(report, total_bytes)
        listener = Listener(progress.line, progress.hear, _KEPT_LINES)
        done = chroot.run(root, argv, listener=listener, network=True, limits=self.limits)
        if done.end in _ENDED:
            cls = FailedUnchanged if done.end in (End.INTERRUPTED, End.KILLED) else NetworkFailed
            raise cls(f"cannot {what}: {_ENDED[done.end]}; nothing was changed")
        return done

    def _work(self, root: Root, argv: list[str], file: BinaryIO, progress: Progress, env: dict[str, str]) -> Finished:
        def hear(line: str) -> None:
            file.write(f"{line}\n".encode("utf-8", "surrogateescape"))
            progress.line(line)

        file.write(f"# {shlex.join(argv)}\n".encode("utf-8", "surrogateescape"))
        # dpkg is to take its own lock only: the front end's is ours.
        env = {**env, "DPKG_FRONTEND_LOCKED": "true"} if argv[0] == _APT[0] else env
        done = chroot.run(root, argv, listener=Listener(hear, progress.hear, _KEPT_LINES), env=env, limits=self.limits)
        if done.left_running:
            file.write(f"# ended what was left running: {', '.join(done.left_running)}\n".encode(errors="replace"))
        file.write(f"# exit status {done.status}, {done.end.value}\n".encode())
        return done

    def _check(self, root: Root, file: BinaryIO) -> str | None:
        """Return what ``apt-get check`` has to say against the environment, None if nothing."""
        done = chroot.run(root, [*self._apt(), *_CHECK], limits=self.limits)
        if done.status == 0 and done.end not in _ENDED:
            return None
        file.write(f"# apt-get check: {done.status}\n{done.stdout}{done.stderr}".encode("utf-8", "surrogateescape"))
        found = apt_errors.reasons(done.stdout, done.stderr)
        return "apt-get check fails: " + ("; ".join(found) or f"exit status {done.status}")


def _words(request: Request) -> list[str]:
    """Return the request in apt-get's words; what the user gave after ``--`` is passed on as it is."""
    if request.verb is Verb.CUSTOM:
        if not request.arguments:
            raise Refused("no arguments for apt-get were given", "snap-upgrade image-update -- install PACKAGE")
        return list(request.arguments)
    if request.verb is Verb.UPGRADE and not request.packages:
        return ["dist-upgrade", *request.arguments]
    verb = {
        Verb.UPGRADE: ["install", "--only-upgrade"],
        Verb.INSTALL: ["install"],
        Verb.REMOVE: ["remove"],
    }[request.verb]
    return [*verb, *request.arguments, "--", *request.packages]


def _raise_if_not_fetched(done: Finished) -> None:
    """Raise what keeps apt from the packages, told apart as by a download: where none was needed, nobody has asked."""
    if done.status != 0 and issubclass(apt_errors.kind(apt_errors.parse_messages(done.stderr)), FailedUnchanged):
        raise apt_errors.failure("get the packages", done.status, done.stdout, done.stderr)


def _open_log(path: Path) -> BinaryIO:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return os.fdopen(fd, "ab", buffering=0)


def _outcome(
    program: str,
    targets: list[Target],
    before: apt_judge.Before,
    root: Path,
    done: Finished,
    check: str | None,
    said: list[str],
) -> Outcome:
    """Judge a run in an environment that can be thrown away: here every doubt is a failure."""
    now = apt_judge.read_database(root)
    targets = apt_plan.settle(targets, before.database, now)
    judged, proof, native = apt_judge.judge(targets, before, root, now, done.status)
    reasons = [f"{program} did not come to its end: {_ENDED[done.end]}"] if done.end in _ENDED else []
    if judged.kind == verdict.UNCHANGED and targets:
        _raise_if_not_fetched(done)
    if judged.kind == verdict.UNCHANGED:
        # Nothing was done: of what was asked, or by a command that need not have anything to do with packages.
        judged.kind = verdict.FAILED if targets else verdict.SUCCESS
    if judged.kind == verdict.SUCCESS and done.end in (End.KILLED, End.TOO_LONG, End.TOO_QUIET):
        judged.kind = verdict.INTERRUPTED
    is_explained = check is None and _only_of(judged.still_broken, said)
    if judged.kind == verdict.SUCCESS and (done.status != 0 or check is not None) and not is_explained:
        judged.kind = verdict.FAILED
        reasons += [f"{program} exited with {done.status}"] if done.status != 0 else []
    if judged.kind != verdict.SUCCESS:
        reasons += said
        reasons += [] if check is None else [check]
    elif done.end is End.INTERRUPTED:
        reasons = []  # it was asked to stop when all was done
    return apt_judge.outcome(judged, proof, native, reasons, apt_judge.new_leftovers(before, root))


def _only_of(still_broken: list[str], said: list[str]) -> bool:
    """Whether all that apt complained of are packages that were broken before: it tries them anew at every run."""
    names = {key.partition(":")[0] for key in still_broken}
    told = [line for line in said if not line.startswith("Sub-process ")]
    return bool(told) and all(line.partition(":")[0] in names for line in told)


def open_apt(script_timeout_s: float) -> Apt:
    """Return apt; *script_timeout_s* is how long a maintainer script may be silent, 0 for ever."""
    return Apt(Limits(silence_s=script_timeout_s or None))
