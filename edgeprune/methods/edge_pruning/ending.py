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
    """Settings of an end before the last step."""

    patience: int = 150
    """Steps without a change of the circuit after which it has converged."""

    certain_for: int = 50
    """Steps in which every edge is certain, its log_alpha, or the least of those of its groups, beyond plus or minus
    `certain_at`, after which the circuit has converged too: what is hardly ever sampled otherwise does not change.
    Asked only of rounded samples; others go on to fall by what they are short of 1."""

    certain_at: float = 4.0
    """Size of log_alpha from which an edge is certain: a rounded sample differs from its mean in 2 of 100. Not above
    `largest_log_alpha`, or nothing ever is."""

    second_look: bool = True
    """Whether a converged circuit is doubted: every entry above `initial_log_alpha` goes back to it, and only a circuit
    that converges to the same again ends the run before `steps` (warm restarts: arXiv:1608.03983). An edge that was
    driven high while others had not converged, and is superfluous now, falls then."""

    start_over: bool = True
    """Whether a circuit that has converged, and that an input in the batch shows to be wrong, starts from the
    beginning, with those inputs at hand; once, and in the first half of `steps`, while some are left to converge in."""

    def __post_init__(self) -> None:
        refuse(out_of_range(self, counts=("patience", "certain_for")))


class Verdict(Enum):
    """What follows from a step."""

    GO_ON = 0
    DOUBT = 1
    START_OVER = 2
    END = 3


class Ending:
    """Watches a circuit until it has converged; without settings, until all steps are done.

    Args:
        config: the settings.
        steps: at the most.
        masks: those that are learned.
        uncertain_until: a step before which certainty says nothing, as the penalty still grows.
        may_start_over: whether a loss of 0 says that an input is right.
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
        self._doubted = torch.zeros(0)  # none yet
        self._changed, self._uncertain = 0, uncertain_until
        self._may_start_over = may_start_over and config is not None and config.start_over

    def after(self, step: int, *, rounded: bool, wrong: bool) -> Verdict:
        """What follows from a step that is done.

        Args:
            step: its number, from 0.
            rounded: whether samples are.
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
        """All that is needed to go on."""
        numbers = [self._changed, self._uncertain, int(self._may_start_over)]
        return {"standing": self._standing, "doubted": self._doubted, "numbers": torch.tensor(numbers)}

    def allowed(self) -> dict[str, Allowed]:
        """What a state may be."""
        standing = Allowed(like=self._standing, least=0, most=1)
        numbers = Allowed(like=self.state()["numbers"], least=0, most=max(self._steps, self._uncertain))
        return {"standing": standing, "doubted": replace(standing, or_empty=True), "numbers": numbers}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self._standing, self._doubted = state["standing"].clone(), state["doubted"].clone()
        self._changed, self._uncertain, may = state["numbers"].tolist()
        self._may_start_over = bool(may)
