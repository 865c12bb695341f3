"""``python3 -I -m snap_upgrade``: the same as the command.

The rule: as there, no bytecode is written.
"""

import sys

sys.dont_write_bytecode = True

from snap_upgrade.cli.main import main  # noqa: E402

sys.exit(main())
