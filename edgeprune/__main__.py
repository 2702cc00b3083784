"""`python -m edgeprune`, and so `torchrun … -m edgeprune`: the command of that name."""

import sys

from edgeprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
