"""Right and wrong answers to a prompt, and metrics of how much a model prefers the right ones."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Metric = Literal["logit difference", "probability difference"]
"""
- `logit difference`: the mean logit of right answers minus that of wrong ones (arXiv:2211.00593).
- `probability difference`: the total probability of right answers minus that of wrong ones (arXiv:2305.00586).
"""


@dataclass(frozen=True)
class Answers:
    """Ids of right and wrong tokens per prediction, padded with -1. With no wrong id, all other tokens are wrong."""

    right: Int[Tensor, "*lead batch predicted right"]
    wrong: Int[Tensor, "*lead batch predicted wrong"]
    metric: Metric = "logit difference"

    def __getitem__(self, rows: Int[Tensor, "*lead"]) -> "Answers":
        return Answers(self.right[rows], self.wrong[rows], self.metric)

    def copy(self) -> "Answers":
        """Return a copy that shares no memory."""
        return Answers(self.right.clone(), self.wrong.clone(), self.metric)

    def preference(
        self, logits: Float[Tensor, "*runs batch predicted vocab"]
    ) -> Float[Tensor, "*runs batch predicted"]:
        """Return the metric of each prediction."""
        if self.metric == "probability difference":
            probability = logits.softmax(-1)
            right = _gather(probability, self.right).sum(-1)
            wrong = torch.where(self._against_all, 1 - right, _gather(probability, self.wrong).sum(-1))
            return right - wrong
        right, many = _gather(logits, self.right).sum(-1), (self.right >= 0).sum(-1)
        others = (logits.sum(-1) - right) / (logits.shape[-1] - many).clamp(min=1)
        wrong = _gather(logits, self.wrong).sum(-1) / (self.wrong >= 0).sum(-1).clamp(min=1)
        return right / many.clamp(min=1) - torch.where(self._against_all, others, wrong)

    @property
    def _against_all(self) -> Tensor:
        return (self.wrong < 0).all(-1)


def _gather(values: Tensor, ids: Tensor) -> Tensor:
    """Return the values at the ids; 0 where an id is negative (padding)."""
    chosen = values.gather(-1, ids.clamp(min=0).expand(*values.shape[:-1], -1))
    return torch.where(ids >= 0, chosen, 0)
