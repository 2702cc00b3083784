"""The signature that all discovery methods share, and what they return."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.graph import Ablation, Circuit, Graph
from edgeprune.masks import edges_of
from edgeprune.model import MaskedModel


@dataclass(frozen=True)
class Record:
    """The state of a run at one step."""

    step: int
    loss: float
    """Mean over the step's mask samples, without penalties."""

    expected_edges: float


@dataclass(frozen=True)
class Discovery:
    """What a method found."""

    circuit: Circuit
    scores: Float[Tensor, "source destination"]
    """How strongly the method holds on to each edge; for masks their mean."""

    history: tuple[Record, ...]


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
