"""Polishing as part of a run in a folder: it goes on where it was stopped, and says what it tried.

`polish.safetensors` has where it stands, after every move; `polish.json`, once it has ended, what was found, and the
certificate that no edge and no group of edges can go under the criterion that it states.
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
    """What polishing is to reach: the sparsity, or the tolerance, that the run was asked for.

    Raises:
        ConfigError: it was asked for neither.
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
    """Polish a run's circuit in its folder, or go on.

    Raises:
        RunError: what the folder has of an earlier call is damaged.
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
