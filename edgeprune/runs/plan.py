"""Plan Edge Pruning of a language model from its configuration alone: memory, operations, GPUs and hours.

Steps run on tensors without memory (`step_cost.py`); only the sharding of weights over GPUs is a formula. The plan is
for resample and zero ablation; mean ablation also holds the means of every length.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tqdm import tqdm

from edgeprune.errors import ConfigError
from edgeprune.methods.polish import PolishConfig, has_room, last_round
from edgeprune.models.load import Precision
from edgeprune.runs.step_cost import StepCost, load_config, step_cost

GIGABYTE: Final = 10**9

_USABLE: Final = 0.95
"""Share of a GPU's memory that the plan uses; the rest is for the GPU's runtime and for fragmentation."""

TOKENS: Final = 72
"""Tokens per input, unless the question gives them or the model takes fewer."""

_MOST_GPUS: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Question:
    """Settings of a plan.

    Raises:
        ConfigError: a setting is outside its range.
    """

    model: str
    """A name on the Hugging Face hub, a folder, or a `config.json`; no weights are needed."""

    batch: int = 32
    """Inputs per optimiser step."""

    tokens: int | None = None
    """Tokens per input; by default 72, or the model's context length if that is shorter."""

    predictions: int = 1
    """Tokens per input whose logits are compared."""

    precision: Precision = "bfloat16"
    """Precision of the model."""

    gpu_memory: float = 80.0
    """Memory of one GPU in gigabytes (10^9 bytes)."""

    gpus: int | None = None
    """Number of GPUs; by default, the fewest that suffice."""

    steps: int = 3000
    """Optimiser steps of the run."""

    sparsity: float = 0.95
    """Sparsity of the circuit, for the cost of polishing it."""

    judged: int = 256
    """Inputs that polishing runs circuits on."""

    tflops: float = 400.0
    """Assumed speed of one GPU, 10^12 operations a second; an H100 reaches at most 989 in bfloat16."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} > 0, got {getattr(self, name)}"
            for name in ("batch", "tokens", "predictions", "gpu_memory", "steps", "judged", "tflops")
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf
        ]
        if not 0 <= self.sparsity <= 1:
            faults.append(f"0 <= sparsity <= 1, got {self.sparsity}")
        if self.gpus is not None and self.gpus < 1:
            faults.append(f"gpus > 0, got {self.gpus}")
        if self.tokens is not None and self.predictions > self.tokens:
            faults.append(f"predictions <= tokens, got {self.predictions} and {self.tokens}")
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


@dataclass(frozen=True)
class Plan:
    """What a run takes; memory is that of one GPU, in bytes."""

    tokens: int
    """Tokens per input."""

    parameters: int
    sources: int
    edges: int
    stack_per_token: int
    """Bytes of all sources' outputs at one token; a step holds two such stacks throughout, and for a while a third."""

    model_flops_per_token: float
    """Operations per token of a forward pass of the model without masks."""

    mixing_flops_per_token: int
    """Operations per token to mix every edge into its destination once."""

    step_flops_per_token: float
    """Operations per token of a whole step: the corrupted inputs' sources, the masked forward and the backward pass."""

    fits: bool
    gpus: int
    inputs_at_a_time: int
    """Inputs per forward pass on one GPU, if a batch runs in `parts` parts."""

    most_inputs: int
    """Most inputs per forward pass that fit on one GPU, up to its share of a batch; 1 if none fits."""

    parts: int
    weights: int
    """Weights, held throughout."""

    step: int
    """Peak memory that a step adds."""

    memory: int
    """`weights` plus `step`."""

    hours: float
    """Time of all steps, if every GPU sustains the assumed speed."""

    polished_edges: int
    """Edges of a circuit of the given sparsity."""

    polish_fits: bool
    """Whether polishing fits in memory: it holds one mask for each edge of the circuit, without that edge."""

    polish_circuits: int
    """Most circuits that the last round of polishing runs; there are several rounds."""

    polish_hours: float
    """Time of that round at the same speed, if each circuit runs on all inputs; most are rejected sooner."""


