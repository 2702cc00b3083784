"""Finds all true circuits of a small graph by running all subsets of its edges.

Subsets are run from the smallest to the largest. Two kinds are skipped: supersets of a true circuit, as they are not
subset-minimal, and subsets with dead edges, as taking those edges out changes nothing.
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
"""Largest number of subsets without dead edges that are run."""

_AT_ONCE: Final = 512
"""Subsets run in one batch."""

_BITS: Final = 62
"""Largest number of edges that a code holds."""

Codes = Int64[np.ndarray, " subset"]
"""Subsets of a list of edges, one integer each: bit n is 1 if edge n is kept."""


class LossJudge:
    """Decides whether the loss of circuits is within a tolerance, as `faithfulness.Judge` does for outputs.

    Args:
        loss: the loss of circuits on all inputs.
        atol: the largest loss of a faithful circuit.
    """

    def __init__(self, loss: CircuitLoss, atol: float) -> None:
        self._loss, self.graph, self.atol = loss, loss.graph, atol

    @property
    def rows(self) -> int:
        """Upper bound on the masked inputs run so far: a circuit that is shown to fail stops early."""
        return self._loss.masks_run * self._loss.inputs

    def differences(self, masks: Float[Tensor, "mask source destination"]) -> Float[Tensor, " mask"]:
        """Return the loss of each mask."""
        return self._loss(masks)

    def reproduces(self, masks: Float[Tensor, "mask source destination"]) -> Bool[Tensor, " mask"]:
        """Return whether the loss of each mask is within the tolerance."""
        return self.differences(masks) <= self.atol

    def differences_of(self, circuits: Sequence[Collection[Edge]]) -> list[float]:
        """Return the loss of each set of edges."""
        return self.differences(torch.stack([mask_of(self.graph, edges) for edges in circuits])).tolist()


@dataclass(frozen=True)
class Found:
    """The true circuits, and the cost of finding them."""

    circuits: list[frozenset[Edge]]
    """All true circuits, smallest first."""

    runs: int
    """Number of subsets run."""

    margin: float
    """The smallest |loss - tolerance| among the subsets run, or the tolerance if that is smaller."""


def live_subsets(graph: Graph, edges: Sequence[Edge], *, most: int = MOST, of: int | None = None) -> Codes:
    """Return all subsets of `edges` without dead edges. The error message says `of` edges, `len(edges)` by default.

    Raises:
        ModelError: there are more than `most` such subsets, or more than 62 edges.
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
    """Return all subsets of `edges` that have a loss within the tolerance and no proper subset that has.

    Args:
        loss: the loss of circuits on all inputs, never below 0.
        edges: the edges that may be in a true circuit.
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
