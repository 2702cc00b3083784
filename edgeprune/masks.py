"""Masks on edges and nodes: `z = 1` keeps an edge and `z = 0` ablates it, everywhere.

The hard concrete distribution of Louizos et al. (arXiv:1712.01312), as Edge Pruning uses it (arXiv:2406.16778, §3):
`z = clamp(s (r - l) + l, 0, 1)` with `s = sigmoid((log u - log(1 - u) + log_alpha) / tau)` and u uniform in (0, 1).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edgeprune.errors import ConfigError, promise
from edgeprune.graph import Ablation, Circuit, Edge, Graph, Node


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
        """The mask of evaluation: the clamped stretch of sigmoid(log_alpha) (arXiv:1712.01312, eq. 13)."""
        return (torch.sigmoid(log_alpha) * (self.high - self.low) + self.low).clamp(0, 1)

    def probability_kept(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """P(z > 1/2), of a sample that is rounded."""
        middle = (0.5 - self.low) / (self.high - self.low)
        return torch.sigmoid(log_alpha - self.temperature * math.log(middle / (1 - middle)))

    def score(self, log_alpha: Float[Tensor, "*shape"], uniform: Float[Tensor, "*sample"]) -> Float[Tensor, "*sample"]:
        """The derivative of log p(z) by `log_alpha`, for the likelihood-ratio gradient.

        The noise of a logistic has the score `2u - 1`; where the clamp hides u, its mean over all u that give the
        same z takes its place, which has the same expectation and less variance.
        """
        z = self.sample(log_alpha, uniform)
        zero, one = 1 - self.probability_positive(log_alpha), self.probability_one(log_alpha)
        score = torch.where(z == 0, zero - 1, 2 * uniform - 1)
        return torch.where(z == 1, 1 - one, score)


@dataclass(frozen=True)
class SampledMasks:
    """Mask samples, with what the gradient of an expectation over them needs."""

    mask: Float[Tensor, "sample source destination"]
    entries: Int[Tensor, "sample drawn"]
    """The entries of log_alpha that each sample drew; one past the last stands for none."""

    noise: Float[Tensor, "sample drawn"]
    """u for each of them."""

    values: Float[Tensor, "sample entry"]
    """z of every entry, drawn or not."""

    rounded: bool
    """Whether the masks are."""


LARGE: Final = 12.0
"""A log_alpha beyond which a mask is as good as certain."""

_BARELY: Final = 1e-2
"""A log_alpha at which an edge is just kept."""

Masked = Literal["edges", "nodes", "edges and nodes", "edges and groups"]
"""What has masks: every edge; every source, whose mask is that of all edges out of it; edges and sources; or edges,
sources and destinations, whose mask is that of all edges into it. Masks that an edge has several of are multiplied."""


class LearnedMask:
    """log_alpha for every edge, every source, every destination, or several of these.

    Args:
        graph: the edges.
        hard_concrete: the distribution of one entry.
        initial: log_alpha at the start, of all entries alike.
        of: what has masks; entries of edges come first, then those of sources, then those of destinations.
    """

    def __init__(self, graph: Graph, hard_concrete: HardConcrete, *, initial: float, of: Masked = "edges") -> None:
        self.graph, self.hard_concrete, self.of = graph, hard_concrete, of
        self._cells = torch.nonzero(edge_exists(graph).flatten())[:, 0]
        self._sizes = (
            0 if of == "nodes" else len(self._cells),
            0 if of == "edges" else len(graph.sources),
            len(graph.destinations) if of == "edges and groups" else 0,
        )
        self.log_alpha: Float[Tensor, " entry"] = torch.full((sum(self._sizes),), initial, requires_grad=True)

    def draw(
        self, samples: int, generator: torch.Generator, *, explored: float = 1.0, rounded: bool = False
    ) -> SampledMasks:
        """Sample masks, differentiable in `log_alpha` unless rounded.

        Args:
            samples: how many.
            generator: the source of noise.
            explored: the share of entries that each sample draws; every other entry stands at its rounded mean, so that
                a sample tells what its few drawn entries do among edges that have converged. Entries take turns, so
                that all are drawn about as often. 1 is plain sampling.
            rounded: whether each z is rounded to 0 or 1.
        """
        count = len(self.log_alpha)
        turns = max(1, round(min(1 / explored, count)))
        if turns == 1:
            entries = torch.arange(count).expand(samples, -1)
        else:
            rounds, drawn = math.ceil(samples / turns), math.ceil(count / turns)
            order = torch.full((rounds, drawn * turns), count)
            order[:, :count] = torch.rand(rounds, count, generator=generator).argsort(-1)
            entries = order.view(rounds * turns, drawn)[:samples]
        noise = torch.rand(entries.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        if turns == 1:
            values = self._sample(self.log_alpha, noise, rounded=rounded)
        else:
            padded = torch.cat([self.log_alpha, self.log_alpha.new_zeros(1)])
            standing = torch.cat([self._standing(), padded.new_zeros(1)]).expand(samples, -1)
            values = standing.scatter(1, entries, self._sample(padded[entries], noise, rounded=rounded))[:, :count]
        return SampledMasks(self._assemble(values), entries, noise, values, rounded)

    def _sample(self, log_alpha: Tensor, noise: Tensor, *, rounded: bool) -> Tensor:
        z = self.hard_concrete.sample(log_alpha, noise)
        return (z.detach() > 0.5).float() if rounded else z

    def edge_values(self, draw: SampledMasks) -> Float[Tensor, "sample edge"]:
        """z of every edge's own mask, whatever masks its ends have; of its source where edges have none."""
        if self._sizes[0]:
            return draw.values[:, : self._sizes[0]]
        return draw.mask.flatten(1)[:, self._cells]

    def kept_at_mean_sparsity(self) -> Bool[Tensor, "source destination"]:
        """The circuit at the threshold at which as many entries are kept as their means add up to.

        Edges and nodes have thresholds of their own, and an edge is kept with its ends.
        """
        kinds = self.hard_concrete.mean(self.log_alpha.detach()).split(self._sizes)
        return self._assemble(torch.cat([at_mean_sparsity(each).float() for each in kinds])) > 0

    def likelihood_ratio_gradient(
        self, draw: SampledMasks, advantage: Float[Tensor, " sample"]
    ) -> Float[Tensor, " entry"]:
        """The mean of `advantage * d log p(z) / d log_alpha` over the samples that drew each entry.

        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.
        """
        count = len(self.log_alpha)
        padded = torch.cat([self.log_alpha.detach(), self.log_alpha.new_zeros(1)])
        log_alpha = padded[draw.entries]
        if draw.rounded:
            kept = self.hard_concrete.sample(log_alpha, draw.noise) > 0.5
            score = kept.float() - self.hard_concrete.probability_kept(log_alpha)
        else:
            score = self.hard_concrete.score(log_alpha, draw.noise)
        terms = advantage[:, None] * score
        total = terms.new_zeros(count + 1).index_add_(0, draw.entries.flatten(), terms.flatten())
        times = torch.bincount(draw.entries.flatten(), minlength=count + 1).clamp(min=1)
        return (total / times)[:count]

    @torch.no_grad()
    def spread(self, deviation: float, generator: torch.Generator) -> None:
        """Add normal noise to every entry."""
        self.log_alpha.add_(deviation * torch.randn(self.log_alpha.shape, generator=generator))

    @torch.no_grad()
    def set_to(self, log_alpha: float) -> None:
        """Bring every entry to `log_alpha`."""
        self.log_alpha.fill_(log_alpha)

    @torch.no_grad()
    def keep_only(self, kept: Bool[Tensor, "source destination"]) -> None:
        """Bring every edge that is not among `kept` to where its mask is 0."""
        promise(self._sizes[0] > 0, "edges have masks")
        self.log_alpha[: self._sizes[0]][~kept.flatten()[self._cells]] = -LARGE

    @torch.no_grad()
    def keep_exactly(self, kept: Bool[Tensor, "source destination"]) -> None:
        """Bring every edge of `kept` to where it is just kept, and every other one to where it is not, if need be."""
        promise(self._sizes[1:] == (0, 0), "edges alone have masks")
        stays = kept.flatten()[self._cells]
        self.log_alpha[stays] = self.log_alpha[stays].clamp(min=_BARELY)
        self.log_alpha[~stays] = self.log_alpha[~stays].clamp(max=-_BARELY)

    @torch.no_grad()
    def lower_to(self, log_alpha: float) -> None:
        """Bring every entry that is above `log_alpha` down to it."""
        self.log_alpha.clamp_(max=log_alpha)

    def _standing(self) -> Tensor:
        return (self.hard_concrete.mean(self.log_alpha.detach()) > 0.5).float()

    def _assemble(self, entries: Float[Tensor, "*sample entry"]) -> Float[Tensor, "*sample source destination"]:
        """Masks from the values of all entries, 0 where there is no edge."""
        edges, sources, destinations = self._by_kind(entries)
        shape = (len(self.graph.sources), len(self.graph.destinations))
        cells = entries.new_zeros(*entries.shape[:-1], math.prod(shape))
        mask = cells.index_copy(-1, self._cells, edges.expand(*entries.shape[:-1], -1)).unflatten(-1, shape)
        return mask * sources[..., :, None] * destinations[..., None, :]

    def _by_kind(self, entries: Float[Tensor, "*sample entry"], absent: float = 1.0) -> list[Tensor]:
        """The values of edges, sources and destinations; `absent` for those that have no masks."""
        counts = (len(self._cells), len(self.graph.sources), len(self.graph.destinations))
        return [
            part if size else part.new_full((count,), absent)
            for part, size, count in zip(entries.split(self._sizes, -1), self._sizes, counts, strict=True)
        ]

    def edge_log_alpha(self) -> Float[Tensor, "source destination"]:
        """log_alpha of each edge, or of its source or destination where that is less; 0 where there is no edge."""
        found = self.log_alpha.detach().new_zeros(len(self.graph.sources), len(self.graph.destinations))
        found.view(-1)[self._cells] = self._least()
        return found

    def least_certain(self) -> float:
        """The size of the log_alpha of the edge that is the least certain to be kept, or to be dropped."""
        return float(self._least().abs().min())

    def _least(self) -> Float[Tensor, " edge"]:
        edges, sources, destinations = self._by_kind(self.log_alpha.detach(), math.inf)
        rows, columns = self._cells // len(destinations), self._cells % len(destinations)
        return torch.minimum(edges, torch.minimum(sources[rows], destinations[columns]))

    def rounded(self) -> Float[Tensor, "source destination"]:
        """The mask that keeps the entries whose mean is above one half."""
        return self._assemble(self._standing())

    def mean(self) -> Float[Tensor, "source destination"]:
        """The deterministic mask: means of edges times means of nodes, 0 where there is no edge."""
        return self._assemble(self.hard_concrete.mean(self.log_alpha))

    def expected_edges(self, *, rounded: bool = False) -> Float[Tensor, ""]:
        """How many edges are expected to be above 0, of samples that are rounded or not."""
        probability = self.hard_concrete.probability_kept if rounded else self.hard_concrete.probability_positive
        return self._assemble(probability(self.log_alpha)).sum()


