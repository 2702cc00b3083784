"""The masks within a tolerance that had the fewest edges; the final ranking of edges uses them too.

Once edges that are needed together have all fallen, no sample has enough of them for a gradient to bring one back. The
final masks alone may therefore say little.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from edgeprune.files.checkpoint import Allowed


class FewestWithin:
    """Remembers log_alpha of the masks within a tolerance that had the fewest edges.

    Args:
        tolerance: largest loss of masks that are remembered.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance, self._edges = tolerance, 0
        self.log_alpha: Tensor = torch.zeros(0)
        """Empty until some masks are within the tolerance."""

    def note(self, loss: float, edges: int, log_alpha: Tensor) -> None:
        """Remember a step's masks if they are within the tolerance and none with fewer edges were."""
        if loss <= self._tolerance and (not len(self.log_alpha) or edges <= self._edges):
            self.log_alpha, self._edges = log_alpha.detach().clone(), edges

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to resume."""
        return {"log_alpha": self.log_alpha, "edges": torch.tensor(self._edges)}

    @staticmethod
    def allowed(learned: Allowed, edges: int) -> dict[str, Allowed]:
        """Return the rules for a saved state: log_alpha as `learned`, and at most `edges` edges."""
        count = Allowed(like=torch.tensor(0), least=0, most=edges)
        return {"log_alpha": replace(learned, or_empty=True), "edges": count}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `state` returned."""
        self.log_alpha, self._edges = state["log_alpha"].clone(), int(state["edges"])
