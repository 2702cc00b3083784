"""`python -m edgeprune`, and so `torchrun … -m edgeprune`: the command of that name.

It is looked up where packages declare their commands, as what it does lies in packages that this one does not import.
"""

import sys
from importlib.metadata import entry_points

if __name__ == "__main__":
    (command,) = entry_points(group="console_scripts", name="edgeprune")
    sys.exit(command.load()())
