"""Edge Pruning with a penalty: masks learned by gradient descent, with no sparsity to choose.

Bhaskar et al., "Finding Transformer Circuits with Edge Pruning", arXiv:2406.16778, §3. `edge_pruning_target.py` has the
paper's own objective.

Note: deviations from the paper.
    - The objective is `E[loss] + penalty * E[kept edges]` in place of a Lagrangian on a sparsity target: any penalty
      below the smallest effect of a needed edge gives the same circuit, so that nothing is chosen per program.
    - The loss is the worst difference in the batch, on a logarithmic scale up to 1, in place of a mean divergence: an
      edge that one input needs weighs as much as one that all need, a small effect is told from none, and a confident
      wrong answer costs no more than none. Inputs that alone showed a mask to be wrong join later batches.
    - The gradient is that of the likelihood ratio (REINFORCE) in place of the path through z. Compiled attention is
      saturated: almost everywhere the derivative by a query or key edge is zero, and the path sees its effect only in
      the rare sample in which z falls on the step. The ratio needs no derivative of the model, nor a backward pass.
    - Each mask sample draws a share of the entries; the others stand at their rounded mean, and the loss of the rounded
      mask is the baseline. An effect is so measured among settled edges, and where nothing drawn matters the gradient
      is exactly that of the penalty.
    - Samples are rounded. A circuit keeps an edge or does not, and half an edge may break what is whole either way.
    - A circuit that has settled and is known to be wrong, by an input that joined the batch, starts over, once: edges
      that are needed together do not come back one by one.
    - In the end the circuit is run on many more inputs than a batch has. Where one of them shows it to be wrong,
      everything is learned anew, once, with such inputs at hand; of both circuits the one counts that fewer show wrong.
    - Destinations have masks as well as edges and sources, so that edges can fall together. In the end, groups of edges
      that may go only together are taken out where the circuit stays right without them.
    - A circuit that has settled is doubted, by letting its edges start over among edges that are settled (warm
      restarts: Loshchilov and Hutter, arXiv:1608.03983).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Batch, Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Ablation
from edgeprune.masks import LARGE, HardConcrete, LearnedMask, Masked, mask_of
from edgeprune.methods.final_check import FinalCheck
from edgeprune.methods.method import Discovery, Trace
from edgeprune.methods.objective import HardPairs, Loss, Objective, draw_pairs
from edgeprune.model import Mask, MaskedModel, Sources


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """Settings of `prune_with_penalty`. Defaults were chosen over the shipped programs as a whole; see
    docs/exact-recovery.md."""

    steps: int = 1000
    """Optimiser steps, at the most, each time that everything is learned."""

    patience: int = 150
    """Steps without a change of the circuit after which it counts as settled."""

    rest: int = 50
    """Steps at the penalty's full strength in which every edge is at rest, its log_alpha, or the least of those of its
    groups, beyond plus or minus `at_rest`, after which the circuit counts as settled too: what is hardly ever sampled
    otherwise does not change. Asked only of rounded samples; others go on to fall by what they are short of 1."""

    at_rest: float = 4.0
    """Size of log_alpha from which an edge is at rest: a rounded sample differs from its mean in 2 of 100. Not above
    `largest_log_alpha`, or nothing ever rests."""

    second_look: bool = True
    """Whether a settled circuit is doubted: every entry above `initial_log_alpha` goes back to it, and only a circuit
    that settles the same again ends the run before `steps`. An edge that was driven high while others were unsettled,
    and is superfluous now, falls then."""

    start_over: bool = True
    """Whether a circuit that has settled, and that an input in the batch shows to be wrong, starts from the beginning,
    with those inputs at hand; once, and in the first half of `steps`, while some are left to settle in. Only under the
    loss `worst`, as no other is ever 0, and the likelihood ratio, which runs the circuit itself beside the samples."""

    checked: int = 16384
    """Inputs, or pairs of clean and corrupted inputs, that the circuit is run on in the end, at the most. 0 for none.
    Only under the loss `worst` and the likelihood ratio, and where hard pairs are remembered."""

    joint_removals: bool = True
    """Whether, in the end, every edge and every group of edges that may go only together (see `groups.removals`) is
    taken out of the circuit on trial, and stays out where the rest is right on all that is `checked`."""

    mask_samples: int = 64
    """Masks sampled a step, all run in one batched forward."""

    batch_size: int = 32
    """Fresh inputs a step, shared by all its masks."""

    hard_pairs: int = 16
    """Inputs that join them at the most; see `objective.HardPairs`. 0 for none."""

    hard_pair_decay: float = 0.99
    """What is left of a hard pair's merit after a step; from 1 to forgotten in 460 steps."""

    learning_rate: float = 0.2
    """Of Adam on log_alpha, in units of log_alpha a step; constant, then linearly to 0 over the second half."""

    betas: tuple[float, float] = (0.9, 0.9)
    """Adam's decay rates. The second is short, so that a rare large gradient does not slow the penalty for long."""

    epsilon: float = 1e-4
    """Adam's, in units of the gradient. It is above the penalty's gradient at the ends of log_alpha's range, so that
    entries which are settled rest there, and cause no noise for the others."""

    penalty: float = 0.03
    """Loss that one expected edge costs; below the effect of the least needed edge."""

    penalty_warmup: int = 100
    """Steps over which the penalty grows linearly from 0."""

    initial_log_alpha: float = 2.0
    """Start of every log_alpha: a rounded sample keeps the edge with probability 0.88."""

    largest_log_alpha: float = LARGE
    """log_alpha is kept within plus and minus this."""

    rounded: bool = True
    """Whether sampled masks are rounded to 0 and 1, as the circuit is; the path gradient needs them as they are."""

    explored: float = 0.1
    """Share of mask entries that a sample draws; the others stand at their rounded mean. 1 draws all."""

    gradient: Literal["likelihood-ratio", "path"] = "likelihood-ratio"
    """How E[loss] is differentiated: by the score of the samples, or through z (the paper's)."""

    loss: Loss = "worst"
    """See `objective.Loss`."""

    logit_scale: float = 1.0
    """Logits are multiplied by this before a divergence."""

    masked: Masked = "edges and groups"
    """What has masks (the paper: edges and sources); the penalty counts edges either way. With a mask on each
    destination, all edges into it can fall together: without one of them, the queries of a head that attends uniformly
    are wrong, and without all of them they are right."""

    hard_concrete: HardConcrete = field(default_factory=HardConcrete)
    """The masks' distribution."""

    @property
    def tells_right(self) -> bool:
        """Whether a loss of 0 says that the circuit is right, and the circuit itself is run beside the samples."""
        return self.loss == "worst" and self.gradient == "likelihood-ratio"

    def __post_init__(self) -> None:
        positive = (
            "steps",
            "patience",
            "rest",
            "penalty_warmup",
            "batch_size",
            "learning_rate",
            "epsilon",
            "penalty",
            "initial_log_alpha",
            "largest_log_alpha",
            "logit_scale",
        )
        faults = [f"{name} > 0, got {getattr(self, name)}" for name in positive if not getattr(self, name) > 0]
        if self.gradient == "path" and self.rounded:
            faults.append("rounded=False for the path gradient, which does not pass through rounding")
        if self.rounded and not self.at_rest > self.initial_log_alpha:  # or all would rest from the start
            faults.append(f"at_rest > initial_log_alpha, got {self.at_rest} and {self.initial_log_alpha}")
        if self.joint_removals and self.masked == "nodes":
            faults.append("joint_removals=False where sources alone have masks, as edges are removed one by one")
        if self.mask_samples < 2:
            faults.append(f"mask_samples >= 2, got {self.mask_samples}")
        for name in ("hard_pairs", "checked"):
            if getattr(self, name) < 0:
                faults.append(f"{name} >= 0, got {getattr(self, name)}")
        if not 0 <= self.hard_pair_decay < 1:
            faults.append(f"0 <= hard_pair_decay < 1, got {self.hard_pair_decay}")
        if not 0 < self.explored <= 1:
            faults.append(f"0 < explored <= 1, got {self.explored}")
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


