"""Pressure that makes edges fall: a Lagrangian on sparsity (the paper's), one on the loss, or a penalty per edge."""

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
"""Losses are clamped to this range before their logarithm is taken."""

_LARGEST_LOG_PRICE: Final = 30.0
"""Bound on the size of the log price of an edge."""


@dataclass(frozen=True, kw_only=True)
class SparsityTarget:
    """`lambda_1 (t - s) + lambda_2 (t - s)^2` with multipliers that ascend (arXiv:2406.16778, §3).

    Note: as in the paper's code, s is the sparsity of the sampled masks, not of their expectation. It counts edge masks
    alone, even if nodes have masks. Multipliers may have any sign.
    """

    target_sparsity: float
    """Share of edges to remove, 0 to 1; the target t grows to it from 0."""

    sparsity_warmup: float = 5 / 6
    """Share of the steps over which the sparsity target grows linearly from 0 (paper: 2500 of 3000)."""

    multiplier_learning_rate: float = 0.8
    """Learning rate of both multipliers (paper: 0.8)."""

    def start(self, steps: int) -> "TowardsTarget":
        """Return the state at the start of a run of this many steps."""
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
    """Loss added per expected edge (or mask entry)."""

    penalty_warmup: int = 0
    """Steps over which the penalty grows linearly from 0."""

    counted: Literal["edges", "entries"] = "edges"
    """What the penalty counts: edges that all their masks keep, or mask entries."""

    def start(self, steps: int) -> "UnderPenalty":
        """Return the state at the start of a run; `steps` is ignored."""
        return UnderPenalty(self)

    def __post_init__(self) -> None:
        refuse(out_of_range(self, positive=("penalty",), least=("penalty_warmup",)))


@dataclass(frozen=True, kw_only=True)
class LossTolerance:
    """The fewest expected edges at which the loss is within a tolerance: a Lagrangian on the loss.

    Divided by its multiplier, `E[kept] + lambda (loss - tolerance)` is `loss + price * E[kept]` up to a constant. The
    price grows while the loss of the rounded masks (not of the samples) is within the tolerance, and falls while it is
    not. While it is not, the price used is also divided at once by loss / tolerance.
    """

    tolerance: float
    """Largest loss that the circuit may have, in nats; given in place of a sparsity."""

    price_learning_rate: float = 0.05
    """Learning rate of the logarithm of the price of an edge."""

    def start(self, steps: int) -> "WithinTolerance":
        """Return the state at the start of a run; `steps` is ignored."""
        return WithinTolerance(self)

    def __post_init__(self) -> None:
        refuse(out_of_range(self, positive=("tolerance", "price_learning_rate")))


class Pressure(Protocol):
    """Interface of the three kinds of pressure, as a run uses it."""

    multipliers: Float[Tensor, " multiplier"]
    """Values that ascend their gradient; may be empty."""

    multiplier_learning_rate: float
    """Learning rate of the multipliers before warm-up and decay."""

    full_from: int
    """Step before which certainty of edges does not count (see `Ending`): the end of a penalty's warm-up, else 0."""

    expected_edges: float
    """Expected number of edges at the last step."""

    def gradients(self, masks: LearnedMask, draw: SampledMasks, step: int, loss: float) -> tuple[Tensor, Tensor]:
        """Return the gradients with respect to log_alpha, which descends, and to the multipliers, which ascend.

        Args:
            masks: the learned masks.
            draw: the samples of the step.
            step: number of the step, from 0.
            loss: mean over the samples; for a tolerance, the loss of the current circuit.
        """
        ...

    def figures(self, step: int) -> dict[str, float]:
        """Return the values to log for the step."""
        ...


class TowardsTarget:
    """State of a Lagrangian on the sparsity of the edge masks."""

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
        """Return the target sparsity at a step."""
        return self._config.target_sparsity * min(1, step / (self._config.sparsity_warmup * self._steps))

    def figures(self, step: int) -> dict[str, float]:
        """See `Pressure`."""
        first, second = self.multipliers.tolist()
        return {"target": self._target(step), "lambda_1": first, "lambda_2": second}


class UnderPenalty:
    """State of a penalty on every expected edge or mask entry."""

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
    """State of a Lagrangian on the loss. Its only multiplier is the log price of an edge; the price is in nats."""

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
        """Return the price of an edge; initially all edges together cost as much as the tolerance."""
        log_price = min(_LARGEST_LOG_PRICE, float(self.multipliers))
        return self._config.tolerance / masks.graph.total * math.exp(log_price)

    def figures(self, step: int) -> dict[str, float]:
        """See `Pressure`."""
        return {"tolerance": self._config.tolerance, "log_price": float(self.multipliers)}
