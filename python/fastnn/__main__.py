"""``python -m fastnn`` is the ``fastnn`` command."""

import sys

from fastnn.cli.main import main

sys.exit(main())
