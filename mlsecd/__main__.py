"""``python -m mlsecd``."""

import sys

from mlsecd.cli import main

sys.exit(main())
