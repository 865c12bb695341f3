"""What can go wrong, one class per reaction of the caller, each with its own exit code.

The rule: a message names the object, says what failed and what is true now; the hint says what to do.
The exit codes are a promise to scripts: they are listed in snap-upgrade(8) and a test compares the two.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_NOTHING_TO_DO = 4
EXIT_UNCHANGED = 5
EXIT_RESTORED = 6
EXIT_WAY_BACK = 7
EXIT_NOT_ACTIVATED = 8
EXIT_INTERRUPTED = 9
EXIT_LOCKED = 10
EXIT_NEEDS_PERSON = 11
EXIT_NETWORK = 12
EXIT_SIGNATURE = 13


class SnapUpgradeError(Exception):
    """The base of all: *message* for the user, *hint* what to do about it."""

    exit_code = EXIT_INTERNAL
    message_id = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InternalError(SnapUpgradeError):
    """A bug of ours: an invariant did not hold."""


class UsageError(SnapUpgradeError):
    """The command line, a name or the configuration is wrong; nothing was touched."""

    exit_code = EXIT_USAGE
    message_id = "usage"


class NotFound(UsageError):
    """No environment, snapshot or transaction of that name."""

    message_id = "not-found"


class Refused(SnapUpgradeError):
    """Refused before any change: not supported here, would not fit, would destroy what must stay."""

    exit_code = EXIT_REFUSED
    message_id = "refused"


class NoSpace(Refused):
    """The operation cannot fit."""

    message_id = "no-space"


class NothingToDo(SnapUpgradeError):
    """All is as asked already."""

    exit_code = EXIT_NOTHING_TO_DO
    message_id = "nothing-to-do"


class FailedUnchanged(SnapUpgradeError):
    """The operation failed; nothing was changed or all of it was undone."""

    exit_code = EXIT_UNCHANGED
    message_id = "failed-unchanged"


class NetworkFailed(FailedUnchanged):
    """A download failed; nothing was changed."""

    exit_code = EXIT_NETWORK
    message_id = "network"


class SignatureFailed(FailedUnchanged):
    """A repository or package is not signed as it must be; nothing was changed."""

    exit_code = EXIT_SIGNATURE
    message_id = "signature"


class NotStarted(FailedUnchanged):
    """The program that was to do the work could not be started at all."""

    message_id = "not-started"


class FailedRestored(SnapUpgradeError):
    """The operation failed; the environment was restored and compared."""

    exit_code = EXIT_RESTORED
    message_id = "failed-restored"


class FailedWayBack(SnapUpgradeError):
    """The operation failed on the live root; a bootable way back is kept and named."""

    exit_code = EXIT_WAY_BACK
    message_id = "failed-way-back"


class InterruptedWork(SnapUpgradeError):
    """An earlier transaction is open; recover it first."""

    exit_code = EXIT_INTERRUPTED
    message_id = "interrupted"


class Locked(SnapUpgradeError):
    """Another transaction holds the lock."""

    exit_code = EXIT_LOCKED
    message_id = "locked"


class NeedsPerson(SnapUpgradeError):
    """What is there is not what the records say, and no rule decides: a person must look."""

    exit_code = EXIT_NEEDS_PERSON
    message_id = "needs-person"


class CommandFailed(SnapUpgradeError):
    """A program we ran failed; *argv*, *status* and the end of its output are in the message.

    Whoever runs one as part of a change takes the change back; raw it reaches the user only where there was none.
    """

    exit_code = EXIT_UNCHANGED
    message_id = "command"

    def __init__(self, argv: list[str], status: int, output: str, hint: str = "") -> None:
        tail = output.strip()[-2000:]
        how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
        super().__init__(f"{argv[0]} {how}" + (f": {tail}" if tail else ""), hint)
        self.argv = argv
        self.status = status
        self.output = output


class StorageError(SnapUpgradeError):
    """A storage call failed with *errno*; the message names call and path. Raw: nothing was changed."""

    exit_code = EXIT_UNCHANGED
    message_id = "storage"

    def __init__(self, message: str, number: int = 0, hint: str = "") -> None:
        super().__init__(message, hint)
        self.errno = number


class StateDamaged(NeedsPerson):
    """A state file cannot be understood; it is kept as it is and reported."""

    message_id = "state-damaged"


def words(error: BaseException) -> str:
    """Return what *error* says to a person: of an error of the system its words, without its number."""
    text = str(error)
    if not isinstance(error, OSError) or not text.startswith("[Errno"):
        return text
    said = error.strerror or text
    return f"{error.filename}: {said}" if error.filename else said
