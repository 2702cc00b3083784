"""Edge Pruning to a tolerance of the loss, with and without polishing, in the signature of `Method`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from edgeprune.data import Dataset
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import circuit_mask
from edgeprune.methods.edge_pruning.config import PruningConfig
from edgeprune.methods.edge_pruning.configurations import TOLERANCE
from edgeprune.methods.edge_pruning.engine import circuit_loss, problem_of, prune_edges
from edgeprune.methods.edge_pruning.pressure import LossTolerance
from edgeprune.methods.loss import Over
from edgeprune.methods.method import Discovery, Method
from edgeprune.methods.polish import Goal, Polish, PolishConfig, polish
from edgeprune.methods.settings import with_settings

_ALL = 2**20
"""Inputs that circuits are judged on; all if there are fewer."""


def methods_within(tolerance: float, criterion: Over) -> Mapping[str, Method]:
    """Return the methods that find a circuit within a tolerance, by name."""
    config = with_settings(TOLERANCE, {"tolerance": tolerance, "criterion": criterion, "judged": _ALL})
    return {
        config.name: partial(prune_edges, config=config),
        f"{config.name}-polished": partial(_polished, config=config),
    }


def _polished(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: PruningConfig,
) -> Discovery:
    assert isinstance(config.pressure, LossTolerance)
    found = prune_edges(model, dataset, ablation, seed=seed, progress=progress, config=config)
    loss = circuit_loss(problem_of(model, dataset, ablation, config), config, seed)
    goal = Goal(tolerance=config.pressure.tolerance)
    run = Polish(loss, goal, circuit_mask(found.circuit) > 0, PolishConfig())
    polish(run, progress=progress)
    return replace(found, circuit=run.circuit(ablation))
