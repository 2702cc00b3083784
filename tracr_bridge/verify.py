"""Proof, by running them, that RASP's interpreter, Tracr's model and ours agree on a program's domain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edgeprune.errors import UnsupportedProgram
from tracr_bridge.compile import Compiled, compile_program
from tracr_bridge.program import Program

LAYER_ATOL: Final = 1e-4
"""Largest difference between Tracr's and our residuals, after any half-layer, attention scores and outputs, relative to
themselves where they are above 1: rounding grows with what is rounded."""

VALUE_ATOL: Final = 1e-2
"""Largest difference between a decoded number and RASP's: Tracr's own discretisation is approximate."""

_SHOWN: Final = 5
_HIDDEN: Final = -1e29
"""Tracr sets the scores of keys that a query does not see to -1e30."""

_BATCH: Final = 4096
"""Inputs run at a time."""

_UNOPTIMISED: Final = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class Verification:
    """How far the three agree."""

    equal: bool
    """All decoded outputs equal RASP's, and Tracr's and our layers agree."""

    inputs: int
    exhaustive: bool
    """Whether that is the whole domain, and not a seeded sample of it."""

    max_abs_diff: float
    """Largest difference between Tracr's model and ours: residuals, attention scores (see `LAYER_ATOL`) and outputs."""

    mismatches: tuple[str, ...]
    """The first disagreements, in words."""


def compile_and_verify(program: Program, *, seed: int = 0) -> Compiled:
    """The compiled program, once it has been run.

    Args:
        program: what to compile.
        seed: of the sample of its domain.

    Raises:
        EdgePruneError: it is unusable.
        UnsupportedProgram: the model does not do what RASP says.
    """
    compiled = compile_program(program, seed=seed)
    verification = verify(compiled)
    if not verification.equal:
        raise UnsupportedProgram(
            f"Tracr compiles {program.name} to a model that does something else: {verification.mismatches[0]}"
        )
    return compiled


def verify(compiled: Compiled, *, progress: bool = False) -> Verification:
    """Run all three on every input of the domain and compare them layer by layer.

    Tracr's model is told which id is PAD, so that JAX compiles it once and not once a length.

    Args:
        compiled: the program, its two models and its domain.
        progress: show a progress bar on standard error, if that is a terminal.
    """
    # Optimising would take longer than it saves.
    forward = jax.jit(_padded_forward(compiled), compiler_options=_UNOPTIMISED)
    largest, mismatches = 0.0, list[str]()
    batches = torch.arange(len(compiled.domain.inputs)).split(_BATCH)
    for rows in tqdm(batches, desc="verify", disable=None if progress else True):
        tokens, ours = compiled.dataset.tokens[rows], compiled.dataset.target[rows]
        theirs = forward(compiled.assembled.params, jnp.asarray(tokens.numpy()))
        tracr_outputs = np.asarray(theirs.unembedded_output)
        largest = max(largest, _layer_difference(compiled, tokens, theirs.transformer_output))
        if not compiled.categorical:
            largest = max(largest, _difference(ours[..., 0], tracr_outputs, where=compiled.model.is_token(tokens)))
        for row, own, tracr in zip(rows.tolist(), _decode(compiled, ours), tracr_outputs.tolist(), strict=True):
            decoded = [compiled.output_values[v] for v in tracr] if compiled.categorical else tracr
            mismatches += _mismatches(compiled, row, decoded, "Tracr") + _mismatches(compiled, row, own, "PyTorch")
    if not largest <= LAYER_ATOL:
        mismatches.append(f"Tracr's and our layers differ by {largest:.3g}, more than {LAYER_ATOL:g}")
    return Verification(
        equal=not mismatches,
        inputs=len(compiled.domain.inputs),
        exhaustive=compiled.domain.exhaustive,
        max_abs_diff=largest,
        mismatches=tuple(mismatches[:_SHOWN]),
    )


def _padded_forward(compiled: Compiled) -> Callable[[Any, Any], Any]:
    """Tracr's model, from parameters and padded tokens; its keys at PAD are hidden, which `assemble` leaves undone."""

    def forward(tokens: Any) -> Any:
        model = compiled.assembled.get_compiled_model()
        model.pad_token = compiled.model.weights.pad_id
        return model(tokens, use_dropout=False)

    return hk.without_apply_rng(hk.transform(forward)).apply


def _layer_difference(compiled: Compiled, tokens: Tensor, theirs: Any) -> float:
    """The largest difference of residuals after every half-layer and of attention scores of every head."""
    model = compiled.model
    scores: dict[tuple[int, int], Tensor] = {}

    def observe(layer: int, head: int, value: Tensor) -> None:
        scores[layer, head] = value

    with torch.no_grad():
        model.observe(tokens, observe)
        sources = model.sources(tokens)
    real = model.is_token(tokens)
    largest = _difference(sources[:2].sum(0), theirs.input_embeddings, where=real[..., None])
    stages = sorted({node.stage for node in model.graph.sources} - {0})
    for stage, residual in zip(stages, theirs.residuals, strict=True):
        written = torch.tensor([node.stage <= stage for node in model.graph.sources])
        largest = max(largest, _difference(sources[written].sum(0), residual, where=real[..., None]))
    for layer, logits in enumerate(theirs.attn_logits):
        for head in range(logits.shape[1]):
            own = scores.get((layer, head))
            # A head that the compiler padded the layer with computes zeros, and our model leaves it out.
            ours = torch.zeros(logits[:, head].shape) if own is None else own
            seen = real[..., None] & torch.from_numpy(np.asarray(logits[:, head]) > _HIDDEN)
            largest = max(largest, _difference(ours, logits[:, head], where=seen))
    return largest


def _difference(ours: Tensor, theirs: Any, *, where: Tensor) -> float:
    """The largest difference (see `LAYER_ATOL`); infinite where either holds no number, which `max` would pass over."""
    theirs = np.asarray(theirs)
    relative = np.abs(ours.numpy() - theirs) / np.maximum(1, np.abs(theirs))
    difference = np.nan_to_num(relative, nan=np.inf, posinf=np.inf)
    return float(np.where(where.numpy(), difference, 0).max())


def _decode(compiled: Compiled, outputs: Tensor) -> list[list[Any]]:
    if not compiled.categorical:
        return outputs[..., 0].tolist()
    return [[compiled.output_values[v] for v in row] for row in outputs.argmax(-1).tolist()]


def _mismatches(compiled: Compiled, row: int, decoded: list[Any], who: str) -> list[str]:
    expected = compiled.expected[row]
    found: list[str] = []
    for position, (value, wanted) in enumerate(zip(decoded[1 : len(expected) + 1], expected, strict=True)):
        if wanted is None:
            continue
        same = value == wanted if compiled.categorical else bool(abs(value - wanted) <= VALUE_ATOL)
        if not same:
            given = " ".join(map(str, compiled.domain.inputs[row]))
            found.append(f"input [{given}] position {position}: RASP {wanted!r}, {who} {value!r}")
    return found
