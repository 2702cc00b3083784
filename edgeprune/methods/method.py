"""The signature that all discovery methods share, and what they return."""

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
"""How many of a run's steps are kept, at the most and evenly spread; of what is learned anew, as many again."""


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
    """Of each edge, or of its source where that is less."""

    kept: Bool[Tensor, "source destination"]
    """The circuit that the method would return now."""


@dataclass(frozen=True)
class Discovery:
    """What a method found."""

    circuit: Circuit
    """Ours have no dead edges, from which no path of kept edges leads to the logits."""

    scores: Float[Tensor, "source destination"]
    """How strongly the method holds on to each edge; for masks their mean."""

    history: tuple[Record, ...]
    snapshots: tuple[Snapshot, ...] = ()
    signed: bool = False
    """Whether scores are attributions: above 0 the edge lowers the loss, below 0 it raises it, and edges are chosen by
    size, whatever the sign."""

    @property
    def strength(self) -> Float[Tensor, "source destination"]:
        """What edges are ranked and chosen by: scores, or the sizes of signed ones."""
        return sizes(self.scores) if self.signed else self.scores


class Trace:
    """Notes how learned masks change over a run.

    Args:
        masks: what is learned.
        steps: how many steps the run has, at the most.
        kept: the circuit that the method would return now, as a mask.
    """

    def __init__(self, masks: LearnedMask, steps: int, kept: Callable[[], Bool[Tensor, "source destination"]]) -> None:
        self._records: list[Record] = []
        self._snapshots: list[Snapshot] = []
        self._masks, self._kept, self._every = masks, kept, math.ceil(steps / _SNAPSHOTS)

    def note(self, loss: float, expected_edges: float) -> None:
        """The record of the next step, and now and then a snapshot."""
        step = len(self._records)
        self._records.append(Record(step, loss, expected_edges))
        if step % self._every == 0:
            self._take_snapshot()

    def discovery(self, ablation: Ablation, scores: Float[Tensor, "source destination"]) -> Discovery:
        """What was found: the circuit that is kept now, and how it came to be."""
        if self._records and self._snapshots[-1].step < len(self._records) - 1:
            self._take_snapshot()
        graph = self._masks.graph
        return Discovery(
            live_circuit(graph, ablation, self._kept()), scores, tuple(self._records), tuple(self._snapshots)
        )

    def _take_snapshot(self) -> None:
        self._snapshots.append(Snapshot(len(self._records) - 1, self._masks.edge_log_alpha(), self._kept()))


def sizes(scores: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Scores without their sign; minus infinity, which an edge has that is gone, stays below all others."""
    return torch.where(scores == -math.inf, scores, scores.abs())


def keep_above(
    graph: Graph,
    ablation: Ablation,
    scores: Float[Tensor, "source destination"],
    threshold: float,
    *,
    signed: bool = False,
) -> Discovery:
    """What is found by keeping the edges that score above `threshold`, dead ones apart; of signed scores by size."""
    kept = (sizes(scores) if signed else scores) > threshold
    return Discovery(live_circuit(graph, ablation, kept), scores, (), signed=signed)


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
