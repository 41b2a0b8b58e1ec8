"""``python -m mlic_fast.cli`` is ``mlic-fast``."""

import sys

from mlic_fast.cli import main

sys.exit(main())
