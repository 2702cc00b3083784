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
    """tau, above 0, unitless; smaller values bring z closer to 0 or 1 (arXiv:2406.16778, appendix)."""

    low: float = -0.1
    """l, the lower end of the stretched interval; below 0, so that z = 0 has a positive probability."""

    high: float = 1.1
    """r, the upper end of the stretched interval; above 1, so that z = 1 has a positive probability."""

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.low >= 0 or self.high <= 1:
            raise ConfigError(
                f"Expected temperature > 0, low < 0 and high > 1; got {self.temperature}, {self.low}, {self.high}"
            )

    def sample(self, log_alpha: Float[Tensor, "*shape"], uniform: Float[Tensor, "*sample"]) -> Float[Tensor, "*sample"]:
        """Return z for the noise `uniform` in (0, 1); z is differentiable in `log_alpha` where 0 < z < 1."""
        s = torch.sigmoid((torch.logit(uniform) + log_alpha) / self.temperature)
        return (s * (self.high - self.low) + self.low).clamp(0, 1)

    def probability_positive(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return P(z > 0), an entry's expected L0 norm (arXiv:1712.01312, eq. 12)."""
        return torch.sigmoid(log_alpha - self.temperature * math.log(-self.low / self.high))

    def probability_one(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return P(z = 1), the probability mass that the upper clamp collects."""
        return torch.sigmoid(log_alpha - self.temperature * math.log((1 - self.low) / (self.high - 1)))

    def mean(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the evaluation mask: sigmoid(log_alpha), stretched and clamped (arXiv:1712.01312, eq. 13)."""
        return (torch.sigmoid(log_alpha) * (self.high - self.low) + self.low).clamp(0, 1)

    def probability_kept(self, log_alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return P(z > 1/2), the probability that a rounded sample keeps the entry."""
        middle = (0.5 - self.low) / (self.high - self.low)
        return torch.sigmoid(log_alpha - self.temperature * math.log(middle / (1 - middle)))

    def score(self, log_alpha: Float[Tensor, "*shape"], uniform: Float[Tensor, "*sample"]) -> Float[Tensor, "*sample"]:
        """Return d log p(z) / d log_alpha, for the likelihood-ratio gradient.

        The logistic noise has the score `2u - 1`. Where the clamp hides u, the score is the mean of `2u - 1` over all u
        that give the same z: the same expectation with less variance.
        """
        z = self.sample(log_alpha, uniform)
        zero, one = 1 - self.probability_positive(log_alpha), self.probability_one(log_alpha)
        score = torch.where(z == 0, zero - 1, 2 * uniform - 1)
        return torch.where(z == 1, 1 - one, score)


@dataclass(frozen=True)
class SampledMasks:
    """Mask samples, with the values that the gradient of an expectation over them needs."""

    mask: Float[Tensor, "sample source destination"]
    entries: Int[Tensor, "sample drawn"]
    """Indices into log_alpha of the entries that each sample drew; one past the last index is padding."""

    noise: Float[Tensor, "sample drawn"]
    """The uniform noise u of each drawn entry."""

    values: Float[Tensor, "sample entry"]
    """z of every entry, drawn or not."""

    rounded: bool
    """Whether z is rounded to 0 or 1."""


LARGE: Final = 12.0
"""A log_alpha beyond which a mask entry is practically certain."""

_BARELY: Final = 1e-2
"""A log_alpha at which an edge is just kept; at its negative, an edge is just removed."""

Masked = Literal["edges", "nodes", "edges and nodes", "edges and groups"]
"""What has masks: every edge; every source; edges and sources; or edges, sources and destinations.
A source's mask applies to all edges out of it, a destination's to all edges into it. An edge's masks are multiplied."""


class LearnedMask:
    """log_alpha for every edge, every source, every destination, or several of these.

    Args:
        graph: the graph whose edges are masked.
        hard_concrete: the distribution of one entry.
        initial: log_alpha of every entry at the start.
        of: what has masks; entries are ordered edges, sources, destinations.
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
        """Sample masks; they are differentiable in `log_alpha` unless rounded.

        Args:
            samples: number of masks.
            generator: the source of noise.
            explored: the share of entries that each sample draws. Every other entry stays at its rounded mean, so that
                a sample shows what its few drawn entries do among converged edges. Entries take turns, so that all are
                drawn about equally often. 1 draws every entry in every sample.
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
        """Return z of every edge's own mask, without its ends' masks; z of its source if edges have no masks."""
        if self._sizes[0]:
            return draw.values[:, : self._sizes[0]]
        return draw.mask.flatten(1)[:, self._cells]

    def kept_at_mean_sparsity(self) -> Bool[Tensor, "source destination"]:
        """Return the circuit at the threshold that keeps as many entries as the sum of their means.

        Edges, sources and destinations each have their own threshold. An edge is kept only if its masked ends are kept.
        """
        kinds = self.hard_concrete.mean(self.log_alpha.detach()).split(self._sizes)
        return self._assemble(torch.cat([at_mean_sparsity(each).float() for each in kinds])) > 0

    def likelihood_ratio_gradient(
        self, draw: SampledMasks, advantage: Float[Tensor, " sample"]
    ) -> Float[Tensor, " entry"]:
        """Return the mean of `advantage * d log p(z) / d log_alpha` over the samples that drew each entry.

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
        """Add normal noise with standard deviation `deviation` to every log_alpha."""
        self.log_alpha.add_(deviation * torch.randn(self.log_alpha.shape, generator=generator))

    @torch.no_grad()
    def set_to(self, log_alpha: float) -> None:
        """Set every entry to `log_alpha`."""
        self.log_alpha.fill_(log_alpha)

    @torch.no_grad()
    def keep_only(self, kept: Bool[Tensor, "source destination"]) -> None:
        """Set the log_alpha of every edge outside `kept` to -`LARGE`, at which its mask is 0."""
        promise(self._sizes[0] > 0, "edges have masks")
        self.log_alpha[: self._sizes[0]][~kept.flatten()[self._cells]] = -LARGE

    @torch.no_grad()
    def keep_exactly(self, kept: Bool[Tensor, "source destination"]) -> None:
        """Keep exactly `kept`: clamp log_alpha to at least `_BARELY` there, and to at most -`_BARELY` elsewhere."""
        promise(self._sizes[1:] == (0, 0), "edges alone have masks")
        stays = kept.flatten()[self._cells]
        self.log_alpha[stays] = self.log_alpha[stays].clamp(min=_BARELY)
        self.log_alpha[~stays] = self.log_alpha[~stays].clamp(max=-_BARELY)

    @torch.no_grad()
    def lower_to(self, log_alpha: float) -> None:
        """Lower every entry above `log_alpha` to it."""
        self.log_alpha.clamp_(max=log_alpha)

    def _standing(self) -> Tensor:
        return (self.hard_concrete.mean(self.log_alpha.detach()) > 0.5).float()

    def _assemble(self, entries: Float[Tensor, "*sample entry"]) -> Float[Tensor, "*sample source destination"]:
        """Return the masks that the values of all entries give; 0 where the graph has no edge."""
        edges, sources, destinations = self._by_kind(entries)
        shape = (len(self.graph.sources), len(self.graph.destinations))
        cells = entries.new_zeros(*entries.shape[:-1], math.prod(shape))
        mask = cells.index_copy(-1, self._cells, edges.expand(*entries.shape[:-1], -1)).unflatten(-1, shape)
        return mask * sources[..., :, None] * destinations[..., None, :]

    def _by_kind(self, entries: Float[Tensor, "*sample entry"], absent: float = 1.0) -> list[Tensor]:
        """Return the values of edges, sources and destinations; `absent` for a kind that has no masks."""
        counts = (len(self._cells), len(self.graph.sources), len(self.graph.destinations))
        return [
            part if size else part.new_full((count,), absent)
            for part, size, count in zip(entries.split(self._sizes, -1), self._sizes, counts, strict=True)
        ]

    def edge_log_alpha(self) -> Float[Tensor, "source destination"]:
        """Return each edge's log_alpha, the least of its own and its ends'; 0 where the graph has no edge."""
        found = self.log_alpha.detach().new_zeros(len(self.graph.sources), len(self.graph.destinations))
        found.view(-1)[self._cells] = self._least()
        return found

    def least_certain(self) -> float:
        """Return the smallest |log_alpha| of any edge: that of the edge least certain to be kept or removed."""
        return float(self._least().abs().min())

    def _least(self) -> Float[Tensor, " edge"]:
        edges, sources, destinations = self._by_kind(self.log_alpha.detach(), math.inf)
        rows, columns = self._cells // len(destinations), self._cells % len(destinations)
        return torch.minimum(edges, torch.minimum(sources[rows], destinations[columns]))

    def rounded(self) -> Float[Tensor, "source destination"]:
        """Return the mask that keeps the entries whose mean is above one half."""
        return self._assemble(self._standing())

    def mean(self) -> Float[Tensor, "source destination"]:
        """Return the deterministic mask: means of edges times means of nodes; 0 where the graph has no edge."""
        return self._assemble(self.hard_concrete.mean(self.log_alpha))

    def expected_edges(self, *, rounded: bool = False) -> Float[Tensor, ""]:
        """Return the expected number of edges with z > 0, in samples that are rounded or not."""
        probability = self.hard_concrete.probability_kept if rounded else self.hard_concrete.probability_positive
        return self._assemble(probability(self.log_alpha)).sum()


def at_mean_sparsity(mean: Float[Tensor, " entry"]) -> Bool[Tensor, " entry"]:
    """Return the entries above the threshold that keeps as many entries as their sum; entries tied at it are kept."""
    count = round(float(mean.sum()))
    if count == 0:
        return torch.zeros_like(mean, dtype=torch.bool)
    return (mean >= mean.sort(descending=True).values[count - 1]) & (mean > 0)


def edge_exists(graph: Graph) -> Bool[Tensor, "source destination"]:
    """Return True where the graph has an edge."""
    source = torch.tensor([node.stage for node in graph.sources])
    destination = torch.tensor([node.stage for node in graph.destinations])
    return source[:, None] < destination[None, :]


def mask_of(graph: Graph, edges: Iterable[Edge]) -> Float[Tensor, "source destination"]:
    """Return the mask that keeps `edges` and ablates all others."""
    mask = torch.zeros(len(graph.sources), len(graph.destinations))
    for edge in edges:
        mask[graph.position(edge)] = 1
    return mask


def edges_of(graph: Graph, kept: Bool[Tensor, "source destination"]) -> frozenset[Edge]:
    """Return the edges of `graph` at which `kept` is True; entries where the graph has no edge are ignored."""
    rows, columns = torch.nonzero(kept & edge_exists(graph).to(kept.device), as_tuple=True)
    return frozenset(
        Edge(graph.sources[row], graph.destinations[column])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    )


def live(graph: Graph, kept: Bool[Tensor, "*lead source destination"]) -> Bool[Tensor, "*lead source destination"]:
    """Return `kept` without dead edges: those from which no path of kept edges leads to the logits.

    A dead edge cannot change the output, whatever it carries: no kept path leads from its destination to the logits.
    """
    kept = kept & edge_exists(graph).to(kept.device)
    last = torch.tensor([node.kind == "logits" for node in graph.destinations], device=kept.device)
    leads_on = last.expand(*kept.shape[:-2], -1).clone()
    read_by = dict[Node, list[int]]()
    for node, readers in graph.readers.items():
        for reader in readers:
            read_by.setdefault(reader, []).append(graph.destination_index[node])
    for node in sorted(graph.sources, key=lambda node: -node.stage):  # each after all nodes that read it
        row = graph.source_index[node]
        if columns := read_by.get(node):
            leads_on[..., columns] |= (kept[..., row, :] & leads_on).any(-1, keepdim=True)
    return kept & leads_on[..., None, :]


def without_each(
    kept: Bool[Tensor, "source destination"], cells: Int[Tensor, "edge 2"]
) -> Bool[Tensor, "edge source destination"]:
    """Return one copy of `kept` per row of `cells`, without the edge at that (source, destination) cell."""
    circuits = kept.repeat(len(cells), 1, 1)
    circuits[torch.arange(len(cells)), cells[:, 0], cells[:, 1]] = False
    return circuits


def live_circuit(graph: Graph, ablation: Ablation, kept: Bool[Tensor, "source destination"]) -> Circuit:
    """Return the circuit of the edges that are kept and not dead."""
    return Circuit(graph, ablation, edges_of(graph, live(graph, kept)))


def circuit_mask(circuit: Circuit) -> Float[Tensor, "source destination"]:
    """Return the mask that keeps the circuit's edges."""
    return mask_of(circuit.graph, circuit.edges)
