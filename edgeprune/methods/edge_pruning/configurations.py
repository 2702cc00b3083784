"""Configurations of Edge Pruning that have names: the paper's, and ours."""

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
"""As the paper prunes GPT-2 (arXiv:2406.16778, appendix, and its code); the target is for whoever runs it to choose.

Its code clips gradients at norm 1 and decays log_alpha and the multipliers by 0.01, as their defaults have it.

Note: deviations from the code.
    - The mask of evaluation is the clamped stretch of sigmoid(log_alpha) (arXiv:1712.01312, eq. 13). The code has
      sigmoid(1.2 log_alpha), and sets as many entries of each tensor to 0 as are expected to be.
    - Gradients are clipped with those of the multipliers that are learned; the code's norm has those of multipliers on
      nodes in it, which its GPT-2 runs do not learn.
    - Each batch is drawn anew, in place of shuffled epochs. Targets are at most 1; the code's sweeps go to 1.1.
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
"""The paper's objective in the one configuration that compiled programs are pruned in.

At a target of 1 the multipliers press on until the divergence resists: the one target that does not presume how large a
circuit is. Thirty-two masks a step, as one is exact less often on saturated attention; multipliers learn more slowly,
as they outgrow the divergence otherwise; and Tracr's outputs are one-hot, so that logits are scaled by 3.
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
"""Ours: it minimises the largest difference on any input, at a penalty for each expected edge.

Note: deviations from the paper; docs/exact-recovery.md has why, and what each is worth.
    - A penalty on expected edges in place of a Lagrangian on a sparsity target: any penalty below the smallest effect
      of a needed edge gives the same circuit, so that nothing is chosen per program.
    - The loss is the worst difference in the batch, on a logarithmic scale up to 1, in place of a mean divergence: an
      edge that one input needs weighs as much as one that all need, a small effect is told from none, and a confident
      wrong answer costs no more than none. Inputs that alone showed a mask to be wrong join later batches.
    - The gradient is a likelihood ratio's, of rounded samples that draw a tenth of the entries, in place of the path
      through z: an effect is measured among edges that have converged, and where nothing drawn matters the gradient is
      exactly that of the penalty. `gradient.LikelihoodRatio` says what it estimates.
    - Adam's second moment is short, so that a rare large gradient does not slow the penalty for long; its epsilon is
      above the penalty's gradient at the ends of log_alpha's range, so that converged entries cause no noise.
    - A circuit that has converged is doubted, and one that is known to be wrong starts over, once.
    - In the end the circuit is run on many more inputs; where one of them shows it to be wrong, everything is learned
      anew, once. Groups of edges that may go only together are taken out where the circuit stays right without them.
"""

TOLERANCE: Final = replace(
    PAPER,
    name="edge-pruning-tolerance",
    pressure=LossTolerance(tolerance=0.01),
    optimizer=AdamConfig(learning_rate=0.1, learning_rate_warmup=1 / 15, learning_rate_decay=0.5),
    masks=MaskConfig(masked="edges", initial_log_alpha=2.0, largest_log_alpha=4.0),
    kept="rounded",
)
"""Ours for people who ask how faithful a circuit is to be, and not how sparse; the tolerance is for them to choose.

Note: deviations from the paper.
    - A Lagrangian on the loss in place of one on the sparsity, whose price is that of an expected edge (the L0 norm of
      arXiv:1712.01312, eq. 12): no warm-up of a target, and no multiplier that grows while masks are saturated.
    - Masks on edges alone, which start where their samples differ; learning rates are lower, and nothing decays.
    - log_alpha is bounded: an edge that fell is still sampled in 8 of 100 masks, and comes back where it is missed.
    - In the end edges are ranked by log_alpha, as it is and as it was in the masks that were within the tolerance with
      the fewest edges, and the fewest are kept that are within it on the training examples: once edges that are needed
      together have all fallen, no gradient brings one of them back.
"""

UNCHECKED: Final = replace(
    MINIMAX, name="edge-pruning-minimax-unchecked", ending=Converged(start_over=False), final_check=None
)
"""The same, ended where it has converged: it does not start over, and nothing checks it in the end or cuts it down."""

BY_NAME: Final = {each.name: each for each in (PAPER, TOLERANCE, MINIMAX)}
"""Those that a language model is pruned by."""

FIXED: Final = {
    PAPER.name: frozenset({"counterexamples", "counterexample_decay", "explored", "criterion"}),
    TOLERANCE.name: frozenset({"counterexamples", "counterexample_decay", "explored", "masked"}),
    MINIMAX.name: frozenset({"loss", "logit_scale", "counted", "initial_spread", "criterion", "judged"}),
}
"""Settings that are no options of theirs: another value would do nothing, or be another method."""


def foreign(config: PruningConfig, names: Collection[str]) -> list[str]:
    """Of names of settings, those that are no options of one of `BY_NAME`."""
    return sorted(set(names) - (settings(config).keys() - FIXED[config.name]))
