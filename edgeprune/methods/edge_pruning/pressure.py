"""What makes edges fall: a Lagrangian on a target sparsity (the paper's), or a penalty on every expected edge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.errors import ConfigError
from edgeprune.masks import Draw, LearnedMask
from edgeprune.methods.settings import out_of_range


@dataclass(frozen=True, kw_only=True)
class SparsityTarget:
    """`lambda_1 (t - s) + lambda_2 (t - s)^2` with multipliers that ascend (arXiv:2406.16778, §3).

    Note: as in the paper's code, s is the sparsity of the sampled masks rather than of their expectation; it counts
    edge masks alone, whatever masks nodes have; and multipliers may have any sign.
    """

    target_sparsity: float
    """Share of edges to remove, 0 to 1; the target t grows to it from 0."""

    sparsity_warmup: float = 5 / 6
    """Share of the steps over which the target grows linearly (paper: 2500 of 3000)."""

    multiplier_learning_rate: float = 0.8
    """Of both multipliers (paper: 0.8)."""

    def __post_init__(self) -> None:
        faults = out_of_range(self, positive=("multiplier_learning_rate",))
        for name in ("target_sparsity", "sparsity_warmup"):
            if not 0 < getattr(self, name) <= 1:
                faults.append(f"0 < {name} <= 1, got {getattr(self, name)}")
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """`penalty * E[kept]`: any penalty below the smallest effect of a needed edge gives the same circuit."""

    penalty: float
    """Loss that one expected edge, or entry, costs."""

    penalty_warmup: int = 0
    """Steps over which it grows linearly from 0."""

    counted: Literal["edges", "entries"] = "edges"
    """What is counted: edges that all their masks keep, or mask entries."""

    def __post_init__(self) -> None:
        faults = out_of_range(self, positive=("penalty",), least=("penalty_warmup",))
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


class Pressure:
    """The state of either.

    Args:
        config: which one.
        steps: of the run.
    """

    def __init__(self, config: SparsityTarget | Penalty, steps: int) -> None:
        self.config, self._steps = config, steps
        self.multipliers: Float[Tensor, " multiplier"] = torch.zeros(2 if isinstance(config, SparsityTarget) else 0)
        self.expected_edges = 0.0
        """As of the last step: those of the sampled masks under a target, else their expectation."""

    @property
    def multiplier_learning_rate(self) -> float:
        """Before warm-up and decay."""
        return self.config.multiplier_learning_rate if isinstance(self.config, SparsityTarget) else 0.0

    def gradients(self, masks: LearnedMask, draw: Draw, step: int) -> tuple[Tensor, Tensor]:
        """By log_alpha, on which it descends, and by the multipliers, on which it ascends."""
        if isinstance(self.config, SparsityTarget):
            return self._towards_target(masks, draw, self.target(step))
        if self.config.counted == "edges":
            kept = masks.expected_edges(rounded=draw.rounded)
            self.expected_edges = float(kept.detach())
        else:
            concrete = masks.hard_concrete
            probability = concrete.probability_kept if draw.rounded else concrete.probability_positive
            kept = probability(masks.log_alpha).sum()
            self.expected_edges = float(masks.expected_edges(rounded=draw.rounded).detach())
        (gradient,) = torch.autograd.grad(kept, masks.log_alpha)
        return self._strength(step) * gradient, self.multipliers

    def target(self, step: int) -> float:
        """The sparsity asked for at a step."""
        assert isinstance(self.config, SparsityTarget)
        return self.config.target_sparsity * min(1, step / (self.config.sparsity_warmup * self._steps))

    def _strength(self, step: int) -> float:
        assert isinstance(self.config, Penalty)
        warmup = self.config.penalty_warmup
        return self.config.penalty * (min(1, step / warmup) if warmup else 1)

    def _towards_target(self, masks: LearnedMask, draw: Draw, target: float) -> tuple[Tensor, Tensor]:
        edges = masks.edge_values(draw)
        short = target - (1 - edges.mean())
        multipliers = self.multipliers.clone().requires_grad_()
        pressure = multipliers[0] * short + multipliers[1] * short**2
        self.expected_edges = float(edges.detach().sum(-1).mean())
        by_masks, by_multipliers = torch.autograd.grad(pressure, [masks.log_alpha, multipliers])
        return by_masks, by_multipliers

    def figures(self, step: int) -> dict[str, float]:
        """What is worth a line of the step."""
        if isinstance(self.config, SparsityTarget):
            first, second = self.multipliers.tolist()
            return {"target": self.target(step), "lambda_1": first, "lambda_2": second}
        return {"penalty": self._strength(step)}

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on."""
        return {"multipliers": self.multipliers}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.multipliers.copy_(state["multipliers"])
