"""The flows as plans: what is done before the work, and what follows from its verdict.

The rule: pure. A plan names all that it will make; a decision is made once, written down, and rolls forward.
The table is section 4 of the design (from the pkg proposal of 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

from snap_upgrade.core.model import State
from snap_upgrade.core.steps import (
    Activate,
    Destroy,
    MakeClone,
    Mount,
    Packages,
    Promote,
    Seal,
    Step,
    TakeSnapshot,
    Unmount,
)

STATE = ".snap-upgrade"
ENVIRONMENTS = f"{STATE}/be"
PARTS = ".parts"  # of the folder beside a snapshot: snapshots of what was nested in it
WAY_BACK_TEXT = "the system before transaction "
UPDATE_TEXT = "updated from "
GOOD = frozenset({"success", "success-with-script-errors"})


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept. ``to_the_letter`` is ``policy = proposal``: the table of 2008 as written."""

    keep_on_success: bool = True
    keep_failed: bool = False
    to_the_letter: bool = False


def snapshot_name(ident: str) -> str:
    """Return the name under which the snapshot of transaction *ident* is recorded."""
    return f"snap-{ident}"


def snapshot_path(ident: str) -> str:
    """Return where the snapshot of transaction *ident* lies."""
    return f"{STATE}/snap/{ident}"


def part_path(path: str, relative: str) -> str:
    """Return where the snapshot of the nested volume *relative* lies that belongs to the snapshot at *path*.

    One name a person can read, without a slash: one read-only snapshot can lie in no other.
    """
    return f"{path}{PARTS}/" + relative.replace("%", "%25").replace(":", "%3A").replace("/", ":")


def part_of(path: str) -> str:
    """Return what `part_path` made *path* from: where the nested volume lies in its root."""
    return path.rpartition("/")[2].replace(":", "/").replace("%3A", ":").replace("%25", "%")


def clone_path(name: str) -> str:
    """Return where the environment *name* lies when it is made."""
    return f"{ENVIRONMENTS}/{name}"


def way_back_name(ident: str) -> str:
    """Return the name of the environment that is kept when transaction *ident* fails."""
    return f"before-{ident}"


# --- before the work


def live(ident: str, running: str, manager: str) -> list[Step]:
    """Work on the live root, whose uuid is *running*, behind a snapshot."""
    return [
        TakeSnapshot(running, snapshot_path(ident), snapshot_name(ident)),
        Packages("live", manager),
    ]


def image_update(ident: str, base: str, name: str, manager: str, description: str = "") -> list[Step]:
    """Work on a clone, to be called *name*, of the environment with the uuid *base*."""
    snapshot = snapshot_name(ident)
    return [
        TakeSnapshot(base, snapshot_path(ident), snapshot),
        MakeClone(snapshot, clone_path(name), name, State.BUILDING.value, description),
        Packages("clone", manager, name),
    ]


def alternate_root(ident: str, base: str, name: str, manager: str) -> list[Step]:
    """Work on the environment *name* (uuid *base*), which is mounted at -R DIR."""
    return [
        TakeSnapshot(base, snapshot_path(ident), snapshot_name(ident)),
        Packages("root", manager, name),
    ]


# --- after the verdict


def after_live(ident: str, verdict: str, policy: Policy, mount_at: str = "") -> list[Step]:
    """Return what follows on the live root: nothing is rolled back here, a way back is made.

    *mount_at* is where the proposal's table mounts the clone; it is mounted only under that policy.
    """
    snapshot = snapshot_name(ident)
    if verdict == "unchanged":
        return [Destroy(snapshot)]
    if verdict in GOOD:
        return [] if policy.keep_on_success and not policy.to_the_letter else [Destroy(snapshot)]
    name = way_back_name(ident)
    text = f"{WAY_BACK_TEXT}{ident}, which failed"
    steps: list[Step] = [MakeClone(snapshot, clone_path(name), name, State.READY.value, text)]
    if policy.to_the_letter and mount_at:
        steps.append(Mount(name, mount_at))
    return steps


def after_image_update(
    ident: str, verdict: str, name: str, previous: str, is_activated: bool, policy: Policy
) -> list[Step]:
    """Return what follows in the clone *name*; *previous* boots next until now."""
    snapshot = snapshot_name(ident)
    if verdict not in GOOD:
        if policy.keep_failed and verdict != "unchanged":
            return [Seal(name, State.FAILED.value), Destroy(snapshot)]
        return [Destroy(name), Destroy(snapshot)]
    steps: list[Step] = [Seal(name)]
    if is_activated:
        steps.append(Activate(name, previous))
    if policy.to_the_letter:
        steps.append(Destroy(snapshot))
    return steps


def after_alternate_root(ident: str, verdict: str, name: str, path: str, directory: str, policy: Policy) -> list[Step]:
    """Return what follows for the environment *name* that lies at *path* and is mounted at *directory*.

    On failure the snapshot's clone takes its place, its name, its path and its mount point; the failed
    attempt gets the name the clone had, and is destroyed or kept aside under it.
    """
    snapshot = snapshot_name(ident)
    if verdict == "unchanged":
        return [Destroy(snapshot)]
    if verdict in GOOD:
        return [] if policy.keep_on_success and not policy.to_the_letter else [Destroy(snapshot)]
    good = f"failed-{ident}"
    steps: list[Step] = [
        MakeClone(snapshot, clone_path(good), good, State.BUILDING.value),
        Unmount(name, directory),
        Promote(good, name, path),
        Mount(name, directory),
    ]
    if not policy.keep_failed:
        steps.append(Destroy(good))
    steps.append(Destroy(snapshot))
    return steps


# --- whole commands


def rollback(ident: str, name: str, has_clone: bool, previous: str, armed: str = "") -> list[Step]:
    """Make the system as it was before transaction *ident* boot next, as the environment *name*.

    *previous* boots next now, for one boot only if *armed* names what was to boot again after it.
    """
    text = f"{WAY_BACK_TEXT}{ident}"
    make: list[Step] = []
    if not has_clone:
        make = [MakeClone(snapshot_name(ident), clone_path(name), name, State.READY.value, text)]
    return [*make, Activate(name, previous, "", armed)]
