"""Times a whole step of Edge Pruning against a plain forward and backward of Hugging Face's, in turns in this process.

A step is complete: the full model's logits, the sources of the corrupted inputs, the forward under a sampled mask,
backward, and the optimiser. The plain pass is a language-model loss on all tokens, with gradients for all weights.
A step scores every position (the plain pass all but the last), and reuses only the masks of the step before.
"""

import resource
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import in_turns

from edgeprune.data import Dataset, LazyTarget
from edgeprune.graph import Graph
from edgeprune.methods.edge_pruning.configurations import PAPER
from edgeprune.methods.edge_pruning.engine import Pruning
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.models.transformer import Transformer

ROUNDS = 5


def measure(original: Any, model: Transformer, inputs: int, length: int) -> dict[str, float]:
    """Return the seconds of both on random tokens, and the peak memory of the process in MB."""
    device = original.lm_head.weight.device
    everywhere = torch.arange(length).expand(inputs, -1)
    run = random_run(model, inputs, length, positions=everywhere, device=device)
    clean = run.problem.dataset.tokens

    def plain() -> None:
        original.zero_grad(set_to_none=True)
        logits = original(clean).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), clean[:, 1:].flatten()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    plain_s, step_s = in_turns(plain, run.advance, rounds=ROUNDS)
    return {"ratio": step_s / plain_s, "step_s": step_s, "plain_s": plain_s, "peak_rss_mb": resident()}


def random_run(
    model: Transformer, inputs: int, length: int, *, positions: Tensor, device: Any = "cpu", parts: int = 1
) -> Pruning:
    """Return the paper's run under resample ablation on random inputs, all of which are in each step's batch."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(model.vocabulary_size, (2, inputs, length), generator=generator).to(device)
    positions = positions.to(device)
    dataset = Dataset(
        tokens=clean,
        scored=torch.ones_like(positions, dtype=torch.bool),
        target=LazyTarget(model, clean, positions),
        group=torch.zeros(inputs, dtype=torch.long),
        positions=positions,
        counterparts=corrupted,
    )
    problem = Problem.of(model, dataset, "resample", PAPER.loss.loss, parts=parts)
    return Pruning(problem, replace(PAPER, batch_size=inputs))


class NoModel:
    """A model whose outputs cost nothing: a step only draws and optimises masks."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def sources(self, tokens: Tensor) -> Tensor:
        """Return zeros of width 1 for every source."""
        return torch.zeros(len(self.graph.sources), *tokens.shape, 1)

    def __call__(self, tokens: Tensor, mask: Any = None, ablated: Any = None, positions: Any = None) -> Tensor:
        """Return two logits: the sum of the mask, and 0."""
        total = mask.sum((-1, -2))[..., None, None, None]
        return torch.cat([total, torch.zeros_like(total)], -1)


def masks_run(graph: Graph) -> Pruning:
    """Return a run of the paper's method whose model costs nothing."""
    one = torch.zeros(1, 1, dtype=torch.long)
    dataset = Dataset(one, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 2), one[0], counterparts=one)
    return Pruning(Problem.of(NoModel(graph), dataset, "zero", PAPER.loss.loss), replace(PAPER, batch_size=1))


def resident() -> float:
    """Return the peak memory of the process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