def at_mean_sparsity(mean: Float[Tensor, " entry"]) -> Bool[Tensor, " entry"]:
    """The entries above the threshold at which as many are kept as there are in sum; all where several tie for it."""
    count = round(float(mean.sum()))
    if count == 0:
        return torch.zeros_like(mean, dtype=torch.bool)
    return (mean >= mean.sort(descending=True).values[count - 1]) & (mean > 0)


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


def live(graph: Graph, kept: Bool[Tensor, "*lead source destination"]) -> Bool[Tensor, "*lead source destination"]:
    """The entries of `kept` from which a path of kept edges leads to the logits; all others are dead.

    Dead edges cannot change the output, whatever they carry: nothing reads what their destination computes.
    """
    kept = kept & edge_exists(graph).to(kept.device)
    last = torch.tensor([node.kind == "logits" for node in graph.destinations], device=kept.device)
    leads_on = last.expand(*kept.shape[:-2], -1).clone()
    read_by = dict[Node, list[int]]()
    for node, readers in graph.readers.items():
        for reader in readers:
            read_by.setdefault(reader, []).append(graph.destination_index[node])
    for node in sorted(graph.sources, key=lambda node: -node.stage):  # each after all that read it
        row = graph.source_index[node]
        if columns := read_by.get(node):
            leads_on[..., columns] |= (kept[..., row, :] & leads_on).any(-1, keepdim=True)
    return kept & leads_on[..., None, :]


def without_each(
    kept: Bool[Tensor, "source destination"], cells: Int[Tensor, "edge 2"]
) -> Bool[Tensor, "edge source destination"]:
    """A circuit without the edge at each of so many cells, one at a time."""
    circuits = kept.repeat(len(cells), 1, 1)
    circuits[torch.arange(len(cells)), cells[:, 0], cells[:, 1]] = False
    return circuits


def live_circuit(graph: Graph, ablation: Ablation, kept: Bool[Tensor, "source destination"]) -> Circuit:
    """The circuit of the edges that are kept and not dead."""
    return Circuit(graph, ablation, edges_of(graph, live(graph, kept)))


def circuit_mask(circuit: Circuit) -> Float[Tensor, "source destination"]:
    """The mask that keeps the circuit's edges."""
    return mask_of(circuit.graph, circuit.edges)
