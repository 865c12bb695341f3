"""What is wrong on this machine, each with the command that mends it: the findings of ``status`` and ``check``.

The rule: it looks and changes nothing; every finding is something that was seen, with what it means.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snap_upgrade import journal, lineage, manage, nested
from snap_upgrade.cli.history import flow_name
from snap_upgrade.core import errors
from snap_upgrade.core.layout import look
from snap_upgrade.core.model import Kind, Method, Problem, State, Volume
from snap_upgrade.core.names import UNTOLD, is_told
from snap_upgrade.core.plan import PARTS, STATE
from snap_upgrade.detect import NO_STATE
from snap_upgrade.engine import is_owner_alive
from snap_upgrade.system import command, files, mounts

if TYPE_CHECKING:
    from snap_upgrade.actions import Machine
    from snap_upgrade.journal import Entries
    from snap_upgrade.records import Inventory

HOOK = "/usr/lib/snap-upgrade/apt-hook"
CONF = "/etc/apt/apt.conf.d/80snap-upgrade"
# Without the option dpkg leaves a configuration file that somebody deleted as it is: deleted.
_REINSTALL = "apt-get install -y --reinstall -o Dpkg::Options::=--force-confmiss snap-upgrade"
_WHO_CLEARS = "grep -rniE 'clear|Pre-Install-Pkgs|Post-Invoke' /etc/apt/"
_REPLACE = f"rm {CONF} && {_REINSTALL}"
_ENTRIES = {"DPkg::Pre-Install-Pkgs::snap-upgrade": f"{HOOK} pre", "DPkg::Post-Invoke::snap-upgrade": f"{HOOK} post"}
_VERSION = f"DPkg::Tools::Options::{HOOK}::Version"
_ABANDON_FIRED = "snap-upgrade recover --abandon hooks.json"
ERROR, WARNING = "error", "warning"


def problems(machine: Machine, inventory: Inventory) -> list[Problem]:
    """Return everything that needs attention, worst first."""
    found = [
        *_version(machine),
        *_layout(machine),
        *_next(machine, inventory),
        *_outdated(machine, inventory),
        *_journals(machine),
        *inventory.problems,
        *_pointer(machine),
        *_unfinished(machine, inventory),
        *_strangers(machine, inventory),
        *_left_behind(machine, inventory),
        *_untold(machine),
        *_space(machine),
        *_packages(machine),
    ]
    if machine.root == Path("/"):
        found += hook_files(machine)
    return sorted(found, key=lambda problem: problem.severity != ERROR)


def settings_problems(error: errors.UsageError | None) -> list[Problem]:
    """Return what the wrong settings *error* mean: the hooks need only some of them, and read them by themselves."""
    from snap_upgrade.hook import settings

    if error is None:
        return []
    effect = "commands that change something are refused"
    try:
        settings.load()
    except settings.BadSetting as bad:
        effect = "apt is refused" if bad.refuses else "apt works without a snapshot"
    what = f"{error.message}: {effect} until this is mended; this command used the defaults"
    return [Problem(what, error.hint or "man snap-upgrade.conf")]


def _version(machine: Machine) -> list[Problem]:
    error = manage.version_error(machine.state)
    return [Problem(error.message, error.hint)] if error else []


def _layout(machine: Machine) -> list[Problem]:
    layout = machine.storage.layout()
    found = [Problem(warning, look(warning), WARNING) for warning in layout.warnings]
    if layout.method is Method.NONE:
        found.append(Problem(f"no roll back can take effect here: {layout.refusal}", layout.hint))
    return found


def _next(machine: Machine, inventory: Inventory) -> list[Problem]:
    """Return that the next boot would end in nothing, or in something nobody chose."""
    layout = machine.storage.layout()
    if layout.method is Method.NONE:
        return []
    following = machine.storage.boots_next()
    if following is None:
        what = f"nothing boots next: somebody deleted the volume {layout.boot_path or 'that was the default'}"
        return [Problem(what, "snap-upgrade cancel")]
    if inventory.by_uuid(following.uuid) is None:
        what = f"what boots next, the volume {following.path or 'of the top level'}, is not an environment of ours"
        return [Problem(what, "snap-upgrade cancel", WARNING)]
    return []


def _outdated(machine: Machine, inventory: Inventory) -> list[Problem]:
    """Return that the pending image-update lacks what was changed here after it was made: it would seem lost."""
    running, following = machine.storage.layout().running.uuid, machine.storage.boots_next()
    pending = inventory.by_uuid(following.uuid) if following and following.uuid != running else None
    later = lineage.missed(machine.state, inventory, pending.record, running) if pending else []
    if pending is None or not later:
        return []
    what = f"transaction{'s' if len(later) > 1 else ''} {', '.join(later)}"
    text = f"{pending.record.name} boots next and was made before {what}: what that changed is not in it"
    # The next image-update goes on from the pending one, and would lack it too; a fresh one goes on from what runs.
    return [Problem(text, "snap-upgrade image-update --fresh", WARNING)]


def _journals(machine: Machine) -> list[Problem]:
    found = []
    for one in journal.open_journals(machine.state):
        if isinstance(one, errors.StateDamaged):
            found.append(Problem(one.message, one.hint))
        elif is_left_open(one.entries):
            found.append(Problem(f"transaction {one.entries.ident} ({flow_name(one.entries)}) was interrupted",
                                 "snap-upgrade recover"))  # fmt: skip
    for closed in journal.history(machine.state):
        if isinstance(closed, errors.StateDamaged):
            found.append(Problem(closed.message, closed.hint, WARNING))
    return found


def _pointer(machine: Machine) -> list[Problem]:
    try:
        manage.temporary_return(machine)
    except errors.StateDamaged as error:
        return [Problem(error.message, error.hint)]
    return []


def _unfinished(machine: Machine, inventory: Inventory) -> list[Problem]:
    """Return the half made environments that no transaction is making, and the failed ones that were kept."""
    if is_at_work(machine):
        return []
    found = []
    for owned in inventory.owned:
        record = owned.record
        if record.kind is Kind.ENVIRONMENT and record.state is State.BUILDING:
            found.append(Problem(f"{record.name} is half made and nobody is making it",
                                 f"snap-upgrade destroy {shlex.quote(record.name)}"))  # fmt: skip
    return found


def is_at_work(machine: Machine) -> bool:
    """Whether a transaction is open; then what it makes is expected to be half made."""
    return any(True for _ in journal.open_journals(machine.state))


def _strangers(machine: Machine, inventory: Inventory) -> list[Problem]:
    """Return the volumes in our folders that no record speaks of, and what was kept of others'."""
    found = []
    busy = is_at_work(machine)
    known = {owned.record.uuid for owned in inventory.owned}
    for volume in machine.storage.volumes().values():
        folder, _, name = volume.path.removeprefix(f"{STATE}/").partition("/")
        is_part = folder == "snap" and name.partition("/")[0].endswith(PARTS)
        if not volume.path.startswith(f"{STATE}/") or ("/" in name and not is_part) or volume.uuid in known:
            continue
        if folder == "kept":
            what = f"the volume {volume.path} lay inside a destroyed environment and is kept"
        elif folder in {"be", "snap"} and name and not busy:
            what = f"the volume {volume.path} is in our folder, but not on record; it is left alone"
        else:
            continue
        number = _restore_point(machine, volume) if folder == "snap" else ""
        if number:
            what = f"the volume {volume.path} is not on record, but is (or belongs to) the restore point of"
            found.append(Problem(f"{what} transaction {number}", f"snap-upgrade history {number}", WARNING))
            continue
        found.append(Problem(what, _look_and_delete(machine, volume), WARNING))
    return found