def plan(question: Question, *, progress: bool = False) -> Plan:
    """Find the fewest GPUs that suffice, and how many inputs each can run at a time.

    Raises:
        ConfigError: the model takes fewer tokens, or there are more predictions than tokens.
        ModelError: the model's configuration cannot be loaded, or its kind of model is not supported.
    """
    config, known = load_config(question.model), dict[int, StepCost]()
    tokens = question.tokens or min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
    if question.predictions > tokens:
        raise ConfigError(f"Expected predictions <= tokens, got {question.predictions} and {tokens}")
    room = _USABLE * question.gpu_memory * GIGABYTE
    with tqdm(desc="steps without memory", disable=None if progress else True) as bar:

        def cost(inputs: int) -> StepCost:
            if inputs not in known:
                known[inputs] = step_cost(
                    config, inputs, tokens, predictions=question.predictions, precision=question.precision
                )
                bar.update()
            return known[inputs]

        one = cost(1)
        gpus = question.gpus or _fewest(lambda gpus: one.weights_on(gpus) + one.memory <= room)
        share = math.ceil(question.batch / gpus)
        most = _most(share, room - one.weights_on(gpus), lambda inputs: cost(inputs).memory)
        parts = math.ceil(share / most)
        # As in a run: a batch is split into parts, and each part over GPUs.
        inputs = math.ceil(math.ceil(question.batch / parts) / gpus)
        weights, step = one.weights_on(gpus), cost(inputs).memory
    polished = max(1, round((1 - question.sparsity) * one.edges))
    circuits = last_round(one.sources, one.destinations, polished, PolishConfig())
    polishing = circuits * math.ceil(question.judged / gpus) * one.masked_operations / (question.tflops * 1e12)
    seconds = question.steps * parts * inputs * one.operations / (question.tflops * 1e12)
    return Plan(
        tokens=tokens,
        parameters=one.parameters,
        sources=one.sources,
        edges=one.edges,
        stack_per_token=one.stack // tokens,
        model_flops_per_token=one.plain_operations / tokens,
        mixing_flops_per_token=2 * one.edges * one.width,
        step_flops_per_token=one.operations / tokens,
        fits=weights + step <= room,
        gpus=gpus,
        inputs_at_a_time=inputs,
        most_inputs=most,
        parts=parts,
        weights=weights,
        step=step,
        memory=weights + step,
        hours=seconds / 3600,
        polished_edges=polished,
        polish_fits=has_room(one.sources, one.destinations, polished),
        polish_circuits=circuits,
        polish_hours=polishing / 3600,
    )


def amount(count: int | float, unit: str) -> str:
    """Return a count of bytes or operations as text, with the largest prefix (k, M, G) that leaves at least 1."""
    prefix, size = next(((name, size) for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if count >= size), ("", 1))
    return f"{count / size:,.1f} {prefix}{unit}"


def duration(hours: float) -> str:
    """Return a time as text in h, min or s, the largest that leaves at least 1, so that no time is printed as 0."""
    seconds = hours * 3600
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.2f} {unit}"
    return f"{seconds:.2g} s"


def _fewest(enough: Callable[[int], bool]) -> int:
    """Return the fewest GPUs that are enough; 1 if no number is."""
    return next((gpus for gpus in range(1, _MOST_GPUS + 1) if enough(gpus)), 1)


def _most(share: int, room: float, memory: Callable[[int], int]) -> int:
    """Return the most inputs, up to `share`, whose step fits into `room` bytes; 1 if not even one fits.

    Memory grows almost linearly with inputs, so each guess is extrapolated linearly, and then tested.
    """
    inputs, each = 1, float(memory(1))
    while (more := min(share - inputs, int((room - memory(inputs)) / each))) > 0:
        guess = inputs + more
        while memory(guess) > room:
            guess -= 1
            if guess == inputs:
                return inputs
        inputs, each = guess, (memory(guess) - memory(inputs)) / (guess - inputs)
    return inputs
