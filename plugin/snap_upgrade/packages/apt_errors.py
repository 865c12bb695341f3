"""What apt's words mean: which reaction of ours an error asks for.

The rule: apt says it in the C locale on standard error, ``E:`` and ``W:`` first on the line; a message that is not
known is passed on as it is and never guessed to be harmless. Recorded from apt 2.6.1 and 3.0.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from snap_upgrade.core.errors import (
    FailedUnchanged,
    Locked,
    NetworkFailed,
    NoSpace,
    Refused,
    SignatureFailed,
    SnapUpgradeError,
)

# First match wins: an unsigned repository is often reported beside a failed fetch, and is the graver of the two.
_SIGNATURE = (
    "GPG error:", "OpenPGP signature verification failed", "is not signed", "is no longer signed", "NO_PUBKEY",
    "Hash Sum mismatch", "File has unexpected size", "unauthenticated packages", "cannot be authenticated",
    "is expired (invalid since", "is not valid yet", "No Hash entry in Release file", "Insufficient information",
    "Clearsigned file isn't valid",
)  # fmt: skip
_SPACE = ("No space left on device", "You don't have enough free space", "Disk quota exceeded")
_LOCKED = ("Could not get lock", "Unable to acquire the dpkg frontend lock", "Unable to lock the")
_NETWORK = (
    "Failed to fetch", "does not have a Release file", "Could not resolve", "Could not connect", "Unable to connect",
    "Some files failed to download", "Some index files failed to download", "Unable to fetch some archives",
)  # fmt: skip
# Said in addition to what names the cause.
_SUMMARIES = ("Some files failed to download", "Some index files failed to download", "Unable to fetch some archives",
              "The following information from --solver 3.0 may provide additional context")  # fmt: skip
_UNMET = "The following packages have unmet dependencies:"


@dataclass(frozen=True, slots=True)
class Message:
    """One message; *severity* is ``E`` or ``W``, continued lines are joined by newlines."""

    severity: str
    text: str


def parse_messages(stderr: str) -> list[Message]:
    """Return apt's messages in *stderr* in order; what else is printed there (by helpers) is left out."""
    messages: list[Message] = []
    is_open = False
    for line in stderr.split("\n"):
        if line[:3] in ("E: ", "W: "):
            messages.append(Message(line[0], line[3:].strip()))
            is_open = True
        elif is_open and line.startswith("  ") and line.strip():
            last = messages[-1]
            messages[-1] = Message(last.severity, f"{last.text}\n{line.strip()}")
        else:
            is_open = False
    return messages


def parse_unmet(stdout: str) -> list[str]:
    """Return apt's lines about unmet dependencies, one for each package that has some."""
    _, found, rest = stdout.partition(_UNMET + "\n")
    lines: list[str] = []
    for line in rest.split("\n") if found else ():
        if not line.startswith(" "):
            break
        if line.startswith("  ") and lines:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return lines


def kind(messages: list[Message]) -> type[SnapUpgradeError]:
    """Return the class of error that *messages* ask for; Refused where nothing more special is known."""
    text = "\n".join(message.text for message in messages)
    known = ((_SIGNATURE, SignatureFailed), (_SPACE, NoSpace), (_LOCKED, Locked), (_NETWORK, NetworkFailed))
    for marks, error in known:
        if any(mark in text for mark in marks):
            return error
    return Refused


def reasons(stdout: str, stderr: str) -> list[str]:
    """Return why apt failed, shortest first line of each message, the causes and not the summaries."""
    messages = parse_messages(stderr)
    errors = [message for message in messages if message.severity == "E"]
    # The reason of a bad signature is a warning: the error only says "is not signed".
    chosen = [m for m in messages if m.severity == "W" and kind([m]) is SignatureFailed] + errors
    lines = [message.text.split("\n")[0] for message in chosen]
    causes = [line for line in lines if not line.startswith(_SUMMARIES)]
    return [*parse_unmet(stdout), *(causes or lines)]


def failure(what: str, status: int, stdout: str, stderr: str) -> SnapUpgradeError:
    """Return the error for an apt that ended with *status*; *what* was to be done, nothing was changed."""
    messages = parse_messages(stderr)
    cls = kind(messages)
    found = reasons(stdout, stderr)
    if status < 0:
        cls, found = FailedUnchanged, [f"apt was killed by signal {-status}", *found]
    detail = "; ".join(" ".join(line.split()) for line in found) or f"apt exited with {status} and gave no reason"
    return cls(f"cannot {what}: {detail}; nothing was changed", _HINTS.get(cls, ""))


_HINTS: dict[type[SnapUpgradeError], str] = {
    NetworkFailed: "check the network and /etc/apt/sources.list, then run it again",
    SignatureFailed: "check the date and the keys in /etc/apt; or the mirror is in the middle of an update",
    NoSpace: "snap-upgrade prune",
    Locked: "wait until the other package manager is done",
}
