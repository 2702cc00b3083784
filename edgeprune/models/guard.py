"""Checks that our forward pass over a language model gives the logits of the model that Hugging Face loaded.

Both run three prompts: a short one, a long one, and a padded batch of unequal lengths. Two more runs cost little: the
whole vocabulary without any layer, and a prompt of up to 4,097 tokens with the first layer alone. If outputs differ,
ours is not the model that was asked for, whatever the reason: an adapter, a trained activation, attention that is not
causal, a setting of a later transformers.
"""

import copy
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgeprune.errors import ModelError
from edgeprune.models.sharded import whole
from edgeprune.models.transformer import Transformer

LONGEST: Final = 64
"""Tokens of the long prompt, or the context length if that is smaller."""

_FAR: Final = 2**12 + 1
"""Tokens of the prompt that runs the first layer alone, or the context length if that is smaller. It is one more than
the original context length of most models whose rotations depend on the length."""

TOLERANCE: Final = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest accepted difference of logits, as a share of their spread (`Gap.spread`).

Rounding in another order gives 1e-6 to 2e-5 in float32, and 1 to 3 % in bfloat16. Exact GELU in place of its tanh
approximation gives 2e-4 and more on small random models.
"""

_FINER: Final = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}
"""The finer type in which a difference beyond the tolerance is checked again: rounding may grow with depth."""

_ROOM: Final = 2**31
"""Largest size of a copy of the weights in the finer type, in bytes."""

_AT_ONCE: Final = 2**20
"""Numbers of the whole vocabulary's embeddings that are compared at a time."""


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids, padded on the right."""

    ids: Int[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]

    @property
    def real(self) -> Tensor:
        """True where an id is not padding, `[row, pos]`."""
        return torch.arange(self.ids.shape[1]) < self.lengths[:, None]


@dataclass(frozen=True)
class Gap:
    """Difference between our outputs and Hugging Face's."""

    apart: float
    """Largest absolute difference between the outputs."""

    spread: float
    """Scale of `apart`: the largest distance of one of Hugging Face's outputs from its position's mean, or a tenth of
    the largest absolute output if that is more."""

    def __str__(self) -> str:
        return f"{self.apart:.2g} apart where they spread by {self.spread:.2g}"

    @property
    def share(self) -> float:
        """`apart` as a share of `spread`."""
        return self.apart / max(self.spread, 1e-30) if self.apart else 0.0

    def within(self, tolerance: float) -> bool:
        """Return whether the difference is rounding: at most `tolerance` of the spread."""
        return self.share <= tolerance


def make_prompts(vocabulary: int, places: int) -> list[Prompts]:
    """Return a short prompt, a long one and a padded batch. Ids are spread over the vocabulary, and cover a small one.

    Args:
        vocabulary: the number of ids.
        places: the context length, in tokens.
    """
    lengths = [[min(3, places)], [min(LONGEST, places)], sorted({1, min(5, places), min(9, places)})]
    total = sum(len(rows) * max(rows) for rows in lengths)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    ids = torch.linspace(0, vocabulary - 1, total, dtype=torch.float64).round().long()[order]
    parts = ids.split([len(rows) * max(rows) for rows in lengths])
    return [Prompts(part.view(len(rows), -1), torch.tensor(rows)) for part, rows in zip(parts, lengths, strict=True)]


@torch.no_grad()
def their_logits(theirs: Any, prompts: Sequence[Prompts]) -> list[Float[Tensor, "real vocab"]]:
    """Return the logits of Hugging Face's model at all positions that are not padding, for each of `prompts`."""
    device = theirs.get_input_embeddings().weight.device
    found = list[Tensor]()
    for each in prompts:
        seen = each.real.long().to(device)
        logits = theirs(input_ids=each.ids.to(device), attention_mask=seen, use_cache=False, return_dict=True).logits
        found.append(_exact(logits.cpu()[each.real]))
    return found


