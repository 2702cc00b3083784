"""The signature shared by all discovery methods, and the result that they return."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.graph import Ablation, Circuit, Graph
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import LearnedMask, live_circuit

_SNAPSHOTS: Final = 100
"""Largest number of snapshots per run, evenly spaced; learning a second time adds as many again."""


@dataclass(frozen=True)
class Record:
    """The state of a run at one step."""

    step: int
    loss: float
    """Mean over the step's mask samples, without penalties."""

    expected_edges: float


@dataclass(frozen=True)
class Snapshot:
    """The masks of a run after one step."""

    step: int
    log_alpha: Float[Tensor, "source destination"]
    """log_alpha of each edge, or of its source or destination where that is lower."""

    kept: Bool[Tensor, "source destination"]
    """The circuit that the method would return at this step."""


@dataclass(frozen=True)
class Discovery:
    """The result of a method."""

    circuit: Circuit
    """The circuit. Ours have no dead edges: edges from which no path of kept edges leads to the logits."""

    scores: Float[Tensor, "source destination"]
    """How strongly the method keeps each edge; for learned masks, the mean mask."""

    history: tuple[Record, ...]
    snapshots: tuple[Snapshot, ...] = ()
    signed: bool = False
    """Whether scores are attributions: positive if the edge lowers the loss, negative if it raises it. Edges are then
    chosen by the size of their score, whatever its sign."""

    @property
    def strength(self) -> Float[Tensor, "source destination"]:
        """The values that edges are ranked and chosen by: the scores, or their sizes if they are signed."""
        return sizes(self.scores) if self.signed else self.scores


class Trace:
    """Records how learned masks change over a run.

    Args:
        masks: the learned masks.
        steps: the largest number of steps of the run.
        kept: returns the circuit that the method would return now, as a mask.
    """

    def __init__(self, masks: LearnedMask, steps: int, kept: Callable[[], Bool[Tensor, "source destination"]]) -> None:
        self._records: list[Record] = []
        self._snapshots: list[Snapshot] = []
        self._masks, self._kept, self._every = masks, kept, math.ceil(steps / _SNAPSHOTS)

    def note(self, loss: float, expected_edges: float) -> None:
        """Record the next step, and take a snapshot at regular intervals."""
        step = len(self._records)
        self._records.append(Record(step, loss, expected_edges))
        if step % self._every == 0:
            self._take_snapshot()

    def discovery(self, ablation: Ablation, scores: Float[Tensor, "source destination"]) -> Discovery:
        """Return the current circuit with the recorded history."""
        if self._records and self._snapshots[-1].step < len(self._records) - 1:
            self._take_snapshot()
        graph = self._masks.graph
        return Discovery(
            live_circuit(graph, ablation, self._kept()), scores, tuple(self._records), tuple(self._snapshots)
        )

    def _take_snapshot(self) -> None:
        self._snapshots.append(Snapshot(len(self._records) - 1, self._masks.edge_log_alpha(), self._kept()))


def sizes(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the absolute values of scores; minus infinity, the score of a removed edge, stays below all others."""
    return torch.where(scores == -math.inf, scores, scores.abs())


def keep_above(
    graph: Graph,
    ablation: Ablation,
    scores: Float[Tensor, "source destination"],
    threshold: float,
    *,
    signed: bool = False,
) -> Discovery:
    """Return the circuit of edges that score above `threshold`, without dead edges; signed scores count by size."""
    kept = (sizes(scores) if signed else scores) > threshold
    return Discovery(live_circuit(graph, ablation, kept), scores, (), signed=signed)


@runtime_checkable
class Method(Protocol):
    """Finds a circuit from a model and inputs alone, without the truth, the structural edges or the program's name."""

    def __call__(
        self, model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int = 0, progress: bool = False
    ) -> Discovery:
        """Find a circuit.

        Args:
            model: the frozen model.
            dataset: inputs to draw from, with the full model's outputs.
            ablation: the ablation of removed edges.
            seed: the same seed gives the same circuit.
            progress: show a progress bar on standard error if it is a terminal.
        """
        ...
