"""Writes the task of an exported checkpoint as a file of examples for `edgeprune prune`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.tasks.jsonl import EVERY

TASK: Final = "task.jsonl"
"""Name of the file in the checkpoint's folder."""

MOST: Final = 16384
"""Largest number of pairs of clean and corrupted inputs in the file."""


def task_text(dataset: Dataset, content: Mapping[str, Any], *, seed: int = 0, most: int = MOST) -> str:
    """Return one line for each pair of inputs of equal length: the scored positions, and the model's best id at each.

    If there are at most `most` pairs, all are written. Otherwise each clean input gets equally many corrupted inputs,
    drawn with `seed`, so that means over the file equal means over the domain if that has at most `most` inputs. An
    input without scored positions has lines too, as it counts in means. Every line is in every split.

    Note: a numerical program's output is the first logit, and a divergence of logits says little about it.

    Args:
        dataset: the domain of the checkpoint.
        content: the checkpoint's `circuit.json`.
        seed: seed of the drawn pairs.
        most: largest number of lines.
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
        # Each clean input gets equally many; a small group has to repeat some of its inputs.
        order = torch.cat([same[torch.randperm(len(same), generator=generator)] for _ in range(-(-each // len(same)))])
        for corrupted in order[:each].tolist():
            yield clean, corrupted
