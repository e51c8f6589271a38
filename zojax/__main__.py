"""`python -m zojax`."""

import sys

from zojax.cli import main

sys.exit(main())
