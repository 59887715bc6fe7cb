"""``python -m proard_nas``: the same as the ``proard-nas`` command."""

import sys

from .cli import main

sys.exit(main())
