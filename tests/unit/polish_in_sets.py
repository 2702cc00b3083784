"""A search of polishing that is written down in sets of edges, and a drawn loss."""

import math
from itertools import combinations

import torch

from edgeprune.graph import Graph
from edgeprune.groups import groups, removals
from edgeprune.masks import edge_exists, mask_of
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.polish import Step

GRAPH = Graph.transformer(embeddings=("embed",), layers=2, heads=1)
"""23 edges."""

EDGES = frozenset(GRAPH.edges)
EXISTS = edge_exists(GRAPH)
CELLS = EXISTS.nonzero()


PAIRS = 60
"""Pairs of groups that are tried in the end, in place of many more."""


class Drawn(CircuitLoss):
    """A drawn loss of the edges that are missing, alone and in pairs; on first inputs it is a little another one."""

    graph, inputs = GRAPH, 1

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        count = len(CELLS)
        self.alone = torch.rand(count, generator=generator).double() ** 3
        self.pairs = 0.3 * torch.randn(count, count, generator=generator).double()
        self.first = 0.2 * torch.rand(count, generator=generator).double()
        self.slopes = torch.randn(count, generator=generator).double()
        self.masks_run = 0

    def loss(self, masks):
        missing = 1 - masks[..., CELLS[:, 0], CELLS[:, 1]].double()
        return (missing @ self.alone + ((missing @ self.pairs) * missing).sum(-1)).abs()

    def __call__(self, masks, *, limit=math.inf):
        losses = self.loss(masks)
        return torch.where(losses <= limit, losses, torch.inf)

    def glance(self, masks):
        missing = 1 - masks[..., CELLS[:, 0], CELLS[:, 1]].double()
        return self.loss(masks) + missing @ self.first

    def best(self, masks, *, limit=math.inf):
        losses = self(masks, limit=limit)
        return int(losses.argmin()), float(losses.min())

    def gradient(self, mask):
        at = self.slopes * (1 + mask.sum() / 50)
        return torch.zeros(EXISTS.shape).double().masked_scatter(EXISTS, at)


