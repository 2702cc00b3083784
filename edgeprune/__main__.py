"""Run the `edgeprune` command as `python -m edgeprune`, and so under `torchrun … -m edgeprune`."""

import sys

from edgeprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
