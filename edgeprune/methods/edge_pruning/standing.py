"""Stages of a run of Edge Pruning, and the check of a saved state before a run resumes from it."""

from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from edgeprune.files.checkpoint import Allowed, check_state, part
from edgeprune.methods.edge_pruning.config import PruningConfig
from edgeprune.methods.edge_pruning.ending import Ending
from edgeprune.methods.edge_pruning.optimizer import Adam
from edgeprune.methods.edge_pruning.pressure import LossTolerance
from edgeprune.methods.edge_pruning.within import FewestWithin

if TYPE_CHECKING:
    from edgeprune.methods.edge_pruning.engine import Pruning

ENGINE: Final = 3
"""Version of the format of `Pruning.state`."""


class Stage(IntEnum):
    """What a run does next."""

    LEARN = 0
    CHECK = 1
    LEARN_ANEW = 2
    CHECK_ANEW = 3
    REMOVE = 4
    DONE = 5


def check_standing(
    state: Mapping[str, Tensor], run: "Pruning", optimizer: Adam, ending: Ending, within: FewestWithin
) -> None:
    """Check that a saved state is one that a run with these parts could have written.

    Raises:
        ValueError: it is not.
    """
    own, config, inputs = run.state(), run.config, len(run.problem.dataset)
    place = Allowed(like=own["place"], least=0, most=max(2 * config.steps, Stage.DONE))
    fits = "place" in state and place.fault(state["place"]) is None
    done, step, stage = state["place"].tolist() if fits else (0, 0, 0)  # check_state below reports a misfit
    largest = config.masks.largest_log_alpha or torch.finfo(torch.float32).max
    learned = Allowed(like=own["log_alpha"], least=-largest, most=largest)
    against = Allowed(like=torch.zeros(2, 0, dtype=torch.long), columns=inputs**2, least=0, most=inputs - 1)
    rules = {
        "engine": Allowed(like=own["engine"], least=ENGINE, most=ENGINE),
        "place": place,
        "noise": Allowed(like=own["noise"]),
        "log_alpha": learned,
        "first_circuit": replace(learned, or_empty=True),
        "against": against,
        "multipliers": Allowed(like=own["multipliers"]),
        **part("counterexamples", run.counterexamples.allowed(inputs)),
        # The moments count every step, unless the optimiser may be restarted before the end.
        **part("optimizer", optimizer.allowed(least=0 if config.ending else step, most=step)),
        **part("ending", ending.allowed()),
        **part("within", within.allowed(learned, run.problem.graph.total)),
    }
    check_state(state, rules)
    if len(state["counterexamples/merit"]) != state["counterexamples/pairs"].shape[1]:
        raise ValueError("it has another number of counterexamples than of their merits")
    _check_place(config, done, step, stage, anew=bool(len(state["first_circuit"])))


def _check_place(config: PruningConfig, done: int, step: int, stage: int, *, anew: bool) -> None:
    """Check that a run can be in `stage` after `done` steps, `step` of them since it last began to learn.

    `anew` says whether it has begun to learn a second time.

    Raises:
        ValueError: it cannot.
    """
    possible = {Stage.LEARN, Stage.DONE}
    if config.final_check is not None:
        possible = set(Stage) - ({Stage.LEARN, Stage.CHECK} if anew else {Stage.LEARN_ANEW, Stage.CHECK_ANEW})
    elif isinstance(config.pressure, LossTolerance):
        possible |= {Stage.REMOVE}
    learning = stage in (Stage.LEARN, Stage.LEARN_ANEW)
    least = 0 if learning else 1 if config.ending else config.steps
    right = stage in possible and least <= step <= config.steps - learning
    if not right or not (1 <= done - step <= config.steps if anew else done == step):
        raise ValueError(f"no run of {config.steps} steps stands at step {done}, {step} of its stage {stage}")