class Reference:
    """The same steps in sets of edges."""

    def __init__(self, loss, goal, kept, config, *, at_once=0.1, each=64):
        self.run, self.config, self.at_once, self.each = loss, config, at_once, each
        self.tolerance, self.wanted = goal.tolerance, goal.edges or 0
        self.known, self.glanced = {}, {}
        self.kept, self.loss = kept, self.of(kept)
        self.step, self.moves, self.removals = Step.SHRINK, 0, 0

    def of(self, edges):
        if edges not in self.known:
            self.known[edges] = float(self.run.loss(mask_of(GRAPH, edges)))
        return self.known[edges]

    def first(self, edges):
        if edges not in self.glanced:
            self.glanced[edges] = float(self.run.glance(mask_of(GRAPH, edges)))
        return self.glanced[edges]

    def slope(self, edges, edge):
        return float(self.run.gradient(mask_of(GRAPH, edges))[GRAPH.position(edge)])

    @staticmethod
    def live(edges):
        alive = set()
        while True:
            more = {
                edge for edge in edges
                if edge.destination.kind == "logits" or any(
                    edge.destination in [d for d, readers in GRAPH.readers.items() if other.source in readers]
                    for other in alive
                )
            }  # fmt: skip
            if more == alive:
                return frozenset(alive)
            alive = more

    @property
    def limit(self):
        return max(self.loss, 1e-6) if self.tolerance is None else self.tolerance

    @property
    def lower(self):
        return self.loss - max(0.01 * self.loss, 1e-6)

    def take(self, circuits, limit, then, otherwise):
        """The best, if it is within the limit."""
        best = min(circuits, key=self.of, default=None)
        if best is not None and self.of(best) <= limit:
            self.kept, self.loss, self.step, self.moves = best, self.of(best), then, self.moves + 1
        else:
            self.step = otherwise

    def take_promising(self, circuits, limit, then, otherwise):
        """The best of those that lead on the first inputs, or else of the others."""
        ordered = sorted(set(circuits), key=self.first)
        self.take(ordered[: self.config.exchanges], limit, then, otherwise)
        if self.step == otherwise:
            self.take(ordered[self.config.exchanges :], limit, then, otherwise)

    def advance(self):
        (self.shrink, self.grow, self.exchange, self.certify)[self.step]()

    def shrink(self):
        excess, limit = len(self.kept) - self.wanted, math.inf if self.tolerance is None else self.tolerance
        if excess <= 0:
            self.step = Step.GROW
            return
        listed = sorted(self.kept)
        sets = [[edge] for edge in listed] + [
            [edge for edge, gone in zip(listed, row, strict=True) if gone] for row in groups(GRAPH, listed).tolist()
        ]
        smaller = {self.live(self.kept - {*some}) for some in sets}
        cost = {each: self.first(each) - self.first(self.kept) for each in smaller if len(each) >= self.wanted}
        ordered = sorted(cost, key=lambda each: cost[each] / (len(self.kept) - len(each)))
        many = int(self.at_once * excess)
        if many > 1:
            fewer = self.live(frozenset.intersection(*ordered[:many]))
            if self.of(fewer) <= limit and len(fewer) >= self.wanted:
                self.take([fewer], limit, Step.SHRINK, Step.GROW)
                return
        self.take(ordered[: self.config.exchanges], limit, Step.SHRINK, Step.GROW)

    def larger(self):
        def leads_on(destination):
            reading = GRAPH.readers[destination]
            return destination.kind == "logits" or any(edge.source in reading for edge in self.kept)

        single = [edge for edge in sorted(EDGES - self.kept) if leads_on(edge.destination)]
        if len(single) > self.config.additions:
            slopes = {edge: self.slope(self.kept, edge) for edge in single}
            single = sorted(single, key=slopes.__getitem__)[: self.config.additions]
        written = {
            source
            for source in GRAPH.sources
            if source.stage == 0 or any(source in GRAPH.readers[edge.destination] for edge in self.kept)
        }
        nodes = set()
        for node in GRAPH.sources:
            if not any(edge.source == node for edge in self.kept):
                into = {e for e in EDGES if node in GRAPH.readers[e.destination] and e.source in written}
                nodes.add(
                    self.live(self.kept | into | {e for e in EDGES if e.source == node and leads_on(e.destination)})
                )
        return [self.kept | {edge} for edge in single] + [each for each in nodes if len(each) > len(self.kept)]

    def cut_nodes(self, larger, size):
        nodes = [each for each in larger if len(each) > max(size, len(self.kept) + 1)]
        return [self.cut(each, size) for each in sorted(nodes, key=self.first)[: self.config.nodes]]

    def cut(self, kept, size, each=None):
        while (excess := len(kept) - size) > 0:
            if len(kept) <= (each or self.each):
                missed = {edge: self.first(kept - {edge}) for edge in kept}
            else:
                missed = {edge: -self.slope(kept, edge) for edge in kept}
            kept = self.live(kept - {*sorted(missed, key=missed.__getitem__)[: math.ceil(excess / 2)]})
        return kept

    def grow(self):
        missing = self.wanted - len(self.kept)
        if missing <= 0:
            self.step = Step.EXCHANGE
            return
        larger = self.larger()
        tried = [each for each in larger if len(each) <= self.wanted]
        tried += self.cut_nodes(larger, self.wanted)
        single = sorted({each for each in larger if len(each) == len(self.kept) + 1}, key=self.first)
        if missing > 1:
            for (_, one), (place, other) in combinations(enumerate(single), 2):
                (first,), (second,) = one - self.kept, other - self.kept
                alike = (first.source, first.destination.owner) == (second.source, second.destination.owner)
                if place < self.config.exchanges or alike:
                    tried.append(one | other)
        for many in sorted({int(self.at_once * missing), missing // 2, missing}):
            if many > 1 and single:
                tried.append(frozenset.union(*single[:many]))
        self.take_promising(tried, self.loss - 1e-6, Step.GROW, Step.EXCHANGE)

    def exchange(self):
        size, some, larger = len(self.kept), self.config.exchanges, self.larger()
        single = sorted({each for each in larger if len(each) == size + 1}, key=self.first)
        without = sorted((self.kept - {edge} for edge in self.kept), key=self.first)[:some]
        tried = [self.live(one - self.kept | other) for one in single[:some] for other in without]
        tried += self.cut_nodes(larger, size)
        tried = [each for each in tried if len(each) <= size]
        self.take_promising(tried, self.lower, Step.SHRINK, Step.CERTIFY)
        if self.step == Step.CERTIFY:
            self.take([self.cut(self.live(EDGES), max(size, self.wanted), 1024)], self.lower, Step.SHRINK, Step.CERTIFY)

    def certify(self):
        listed = sorted(self.kept)
        rows = removals(GRAPH, listed, pairs=PAIRS).tolist()
        masks = [frozenset(edge for edge, gone in zip(listed, row, strict=True) if not gone) for row in rows]
        self.removals, good = len(masks), [mask for mask in masks if self.of(mask) <= self.limit]
        self.step = Step.DONE
        if good:
            best = min(good, key=lambda mask: (len(mask), self.of(mask)))
            self.kept, self.loss, self.step, self.moves = self.live(best), self.of(best), Step.SHRINK, self.moves + 1
