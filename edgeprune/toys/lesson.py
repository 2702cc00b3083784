"""What a toy is taught: its words, its shape, and its training and test examples."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from edgeprune.errors import ConfigError
from edgeprune.tasks.example import Example


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Shape and training of the model."""

    layers: int = 4
    """Number of layers."""

    heads: int = 4
    """Number of attention heads in each layer."""

    width: int = 64
    """Width of the residual stream (d_model)."""

    mlp: bool = True
    """Whether layers have an MLP, four times as wide. GPT-2 always has one; when off, its weights are 0."""

    tied: bool = True
    """Whether the embedding and the unembedding share weights."""

    steps: int = 800
    """Number of training steps."""

    batch_size: int = 128
    """Examples in each step, drawn anew; a lesson that has fewer uses all of them."""

    learning_rate: float = 3e-3
    """Highest learning rate of AdamW. The rate rises over a twentieth of the steps, then falls to 0 along a cosine."""

    weight_decay: float = 0.01
    """Weight decay of AdamW."""

    def __post_init__(self) -> None:
        counts = ("layers", "heads", "width", "steps", "batch_size")
        faults = [f"{name} >= 1, got {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        rates = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        faults += [f"a finite {name} >= 0, got {rate}" for name, rate in rates.items() if not 0 <= rate < math.inf]
        if not faults and self.width % self.heads:
            faults.append(f"a width that is a multiple of {self.heads} heads, got {self.width}")
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


DrawExamples = Callable[[Random, int], list[Example]]
"""Draws a given number of examples."""


@dataclass(frozen=True)
class Course:
    """Training and test examples, which are disjoint. Each text ends with its answers, one word each."""

    teach: DrawExamples
    test: DrawExamples

    task: tuple[Mapping[str, str], ...] = ()
    """Lines of a task file to prune on (see `tasks.jsonl`); empty if there is a built-in task of that name."""


@dataclass(frozen=True)
class Lesson:
    """A task that a toy can be taught."""

    says: str
    """Short description of the task, for a list to choose from."""

    tested_on: str
    """What the accuracy is measured on."""

    words: tuple[str, ...]
    """All words of its texts."""

    config: ToyConfig
    """Default shape and training."""

    course: Callable[[Random], Course]
    """Divides the examples into training and test examples."""

    all_tokens: bool = False
    """Whether the loss is over all tokens but the first, as for a language model, rather than over answers alone."""
