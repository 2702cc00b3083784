"""When learning ends: after all steps, or once the circuit has converged."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from edgeprune.files.checkpoint import Allowed
from edgeprune.masks import LearnedMask
from edgeprune.methods.settings import out_of_range, refuse


@dataclass(frozen=True, kw_only=True)
class Converged:
    """Settings for ending before the last step."""

    patience: int = 150
    """Steps without a change of the circuit after which it has converged."""

    certain_for: int = 50
    """Steps with every edge certain (see `certain_at`) after which the circuit has also converged, as certain edges are
    hardly ever sampled otherwise. Applies to rounded samples only; unrounded ones keep receiving the penalty's
    gradient."""

    certain_at: float = 4.0
    """|log_alpha| from which an edge is certain, by the lowest log_alpha of its masks; a rounded sample then differs
    from its mean in 2 of 100. At most `largest_log_alpha`."""

    second_look: bool = True
    """Whether learning goes on after the circuit converges, with every log_alpha above `initial_log_alpha` lowered to
    it; the run ends before `steps` only if it converges to the same circuit again (warm restarts: arXiv:1608.03983).
    Superfluous edges that were driven high before others converged can then fall."""

    start_over: bool = True
    """Whether learning starts over, once, if the circuit has converged and an input in the batch shows it to be wrong;
    those inputs become counterexamples. Only in the first half of `steps`, so that some are left to converge in."""

    def __post_init__(self) -> None:
        refuse(out_of_range(self, counts=("patience", "certain_for")))


class Verdict(Enum):
    """What to do after a step."""

    GO_ON = 0
    DOUBT = 1
    START_OVER = 2
    END = 3


class Ending:
    """Watches a circuit until it has converged, or without settings until all steps are done.

    Args:
        config: the settings; None ends learning after the last step only.
        steps: the largest number of steps.
        masks: the learned masks.
        uncertain_until: the step before which certainty does not count, because the penalty still grows.
        may_start_over: whether a loss of 0 means that the circuit is right on an input.
    """

    def __init__(
        self,
        config: Converged | None,
        steps: int,
        masks: LearnedMask,
        *,
        uncertain_until: int,
        may_start_over: bool,
    ) -> None:
        self._config, self._steps, self._masks = config, steps, masks
        self._standing = masks.rounded() if config else torch.zeros(0)
        self._doubted = torch.zeros(0)  # no circuit doubted yet
        self._changed, self._uncertain = 0, uncertain_until
        self._may_start_over = may_start_over and config is not None and config.start_over

    def after(self, step: int, *, rounded: bool, wrong: bool) -> Verdict:
        """Return what to do after a finished step.

        Args:
            step: number of the step, from 0.
            rounded: whether samples are rounded.
            wrong: whether an input in the batch shows the circuit to be wrong.
        """
        last = step + 1 == self._steps
        if self._config is None:
            return Verdict.END if last else Verdict.GO_ON
        verdict = self._watch(self._config, step, rounded=rounded, wrong=wrong)
        return Verdict.END if last else verdict

    def _watch(self, config: Converged, step: int, *, rounded: bool, wrong: bool) -> Verdict:
        before, self._standing = self._standing, self._masks.rounded()
        if not rounded or self._masks.least_certain() < config.certain_at:
            self._uncertain = max(step, self._uncertain)
        if not torch.equal(before, self._standing):
            self._changed = step
            return Verdict.GO_ON
        if step - self._changed != config.patience and step - self._uncertain != config.certain_for:
            return Verdict.GO_ON
        if self._may_start_over and 2 * step < self._steps and wrong:
            self._may_start_over, self._doubted = False, torch.zeros(0)
            verdict = Verdict.START_OVER
        elif not config.second_look or torch.equal(self._doubted, self._standing):
            return Verdict.END
        else:
            self._doubted = self._standing
            verdict = Verdict.DOUBT
        self._changed, self._uncertain = step, max(step, self._uncertain)
        return verdict

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to resume."""
        numbers = [self._changed, self._uncertain, int(self._may_start_over)]
        return {"standing": self._standing, "doubted": self._doubted, "numbers": torch.tensor(numbers)}

    def allowed(self) -> dict[str, Allowed]:
        """Return the rules for a saved state."""
        standing = Allowed(like=self._standing, least=0, most=1)
        numbers = Allowed(like=self.state()["numbers"], least=0, most=max(self._steps, self._uncertain))
        return {"standing": standing, "doubted": replace(standing, or_empty=True), "numbers": numbers}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `state` returned."""
        self._standing, self._doubted = state["standing"].clone(), state["doubted"].clone()
        self._changed, self._uncertain, may = state["numbers"].tolist()
        self._may_start_over = bool(may)
