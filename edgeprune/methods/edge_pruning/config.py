"""Settings of Edge Pruning, one dataclass per part; `configurations.py` has the named configurations."""

from dataclasses import dataclass, field
from typing import Literal

from edgeprune.masks import HardConcrete, Masked
from edgeprune.methods.edge_pruning.counterexamples import CounterexampleConfig
from edgeprune.methods.edge_pruning.ending import Converged
from edgeprune.methods.edge_pruning.gradient import LikelihoodRatio, ThroughZ
from edgeprune.methods.edge_pruning.optimizer import AdamConfig
from edgeprune.methods.edge_pruning.pressure import LossTolerance, Penalty, SparsityTarget
from edgeprune.methods.loss import DISTANCES, Loss, Over
from edgeprune.methods.settings import LARGEST, out_of_range, refuse


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What has masks, and their initial values."""

    masked: Masked = "edges and nodes"
    """What has masks (paper: edges and nodes). The choice "edges and groups" adds masks on destinations, which drop all
    edges into one together: a head that attends uniformly is right without all of its query edges, but not without one
    of them."""

    initial_log_alpha: float = 10.0
    """Initial value of every log_alpha (paper: 10)."""

    initial_spread: float = 0.0
    """Standard deviation of the initial log_alpha values (paper: 0.01)."""

    largest_log_alpha: float | None = None
    """Bound on |log_alpha|; no bound if not given."""

    hard_concrete: HardConcrete = field(default_factory=HardConcrete)
    """Distribution of each mask entry."""

    def __post_init__(self) -> None:
        faults = out_of_range(self, positive=("largest_log_alpha",), least=("initial_spread",))
        if not abs(self.initial_log_alpha) <= LARGEST:
            faults.append(f"-{LARGEST:g} <= initial_log_alpha <= {LARGEST:g}, got {self.initial_log_alpha}")
        refuse(faults)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the distance between the outputs of circuit and full model is measured."""

    loss: Loss = "divergence"
    """Loss: KL divergence, squared error, disagreement, or worst difference from the full model's outputs; see
    `loss.Loss` (paper: divergence)."""

    logit_scale: float = 1.0
    """Factor on the logits before a divergence (paper: 1)."""

    criterion: Over = "mean"
    """How the losses of the examples are reduced to one: their mean, or the worst of them."""

    judged: int = 256
    """Inputs that circuits are run on after learning, to find the fewest edges within a tolerance and to polish; all if
    there are fewer."""

    def __post_init__(self) -> None:
        refuse(out_of_range(self, positive=("logit_scale",), counts=("judged",)))


@dataclass(frozen=True, kw_only=True)
class FinalCheckConfig:
    """Final check: the circuit is run on many more inputs than a batch has, and superfluous edges are removed."""

    checked: int = 16384
    """Largest number of inputs, or of pairs of clean and corrupted inputs, that the final check runs the circuit on."""

    joint_removals: bool = True
    """Whether the final check tries to remove every edge, and every group of edges that may go only together (see
    `groups.removals`). A removal is kept if the circuit stays right on all `checked` inputs."""

    def __post_init__(self) -> None:
        refuse(out_of_range(self, counts=("checked",)))


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """A configuration of Edge Pruning."""

    name: str
    steps: int
    """Largest number of optimiser steps, each time that the masks are learned."""

    gradient: ThroughZ | LikelihoodRatio
    pressure: SparsityTarget | LossTolerance | Penalty
    optimizer: AdamConfig
    batch_size: int = 32
    """Fresh inputs per step, shared by all masks of the step (paper: 32)."""

    masks: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    counterexamples: CounterexampleConfig = field(default_factory=CounterexampleConfig)
    ending: Converged | None = None
    """When learning ends before the last step; never if not given (paper)."""

    final_check: FinalCheckConfig | None = None
    """Final check after learning; none if not given (paper)."""

    kept: Literal["at mean sparsity", "rounded"] = "rounded"
    """Edges of the circuit: the highest mean masks, as many as the means sum to (paper), or means above one half."""

    @property
    def tells_right(self) -> bool:
        """Whether a loss of 0 means that the circuit is right, and the current circuit is run beside the samples."""
        return self.loss.loss == "worst" and isinstance(self.gradient, LikelihoodRatio)

    def __post_init__(self) -> None:
        faults = out_of_range(self, counts=("steps", "batch_size"))
        if isinstance(self.gradient, LikelihoodRatio) and isinstance(self.pressure, SparsityTarget):
            faults.append("a gradient through z under a sparsity target, which is that of the samples")
        if isinstance(self.pressure, LossTolerance):
            if self.masks.masked != "edges":
                faults.append(f"masks on edges alone under a tolerance, got {self.masks.masked!r}")
            if self.loss.loss not in DISTANCES:
                faults.append(f"a loss that is 0 at the full model under a tolerance, got {self.loss.loss!r}")
            if self.kept != "rounded":
                faults.append(f"kept='rounded' under a tolerance, got {self.kept!r}")
        if self.final_check is not None and not (self.tells_right and self.counterexamples.counterexamples):
            faults.append("no final check without counterexamples, the loss 'worst' and the likelihood ratio")
        elif self.final_check is not None and self.final_check.joint_removals and self.masks.masked == "nodes":
            faults.append("joint_removals=False where sources alone have masks, as edges are removed one by one")
        # Otherwise all edges would be certain from the start.
        certain, initial = self.ending.certain_at if self.ending else None, self.masks.initial_log_alpha
        if certain is not None and self.gradient.rounded and not certain > initial:
            faults.append(f"certain_at > initial_log_alpha, got {certain} and {initial}")
        largest = self.masks.largest_log_alpha
        if certain is not None and largest is not None and certain > largest:
            faults.append(f"certain_at <= largest_log_alpha, got {certain} and {largest}")
        refuse(faults)
