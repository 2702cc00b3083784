"""A whole step of Edge Pruning beside a plain forward and backward of Hugging Face's, in turns and in this process.

A step is all of it: the full model's logits, sources of the corrupted inputs, the forward under a sampled mask,
backward, and the optimiser. The plain pass is a language-model loss on all tokens, back to all weights. Every position
is scored, as in the plain pass, and no step takes anything over from the one before but masks.
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
    """Seconds of both on random tokens, and the most memory that the process has had."""
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
    """The paper's run under resample ablation on so many random inputs, all of them in each step."""
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
    """Outputs that cost nothing, so that a step is drawing and optimising masks alone."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def sources(self, tokens: Tensor) -> Tensor:
        """Nothing to speak of."""
        return torch.zeros(len(self.graph.sources), *tokens.shape, 1)

    def __call__(self, tokens: Tensor, mask: Any = None, ablated: Any = None, positions: Any = None) -> Tensor:
        """Two logits, of which one is the sum of the mask."""
        total = mask.sum((-1, -2))[..., None, None, None]
        return torch.cat([total, torch.zeros_like(total)], -1)


def masks_run(graph: Graph) -> Pruning:
    """A run of the paper's whose model costs nothing."""
    one = torch.zeros(1, 1, dtype=torch.long)
    dataset = Dataset(one, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 2), one[0], counterparts=one)
    return Pruning(Problem.of(NoModel(graph), dataset, "zero", PAPER.loss.loss), replace(PAPER, batch_size=1))


def resident() -> float:
    """The most memory that the process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
