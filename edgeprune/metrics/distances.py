"""Distances between a circuit's outputs and the full model's."""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ATOL: Final = 1e-2
"""Largest difference before decoding that counts as the same output."""

_ROUNDING: Final = 1e-4
"""Largest amount, in nats, by which rounding may lower a divergence."""

_AT_ONCE: Final = 2**22
"""Largest number of logits compared at a time."""


def largest_difference(
    outputs: Float[Tensor, "*lead batch pos vocab"],
    target: Float[Tensor, "*other batch pos vocab"],
    scored: Bool[Tensor, "*other batch pos"],
) -> Float[Tensor, "*lead batch"]:
    """Return each input's largest absolute difference over scored positions and all outputs; 0 if none is scored."""
    difference = (outputs - target).abs().amax(-1)
    # A masked run may overflow to infinity or NaN, which counts as the largest possible difference.
    difference = torch.nan_to_num(difference, nan=torch.inf)
    return torch.where(scored, difference, 0).amax(-1)


def kl_divergence(
    outputs: Float[Tensor, "*lead batch pos vocab"],
    target: Float[Tensor, "*other batch pos vocab"],
    scored: Bool[Tensor, "*other batch pos"],
) -> Float[Tensor, "*lead batch"]:
    """Return KL(full model ‖ circuit) in nats, averaged over each input's scored positions (arXiv:2406.16778, §3)."""
    if outputs.numel() <= _AT_ONCE:
        return scored_mean(_kl(outputs, target), scored)
    # For large vocabularies, compare a few inputs at a time and recompute in backward: intermediates are large too.
    some = max(1, _AT_ONCE * outputs.shape[-3] // outputs.numel())
    parts = (logits.split(some, dim=-3) for logits in (outputs, target))
    kl = [checkpoint(_kl, *part, use_reentrant=False, preserve_rng_state=False) for part in zip(*parts, strict=True)]
    return scored_mean(torch.cat(kl, -2), scored)


def _kl(outputs: Float[Tensor, "*lead vocab"], target: Float[Tensor, "*other vocab"]) -> Float[Tensor, "*lead"]:
    log_q, log_p = outputs.log_softmax(-1), target.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def squared_error(
    outputs: Float[Tensor, "*lead batch pos vocab"],
    target: Float[Tensor, "*other batch pos vocab"],
    scored: Bool[Tensor, "*other batch pos"],
) -> Float[Tensor, "*lead batch"]:
    """Return the squared error, summed over outputs and averaged over each input's scored positions."""
    return scored_mean((outputs - target).square().sum(-1), scored)


def logit_difference(
    outputs: Float[Tensor, "*lead batch pos vocab"], target: Float[Tensor, "*other batch pos vocab"]
) -> Float[Tensor, "*lead batch pos"]:
    """Return the logit of the full model's answer minus the mean of all other logits."""
    answer = target.argmax(-1, keepdim=True).expand(*outputs.shape[:-1], 1)
    others = outputs.shape[-1] - 1
    return (outputs.gather(-1, answer)[..., 0] - outputs.mean(-1)) * (1 + 1 / max(1, others))


def not_negative(divergence: float) -> float:
    """Return 0 for a divergence that only rounding made negative; any other divergence, or NaN, unchanged."""
    return 0.0 if -_ROUNDING < divergence <= 0 else divergence


def scored_mean(
    value: Float[Tensor, "*lead batch pos"], scored: Bool[Tensor, "*other batch pos"]
) -> Float[Tensor, "*lead batch"]:
    """Return the mean over each input's scored positions; 0 if none is scored."""
    return torch.where(scored, value, 0).sum(-1) / scored.sum(-1).clamp(min=1)
