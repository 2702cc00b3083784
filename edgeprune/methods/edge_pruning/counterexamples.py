"""Counterexamples: pairs of inputs that alone showed a mask to be wrong, and that join later batches.

As hard examples are mined (Shrivastava et al., arXiv:1604.03540), and as counterexamples guide synthesis (Solar-Lezama,
2008). The paper's objective has none.
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
"""Merit below which a pair is forgotten."""


@dataclass(frozen=True, kw_only=True)
class CounterexampleConfig:
    """How many are remembered, and for how long."""

    counterexamples: int = 0
    """Inputs that join each batch, at the most, as they alone showed some mask to be wrong; 0 for none."""

    counterexample_decay: float = 0.99
    """What is left of a counterexample's merit after a step; from 1 to forgotten in 460 steps."""

    def __post_init__(self) -> None:
        faults = out_of_range(self, least=("counterexamples",))
        if not 0 <= self.counterexample_decay < 1:
            faults.append(f"0 <= counterexample_decay < 1, got {self.counterexample_decay}")
        refuse(faults)


class Counterexamples:
    """Those that are remembered.

    An edge that one input in a thousand needs is seen in one batch and forgotten in the next thirty. The pair that
    showed it joins all later batches, for as long as some mask is found out by it alone.
    """

    def __init__(self, config: CounterexampleConfig) -> None:
        self._size, self._decay = config.counterexamples, config.counterexample_decay
        self.pairs: Pairs = torch.zeros(2, 0, dtype=torch.long)
        self._merit = torch.zeros(0)

    def remember(self, pairs: Pairs) -> None:
        """Put the first of `pairs` in the place of those remembered, with a merit of 1."""
        self.pairs = pairs[:, : self._size]
        self._merit = torch.ones(self.pairs.shape[1])

    def update(self, pairs: Pairs, losses: Float[Tensor, "mask pair"]) -> None:
        """Take note of how masks fared on `pairs`, of which the last are those remembered.

        A pair's merit grows by how much smaller the worst loss of each mask would be without it.
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
        """All that is needed to go on."""
        return {"pairs": self.pairs, "merit": self._merit}

    def allowed(self, inputs: int) -> dict[str, Allowed]:
        """What a state may be, on so many inputs."""
        pairs = Allowed(like=torch.zeros(2, 0, dtype=torch.long), columns=self._size, least=0, most=inputs - 1)
        return {"pairs": pairs, "merit": Allowed(like=torch.zeros(0), columns=self._size, least=0)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.pairs, self._merit = state["pairs"].clone(), state["merit"].clone()
