"""Adam and AdamW (Kingma and Ba, arXiv:1412.6980; Loshchilov and Hutter, arXiv:1711.05101), with their schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from edgeprune.files.checkpoint import Allowed
from edgeprune.methods.settings import out_of_range, refuse


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Settings of the optimiser and of its learning-rate schedule."""

    learning_rate: float
    """Peak learning rate of log_alpha, in units of log_alpha per step."""

    learning_rate_warmup: float = 0.0
    """Share of the steps over which learning rates grow linearly from 0."""

    learning_rate_decay: float = 1.0
    """Share of the steps, at the end, over which learning rates fall linearly to 0; with 0 they never fall."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the first and second moment."""

    epsilon: float = 1e-8
    """Added to the square root of the second moment, in units of the gradient."""

    weight_decay: float = 0.0
    """Share, times the learning rate, by which each step shrinks log_alpha and the multipliers."""

    largest_gradient_norm: float | None = None
    """Largest joint norm of the gradients of log_alpha and the multipliers, above which they are scaled down; no limit
    if not given."""

    def __post_init__(self) -> None:
        faults = out_of_range(
            self, positive=("learning_rate", "epsilon", "largest_gradient_norm"), least=("weight_decay",)
        )
        for name in ("learning_rate_warmup", "learning_rate_decay"):
            if not 0 <= getattr(self, name) <= 1:
                faults.append(f"0 <= {name} <= 1, got {getattr(self, name)}")
        refuse(faults)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rates at a step. It equals `transformers.get_linear_schedule_with_warmup`
        if the decay begins where the warm-up ends."""
        done, warmup = step / steps, self.learning_rate_warmup
        if done < warmup:
            return done / warmup
        return min(1.0, (1 - done) / self.learning_rate_decay) if self.learning_rate_decay else 1.0


class Adam:
    """State of one run of Adam: the learned values and their moments.

    torch's own class loads torch's whole compiler, which takes longer than discovering a small circuit.

    Args:
        config: the settings.
        learned: log_alpha, which descends its gradient.
        multipliers: values that ascend their gradient, at learning rates of their own; may be empty.
    """

    def __init__(self, config: AdamConfig, learned: Tensor, multipliers: Tensor) -> None:
        self._config, self._values = config, {"log_alpha": learned, "multipliers": multipliers}
        self.restart()

    def restart(self) -> None:
        """Reset all moments."""
        self._moments = {
            name: [torch.zeros_like(value), torch.zeros_like(value), torch.tensor(0.0)]
            for name, value in self._values.items()
        }

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, Tensor], rates: tuple[float, float]) -> None:
        """Take one step at the given learning rates: down the gradient of log_alpha, up that of the multipliers."""
        config = self._config
        if config.largest_gradient_norm is not None:
            # Same as torch.nn.utils.clip_grad_norm_.
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in gradients]))
            scale = (config.largest_gradient_norm / (norm + 1e-6)).clamp(max=1)
            gradients = (gradients[0] * scale, gradients[1] * scale)
        for (name, value), gradient, rate in zip(self._values.items(), gradients, rates, strict=True):
            first, second, count = self._moments[name]
            adam(
                [value], [gradient], [first], [second], [], [count],
                amsgrad=False, beta1=config.betas[0], beta2=config.betas[1], lr=rate, eps=config.epsilon,
                weight_decay=config.weight_decay, decoupled_weight_decay=True, maximize=name == "multipliers",
            )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to resume."""
        kinds = ("first", "second", "count")
        return {
            f"{name}.{kind}": moment
            for name, moments in self._moments.items()
            for kind, moment in zip(kinds, moments, strict=True)
        }

    def allowed(self, *, least: int, most: int) -> dict[str, Allowed]:
        """Return the rules for a saved state that has taken `least` to `most` steps since the last restart."""
        ranges = {"first": (-math.inf, math.inf), "second": (0, math.inf), "count": (least, most)}
        return {
            name: Allowed(like=value, least=low, most=high)
            for name, value in self.state().items()
            for low, high in [ranges[name.partition(".")[2]]]
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `state` returned."""
        for name, value in self.state().items():
            value.copy_(state[name])