def _restore_point(machine: Machine, volume: Volume) -> str:
    """Return the number of the transaction whose restore point needs *volume*, empty if there is none."""
    number = volume.path.split("/")[2].removesuffix(PARTS)
    is_snapshot = volume.read_only and volume.parent_uuid is not None
    if not is_snapshot or machine.storage.at(f"{STATE}/snap/{number}") is None:
        return ""
    try:
        return journal.read(machine.state, number).ident
    except (errors.NotFound, errors.StateDamaged):
        return ""


def _look_and_delete(machine: Machine, volume: Volume) -> str:
    """Return how a person sees what is in a volume that is not ours to destroy, and how he deletes exactly this one."""
    source = shlex.quote(mounts.mount_of(str(machine.root)).source)
    place = f"/run/snap-upgrade/look-{volume.ident}"
    # By number: it is never given to another volume, whoever moves or makes what meanwhile.
    gone = [f"btrfs subvolume delete --subvolid {one.ident} /"
            for one in (*machine.storage.nested(volume.uuid), volume)]  # fmt: skip
    look_at = f"mount --mkdir -o ro,subvolid={volume.ident} {source} {place}"
    return f"to look at it: '{look_at}'; if nobody needs it, 'umount {place}' and '{' && '.join(gone)}'"


def _left_behind(machine: Machine, inventory: Inventory) -> list[Problem]:
    """Return the nested subvolumes that the running root waits for, which a boot would have brought to it."""
    found = []
    for volume, home in nested.left_behind(machine, inventory):
        name = home.record.name
        is_mounted = bool(machine.storage.mounted_at(home.record.uuid))
        found.append(Problem(
            f"the nested subvolume {volume.path} is in {name}, and in its place in the running root is nothing",
            f"snap-upgrade unmount {shlex.quote(name)}" if is_mounted else "snap-upgrade recover --boot", WARNING,
        ))  # fmt: skip
    return found


def _untold(machine: Machine) -> list[Problem]:
    """Return the volumes that are so deep in folders that no path of them can be told; anybody may make one."""
    found = []
    for volume in machine.storage.volumes().values():
        if not is_told(volume.path):
            place = volume.path.partition(UNTOLD)[0].rstrip("/") or "the top level"
            what = f"the volume {volume.ident} lies too deep in {place} to tell its path; it is left where it is"
            found.append(Problem(what, "find / -xdev -inum 256 -printf '%.200p\\n'", WARNING))
    return found


