"""The commands that need Tracr. `pyproject.toml` names `add_commands` as an entry point."""

from collections.abc import Callable
from typing import Final

from edgeprune.cli.main import PROGRAMS
from edgeprune.cli.options import AGAIN

_COMMANDS: Final = {
    "programs": ("list the programs that come with the toolkit", "programs --coverage", ""),
    "verify": (
        "check that RASP, Tracr's model and ours agree on the whole domain",
        "verify mine.py:first_token",
        "",
    ),
    "truth": (
        "derive and certify a program's true circuits",
        "truth reverse --ablation resample --save true.json",
        "",
    ),
    "recover": (
        "discover a program's circuit and compare it with the truth",
        "recover reverse --method acdc --picture circuit.svg",
        "",
    ),
    "bench": (
        "run methods on many programs, and compare how well they recover circuits",
        "bench hist reverse --method all --out results",
        AGAIN,
    ),
    "export": (
        "write causal programs as checkpoints of Hugging Face with known circuits",
        "export induction --as gpt2 --out induction",
        ": checkpoints that were finished stand; name the others again",
    ),
}
"""Summary, example, and how to go on where it was stopped."""


def add_commands(add: Callable[..., None]) -> None:
    """Declare the commands.

    Args:
        add: declares one; see `edgeprune.cli.main`.
    """
    for name, (summary, example, goes_on) in _COMMANDS.items():
        where = f"tracr_bridge.cli.commands:{name}"
        add(name, where, summary, group=PROGRAMS, example=example, goes_on=goes_on)
