"""Masks on edges and nodes: `z = 1` keeps an edge and `z = 0` ablates it, everywhere.

The hard concrete distribution of Louizos et al. (arXiv:1712.01312), as Edge Pruning uses it (arXiv:2406.16778, §3):
`z = clamp(s (r - l) + l, 0, 1)` with `s = sigmoid((log u - log(1 - u) + log_alpha) / tau)` and u uniform in (0, 1).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from edgeprune.errors import ConfigError
from edgeprune.graph import Circuit, Edge, Graph


@dataclass(frozen=True, kw_only=True)
class HardConcrete:
    """The distribution of one mask entry, given its `log_alpha`."""

    temperature: float = 2 / 3
    """tau, unitless; smaller is closer to a coin (arXiv:2406.16778, appendix)."""

    low: float = -0.1
    """l: where the stretched interval starts, below 0 so that z = 0 has a probability."""

    high: float = 1.1
    """r: where the stretched interval ends, above 1 so that z = 1 has a probability."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.low >= 0 or self.high <= 1:
            raise ConfigError(
                f"Expected temperature > 0, low < 0 and high > 1; got {self.temperature}, {self.low}, {self.high}"
            )

    def sample(self, log_alpha: Float[Tensor, "*shape"], uniform: Float[Tensor, "*sample"]) -> Float[Tensor, "*sample"]:
        """z for the noise `uniform` in (0, 1), differentiable in `log_alpha` where 0 < z < 1."""
        s = torch.sigmoid((torch.logit(uniform) + log_alpha) / self.temperature)
        return (s * (self.high - self.low) + self.low).clamp(0, 1)

    def probability_positive(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """P(z > 0), an entry's expected L0 (arXiv:1712.01312, eq. 12)."""
        return torch.sigmoid(log_alpha - self.temperature * math.log(-self.low / self.high))

    def probability_one(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """P(z = 1), the mass that the upper clamp collects."""
        return torch.sigmoid(log_alpha - self.temperature * math.log((1 - self.low) / (self.high - 1)))

    def mean(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The deterministic mask of evaluation: the clamped stretch of sigmoid(log_alpha) (arXiv:1712.01312, eq. 13)."""
        return (torch.sigmoid(log_alpha) * (self.high - self.low) + self.low).clamp(0, 1)


    def score(
        self, log_alpha: Float[Tensor, "*shape"], uniform: Float[Tensor, "*sample"]
    ) -> Float[Tensor, "*sample"]:
        """The derivative of log p(z) by `log_alpha`, for the likelihood-ratio gradient.

        The noise of a logistic has the score `2u - 1`; where the clamp hides u, its mean over all u that give the same z
        takes its place, which has the same expectation and less variance.
        """
        z = self.sample(log_alpha, uniform)
        zero, one = 1 - self.probability_positive(log_alpha), self.probability_one(log_alpha)
        score = torch.where(z == 0, zero - 1, 2 * uniform - 1)
        return torch.where(z == 1, 1 - one, score)


@dataclass(frozen=True)
class Draw:
    """Mask samples, with what the gradient needs."""

    mask: Float[Tensor, "sample source destination"]
    noise: tuple[Float[Tensor, "sample *shape"], ...]
    """u for each parameter."""

    explored: tuple[Bool[Tensor, "sample *shape"], ...]
    """Which entries of each parameter were drawn; the others stand at their rounded mean."""


class LearnedMask:
    """log_alpha for every edge and, if wanted, for every source, whose mask multiplies those of all its edges.

    Args:
        graph: the edges.
        hard_concrete: the distribution of one entry.
        initial: log_alpha at the start, of edges and nodes alike.
        node_masks: whether sources have masks of their own.
    """

    def __init__(self, graph: Graph, hard_concrete: HardConcrete, *, initial: float, node_masks: bool) -> None:
        self.graph, self.hard_concrete = graph, hard_concrete
        self.exists = edge_exists(graph)
        self.edges = torch.full(self.exists.shape, initial, requires_grad=True)
        self.nodes = torch.full((len(graph.sources), 1), initial, requires_grad=True) if node_masks else None

    @property
    def parameters(self) -> list[Tensor]:
        """Every log_alpha: of edges `[source, destination]`, then of nodes `[source, 1]`."""
        return [self.edges] if self.nodes is None else [self.edges, self.nodes]

    def draw(self, samples: int, generator: torch.Generator, *, explored: float = 1.0) -> Draw:
        """Sample masks, differentiable in the parameters.

        Args:
            samples: how many.
            generator: the source of noise.
            explored: the share of entries that each sample draws; every other entry stands at its rounded mean, so that
                a sample tells what its few drawn entries do among edges that are settled. 1 is plain sampling.
        """
        noise: list[Tensor] = []
        drawn: list[Tensor] = []
        mask = torch.ones(())
        for log_alpha in self.parameters:
            uniform = torch.rand(samples, *log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
            z = self.hard_concrete.sample(log_alpha, uniform)
            chosen = torch.ones_like(z, dtype=torch.bool)
            if explored < 1:
                chosen = torch.rand(z.shape, generator=generator) < explored
                z = torch.where(chosen, z, self._rounded(log_alpha))
            noise.append(uniform)
            drawn.append(chosen)
            mask = mask * z
        return Draw(mask, tuple(noise), tuple(drawn))

    def _rounded(self, log_alpha: Tensor) -> Tensor:
        return (self.hard_concrete.mean(log_alpha.detach()) > 0.5).float()

    def rounded(self) -> Float[Tensor, "source destination"]:
        """The mask of entries whose mean is above one half."""
        mask = torch.ones(())
        for log_alpha in self.parameters:
            mask = mask * self._rounded(log_alpha)
        return mask

    def mean(self) -> Float[Tensor, "source destination"]:
        """The deterministic mask: means of edges times means of nodes, 0 where there is no edge."""
        mask = self.exists.float()
        for log_alpha in self.parameters:
            mask = mask * self.hard_concrete.mean(log_alpha)
        return mask

    def expected_edges(self) -> Float[Tensor, ""]:
        """How many edges are expected to be above 0."""
        probability = self.exists.float()
        for log_alpha in self.parameters:
            probability = probability * self.hard_concrete.probability_positive(log_alpha)
        return probability.sum()


def edge_exists(graph: Graph) -> Bool[Tensor, "source destination"]:
    """True where the graph has an edge."""
    source = torch.tensor([node.stage for node in graph.sources])
    destination = torch.tensor([node.stage for node in graph.destinations])
    return source[:, None] < destination[None, :]


def mask_of(graph: Graph, edges: Iterable[Edge]) -> Float[Tensor, "source destination"]:
    """The mask that keeps `edges` and ablates all others."""
    mask = torch.zeros(len(graph.sources), len(graph.destinations))
    for edge in edges:
        mask[graph.position(edge)] = 1
    return mask


def edges_of(graph: Graph, kept: Bool[Tensor, "source destination"]) -> frozenset[Edge]:
    """The edges of `graph` at which `kept` is true; entries that no edge stands behind are not read."""
    rows, columns = torch.nonzero(kept & edge_exists(graph).to(kept.device), as_tuple=True)
    return frozenset(
        Edge(graph.sources[row], graph.destinations[column])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    )


def circuit_mask(circuit: Circuit) -> Float[Tensor, "source destination"]:
    """The mask that keeps the circuit's edges."""
    return mask_of(circuit.graph, circuit.edges)
