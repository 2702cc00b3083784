"""Named configurations of Edge Pruning: the paper's, and ours."""

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from edgeprune.masks import LARGE
from edgeprune.methods.edge_pruning.config import FinalCheckConfig, LossConfig, MaskConfig, PruningConfig
from edgeprune.methods.edge_pruning.counterexamples import CounterexampleConfig
from edgeprune.methods.edge_pruning.ending import Converged
from edgeprune.methods.edge_pruning.gradient import LikelihoodRatio, ThroughZ
from edgeprune.methods.edge_pruning.optimizer import AdamConfig
from edgeprune.methods.edge_pruning.pressure import LossTolerance, Penalty, SparsityTarget
from edgeprune.methods.settings import settings, with_settings

PAPER: Final = PruningConfig(
    name="edge-pruning",
    steps=3000,
    gradient=ThroughZ(),
    pressure=SparsityTarget(target_sparsity=0.95),
    optimizer=AdamConfig(
        learning_rate=0.8,
        learning_rate_warmup=1 / 15,
        learning_rate_decay=14 / 15,
        weight_decay=0.01,
        largest_gradient_norm=1.0,
    ),
    masks=MaskConfig(initial_spread=0.01),
    kept="at mean sparsity",
)
"""The paper's configuration for GPT-2 (arXiv:2406.16778, appendix, and its code); the user chooses the target.

By the defaults of the paper's code, gradients are clipped at norm 1, and log_alpha and the multipliers have weight
decay 0.01.

Note: deviations from the code.
    - The mask of evaluation is the clamped stretch of sigmoid(log_alpha) (arXiv:1712.01312, eq. 13). The code uses
      sigmoid(1.2 log_alpha), and sets as many entries of each tensor to 0 as are expected to be 0.
    - Gradients are clipped together with those of the learned multipliers. The code's norm also includes multipliers on
      nodes, which its GPT-2 runs do not learn.
    - Each batch is drawn independently, not from shuffled epochs. Targets are at most 1; the code's sweeps reach 1.1.
"""

COMPILED: Final = with_settings(
    PAPER,
    {
        "target_sparsity": 1.0,
        "steps": 1500,
        "mask_samples": 32,
        "learning_rate": 0.4,
        "multiplier_learning_rate": 0.02,
        "logit_scale": 3.0,
    },
)
"""The paper's objective, in the one configuration used for compiled programs.

Target 1 is the only one that presumes no circuit size: the multipliers press until the divergence resists. Each step
samples 32 masks, because with one mask runs are exact less often on saturated attention. Multipliers learn more slowly,
because they outgrow the divergence otherwise. Tracr's outputs are one-hot, so logits are scaled by 3.
"""

MINIMAX: Final = PruningConfig(
    name="edge-pruning-minimax",
    steps=1000,
    gradient=LikelihoodRatio(),
    pressure=Penalty(penalty=0.03, penalty_warmup=100),
    optimizer=AdamConfig(learning_rate=0.2, learning_rate_decay=0.5, betas=(0.9, 0.9), epsilon=1e-4),
    masks=MaskConfig(masked="edges and groups", initial_log_alpha=2.0, largest_log_alpha=LARGE),
    loss=LossConfig(loss="worst"),
    counterexamples=CounterexampleConfig(counterexamples=16),
    ending=Converged(),
    final_check=FinalCheckConfig(),
)
"""Ours: minimises the largest difference on any input, plus a penalty per expected edge.

Note: deviations from the paper; docs/exact-recovery.md gives the reason for each and measures it.
    - A penalty on expected edges replaces the Lagrangian on a sparsity target. Any penalty below the smallest effect of
      a needed edge gives the same circuit, so nothing is chosen per program.
    - The loss is the worst difference in the batch, on a logarithmic scale up to 1, not a mean divergence. An edge that
      one input needs weighs as much as one that all need, a small effect is distinguished from none, and a confident
      wrong answer costs no more than no answer. Inputs that alone showed a mask to be wrong join later batches.
    - The gradient is a likelihood ratio's, of rounded samples that draw a tenth of the entries, not the path through z.
      An effect is measured among edges that have converged, and where nothing drawn matters, the gradient is exactly
      the penalty's. `gradient.LikelihoodRatio` says what it estimates.
    - Adam's second moment has a short memory, so that a rare large gradient does not slow the penalty for long. Its
      epsilon exceeds the penalty's gradient at the ends of log_alpha's range, so converged entries cause no noise.
    - A converged circuit gets a second look, and one that is known to be wrong is learned again from the start, once.
    - In the end the circuit is run on many more inputs. If one of them shows it to be wrong, everything is learned
      again, once. Groups of edges that may go only together are removed if the circuit stays right without them.
"""

TOLERANCE: Final = replace(
    PAPER,
    name="edge-pruning-tolerance",
    pressure=LossTolerance(tolerance=0.01),
    optimizer=AdamConfig(learning_rate=0.1, learning_rate_warmup=1 / 15, learning_rate_decay=0.5),
    masks=MaskConfig(masked="edges", initial_log_alpha=2.0, largest_log_alpha=4.0),
    kept="rounded",
)
"""Ours, for users who set how faithful a circuit must be instead of how sparse; they choose the tolerance.

Note: deviations from the paper.
    - A Lagrangian on the loss replaces the one on the sparsity. Its price is per expected edge (the L0 norm of
      arXiv:1712.01312, eq. 12). No target warms up, and no multiplier grows while masks are saturated.
    - Only edges have masks, and they start where their samples differ. Learning rates are lower, without weight decay,
      and gradients are not clipped. The circuit is the rounded mask, not one at the mean sparsity.
    - log_alpha is bounded: an edge that fell is still sampled in 8 of 100 masks, and returns if it is missed.
    - In the end edges are ranked by two values of log_alpha: the final one, and that of the masks within the tolerance
      that had the fewest edges. The smallest circuit within the tolerance on the training examples is returned. Once
      edges that are needed together have all fallen, no gradient brings one of them back.
"""

UNCHECKED: Final = replace(
    MINIMAX, name="edge-pruning-minimax-unchecked", ending=Converged(start_over=False), final_check=None
)
"""MINIMAX without starting over and without the final check: it ends when the circuit has converged."""

BY_NAME: Final = {each.name: each for each in (PAPER, TOLERANCE, MINIMAX)}
"""Configurations for language models, by name."""

FIXED: Final = {
    PAPER.name: frozenset({"counterexamples", "counterexample_decay", "explored", "criterion"}),
    TOLERANCE.name: frozenset({"counterexamples", "counterexample_decay", "explored", "masked"}),
    MINIMAX.name: frozenset({"loss", "logit_scale", "counted", "initial_spread", "criterion", "judged"}),
}
"""Settings that are no options, by configuration: changing one would do nothing, or give another method."""


def foreign(config: PruningConfig, names: Collection[str]) -> list[str]:
    """Return the names that are not options of `config`, one of `BY_NAME`."""
    return sorted(set(names) - (settings(config).keys() - FIXED[config.name]))
