"""What makes edges fall: a Lagrangian on sparsity (the paper's), one on the loss, or a penalty on every edge."""

import math
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprune.masks import LearnedMask, SampledMasks
from edgeprune.methods.settings import out_of_range, refuse

_LEAST_LOSS: Final = 1e-12
_LARGEST_LOSS: Final = 1e12
"""Between which a logarithm is taken of a loss."""

_LARGEST_LOG_PRICE: Final = 30.0
"""Beyond which a price grows, or falls, no more."""


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


@dataclass(frozen=True, kw_only=True)
class LossTolerance:
    """The fewest expected edges at which the loss is within a tolerance: a Lagrangian on the loss.

    Divided by its multiplier, `E[kept] + lambda (loss - tolerance)` is `loss + price * E[kept]`, whose price grows
    while the loss is within the tolerance, and falls while it is not. That loss is of rounded masks, not of samples.
    While it is not, the price is also lowered at once, by as many times as the loss is too large.
    """

    tolerance: float
    """Loss that a circuit may have, nats: what is asked for in place of a sparsity."""

    price_learning_rate: float = 0.05
    """Of the logarithm of the price of an edge."""

    def start(self, steps: int) -> "WithinTolerance":
        """Its state; `steps` play no part."""
        return WithinTolerance(self)

    def __post_init__(self) -> None:
        refuse(out_of_range(self, positive=("tolerance", "price_learning_rate")))


class Pressure(Protocol):
    """What a run asks of each of them."""

    multipliers: Float[Tensor, " multiplier"]
    """They ascend; there may be none."""

    multiplier_learning_rate: float
    """Before warm-up and decay."""

    full_from: int
    """The step from which it presses with all its strength."""

    expected_edges: float
    """As of the last step."""

    def gradients(self, masks: LearnedMask, draw: SampledMasks, step: int, loss: float) -> tuple[Tensor, Tensor]:
        """By log_alpha, on which it descends, and by the multipliers, on which it ascends.

        Args:
            masks: what is learned.
            draw: the samples of the step.
            step: its number, from 0.
            loss: of the samples, in the mean; for a tolerance, of the circuit as it stands.
        """
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

    def gradients(self, masks: LearnedMask, draw: SampledMasks, step: int, loss: float) -> tuple[Tensor, Tensor]:
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

    def gradients(self, masks: LearnedMask, draw: SampledMasks, step: int, loss: float) -> tuple[Tensor, Tensor]:
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


class WithinTolerance:
    """The state of a Lagrangian on the loss; its one multiplier is the logarithm of the price of an edge, in nats."""

    full_from = 0

    def __init__(self, config: LossTolerance) -> None:
        self._config, self.multiplier_learning_rate = config, config.price_learning_rate
        self.multipliers: Float[Tensor, " multiplier"] = torch.zeros(1)
        self.expected_edges = 0.0

    def gradients(self, masks: LearnedMask, draw: SampledMasks, step: int, loss: float) -> tuple[Tensor, Tensor]:
        """See `Pressure`."""
        kept = masks.expected_edges(rounded=draw.rounded)
        self.expected_edges = float(kept.detach())
        (gradient,) = torch.autograd.grad(kept, masks.log_alpha)
        room = math.log(self._config.tolerance / min(max(loss, _LEAST_LOSS), _LARGEST_LOSS))
        log_price = float(self.multipliers)
        may = log_price < _LARGEST_LOG_PRICE if room > 0 else log_price > -_LARGEST_LOG_PRICE
        by_price = torch.tensor([min(1.0, max(-1.0, room)) if may else 0.0])
        return self._price(masks) * min(1.0, math.exp(room)) * gradient, by_price

    def _price(self, masks: LearnedMask) -> float:
        """Of an edge; at first all edges together cost as much as the tolerance."""
        log_price = min(_LARGEST_LOG_PRICE, float(self.multipliers))
        return self._config.tolerance / masks.graph.total * math.exp(log_price)

    def figures(self, step: int) -> dict[str, float]:
        """See `Pressure`."""
        return {"tolerance": self._config.tolerance, "log_price": float(self.multipliers)}
