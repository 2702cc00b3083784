"""How far a circuit's outputs are from the full model's."""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ATOL: Final = 1e-2
"""Largest difference before decoding that counts as the same output."""


def largest_difference(
    outputs: Float[Tensor, "*lead batch pos vocab"],
    target: Float[Tensor, "*other batch pos vocab"],
    scored: Bool[Tensor, "*other batch pos"],
) -> Float[Tensor, "*lead batch"]:
    """The largest absolute difference of each input over its scored positions and all outputs, 0 if none is scored."""
    difference = (outputs - target).abs().amax(-1)
    # A masked run may blow up to infinity or NaN: that is as far from reproducing as can be.
    difference = torch.nan_to_num(difference, nan=torch.inf)
    return torch.where(scored, difference, 0).amax(-1)


def kl_divergence(
    outputs: Float[Tensor, "*lead batch pos vocab"],
    target: Float[Tensor, "*other batch pos vocab"],
    scored: Bool[Tensor, "*other batch pos"],
) -> Float[Tensor, "*lead batch"]:
    """KL(full model ‖ circuit) in nats, averaged over each input's scored positions (arXiv:2406.16778, §3)."""
    log_q, log_p = outputs.log_softmax(-1), target.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return _scored_mean(kl, scored)


def squared_error(
    outputs: Float[Tensor, "*lead batch pos vocab"],
    target: Float[Tensor, "*other batch pos vocab"],
    scored: Bool[Tensor, "*other batch pos"],
) -> Float[Tensor, "*lead batch"]:
    """Squared error summed over outputs, averaged over each input's scored positions."""
    return _scored_mean((outputs - target).square().sum(-1), scored)


def _scored_mean(value: Tensor, scored: Tensor) -> Tensor:
    return torch.where(scored, value, 0).sum(-1) / scored.sum(-1).clamp(min=1)
