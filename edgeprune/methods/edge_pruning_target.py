"""Edge Pruning as the paper states it: a Lagrangian on a target sparsity.

Bhaskar et al., "Finding Transformer Circuits with Edge Pruning", arXiv:2406.16778, §3:
`KL(full || circuit) + lambda_1 (t - s) + lambda_2 (t - s)^2`, minimised over log_alpha and maximised over both lambdas,
with the target t warmed up linearly. The circuit keeps the edges above the threshold at which the discrete sparsity
equals that of the mean mask.

Note: several masks are sampled a step in place of one. As in the paper's code, s is the sparsity of the sampled masks
rather than of their expectation, a mask is shared by the batch, AdamW keeps a weight decay of 0.01 on log_alpha and
lambda, gradients are clipped at norm 1, and learning rates warm up and then fall linearly to 0. The lambdas have no
sign constraint. Where nodes have masks, an edge counts as removed with its source, which the paper's code does not
count. Warm-ups are the shares of the steps that they are in the GPT-2 runs of the paper. One configuration
serves all programs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Batch, Dataset
from edgeprune.errors import ConfigError, RunError
from edgeprune.graph import Ablation, Graph
from edgeprune.masks import HardConcrete, LearnedMask, Masked, edge_exists
from edgeprune.methods.method import Discovery, Trace
from edgeprune.methods.objective import Loss, Objective, draw_pairs
from edgeprune.model import Mask, MaskedModel

_LARGEST: Final = 1e6
"""Beyond which a setting can only be a mistake."""


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """Settings of `prune_to_target`; sources in brackets, "paper" being arXiv:2406.16778, appendix."""

    target_sparsity: float = 1.0
    """Share of edges to remove, 0 to 1 (ours; the paper chooses one a task). At 1 the multipliers press on until the
    divergence resists, the one target that does not presume how large a circuit is."""

    steps: int = 1500
    """Optimiser steps (ours; the paper's 3000 are for GPT-2)."""

    sparsity_warmup: float = 5 / 6
    """Share of the steps over which the target grows linearly from 0 (paper: 2500 of 3000)."""

    learning_rate_warmup: float = 1 / 15
    """Share of the steps over which learning rates grow linearly from 0 (paper: 200 of 3000)."""

    mask_samples: int = 32
    """Masks sampled a step, each run on all inputs (ours; the paper's 1 is exact less often on saturated attention)."""

    batch_size: int = 32
    """Inputs a step (paper)."""

    learning_rate: float = 0.4
    """Of log_alpha, in units of log_alpha a step (ours; the paper's for GPT-2 is 0.8)."""

    lagrangian_learning_rate: float = 0.02
    """Of both lambdas (ours; the paper's for GPT-2 is 0.8, which outgrows the divergence of a target of 1)."""

    weight_decay: float = 0.01
    """AdamW's, a step (the paper's code)."""

    largest_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm (the paper's code)."""

    initial_log_alpha: float = 10.0
    """Mean of log_alpha at the start (paper)."""

    initial_spread: float = 0.01
    """Standard deviation of log_alpha at the start (paper)."""

    masked: Masked = "edges and nodes"
    """What has masks (paper)."""

    loss: Loss = "divergence"
    """KL for logits, squared error for values (paper)."""

    logit_scale: float = 3.0
    """Logits are multiplied by this before the divergence (ours; Tracr's outputs are one-hot)."""

    hard_concrete: HardConcrete = field(default_factory=HardConcrete)
    """The masks' distribution (paper)."""

    def __post_init__(self) -> None:
        counts = ("steps", "mask_samples", "batch_size")
        faults = [f"{name} >= 1, got {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        for name in ("target_sparsity", "sparsity_warmup", "learning_rate_warmup"):
            if not 0 < getattr(self, name) <= 1:
                faults.append(f"0 < {name} <= 1, got {getattr(self, name)}")
        for name in ("learning_rate", "lagrangian_learning_rate", "largest_gradient_norm", "logit_scale"):
            if not 0 < getattr(self, name) <= _LARGEST:
                faults.append(f"0 < {name} <= {_LARGEST:g}, got {getattr(self, name)}")
        for name in ("weight_decay", "initial_spread"):
            if not 0 <= getattr(self, name) <= _LARGEST:
                faults.append(f"0 <= {name} <= {_LARGEST:g}, got {getattr(self, name)}")
        if not abs(self.initial_log_alpha) <= _LARGEST:
            faults.append(f"-{_LARGEST:g} <= initial_log_alpha <= {_LARGEST:g}, got {self.initial_log_alpha}")
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


@dataclass(frozen=True)
class Progress:
    """One step of a run."""

    step: int
    loss: float
    """Without the multipliers' part."""

    sparsity: float
    """Share of edges that the sampled masks remove."""

    target: float
    multipliers: tuple[float, float]
    """lambda_1 and lambda_2, before the step."""


class TargetPruning:
    """The state of one run: masks, multipliers, their optimiser and the noise they are drawn with.

    Args:
        graph: the edges.
        config: settings.
        seed: of all that is random.
    """

    def __init__(self, graph: Graph, config: TargetConfig, *, seed: int = 0) -> None:
        self.config, self.done = config, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.masks = LearnedMask(graph, config.hard_concrete, initial=config.initial_log_alpha, of=config.masked)
        log_alpha = self.masks.log_alpha
        with torch.no_grad():
            log_alpha.add_(config.initial_spread * torch.randn(log_alpha.shape, generator=self.generator))
        self.multipliers = torch.zeros(2, requires_grad=True)
        groups = [{"params": [log_alpha]}, {"params": [self.multipliers], "maximize": True}]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=config.weight_decay)
        self._exists = edge_exists(graph)

    @property
    def target(self) -> float:
        """The sparsity asked for at this step."""
        return self.config.target_sparsity * min(1, self.done / (self.config.sparsity_warmup * self.config.steps))

    def step(self, losses: Sequence[Callable[[Mask], Float[Tensor, ""]]]) -> Progress:
        """One step of the optimiser.

        Args:
            losses: of masks that are drawn once for all of them; they are added up, one after the other, so that a
                batch may come in parts that fit into memory.

        Raises:
            RunError: the loss, or a mask, is no number any more.
        """
        config, target = self.config, self.target
        factor = _learning_rate_factor(self.done, config)
        rates = (config.learning_rate * factor, config.lagrangian_learning_rate * factor)
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._optimizer.zero_grad()
        drawn = self.masks.draw(config.mask_samples, self.generator).mask
        mask, total = drawn.detach().requires_grad_(), 0.0
        for loss_of in losses:
            loss = loss_of(mask)
            loss.backward()
            total += float(loss.detach())
            del loss  # and all that it holds, before the next part runs
        sparsity = 1 - drawn[:, self._exists].mean()
        short = target - sparsity
        pressure = self.multipliers[0] * short + self.multipliers[1] * short**2
        torch.autograd.backward([drawn, pressure], [mask.grad, None])
        torch.nn.utils.clip_grad_norm_([self.masks.log_alpha, self.multipliers], config.largest_gradient_norm)
        first, second = self.multipliers.tolist()
        self._optimizer.step()
        if not math.isfinite(total) or not bool(self.masks.log_alpha.isfinite().all()):
            raise RunError(
                f"Expected a finite loss and finite masks; got a loss of {total} at step {self.done}. What was saved "
                "before stands: run again elsewhere, with lower learning rates or float32"
            )
        self.done += 1
        return Progress(self.done - 1, total, float(sparsity.detach()), target, (first, second))

    def mean(self) -> Float[Tensor, "source destination"]:
        """The mask of evaluation."""
        return self.masks.mean().detach()

    def kept(self) -> Bool[Tensor, "source destination"]:
        """The circuit as it stands."""
        return keep_by_mean_sparsity(self.mean(), self._exists)

    def state(self) -> dict[str, Tensor]:
        """All that a run needs to go on as if it had never stopped."""
        found = {"done": torch.tensor(self.done), "noise": self.generator.get_state()}
        for name, parameter in self._parameters().items():
            found[name] = parameter.detach()
            for key, value in self._optimizer.state[parameter].items():
                found[f"{name}.{key}"] = value
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.done = int(state["done"])
        self.generator.set_state(state["noise"])
        for name, parameter in self._parameters().items():
            parameter.copy_(state[name])
            prefix = f"{name}."
            self._optimizer.state[parameter] = {
                key.removeprefix(prefix): value.clone() for key, value in state.items() if key.startswith(prefix)
            }

    def _parameters(self) -> dict[str, Tensor]:
        return {"log_alpha": self.masks.log_alpha, "multipliers": self.multipliers}


def prune_to_target(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: TargetConfig | None = None,
) -> Discovery:
    """Find a circuit of about a target sparsity; see `Method` and `TargetConfig`."""
    config = TargetConfig() if config is None else config
    run = TargetPruning(model.graph, config, seed=seed)
    objective = Objective(dataset, config.loss, logit_scale=config.logit_scale)
    ablator = Ablator(model, dataset, ablation)
    trace = Trace(run.masks, config.steps, run.kept)
    for _ in tqdm(range(config.steps), desc=f"edge pruning, {ablation}", disable=None if progress else True):
        pairs = draw_pairs(dataset, config.batch_size, run.generator)
        batch = dataset.take(pairs[0], pairs[1])

        def loss(mask: Mask, batch: Batch = batch) -> Float[Tensor, ""]:
            return objective(model(batch.clean, mask, ablator.own(batch), batch.positions), batch).mean()

        step = run.step([loss])
        with torch.no_grad():
            trace.note(step.loss, run.masks.expected_edges())
    return trace.discovery(ablation, run.mean())


def keep_by_mean_sparsity(
    mean: Float[Tensor, "source destination"], exists: Bool[Tensor, "source destination"]
) -> Bool[Tensor, "source destination"]:
    """The edges above the threshold at which as many are kept as the mean mask keeps in sum."""
    count = round(float(mean[exists].sum()))
    ranked = torch.sort(mean[exists], descending=True).values
    if count == 0:
        return torch.zeros_like(exists)
    return exists & (mean >= ranked[count - 1]) & (mean > 0)


def _learning_rate_factor(step: int, config: TargetConfig) -> float:
    """Linear growth over the warm-up, then linearly to 0 at the last step."""
    warmup = config.learning_rate_warmup * config.steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (config.steps - step) / (config.steps - warmup))
