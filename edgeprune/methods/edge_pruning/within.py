"""The masks that were within a tolerance with the fewest edges: what a run goes back to when it has lost its way.

Once edges that are needed together have all fallen, no sample has enough of them for a gradient to bring one back.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

_LOST: Final = 100
"""Steps in a row above the tolerance after which a run has lost its way."""


class FewestWithin:
    """Remembers log_alpha.

    Args:
        tolerance: the largest loss of masks that are remembered.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self.log_alpha: Tensor = torch.zeros(0)
        """Empty as long as no masks were within."""

        self._edges, self._lost = 0, 0

    def lost(self, loss: float, edges: int, log_alpha: Tensor) -> bool:
        """Note a step's masks; whether it is time to go back, as all of the last were above the tolerance."""
        if loss <= self._tolerance:
            self._lost = 0
            if not len(self.log_alpha) or edges <= self._edges:
                self.log_alpha, self._edges = log_alpha.detach().clone(), edges
            return False
        self._lost = (self._lost + 1) % _LOST
        return self._lost == 0 and len(self.log_alpha) > 0

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on."""
        return {"log_alpha": self.log_alpha, "counts": torch.tensor([self._edges, self._lost])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.log_alpha = state["log_alpha"].clone()
        self._edges, self._lost = state["counts"].tolist()
