"""Verify that RASP's interpreter, Tracr's model and our PyTorch model agree on a program's domain."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.errors import UnsupportedProgram
from tracr_bridge.compile.compile import Compiled, compile_program
from tracr_bridge.compile.program import Program
from tracr_bridge.compile.weights import Weights

LAYER_ATOL: Final = 1e-4
"""Largest allowed difference between Tracr's model and ours, relative to the scale of the values (see `_Scale`)."""

VALUE_ATOL: Final = 1e-2
"""Largest allowed difference between a decoded number and RASP's; Tracr's own discretisation is approximate."""

_ROUNDING: Final = 1e-6
"""Largest relative rounding error of several single-precision operations: eight rounding steps."""

_SHOWN: Final = 5
_HIDDEN: Final = -1e29
"""Lower scores are masked: Tracr sets the scores of masked keys to -1e30."""

_BATCH: Final = 4096
"""Maximum number of inputs per batch."""

_NUMBERS: Final = 2**22
"""Maximum count of numbers in the arrays of a batch (16 MiB in single precision); wide models get smaller batches."""

_UNOPTIMISED: Final = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@dataclass(frozen=True)
class Verification:
    """How far RASP's interpreter, Tracr's model and our model agree."""

    equal: bool
    """Whether all decoded outputs match RASP's, and the layers of Tracr's model match ours, within tolerance."""

    inputs: int
    exhaustive: bool
    """Whether the inputs are the whole domain, rather than a seeded sample of it."""

    max_abs_diff: float
    """Largest difference between Tracr's model and ours in residuals, attention scores and numerical outputs, relative
    to the scale of the values; at most `LAYER_ATOL` if they agree."""

    mismatches: tuple[str, ...]
    """Messages about the first disagreements."""


def compile_and_verify(program: Program, *, seed: int = 0) -> Compiled:
    """Compile `program`, verify it, and return it.

    Args:
        program: the program to compile.
        seed: seed of the sample of its domain.

    Raises:
        EdgePruneError: the program cannot be used.
        UnsupportedProgram: RASP, Tracr's model and our model disagree.
    """
    compiled = compile_program(program, seed=seed)
    verification = verify(compiled)
    if not verification.equal:
        text = f"RASP, Tracr's model and ours do not agree on {program.name}: {verification.mismatches[0]}"
        if verification.max_abs_diff <= LAYER_ATOL:
            text += "; Tracr's MLPs only approximate, so take a smaller max_seq_len or another way to compute it"
        raise UnsupportedProgram(text)
    return compiled


def verify(compiled: Compiled, *, progress: bool = False) -> Verification:
    """Compare RASP's outputs, Tracr's model and our model on every input of the domain, the models layer by layer.

    Tracr's model is given the id of PAD, so that JAX compiles it once rather than once per length.

    Args:
        compiled: the program, its two models and its domain.
        progress: show a progress bar on standard error, if that is a terminal.
    """
    # XLA's optimisations would take longer than they save.
    forward = jax.jit(_padded_forward(compiled), compiler_options=_UNOPTIMISED)
    differences, mismatches = list[_Difference](), list[str]()
    for rows in tqdm(_batches(compiled), desc="verify", disable=None if progress else True):
        tokens, ours = compiled.dataset.tokens[rows], compiled.dataset.target[rows]
        theirs = forward(compiled.assembled.params, jnp.asarray(tokens.numpy()))
        tracr_outputs = np.asarray(theirs.unembedded_output)
        scale = _Scale(compiled.model.weights)
        compare = _Comparison(compiled, rows)
        differences += _layer_differences(compare, tokens, theirs.transformer_output, scale)
        if not compiled.categorical:
            real = compiled.model.is_token(tokens)
            differences.append(compare("in the output", ours[..., 0], tracr_outputs, scale=scale.output(), where=real))
        rounding = LAYER_ATOL * scale.output()
        for row, own, tracr in zip(rows.tolist(), _decode(compiled, ours), tracr_outputs.tolist(), strict=True):
            decoded = [compiled.output_values[v] for v in tracr] if compiled.categorical else tracr
            mismatches += _mismatches(compiled, row, decoded, "Tracr", rounding)
            mismatches += _mismatches(compiled, row, own, "PyTorch", rounding)
    largest = max(difference.relative for difference in differences)
    if not largest <= LAYER_ATOL:
        # Report the first one in the order of computation: later ones may follow from it.
        mismatches.insert(0, next(found.text for found in differences if not found.relative <= LAYER_ATOL))
    return Verification(
        equal=not mismatches,
        inputs=len(compiled.domain.inputs),
        exhaustive=compiled.domain.exhaustive,
        max_abs_diff=largest,
        mismatches=tuple(mismatches[:_SHOWN]),
    )


def _padded_forward(compiled: Compiled) -> Callable[[Any, Any], Any]:
    """Return Tracr's model as a function of parameters and padded tokens; it masks PAD, which `assemble` omits."""

    def forward(tokens: Any) -> Any:
        model = compiled.assembled.get_compiled_model()
        model.pad_token = compiled.model.weights.pad_id
        return model(tokens, use_dropout=False)

    return hk.without_apply_rng(hk.transform(forward)).apply


