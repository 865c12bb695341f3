"""The few settings that the hooks need, from the same file and in the same syntax as config.py reads.

The rule: a setting of ours with a value that has no meaning is an error; what is for others is passed over.
"""

from __future__ import annotations

import os

PATH = "/etc/snap-upgrade.conf"
_KIND, _REGULAR = 0o170000, 0o100000  # S_IFMT, S_IFREG: the module stat is not loaded for two numbers

_CHOICES = {
    "enabled": ("yes", "no"),
    "on_no_snapshot": ("refuse", "warn"),
    "keep_on_success": ("yes", "no"),
    "policy": ("default", "proposal"),
    "activation": ("auto", "exchange", "set-default"),
}


class BadSetting(ValueError):
    """The configuration file says something that has no meaning. ``refuses``: what it nevertheless clearly says."""

    def __init__(self, message: str, refuses: bool = True) -> None:
        super().__init__(message)
        self.refuses = refuses


class Settings:
    """``is_kept``: whether the snapshot of a good operation stays as a restore point. ``nested``: what goes along."""

    __slots__ = ("activation", "hook_timeout_s", "is_enabled", "is_kept", "nested", "refuses")

    def __init__(self, values: dict[str, str]) -> None:
        self.is_enabled = values.get("enabled", "yes") == "yes"
        self.refuses = values.get("on_no_snapshot", "refuse") == "refuse"
        self.is_kept = values.get("keep_on_success", "yes") == "yes" and values.get("policy") != "proposal"
        self.activation = values.get("activation", "auto")
        self.hook_timeout_s = int(values.get("hook_timeout_s", "60"))
        self.nested = tuple(word.strip("/") for word in values.get("clone_nested", "").split())


def parse(text: str) -> Settings:
    """Return the settings in *text*. Raises BadSetting with the line's number."""
    values: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        key, equals, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if not equals:
            raise BadSetting(f"{PATH}, line {number}: {line!r} is not 'key = value'")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise BadSetting(f"{PATH}, line {number}: {key} is one of {', '.join(_CHOICES[key])}, not {value!r}")
        if key == "hook_timeout_s" and not (value.isascii() and value.isdecimal() and 0 < len(value) <= 9):
            raise BadSetting(f"{PATH}, line {number}: {key} is a whole number, not {value!r}")
        if key == "clone_nested" and not all(_is_inside(word) for word in value.split()):
            what = "takes paths inside the root, without '.', '..' or '//'"
            raise BadSetting(f"{PATH}, line {number}: {key} {what}, not {value!r}")
        if key in values:
            raise BadSetting(f"{PATH}, line {number}: {key} is set a second time")
        values[key] = value
    return Settings(values)


def _is_inside(word: str) -> bool:
    return not any(part in ("", ".", "..") for part in word.strip("/").split("/"))


def load() -> Settings:
    """Return the settings of this machine; a file that is not there means the defaults."""
    try:
        text = _read()
    except FileNotFoundError:
        return parse("")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{PATH} cannot be read: {error}") from error
    try:
        return parse(text)
    except BadSetting as error:
        error.refuses = not _says_warn(text)
        raise


def _says_warn(text: str) -> bool:
    """Whether *text*, which is not right as a whole, says once and rightly that operations go on without a snapshot."""
    lines = (line.partition("#")[0].partition("=") for line in text.splitlines())
    return [value.strip() for key, _, value in lines if key.strip() == "on_no_snapshot"] == ["warn"]


def _read() -> str:
    """Return the text of the file; a pipe in its place must not keep apt waiting for a writer."""
    fd = os.open(PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_mode & _KIND != _REGULAR:
            raise BadSetting(f"{PATH} is not a regular file")
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode()
