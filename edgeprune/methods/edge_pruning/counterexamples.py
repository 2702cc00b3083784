"""Counterexamples: pairs of inputs that alone showed a mask to be wrong. They join later batches.

Similar to hard example mining (Shrivastava et al., arXiv:1604.03540) and to counterexample-guided synthesis
(Solar-Lezama, 2008). The paper's objective has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.files.checkpoint import Allowed
from edgeprune.methods.loss import Pairs
from edgeprune.methods.settings import out_of_range, refuse

_LEAST_MERIT: Final = 0.01
"""Merit at or below which a pair is forgotten."""


@dataclass(frozen=True, kw_only=True)
class CounterexampleConfig:
    """How many counterexamples are remembered, and for how long."""

    counterexamples: int = 0
    """Largest number of inputs that join each batch because they alone showed a mask to be wrong; 0 for none."""

    counterexample_decay: float = 0.99
    """Factor on a counterexample's merit per step; at 0.99, a merit of 1 is forgotten after 460 steps."""

    def __post_init__(self) -> None:
        faults = out_of_range(self, least=("counterexamples",))
        if not 0 <= self.counterexample_decay < 1:
            faults.append(f"0 <= counterexample_decay < 1, got {self.counterexample_decay}")
        refuse(faults)


class Counterexamples:
    """The counterexamples that are remembered.

    An edge that one input in a thousand needs is seen in one batch and forgotten in the next thirty. The pair that
    showed the need joins all later batches, as long as it alone shows some mask to be wrong.
    """

    def __init__(self, config: CounterexampleConfig) -> None:
        self._size, self._decay = config.counterexamples, config.counterexample_decay
        self.pairs: Pairs = torch.zeros(2, 0, dtype=torch.long)
        self._merit = torch.zeros(0)

    def remember(self, pairs: Pairs) -> None:
        """Replace the remembered pairs by the first of `pairs`, each with merit 1."""
        self.pairs = pairs[:, : self._size]
        self._merit = torch.ones(self.pairs.shape[1])

    def update(self, pairs: Pairs, losses: Float[Tensor, "mask pair"]) -> None:
        """Update the merits from the losses of masks on `pairs`, the last of which are the remembered ones.

        For each mask, the pair with the largest loss gains the difference to the second largest loss.
        """
        if not self._size or pairs.shape[1] < 2:
            return
        worst = losses.topk(2, dim=-1)
        merit = torch.cat([torch.zeros(pairs.shape[1] - len(self._merit)), self._decay * self._merit])
        merit.index_add_(0, worst.indices[:, 0], worst.values[:, 0] - worst.values[:, 1])
        best = merit.topk(min(self._size, len(merit)))
        kept = best.indices[best.values > _LEAST_MERIT]
        self.pairs, self._merit = pairs[:, kept], merit[kept]

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to resume."""
        return {"pairs": self.pairs, "merit": self._merit}

    def allowed(self, inputs: int) -> dict[str, Allowed]:
        """Return the rules for a saved state, on a dataset of this many inputs."""
        pairs = Allowed(like=torch.zeros(2, 0, dtype=torch.long), columns=self._size, least=0, most=inputs - 1)
        return {"pairs": pairs, "merit": Allowed(like=torch.zeros(0), columns=self._size, least=0)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `state` returned."""
        self.pairs, self._merit = state["pairs"].clone(), state["merit"].clone()