def _batches(compiled: Compiled) -> Sequence[Tensor]:
    """Return the rows of the domain in batches whose arrays fit `_NUMBERS`; all but the last have the same size."""
    weights = compiled.model.weights
    positions, layer = compiled.dataset.tokens.shape[1], weights.layers[0]
    key_size, (d_model, d_mlp) = layer.heads[0].query.shape[1], layer.hidden.shape
    # Tracr's model keeps two residual-sized results per half-layer; ours keeps what each source writes.
    columns = d_model * (len(compiled.model.graph.sources) + 4 * len(weights.layers)) + d_mlp
    numbers = positions * columns + positions**2 * key_size
    return torch.arange(len(compiled.domain.inputs)).split(max(1, min(_BATCH, _NUMBERS // numbers)))


class _Scale:
    """The scale of each residual column, updated after each half-layer; differences are divided by it.

    A column holds a one-hot entry or a number, so its scale is at least 1. Rounding errors grow with the terms of a
    sum, not with the sum: an MLP that subtracts 20,000.1 from 20,000.2 is off by .002, in either model. Where
    `_ROUNDING` times the largest term of an MLP exceeds `LAYER_ATOL`, the scale grows in proportion.

    Args:
        weights: weights of the model.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.columns: Float[np.ndarray, " d_model"] = np.ones(len(weights.unembed))

    def scores(self, layer: int, head: int) -> float:
        """Return the largest scale of the columns that a head's queries and keys are computed from."""
        weights = self._weights.layers[layer].heads[head]
        return float(self.columns[np.any(weights.query != 0, axis=1) | np.any(weights.key != 0, axis=1)].max(initial=1))

    def output(self) -> float:
        """Return the largest scale of the columns that are unembedded."""
        return float(self.columns[np.any(self._weights.unembed != 0, axis=1)].max(initial=1))

    def attend(self, layer: int, apart: Sequence[float]) -> None:
        """Update the scale for the heads of a layer; `apart` is each head's largest score difference of the models.

        A head's output has the rounding error of what it reads and of its attention pattern: scores that differ by some
        amount move attention weights that add up to as much.
        """
        before = self.columns.copy()
        for index, head in enumerate(self._weights.layers[layer].heads):
            moved = before[np.any(head.value != 0, axis=1)].max(initial=self.scores(layer, index))
            moved *= max(1.0, apart[index] / LAYER_ATOL)
            written = np.any(head.output != 0, axis=0)
            self.columns[written] = np.maximum(self.columns[written], moved)

    def transform(self, layer: int, largest: Float[np.ndarray, " d_model"]) -> None:
        """Update the scale for the MLP of a layer; `largest` is the largest magnitude in each column that it reads."""
        weights = self._weights.layers[layer]
        with np.errstate(invalid="ignore", over="ignore"):  # the comparison finds NaN and infinity
            hidden = np.maximum(self.columns, largest) @ np.abs(weights.hidden)
            terms = (hidden[:, None] * np.abs(weights.output)).max(0, initial=0)
        self.columns = np.maximum(self.columns, terms * (_ROUNDING / LAYER_ATOL))


@dataclass(frozen=True)
class _Difference:
    """The largest difference between Tracr's model and ours in one array."""

    relative: float
    """The difference divided by the scale; infinite if either model gives NaN or infinity, as `max` would skip NaN."""

    text: str
    """A message that says where the difference is, if it is too large; empty otherwise."""


@dataclass(frozen=True)
class _Comparison:
    """Compares arrays `[row, pos, ...]` of Tracr's model and ours on some inputs of the domain."""

    compiled: Compiled
    rows: Tensor

    def __call__(self, place: str, ours: Tensor, theirs: Any, *, scale: Any, where: Tensor) -> _Difference:
        """Return the largest difference in the array that `place` names.

        Args:
            place: name of the array, for the message.
            ours: our array.
            theirs: Tracr's array.
            scale: divisor of the differences, unless Tracr's value is larger in magnitude; broadcasts to the arrays.
            where: the entries to compare.
        """
        own, theirs = ours.numpy(), np.asarray(theirs)
        with np.errstate(invalid="ignore", over="ignore"):
            scales = np.maximum(np.abs(theirs), scale)
            relative = np.nan_to_num(np.abs(own - theirs) / scales, nan=np.inf, posinf=np.inf)
        relative = np.where(where.numpy(), relative, 0)
        largest = float(relative.max(initial=0))
        if largest <= LAYER_ATOL:
            return _Difference(largest, "")
        index = np.unravel_index(relative.argmax(), relative.shape)
        given = " ".join(map(str, self.compiled.domain.inputs[int(self.rows[index[0]])]))
        return _Difference(
            largest,
            f"{place}, Tracr's own model gives {theirs[index]:.6g} and ours {own[index]:.6g} on input [{given}], "
            f"position {index[1]} counted from BOS; they differ by {largest:.3g} of their scale, {scales[index]:.3g}, "
            f"more than {LAYER_ATOL:g}; one of the two reads the compiled weights wrongly: please report this program",
        )


def _layer_differences(compare: _Comparison, tokens: Tensor, theirs: Any, scale: _Scale) -> list[_Difference]:
    """Return the differences of embeddings, attention scores and half-layers' residuals, in order of computation.

    `scale` is updated up to the last layer.
    """
    model = compare.compiled.model
    scores: dict[tuple[int, int], Tensor] = {}

    def observe(layer: int, head: int, value: Tensor) -> None:
        scores[layer, head] = value

    with torch.no_grad():
        model.observe(tokens, observe)
        sources = model.sources(tokens)
    real = model.is_token(tokens)[..., None]
    residual, before = sources[:2].sum(0), np.asarray(theirs.input_embeddings)
    found = [compare("in the embeddings", residual, before, scale=scale.columns, where=real)]
    nodes = list(zip(model.graph.sources, sources, strict=True))[2:]
    halves = itertools.groupby(nodes, key=lambda pair: pair[0].stage)
    for (_, half), after in zip(halves, theirs.residuals, strict=True):
        written = list(half)
        node = written[0][0]
        if node.kind == "a":
            found += _score_differences(compare, scores, theirs.attn_logits[node.layer], scale, node.layer, real)
            scale.attend(node.layer, _scores_apart(scores, theirs.attn_logits[node.layer], node.layer, real))
        else:
            scale.transform(node.layer, np.abs(before).max((0, 1), where=real.numpy(), initial=0))
        for _, contribution in written:
            residual += contribution
        place = f"in the residual after layer {node.layer}'s {'attention' if node.kind == 'a' else 'MLP'}"
        found.append(compare(place, residual, after, scale=scale.columns, where=real))
        before = np.asarray(after)
    return found


def _score_differences(
    compare: _Comparison, scores: dict[tuple[int, int], Tensor], theirs: Any, scale: _Scale, layer: int, real: Tensor
) -> list[_Difference]:
    """Return the difference of attention scores for each head of a layer, relative to the query's largest score.

    A query that matches a key adds up terms of about that size, and terms that cancel leave their rounding errors.
    Heads that write nothing, such as those with which the compiler fills up a layer, are not in our model.
    """
    found: list[_Difference] = []
    for head, logits in enumerate(np.asarray(theirs).swapaxes(0, 1)):
        if (layer, head) in scores:
            seen = real.numpy() & (logits > _HIDDEN)
            largest = np.abs(logits).max(-1, where=seen, initial=1, keepdims=True) * scale.scores(layer, head)
            place = f"in the attention scores of a{layer}.h{head}"
            found.append(compare(place, scores[layer, head], logits, scale=largest, where=torch.from_numpy(seen)))
    return found


def _scores_apart(scores: dict[tuple[int, int], Tensor], theirs: Any, layer: int, real: Tensor) -> list[float]:
    """Return the largest difference between Tracr's scores and ours for each head, where both are finite."""
    apart: list[float] = []
    for head, logits in enumerate(np.asarray(theirs).swapaxes(0, 1)):
        own = scores[layer, head].numpy() if (layer, head) in scores else logits
        with np.errstate(invalid="ignore", over="ignore"):
            differences = np.abs(own - logits)
        seen = real.numpy() & (logits > _HIDDEN) & np.isfinite(differences)
        apart.append(float(differences.max(where=seen, initial=0)))
    return apart


def _decode(compiled: Compiled, outputs: Tensor) -> list[list[Any]]:
    if not compiled.categorical:
        return outputs[..., 0].tolist()
    return [[compiled.output_values[v] for v in row] for row in outputs.argmax(-1).tolist()]


def _mismatches(compiled: Compiled, row: int, decoded: list[Any], who: str, rounding: float) -> list[str]:
    """Return a message per position of one input where `who` differs from RASP, beyond `VALUE_ATOL` and rounding."""
    expected = compiled.expected[row]
    found: list[str] = []
    for position, (value, wanted) in enumerate(zip(decoded[1 : len(expected) + 1], expected, strict=True)):
        if wanted is None:
            continue
        if compiled.categorical:
            same = value == wanted
        else:
            same = bool(abs(value - wanted) <= max(VALUE_ATOL, rounding, _ROUNDING * abs(wanted)))
        if not same:
            given = " ".join(map(str, compiled.domain.inputs[row]))
            found.append(f"input [{given}] position {position}: RASP {wanted!r}, {who} {value!r}")
    return found


def verification_json(verification: Verification, program: str) -> dict[str, Any]:
    """Return a verification as a JSON object; `max_abs_diff` is None if it is not finite."""
    return {
        "program": program,
        "equal": verification.equal,
        "inputs": verification.inputs,
        "exhaustive": verification.exhaustive,
        "max_abs_diff": verification.max_abs_diff if math.isfinite(verification.max_abs_diff) else None,
        "mismatches": list(verification.mismatches),
    }
