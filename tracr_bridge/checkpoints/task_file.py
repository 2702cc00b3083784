"""The task of an exported checkpoint, as a file of examples that `edgeprune prune` takes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.tasks.jsonl import EVERY

TASK: Final = "task.jsonl"
"""Its name, beside the checkpoint."""

MOST: Final = 16384
"""Pairs of clean and corrupted inputs in it."""


def task_text(dataset: Dataset, content: Mapping[str, Any], *, seed: int = 0, most: int = MOST) -> str:
    """A line for each pair of inputs of one length, with every scored position and the full model's best id there.

    All pairs where they are at most `most`. Of more, each clean input has equally many corrupted ones, drawn by `seed`;
    so means over the file are means over the domain, as long as that has at most `most` inputs. An input without scored
    positions has a line for its part in means. Every line is in every split.

    Note: where the program's output is a number, it is the first logit, and a divergence of logits says little of it.

    Args:
        dataset: the domain of the checkpoint.
        content: its `circuit.json`.
        seed: of what is drawn.
        most: lines.
    """
    texts, best = content["domain"]["inputs"], dataset.target[torch.arange(len(dataset))].argmax(-1)
    lines = list[str]()
    for clean, corrupted in _pairs(dataset, seed, most).tolist():
        places = [[place, int(best[clean, place])] for place in dataset.scored[clean].nonzero()[:, 0].tolist()]
        example = {"clean": texts[clean], "corrupted": texts[corrupted], "places": places, "split": EVERY}
        lines.append(json.dumps(example, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def _pairs(dataset: Dataset, seed: int, most: int) -> Int[Tensor, "pair 2"]:
    if int(dataset.group.bincount().square().sum()) <= most:
        return torch.stack(dataset.pairs(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(list(_drawn(dataset, generator, most)))


def _drawn(dataset: Dataset, generator: torch.Generator, most: int) -> Iterator[tuple[int, int]]:
    rows = torch.randperm(len(dataset), generator=generator)[:most].sort().values
    each = max(1, most // len(dataset))
    for clean in rows.tolist():
        same = (dataset.group == dataset.group[clean]).nonzero()[:, 0]
        # As many for each, though a small group has to give some of its inputs again.
        order = torch.cat([same[torch.randperm(len(same), generator=generator)] for _ in range(-(-each // len(same)))])
        for corrupted in order[:each].tolist():
            yield clean, corrupted
