"""The few settings that the hooks need, from the same file and in the same syntax as config.py reads.

The rule: a setting of ours with a value that has no meaning is an error; what is for others is passed over.
"""

from __future__ import annotations

PATH = "/etc/snap-upgrade.conf"

_CHOICES = {
    "enabled": ("yes", "no"),
    "on_no_snapshot": ("refuse", "warn"),
    "keep_on_success": ("yes", "no"),
    "policy": ("default", "proposal"),
    "activation": ("auto", "exchange", "set-default"),
}


class BadSetting(ValueError):
    """The configuration file says something that has no meaning."""


class Settings:
    """``is_kept``: whether the snapshot of a good operation stays as a restore point. ``nested``: what goes along."""

    __slots__ = ("activation", "hook_timeout_s", "is_enabled", "is_kept", "nested", "refuses")

    def __init__(self, values: dict[str, str]) -> None:
        self.is_enabled = values.get("enabled", "yes") == "yes"
        self.refuses = values.get("on_no_snapshot", "refuse") == "refuse"
        self.is_kept = values.get("keep_on_success", "yes") == "yes" and values.get("policy") != "proposal"
        self.activation = values.get("activation", "auto")
        self.hook_timeout_s = int(values.get("hook_timeout_s", "60"))
        paths = (word.strip("/") for word in values.get("clone_nested", "").split())
        self.nested = tuple(path for path in paths if path)


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
        if key in values:
            raise BadSetting(f"{PATH}, line {number}: {key} is set a second time")
        values[key] = value
    return Settings(values)


def load() -> Settings:
    """Return the settings of this machine; a file that is not there means the defaults."""
    try:
        with open(PATH, encoding="utf-8") as file:
            return parse(file.read())
    except FileNotFoundError:
        return parse("")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{PATH} cannot be read: {error}") from error
