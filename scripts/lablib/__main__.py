"""Entry point of ``python3 -m lablib``."""

import sys

from lablib.cli import main

sys.exit(main())
