"""What options of the command line take, each with a complaint about anything else."""

import argparse
from typing import Final

AGAIN: Final = ": the same command goes on where it was"
"""What follows where a command was stopped that another run of it goes on with."""


def seed(text: str) -> int:
    """A seed that NumPy takes too."""
    if not text.isdecimal() or not int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"expected a seed from 0 to 2**32 - 1, got {text}")
    return int(text)


def count(text: str) -> int:
    """A number of things, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text}")
    return int(text)


def seconds(text: str) -> float:
    """A duration."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0 seconds, got {text}")
    return found


def counted(number: int, what: str) -> str:
    """A number of things, in words: 1 seed, 2 seeds."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