def check_same(name: str, ours: Transformer, layers: str, expected: Sequence[Tensor] | None = None) -> None:
    """Raise an error if our forward pass does not give the logits of Hugging Face's model.

    Args:
        name: the model's name.
        ours: our model, over the weights of Hugging Face's model.
        layers: the path of the layers in Hugging Face's model.
        expected: `their_logits` of `make_prompts`, if the weights have changed since. No finer check is possible then.

    Raises:
        ModelError: logits are NaN or infinite, or differ by more than `TOLERANCE`.
    """
    theirs = ours.weights
    prompts = make_prompts(ours.vocabulary_size, ours.context_length)
    kind: torch.dtype = theirs.dtype
    gap = _gap(ours, layers, prompts, their_logits(theirs, prompts) if expected is None else expected)
    if not math.isfinite(gap.spread):
        raise _no_numbers(name, theirs)
    while expected is None and not gap.within(TOLERANCE[kind]) and kind in _FINER and _fits(ours, _FINER[kind]):
        kind = _FINER[kind]
        finer = type(ours)(copy.deepcopy(theirs).to(kind))  # pyright: ignore[reportCallIssue]  # as adapters take it
        gap = _gap(finer, layers, prompts, their_logits(finer.weights, prompts))
    if not gap.within(TOLERANCE[kind]):
        raise ModelError(
            f"Expected our forward over {name!r} to give the logits that AutoModelForCausalLM gives, up to "
            f"{TOLERANCE[kind]:g} of their spread; they are {gap} in {str(kind).removeprefix('torch.')}. Usually "
            "config.json asks for what is not supported, or this version of transformers does more than ours; "
            "--no-check goes on with ours"
        )


def _fits(ours: Transformer, kind: torch.dtype) -> bool:
    return not ours.ranks.several and sum(each.numel() for each in ours.weights.parameters()) * kind.itemsize <= _ROOM


def _no_numbers(name: str, theirs: Any) -> ModelError:
    broken = [key for key, value in theirs.named_parameters() if not bool(whole(value).isfinite().all())]
    why = (
        f"such weights are {', '.join(broken):.200}"
        if broken
        else f"all weights are numbers, so {theirs.dtype} is too narrow"
    )
    return ModelError(
        f"Expected a model whose logits are numbers; {name!r} itself gives NaN or infinity, with nothing pruned: {why}"
    )


@torch.no_grad()
def _gap(ours: Transformer, layers: str, prompts: Sequence[Prompts], expected: Sequence[Tensor]) -> Gap:
    """Return the largest gap: on any prompt, on the vocabulary without layers, or with the first layer alone."""
    found = [_between(ours(e.ids)[e.real], wanted) for e, wanted in zip(prompts, expected, strict=True)]
    places, width = min(ours.context_length, _FAR), ours.weights.get_input_embeddings().weight.shape[1]
    everything = torch.arange(-(-ours.vocabulary_size // places) * places) % ours.vocabulary_size
    for some in everything.view(-1, places).split(max(1, _AT_ONCE // (places * width))):
        found.append(_shallow(ours, layers, some, 0))
    found.append(_shallow(ours, layers, everything[None, :places], 1))
    return max(found, key=lambda gap: (not math.isfinite(gap.spread), gap.share))


def _exact(values: Tensor) -> Tensor:
    """Return the values in single precision or finer, so that small differences are kept."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _between(found: Float[Tensor, "row column"], wanted: Float[Tensor, "row column"]) -> Gap:
    apart = float((found - wanted).abs().nan_to_num(nan=math.inf).max())
    spread = max(float((wanted - wanted.mean(-1, keepdim=True)).abs().max()), float(wanted.abs().max()) / 10)
    return Gap(apart, spread)


def _shallow(ours: Transformer, layers: str, ids: Int[Tensor, "row pos"], kept: int) -> Gap:
    """Return the gap between the inputs of the unembedding when only the first `kept` layers run."""
    with _first(ours.weights, layers, kept):
        wanted = ours.weights.base_model(input_ids=ids.to(ours.device), use_cache=False, return_dict=True)[0]
    return _between(*(_exact(each.flatten(0, 1)) for each in (ours.shallow(ids, kept), wanted)))


@contextmanager
def _first(theirs: nn.Module, layers: str, kept: int) -> Generator[None]:
    """Cut Hugging Face's model down to its first `kept` layers within the context."""
    parent, _, last = layers.rpartition(".")
    owner, held = theirs.get_submodule(parent), theirs.get_submodule(layers)
    setattr(owner, last, nn.ModuleList(list(held.children())[:kept]))
    try:
        yield
    finally:
        setattr(owner, last, held)
