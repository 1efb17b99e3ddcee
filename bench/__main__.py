"""`python -m bench`: the same as the console script."""

import sys

from bench.cli.main import main

sys.exit(main())
