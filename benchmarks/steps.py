"""A whole step of Edge Pruning beside a plain forward and backward of Hugging Face's, in turns and in this process.

A step is all of it: the full model's logits, sources of the corrupted inputs, the forward under a sampled mask,
backward, and the optimiser. The plain pass is a language-model loss on all tokens, back to all weights. Every position
is scored, as in the plain pass, and no step takes anything over from the one before but masks.
"""

import resource
from typing import Any

import torch
import torch.nn.functional as F
from turns import in_turns

from edgeprune.methods.edge_pruning_target import TargetPruning
from edgeprune.metrics import kl_divergence
from edgeprune.models.transformer import Transformer
from edgeprune.subject import PAPER

ROUNDS = 5


def measure(original: Any, model: Transformer, inputs: int, length: int) -> dict[str, float]:
    """Seconds of both on random tokens, and the most memory that the process has had."""
    generator = torch.Generator().manual_seed(0)
    device = original.lm_head.weight.device
    clean, corrupted = torch.randint(model.vocabulary_size, (2, inputs, length), generator=generator).to(device)
    run = TargetPruning(model.graph, PAPER)
    scored = torch.ones(inputs, length, dtype=torch.bool, device=device)

    def plain() -> None:
        original.zero_grad(set_to_none=True)
        logits = original(clean).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), clean[:, 1:].flatten()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        with torch.no_grad():
            target = model(clean)
        ablated = model.sources(corrupted)
        run.step([lambda mask: kl_divergence(model(clean, mask, ablated), target, scored).mean()])

    plain_s, step_s = in_turns(plain, step, rounds=ROUNDS)
    return {"ratio": step_s / plain_s, "step_s": step_s, "plain_s": plain_s, "peak_rss_mb": resident()}


def resident() -> float:
    """The most memory that the process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
