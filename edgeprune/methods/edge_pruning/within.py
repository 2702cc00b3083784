"""The masks that were within a tolerance with the fewest edges, by which edges are ranked in the end as well.

Once edges that are needed together have all fallen, no sample has enough of them for a gradient to bring one back: the
masks that a run ends with may say little.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edgeprune.files.checkpoint import Allowed


class FewestWithin:
    """Remembers log_alpha.

    Args:
        tolerance: the largest loss of masks that are remembered.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance, self._edges = tolerance, 0
        self.log_alpha: Tensor = torch.zeros(0)
        """Empty as long as no masks were within."""

    def note(self, loss: float, edges: int, log_alpha: Tensor) -> None:
        """Remember a step's masks, if none of fewer edges were within."""
        if loss <= self._tolerance and (not len(self.log_alpha) or edges <= self._edges):
            self.log_alpha, self._edges = log_alpha.detach().clone(), edges

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on."""
        return {"log_alpha": self.log_alpha, "edges": torch.tensor(self._edges)}

    @staticmethod
    def allowed(learned: Allowed, edges: int) -> dict[str, Allowed]:
        """What a state may be, of that log_alpha and at most so many edges."""
        count = Allowed(like=torch.tensor(0), least=0, most=edges)
        return {"log_alpha": replace(learned, or_empty=True), "edges": count}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.log_alpha, self._edges = state["log_alpha"].clone(), int(state["edges"])
