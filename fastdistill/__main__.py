"""`python -m fastdistill`, as torchrun starts it."""

import sys

from fastdistill.cli import main

sys.exit(main())
