"""What makes edges fall: a Lagrangian on a target sparsity (the paper's), or a penalty on every expected edge."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.masks import Draw, LearnedMask
from edgeprune.methods.settings import out_of_range, refuse


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

    def start(self, steps: int) -> "TowardsTarget":
        """Its state over so many steps."""
        return TowardsTarget(self, steps)

    def __post_init__(self) -> None:
        faults = out_of_range(self, positive=("multiplier_learning_rate",))
        for name in ("target_sparsity", "sparsity_warmup"):
            if not 0 < getattr(self, name) <= 1:
                faults.append(f"0 < {name} <= 1, got {getattr(self, name)}")
        refuse(faults)


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """`penalty * E[kept]`: any penalty below the smallest effect of a needed edge gives the same circuit."""

    penalty: float
    """Loss that one expected edge, or entry, costs."""

    penalty_warmup: int = 0
    """Steps over which it grows linearly from 0."""

    counted: Literal["edges", "entries"] = "edges"
    """What is counted: edges that all their masks keep, or mask entries."""

    def start(self, steps: int) -> "UnderPenalty":
        """Its state; `steps` play no part."""
        return UnderPenalty(self)

    def __post_init__(self) -> None:
        refuse(out_of_range(self, positive=("penalty",), least=("penalty_warmup",)))


class Pressure(Protocol):
    """What a run asks of either."""

    multipliers: Float[Tensor, " multiplier"]
    """They ascend; there may be none."""

    multiplier_learning_rate: float
    """Before warm-up and decay."""

    full_from: int
    """The step from which it presses with all its strength."""

    expected_edges: float
    """As of the last step."""

    def gradients(self, masks: LearnedMask, draw: Draw, step: int) -> tuple[Tensor, Tensor]:
        """By log_alpha, on which it descends, and by the multipliers, on which it ascends."""
        ...

    def figures(self, step: int) -> dict[str, float]:
        """What is worth a line of the step."""
        ...


class TowardsTarget:
    """The state of a Lagrangian on the sparsity of edges' own masks."""

    full_from = 0

    def __init__(self, config: SparsityTarget, steps: int) -> None:
        self._config, self._steps = config, steps
        self.multipliers: Float[Tensor, " multiplier"] = torch.zeros(2)
        self.multiplier_learning_rate = config.multiplier_learning_rate
        self.expected_edges = 0.0

    def gradients(self, masks: LearnedMask, draw: Draw, step: int) -> tuple[Tensor, Tensor]:
        """See `Pressure`."""
        edges = masks.edge_values(draw)
        short = self._target(step) - (1 - edges.mean())
        multipliers = self.multipliers.clone().requires_grad_()
        pressure = multipliers[0] * short + multipliers[1] * short**2
        self.expected_edges = float(edges.detach().sum(-1).mean())
        by_masks, by_multipliers = torch.autograd.grad(pressure, [masks.log_alpha, multipliers])
        return by_masks, by_multipliers

    def _target(self, step: int) -> float:
        """The sparsity asked for at a step."""
        return self._config.target_sparsity * min(1, step / (self._config.sparsity_warmup * self._steps))

    def figures(self, step: int) -> dict[str, float]:
        """See `Pressure`."""
        first, second = self.multipliers.tolist()
        return {"target": self._target(step), "lambda_1": first, "lambda_2": second}


class UnderPenalty:
    """The state of a penalty on every expected edge, or entry."""

    multiplier_learning_rate = 0.0

    def __init__(self, config: Penalty) -> None:
        self._config, self.full_from = config, config.penalty_warmup
        self.multipliers: Float[Tensor, " multiplier"] = torch.zeros(0)
        self.expected_edges = 0.0

    def gradients(self, masks: LearnedMask, draw: Draw, step: int) -> tuple[Tensor, Tensor]:
        """See `Pressure`."""
        kept = edges = masks.expected_edges(rounded=draw.rounded)
        self.expected_edges = float(edges.detach())
        if self._config.counted == "entries":
            concrete = masks.hard_concrete
            probability = concrete.probability_kept if draw.rounded else concrete.probability_positive
            kept = probability(masks.log_alpha).sum()
        (gradient,) = torch.autograd.grad(kept, masks.log_alpha)
        return self._strength(step) * gradient, self.multipliers

    def _strength(self, step: int) -> float:
        warmup = self._config.penalty_warmup
        return self._config.penalty * (min(1, step / warmup) if warmup else 1)

    def figures(self, step: int) -> dict[str, float]:
        """See `Pressure`."""
        return {"penalty": self._strength(step)}
