"""Polishing in a run's folder: it can be resumed, and records what it tried.

`polish.safetensors` holds the state after every step. `polish.json`, written at the end, holds the result and certifies
that no edge and no group of edges in `groups.removals` can be removed under the stated criterion.
"""

import os
from pathlib import Path

from edgeprune.errors import ConfigError, RunError
from edgeprune.files.checkpoint import restore_from, write_state
from edgeprune.files.store import write_json
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.edge_pruning.config import PruningConfig
from edgeprune.methods.edge_pruning.pressure import LossTolerance, SparsityTarget
from edgeprune.methods.loss import DISTANCES
from edgeprune.methods.polish import Goal, Kept, Polish, PolishConfig, Step, polish
from edgeprune.parallel import join


def goal_of(pruning: PruningConfig, total: int) -> Goal:
    """Return the goal of polishing: the run's target sparsity or tolerance.

    Raises:
        ConfigError: the run has neither, or its loss is not one that is 0 at the full model.
    """
    pressure = pruning.pressure
    if pruning.loss.loss not in DISTANCES:
        raise ConfigError(f"Expected a loss that is 0 at the full model, to polish by; got {pruning.loss.loss!r}")
    if isinstance(pressure, SparsityTarget):
        return Goal(edges=max(1, round((1 - pressure.target_sparsity) * total)))
    if isinstance(pressure, LossTolerance):
        return Goal(tolerance=pressure.tolerance)
    raise ConfigError(
        f"Expected a method that is asked for a sparsity or a tolerance, as polishing ends where that is reached; "
        f"{pruning.name} is asked for neither, and takes superfluous edges out itself"
    )


def polish_in(
    out: Path, loss: CircuitLoss, pruning: PruningConfig, kept: Kept, config: PolishConfig, *, progress: bool
) -> Polish:
    """Polish a run's circuit in its folder, or resume an earlier call.

    Raises:
        RunError: the state that an earlier call saved is damaged, or processes do not see the same folder.
    """
    state, goal = out / "polish.safetensors", goal_of(pruning, loss.graph.total)
    run = Polish(loss, goal, kept, config)
    if os.path.lexists(state):
        restore_from(state, run.restore)
    ranks = join()
    if not ranks.agree(run.moves * len(Step) + run.step):
        raise RunError(f"Expected one folder that all processes see; {str(out)!r} is not the same for all of them")
    writes = ranks.first

    def keep(run: Polish) -> None:
        if writes:
            write_state(run.state(), state)

    polish(run, moved=keep, progress=progress)
    if writes:
        asked = {"edges": goal.edges} if goal.tolerance is None else {"tolerance": goal.tolerance}
        criterion = {"loss": pruning.loss.loss, "over": pruning.loss.criterion, "examples": loss.inputs} | asked
        found = {"edges": run.edges, "loss": run.loss, "limit": run.limit, "moves": run.moves}
        tried = {"masks": loss.masks_run, "removals": run.removals}
        content = {"criterion": criterion, "found": found, "tried": tried}
        write_json(out / "polish.json", content)
    return run
