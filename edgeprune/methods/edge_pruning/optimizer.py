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
    """Settings of the optimiser, and how its learning rate grows and falls."""

    learning_rate: float
    """Of log_alpha, at its highest, in units of log_alpha a step."""

    learning_rate_warmup: float = 0.0
    """Share of the steps over which learning rates grow linearly from 0."""

    learning_rate_decay: float = 1.0
    """Share of the steps, the last ones, over which learning rates fall linearly to 0; 0 if they never do."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of both moments."""

    epsilon: float = 1e-8
    """Added to the root of the second moment, in units of the gradient."""

    weight_decay: float = 0.0
    """Share by which values shrink a step, times the learning rate; of all that is learned."""

    largest_gradient_norm: float | None = None
    """Gradients of all that is learned are scaled down to this norm together; none where it is not given."""

    def __post_init__(self) -> None:
        faults = out_of_range(
            self, positive=("learning_rate", "epsilon", "largest_gradient_norm"), least=("weight_decay",)
        )
        for name in ("learning_rate_warmup", "learning_rate_decay"):
            if not 0 <= getattr(self, name) <= 1:
                faults.append(f"0 <= {name} <= 1, got {getattr(self, name)}")
        refuse(faults)

    def factor(self, step: int, steps: int) -> float:
        """What learning rates are multiplied by at a step: `transformers.get_linear_schedule_with_warmup`, if decay
        begins where warm-up ends."""
        done, warmup = step / steps, self.learning_rate_warmup
        if done < warmup:
            return done / warmup
        return min(1.0, (1 - done) / self.learning_rate_decay) if self.learning_rate_decay else 1.0


class Adam:
    """The state of one run of it: what is learned, and its moments.

    torch's own class loads its whole compiler, which takes longer than the discovery of a small circuit.

    Args:
        config: its settings.
        learned: descends on its gradient.
        multipliers: ascend on theirs, at learning rates of their own; there may be none.
    """

    def __init__(self, config: AdamConfig, learned: Tensor, multipliers: Tensor) -> None:
        self._config, self._values = config, {"log_alpha": learned, "multipliers": multipliers}
        self.restart()

    def restart(self) -> None:
        """Forget all moments."""
        self._moments = {
            name: [torch.zeros_like(value), torch.zeros_like(value), torch.tensor(0.0)]
            for name, value in self._values.items()
        }

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, Tensor], rates: tuple[float, float]) -> None:
        """One step, down the gradient of what is learned and up that of the multipliers, at these learning rates."""
        config = self._config
        if config.largest_gradient_norm is not None:
            # As torch.nn.utils.clip_grad_norm_ does.
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
        """All that is needed to go on."""
        kinds = ("first", "second", "count")
        return {
            f"{name}.{kind}": moment
            for name, moments in self._moments.items()
            for kind, moment in zip(kinds, moments, strict=True)
        }

    def allowed(self, *, least: int, most: int) -> dict[str, Allowed]:
        """What a state may be that has gone so many steps since it was restarted."""
        ranges = {"first": (-math.inf, math.inf), "second": (0, math.inf), "count": (least, most)}
        return {
            name: Allowed(like=value, least=low, most=high)
            for name, value in self.state().items()
            for low, high in [ranges[name.partition(".")[2]]]
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, value in self.state().items():
            value.copy_(state[name])