def prune_with_penalty(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: PenaltyConfig | None = None,
) -> Discovery:
    """Find a circuit by learning masks under a penalty on kept edges; see `Method` and `PenaltyConfig`."""
    config = PenaltyConfig() if config is None else config
    generator = torch.Generator().manual_seed(seed)
    masks = LearnedMask(model.graph, config.hard_concrete, initial=config.initial_log_alpha, of=config.masked)
    objective = Objective(dataset, config.loss, logit_scale=config.logit_scale)
    ablator = Ablator(model, dataset, ablation)
    hard = HardPairs(config.hard_pairs, config.hard_pair_decay)
    trace = Trace(masks, config.steps, lambda: masks.rounded() > 0)
    learn = partial(_learn, model, dataset, objective, ablator, masks, hard, trace, generator, config)
    bar = partial(tqdm, range(config.steps), disable=None if progress else True)
    learn(bar(desc=f"edge pruning, {ablation}"))
    if config.tells_right and config.checked and config.hard_pairs:
        check = FinalCheck(model, dataset, objective, ablator, generator, config.checked)
        against, first = check.counterexamples(masks.rounded(), hard.pairs), masks.log_alpha.detach().clone()
        if against.shape[1]:
            hard.remember(against)
            masks.set_to(config.initial_log_alpha)
            learn(bar(desc=f"edge pruning, {ablation}, again"))
            if check.counterexamples(masks.rounded(), hard.pairs).shape[1] > against.shape[1]:
                masks.log_alpha.data.copy_(first)
        if config.joint_removals:
            kept = check.without_superfluous(masks.rounded(), hard.pairs)
            masks.keep_only(mask_of(model.graph, kept) > 0)
    return trace.discovery(ablation, masks.mean().detach())


