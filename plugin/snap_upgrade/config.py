"""/etc/snap-upgrade.conf: one setting a line, ``key = value``; ``#`` begins a comment.

The rule: what is not understood is an error with its line number, never a silent default. The hooks read the same
file with the same syntax and only the few keys they need.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from snap_upgrade.core.errors import UsageError
from snap_upgrade.core.plan import Policy
from snap_upgrade.core.retention import Limits

PATH = Path("/etc/snap-upgrade.conf")

_CHOICES = {
    "on_no_snapshot": ("refuse", "warn"),
    "policy": ("default", "proposal"),
    "activation": ("auto", "exchange", "set-default"),
    "conffiles": ("keep", "replace"),
    "reboot": ("never", "ask", "now"),
}


@dataclass(frozen=True, slots=True)
class Config:
    """The settings, each with its default. Times in seconds, sizes in MiB; 0 for a count keeps none but the newest."""

    enabled: bool = True
    on_no_snapshot: str = "refuse"
    policy: str = "default"
    keep_on_success: bool = True
    keep_failed: bool = False
    activation: str = "auto"
    conffiles: str = "keep"
    reboot: str = "never"
    clone_nested: tuple[str, ...] = ()
    keep_restore_points: int = 10
    keep_environments: int = 5
    reserve_mib: int = 512
    hook_timeout_s: int = 60
    script_timeout_s: int = 3600

    def rules(self) -> Policy:
        """Return what the flows need to know."""
        return Policy(self.keep_on_success, self.keep_failed, self.policy == "proposal")

    def limits(self) -> Limits:
        """Return what prune needs to know."""
        return Limits(self.keep_restore_points, self.keep_environments, self.reserve_mib << 20)


def parse(text: str, name: str = str(PATH)) -> Config:
    """Return the settings in *text*; raise UsageError naming file, line and what is allowed."""
    values: dict[str, Any] = {}
    defaults = Config()
    known = {field.name: getattr(defaults, field.name) for field in fields(Config)}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        where = f"{name}, line {number}"
        if not equals:
            raise UsageError(f"{where}: {line!r} is not 'key = value'")
        if key not in known:
            raise UsageError(f"{where}: there is no setting {key!r}", "man snap-upgrade.conf")
        if key in values:
            raise UsageError(f"{where}: {key} is set a second time")
        values[key] = _value(key, value, known[key], where)
    return Config(**values)


def _value(key: str, value: str, default: object, where: str) -> object:
    if isinstance(default, bool):
        if value not in {"yes", "no"}:
            raise UsageError(f"{where}: {key} is yes or no, not {value!r}")
        return value == "yes"
    if isinstance(default, int):
        if not (value.isascii() and value.isdecimal() and len(value) <= 9):
            raise UsageError(f"{where}: {key} is a whole number, not {value!r}")
        return int(value)
    if isinstance(default, tuple):
        return tuple(_inside(key, word, where) for word in value.split())
    if value not in _CHOICES[key]:
        raise UsageError(f"{where}: {key} is one of {', '.join(_CHOICES[key])}, not {value!r}")
    return value


def _inside(key: str, word: str, where: str) -> str:
    """Return the path *word* relative to the root, which it must not leave."""
    path = word.strip("/")
    if any(part in {"", ".", ".."} for part in path.split("/")):
        raise UsageError(f"{where}: {key} takes paths inside the root, without '.', '..' or '//', not {word!r}")
    return path


def load(path: Path = PATH) -> Config:
    """Return the settings of this machine; a file that is not there means the defaults."""
    try:
        text = _read(path)
    except FileNotFoundError:
        return Config()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return parse(text, str(path))


def _read(path: Path) -> str:
    """Return the text of the regular file *path*; a pipe in its place must not keep us waiting for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file", f"ls -ld {path}")
    with open(descriptor, encoding="utf-8") as file:
        return file.read()
