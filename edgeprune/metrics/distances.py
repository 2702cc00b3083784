"""How far a circuit's outputs are from the full model's."""

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ATOL: Final = 1e-2
"""Largest difference before decoding that counts as the same output."""

_ROUNDING: Final = 1e-4
"""Nats that rounding takes from a divergence, at the most."""

_AT_ONCE: Final = 2**22
"""Logits that are compared at a time."""


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
    if outputs.numel() <= _AT_ONCE:
        return scored_mean(_kl(outputs, target), scored)
    # Of large vocabularies, some inputs at a time, and again on the way back: what is in between is large too.
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
    """Squared error summed over outputs, averaged over each input's scored positions."""
    return scored_mean((outputs - target).square().sum(-1), scored)


def logit_difference(
    outputs: Float[Tensor, "*lead batch pos vocab"], target: Float[Tensor, "*other batch pos vocab"]
) -> Float[Tensor, "*lead batch pos"]:
    """The logit of the full model's answer above the mean of all other logits."""
    answer = target.argmax(-1, keepdim=True).expand(*outputs.shape[:-1], 1)
    others = outputs.shape[-1] - 1
    return (outputs.gather(-1, answer)[..., 0] - outputs.mean(-1)) * (1 + 1 / max(1, others))


def not_negative(divergence: float) -> float:
    """A divergence that rounding left below 0, where it is least, as 0; another one, or NaN, as it is."""
    return 0.0 if -_ROUNDING < divergence <= 0 else divergence


def scored_mean(
    value: Float[Tensor, "*lead batch pos"], scored: Bool[Tensor, "*other batch pos"]
) -> Float[Tensor, "*lead batch"]:
    """The mean over each input's scored positions, 0 if none is scored."""
    return torch.where(scored, value, 0).sum(-1) / scored.sum(-1).clamp(min=1)
