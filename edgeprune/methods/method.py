"""The signature that all discovery methods share, and what they return."""

import math
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.graph import Ablation, Circuit, Graph
from edgeprune.masks import LearnedMask, edges_of
from edgeprune.model import MaskedModel

_SNAPSHOTS: Final = 100
"""How many of a run are kept, at the most and evenly spread."""


@dataclass(frozen=True)
class Record:
    """The state of a run at one step."""

    step: int
    loss: float
    """Mean over the step's mask samples, without penalties."""

    expected_edges: float


@dataclass(frozen=True)
class Snapshot:
    """The masks of a run at one step."""

    step: int
    log_alpha: Float[Tensor, "source destination"]
    """Of each edge, or of its node where that is less: the rounded mask keeps those above 0."""


@dataclass(frozen=True)
class Discovery:
    """What a method found."""

    circuit: Circuit
    scores: Float[Tensor, "source destination"]
    """How strongly the method holds on to each edge; for masks their mean."""

    history: tuple[Record, ...]
    snapshots: tuple[Snapshot, ...] = ()


class Trace:
    """Notes how learned masks change over a run.

    Args:
        masks: what is learned.
        steps: how many steps the run has, at the most.
    """

    def __init__(self, masks: LearnedMask, steps: int) -> None:
        self.records: list[Record] = []
        self.snapshots: list[Snapshot] = []
        self._masks, self._every = masks, math.ceil(steps / _SNAPSHOTS)

    def note(self, step: int, loss: Float[Tensor, ""], expected_edges: Float[Tensor, ""]) -> None:
        """The record of a step, and now and then a snapshot."""
        self.records.append(Record(step, float(loss.detach()), float(expected_edges.detach())))
        if step % self._every == 0:
            self.snapshots.append(Snapshot(step, self._masks.edge_log_alpha()))


def keep_above(
    graph: Graph, ablation: Ablation, scores: Float[Tensor, "source destination"], threshold: float
) -> Discovery:
    """What is found by keeping the edges that score above `threshold`."""
    return Discovery(Circuit(graph, ablation, edges_of(graph, scores > threshold)), scores, ())


@runtime_checkable
class Method(Protocol):
    """Finds a circuit from a model and inputs alone: no truth, no structure, no program's name."""

    def __call__(
        self, model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int = 0, progress: bool = False
    ) -> Discovery:
        """Find a circuit.

        Args:
            model: the frozen model.
            dataset: inputs to draw from, with the full model's outputs.
            ablation: what removed edges carry.
            seed: the same seed gives the same circuit.
            progress: show a progress bar on standard error, if that is a terminal.
        """
        ...
