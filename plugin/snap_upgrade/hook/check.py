"""``apt-hook check``, for the package's postinst: say now, and not at the next upgrade, that there is no way back.

The rule: silent where all is well and where the hooks do nothing; it changes nothing and never fails.
"""

from __future__ import annotations

import sys

from snap_upgrade.hook import layout, pre, settings


def main() -> int:
    """Do what the module says; always 0."""
    try:
        known = settings.load()
    except settings.BadSetting as error:
        sys.stderr.write(f"snap-upgrade: {error}: apt will refuse every operation until this is corrected\n")
        return 0
    if not known.is_enabled or pre._is_chroot():
        return 0
    try:
        reason, hint = layout.ask(known.activation)
    except OSError as error:
        reason, hint = f"how the root is chosen at boot cannot be found out: {error}", ""
    if not reason:
        return 0
    sys.stderr.write(f"snap-upgrade: it cannot protect this system: {reason}\n")
    if hint:
        sys.stderr.write(f"snap-upgrade: hint: {hint}\n")
    if known.refuses:
        sys.stderr.write(
            "snap-upgrade: until then apt refuses to install, upgrade or remove anything but snap-upgrade itself.\n"
            f"snap-upgrade: to let apt work unprotected: on_no_snapshot = warn in {settings.PATH}\n"
            "snap-upgrade: to be rid of it: apt-get purge snap-upgrade\n"
        )
    return 0
