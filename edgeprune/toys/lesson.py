"""What a toy is taught: words, shape, and examples to learn from and to be tested on."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from edgeprune.errors import ConfigError
from edgeprune.tasks.example import Example


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Shape of the model, and how it is trained."""

    layers: int = 4
    """Blocks."""

    heads: int = 4
    """Heads of each layer."""

    width: int = 64
    """d_model, numbers."""

    mlp: bool = True
    """Whether blocks have an MLP, four times as wide; GPT-2 has one in any case, whose weights are 0 where not."""

    tied: bool = True
    """Whether embedding and unembedding are one."""

    steps: int = 800
    """Of training."""

    batch_size: int = 128
    """Examples a step, drawn anew; all where there are fewer."""

    learning_rate: float = 3e-3
    """AdamW's at its highest: it grows over a twentieth of the steps, then falls to 0 along a cosine."""

    weight_decay: float = 0.01
    """AdamW's."""

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
"""Draws so many examples."""


@dataclass(frozen=True)
class Course:
    """Training and test examples, which are disjoint. Each text ends with its answers, a word each."""

    teach: DrawExamples
    test: DrawExamples

    task: tuple[Mapping[str, str], ...] = ()
    """Lines of a file to prune on, see `tasks.jsonl`; none where there is a task of that name."""


@dataclass(frozen=True)
class Lesson:
    """A task that a toy can be taught."""

    says: str
    """What it is, for who chooses."""

    tested_on: str
    """What the accuracy is of."""

    words: tuple[str, ...]
    """Of all its texts."""

    config: ToyConfig
    """Its shape and training, unless others are asked for."""

    course: Callable[[Random], Course]
    """Divides what there is into what teaches and what tests."""

    all_tokens: bool = False
    """Whether the loss is on all tokens but the first, as of a language model, rather than on answers alone."""