def _space(machine: Machine) -> list[Problem]:
    space, reserve = machine.storage.space(), machine.config.reserve_mib << 20
    if space.available >= reserve:
        return []
    return [Problem(f"{space.available >> 20} MiB are free, less than the reserve of {reserve >> 20} MiB",
                    "snap-upgrade prune")]  # fmt: skip


def _packages(machine: Machine) -> list[Problem]:
    if machine.manager is None:
        what = f"no package manager that snap-upgrade knows is in {machine.root}; another environment may have one"
        return [Problem(what, "snap-upgrade list", WARNING)]
    # Asked before and after: what is half done while somebody is at it is not broken.
    before = packages_at_work(machine)
    found = machine.manager.broken(machine.root)
    if not found or before or packages_at_work(machine):
        return []
    return [Problem(text, "dpkg --configure -a && apt-get -f install", WARNING) for text in found]


def packages_at_work(machine: Machine) -> str:
    """Return who is changing the packages of this root at this moment, empty if nobody is. No lock is taken."""
    for name in ("lock-frontend", "lock"):  # aptitude takes only the second
        if holder := files.lock_holder(machine.root / "var/lib/dpkg" / name):
            return holder
    for one in journal.open_journals(machine.state):
        # Between two runs of dpkg aptitude holds neither.
        if not isinstance(one, errors.StateDamaged) and one.entries.flow == "live" and is_owner_alive(one.entries):
            return f"{one.entries.owner.name} (process {one.entries.owner.pid})"
    return ""


def notes(machine: Machine) -> list[str]:
    """Return what is so on this machine and is good to know; there is nothing to mend."""
    why = machine.loader.fallback_problem()
    return [f"{why}: after a bad boot choose another environment by hand"] if why else []


# --- the hooks


def hook_files(machine: Machine) -> list[Problem]:
    """Return what is wrong with the hook's files; cheap, runs nothing."""
    if machine.manager is None or machine.manager.name != "apt":
        return []
    found = []
    if not machine.config.enabled:
        found.append(Problem("the hooks are switched off by 'enabled = no': apt works unprotected",
                             "sed -i 's/^ *enabled *=.*/enabled = yes/' /etc/snap-upgrade.conf",
                             WARNING))  # fmt: skip
    if not os.path.isfile(CONF):
        found.append(Problem(f"{CONF} is not there: apt does not know our hooks", _REINSTALL))
    if not os.access(HOOK, os.X_OK):
        found.append(Problem(f"{HOOK} is not there or not executable: apt works unprotected", _REINSTALL))
    return found


def hook_settings(dump: str) -> list[Problem]:
    """Return what is wrong with our entries in the text of ``apt-config dump``."""
    values = dict(parse_dump(dump))
    found = []
    for entry, call in _ENTRIES.items():
        value = values.get(entry.lower(), "")
        if not value:
            found.append(Problem(f"apt's configuration has no {entry}: another file clears it", _WHO_CLEARS))
        elif call not in value:
            found.append(Problem(f"{entry} does not run {call}: {value}", _REPLACE))
        elif call.endswith("pre") and value.split()[0] != HOOK:
            # apt finds the protocol of a hook by its first word, and speaks the oldest to any other.
            found.append(Problem(f"{entry} does not begin with {HOOK}: {value}", _REPLACE))
    version = values.get(_VERSION.lower())
    if version != "3":
        found.append(Problem(f"apt would speak protocol {version or 1} to our hook, not 3", _REPLACE))
    return found


def parse_dump(dump: str) -> list[tuple[str, str]]:
    """Return (key in lower case, value) of each line ``key "value";``: apt's keys do not know upper and lower case."""
    found = []
    for line in dump.splitlines():
        key, separator, rest = line.partition(' "')
        if separator and rest.endswith('";'):
            found.append((key.strip().lower(), rest[:-2]))
    return found


def hook_effect(machine: Machine) -> list[Problem]:
    """Return what is wrong with the hooks as apt sees them."""
    if machine.manager is None or machine.manager.name != "apt" or machine.root != Path("/"):
        return []
    return hook_settings(command.run(["apt-config", "dump"]).stdout)


def last_fired(state: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Return when which front end last fired our hooks, and what is wrong with the file that says so."""
    if state == NO_STATE:
        return {}, []
    try:
        data = json.loads((state / "hooks.json").read_bytes())
    except FileNotFoundError:
        return {}, []
    except (ValueError, RecursionError) as error:
        return {}, [Problem(f"hooks.json cannot be understood: {error}; it is kept as it is", _ABANDON_FIRED, WARNING)]
    if not isinstance(data, dict):
        return {}, [Problem("hooks.json cannot be understood: it is not an object; it is kept as it is",
                            _ABANDON_FIRED, WARNING)]  # fmt: skip
    return data, []


def interrupted(machine: Machine) -> list[Entries]:
    """Return the open transactions whose process is gone."""
    return [
        one.entries
        for one in journal.open_journals(machine.state)
        if not isinstance(one, errors.StateDamaged) and is_left_open(one.entries)
    ]


def is_left_open(entries: Entries) -> bool:
    """Whether nobody is at work on the open transaction; one that has its end only waits to be moved."""
    return entries.last("end") is None and not is_owner_alive(entries)
