"""All true circuits of a small graph, by running all subsets of its edges.

Subsets are run from the smallest to the largest. Supersets of a true circuit are skipped, as they are not
subset-minimal, and so are subsets with dead edges, as removing those changes nothing.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from edgeprune.errors import ModelError
from edgeprune.graph import Edge, Graph, Node
from edgeprune.masks import mask_of
from edgeprune.methods.circuit_loss import CircuitLoss

MOST: Final = 2**22
"""Subsets without dead edges that are run, at the most."""

_AT_ONCE: Final = 512
"""Subsets that are run together."""

_BITS: Final = 62
"""Edges that a code has room for."""

Codes = Int64[np.ndarray, " subset"]
"""Subsets of a list of edges: bit n says whether edge n is kept."""


class LossJudge:
    """Says of circuits whether they are within a tolerance, as `judge.Judge` does of outputs.

    Args:
        loss: on all inputs.
        atol: the largest loss of a faithful circuit.
    """

    def __init__(self, loss: CircuitLoss, atol: float) -> None:
        self._loss, self.graph, self.atol = loss, loss.graph, atol

    @property
    def rows(self) -> int:
        """Masked inputs that were run, at the most: a circuit is run until it is known not to be faithful."""
        return self._loss.masks_run * self._loss.inputs

    def differences(self, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, " mask"]:
        """The loss of each."""
        return self._loss(masks)

    def reproduces(self, masks: Float[Tensor, "mask source destination"]) -> Bool[Tensor, " mask"]:
        """Whether it is within the tolerance."""
        return self.differences(masks) <= self.atol

    def differences_of(self, circuits: Sequence[Collection[Edge]]) -> list[float]:
        """The same, of sets of edges."""
        return self.differences(torch.stack([mask_of(self.graph, edges) for edges in circuits])).tolist()


@dataclass(frozen=True)
class Found:
    """What running them gave."""

    circuits: list[frozenset[Edge]]
    """All true ones, smallest first."""

    runs: int
    """How many subsets were run."""

    margin: float
    """The smallest |loss - tolerance| among them, or the tolerance, if that is less."""


def live_subsets(graph: Graph, edges: Sequence[Edge], *, most: int = MOST, of: int | None = None) -> Codes:
    """All subsets of `edges` without dead edges; `of` is how many there are to say, unless these are all.

    Raises:
        ModelError: there are too many.
    """
    into, out = dict[frozenset[Node], list[int]](), dict[frozenset[Node], int]()
    for number, edge in enumerate(edges):
        into.setdefault(frozenset(graph.readers[edge.destination]), []).append(number)
    for nodes in into:
        out[nodes] = sum(1 << number for number, edge in enumerate(edges) if edge.source in nodes)
    codes = np.zeros(1, np.int64)
    for nodes in sorted(into, key=lambda nodes: -max(node.stage for node in nodes)):
        read = np.ones(len(codes), bool) if any(n.kind == "logits" for n in nodes) else (codes & out[nodes]) != 0
        wanted = int((~read).sum()) + (int(read.sum()) << len(into[nodes]))
        if len(edges) > _BITS or wanted > most:
            raise ModelError(
                f"Expected a graph of which all subsets can be run, at most {most:,} without dead edges; this one has "
                f"{of or len(edges):,} edges that can carry something, and more subsets: `edgeprune prune --tolerance "
                "KL --polish` finds a circuit in which no edge and no group of edges that is tried can go"
            )
        choices = np.zeros(1, np.int64)
        for number in into[nodes]:
            choices = np.concatenate([choices, choices | (1 << number)])
        codes = np.concatenate([(codes[read][:, None] | choices).ravel(), codes[~read]])
    return codes


def true_circuits(loss: CircuitLoss, edges: Sequence[Edge], tolerance: float, *, progress: bool = False) -> Found:
    """All subsets of `edges` whose loss is within a tolerance, and that of no proper subset is.

    Args:
        loss: on all inputs, nowhere below 0.
        edges: those that may be in a true circuit.
        tolerance: the largest loss of a faithful circuit.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        ModelError: there are too many subsets.
    """
    codes = live_subsets(loss.graph, edges)
    sizes, found, run, margin = np.bitwise_count(codes), list[int](), 0, tolerance
    with tqdm(total=len(codes), desc="subsets", disable=None if progress else True) as bar:
        for size in range(len(edges) + 1):
            some = codes[sizes == size]
            bar.update(len(some))
            for code in found:
                some = some[(some & code) != code]
            for chunk in np.split(some, range(_AT_ONCE, len(some), _AT_ONCE)) if len(some) else ():
                losses = loss(_masks(loss.graph, edges, chunk), limit=2 * tolerance).double()
                found += chunk[(losses <= tolerance).numpy()].tolist()
                margin = min(margin, float((losses - tolerance).abs().min()))
                run += len(chunk)
    kept = [frozenset(edge for number, edge in enumerate(edges) if code >> number & 1) for code in found]
    return Found(kept, run, margin)


def _masks(graph: Graph, edges: Sequence[Edge], codes: Codes) -> Tensor:
    masks = torch.zeros(len(codes), len(graph.sources), len(graph.destinations))
    for number, edge in enumerate(edges):
        row, column = graph.position(edge)
        masks[:, row, column] = torch.from_numpy((codes >> number & 1).astype(np.float32))
    return masks
