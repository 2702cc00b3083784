"""What Edge Pruning of a language model will take, from its configuration alone: memory, operations, GPUs, hours.

Steps are run without memory (`step_cost.py`); only how weights are shared out over GPUs is left to a formula. What is
planned is a run under resample or zero ablation: under mean ablation, the means of every length come on top.
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
"""Share of a GPU's memory that is counted on: some goes to its runtime, some is lost between blocks."""

TOKENS: Final = 72
"""Of an input, where neither the question nor the model says otherwise."""

_MOST_GPUS: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is planned.

    Raises:
        ConfigError: a setting is outside its range.
    """

    model: str
    """A name on the Hugging Face hub, a folder, or a `config.json`; no weights are needed."""

    batch: int = 32
    """Inputs a step."""

    tokens: int | None = None
    """Tokens of an input; 72, or as many as the model takes where it takes fewer, unless given."""

    predictions: int = 1
    """Tokens of an input whose logits are compared."""

    precision: Precision = "bfloat16"
    """Of the model."""

    gpu_memory: float = 80.0
    """Of one GPU, gigabytes (10^9 bytes)."""

    gpus: int | None = None
    """How many there are; as few as it takes, unless given."""

    steps: int = 3000
    """Optimiser steps of the run."""

    sparsity: float = 0.95
    """Of the circuit that is polished, if it is."""

    judged: int = 256
    """Inputs that it is polished on."""

    tflops: float = 400.0
    """What a GPU is taken to sustain, 10^12 operations a second; an H100 does at most 989 in bfloat16."""

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
    """The answer; memory is of one GPU, in bytes."""

    tokens: int
    """Of an input."""

    parameters: int
    sources: int
    edges: int
    stack_per_token: int
    """Bytes of what all sources write at one token; a step holds this twice all along, and once more for a while."""

    model_flops_per_token: float
    """Of a forward of the plain model."""

    mixing_flops_per_token: int
    """Of mixing every edge once."""

    step_flops_per_token: float
    """Of all of a step: the corrupted inputs' sources, the masked forward and the way back."""

    fits: bool
    gpus: int
    inputs_at_a_time: int
    """On one GPU, where a batch runs in so many parts."""

    most_inputs: int
    """That would fit."""

    parts: int
    weights: int
    """Held all the time."""

    step: int
    """What a step adds at its most."""

    memory: int
    """Both."""

    hours: float
    """Of all steps, were every operation done at the rate that was stated."""

    polished_edges: int
    """Of a circuit of the sparsity that was stated."""

    polish_fits: bool
    """Whether it can be polished: its masks without each edge are held."""

    polish_circuits: int
    """That the last round of polishing runs, at the most; there are several rounds."""

    polish_hours: float
    """Of that round, as `hours`, were each circuit run on all inputs; most are known sooner not to be better."""


def plan(question: Question, *, progress: bool = False) -> Plan:
    """Find how few GPUs will do, and how many inputs each can run at a time.

    Raises:
        ConfigError: the model takes no so many tokens.
        ModelError: the model's configuration cannot be had, or is of another kind.
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
        # As a run splits it: a batch into parts, and each part over GPUs.
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
    """A count of bytes or operations with the largest prefix up to giga of which there is one."""
    prefix, size = next(((name, size) for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if count >= size), ("", 1))
    return f"{count / size:,.1f} {prefix}{unit}"


def duration(hours: float) -> str:
    """A time in the largest unit of which there is one, so that none is printed as 0."""
    seconds = hours * 3600
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.2f} {unit}"
    return f"{seconds:.2g} s"


def _fewest(enough: Callable[[int], bool]) -> int:
    """The fewest GPUs that are enough; one, if none are."""
    return next((gpus for gpus in range(1, _MOST_GPUS + 1) if enough(gpus)), 1)


def _most(share: int, room: float, memory: Callable[[int], int]) -> int:
    """As many inputs, up to `share`, as have a step that fits into `room`; one, if not even that does.

    Memory grows nearly in proportion to inputs: how many more will fit is read off a straight line, and then tried.
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