def _learn(
    model: MaskedModel,
    dataset: Dataset,
    objective: Objective,
    ablator: Ablator,
    masks: LearnedMask,
    hard: HardPairs,
    trace: Trace,
    generator: torch.Generator,
    config: PenaltyConfig,
    steps: Iterable[int],
) -> None:
    """Learn masks until the circuit has settled."""
    optimizer = Adam(masks.log_alpha, config.betas, config.epsilon)
    rounded, changed, restless = masks.rounded(), 0, config.penalty_warmup
    doubted: Mask | None = None
    may_start_over = config.start_over and config.tells_right
    for step in steps:
        pairs = torch.cat([draw_pairs(dataset, config.batch_size, generator), hard.pairs], dim=1)
        batch = dataset.take(pairs[0], pairs[1])
        per_input, losses, gradient = _run_samples(model, objective, masks, batch, ablator(batch), generator, config)
        hard.update(pairs, per_input)
        expected = masks.expected_edges(rounded=config.rounded)
        (penalty_gradient,) = torch.autograd.grad(expected, masks.log_alpha)
        penalty = config.penalty * min(1, step / config.penalty_warmup)
        learning_rate = config.learning_rate * min(1, 2 * (1 - step / config.steps))
        with torch.no_grad():
            optimizer.step(gradient + penalty * penalty_gradient, learning_rate)
            masks.log_alpha.clamp_(-config.largest_log_alpha, config.largest_log_alpha)
        trace.note(losses.mean().item(), expected)
        before, rounded = rounded, masks.rounded()
        if not config.rounded or masks.least_certain() < config.at_rest:
            restless = max(step, restless)
        if not torch.equal(before, rounded):
            changed = step
        elif step - changed == config.patience or step - restless == config.rest:
            wrong = per_input[0] > 0
            if may_start_over and 2 * step < config.steps and bool(wrong.any()):
                may_start_over, doubted = False, None
                hard.remember(pairs[:, wrong])
                masks.set_to(config.initial_log_alpha)
            elif not config.second_look or (doubted is not None and torch.equal(doubted, rounded)):
                break
            else:
                doubted = rounded
                masks.lower_to(config.initial_log_alpha)
            changed, restless = step, max(step, restless)
            optimizer = Adam(masks.log_alpha, config.betas, config.epsilon)


def _run_samples(
    model: MaskedModel,
    objective: Objective,
    masks: LearnedMask,
    batch: Batch,
    ablated: Sources | None,
    generator: torch.Generator,
    config: PenaltyConfig,
) -> tuple[Float[Tensor, "mask batch"], Float[Tensor, " sample"], Float[Tensor, " entry"]]:
    """The losses of masks on each input, those of the samples among them, and the gradient of their mean."""
    with torch.set_grad_enabled(config.gradient == "path"):
        draw = masks.draw(config.mask_samples, generator, explored=config.explored, rounded=config.rounded)
    if config.gradient == "path":
        per_input = objective.per_input(model(batch.clean, draw.mask, ablated, batch.positions), batch)
        losses = objective.reduce(per_input)
        (gradient,) = torch.autograd.grad(losses.mean(), masks.log_alpha)
        return per_input.detach(), losses.detach(), gradient
    per_input = losses_per_input(model, objective, batch, draw.mask, masks.rounded(), ablated)
    change = objective.change(per_input[1:], per_input[0])
    return per_input, objective.reduce(per_input[1:]), masks.likelihood_ratio_gradient(draw, change)


class Adam:
    """Adam (Kingma and Ba, arXiv:1412.6980) on one tensor.

    torch's own class loads its whole compiler, which takes longer than the discovery of a small circuit.
    """

    def __init__(self, parameter: Tensor, betas: tuple[float, float], epsilon: float) -> None:
        self._parameter, self._betas, self._epsilon = parameter, betas, epsilon
        self._first, self._second = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self._step = torch.tensor(0.0)

    @torch.no_grad()
    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """One step against `gradient`."""
        adam(
            [self._parameter], [gradient], [self._first], [self._second], [], [self._step],
            amsgrad=False, beta1=self._betas[0], beta2=self._betas[1], lr=learning_rate, weight_decay=0,
            eps=self._epsilon, maximize=False,
        )  # fmt: skip


@torch.no_grad()
def losses_per_input(
    model: MaskedModel,
    objective: Objective,
    batch: Batch,
    sampled: Float[Tensor, "sample source destination"],
    rounded: Mask,
    ablated: Sources | None,
) -> Float[Tensor, "mask batch"]:
    """The losses of the rounded mask, and after it of the sampled ones, in one batched forward.

    Once most entries are settled, most samples equal the rounded mask, and are not run again.
    """
    differs = (sampled != rounded).flatten(1).any(-1)
    masks = torch.cat([rounded[None], sampled[differs]])
    run = objective.per_input(model(batch.clean, masks, ablated, batch.positions), batch)
    losses = run[:1].repeat(1 + len(sampled), 1)
    losses[1:][differs] = run[1:]
    return losses
