"""What a step of Edge Pruning costs on GPT-2, beside a plain forward and backward of Hugging Face's.

    python benchmarks/gpt2_step.py           a table: batch 4 x 32 tokens first, then more inputs, then longer ones
    python benchmarks/gpt2_step.py --json    the first row alone, as one JSON object

The shape of GPT-2 small with random weights, one thread, both in this process and in turns. A step is all of it: the
full model's logits, sources of the corrupted inputs, the forward under a sampled mask, backward, and the optimiser. The
plain pass is a language-model loss on all tokens, back to all weights. Every position is scored, as in the plain pass,
and no step takes anything over from the one before but masks.
"""

import argparse
import json
import resource

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from turns import in_turns

from edgeprune.methods.edge_pruning_target import TargetPruning
from edgeprune.metrics import kl_divergence
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.pruning_run import PAPER

SHAPES = ((4, 32), (8, 32), (16, 32), (4, 64), (4, 128))
"""Inputs, and tokens of each."""

ROUNDS = 5


def measure(original: GPT2LMHeadModel, inputs: int, length: int) -> dict[str, float]:
    """Seconds of both on random tokens of one shape."""
    model, generator = Gpt2Model(original), torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(model.vocabulary_size, (2, inputs, length), generator=generator)
    run = TargetPruning(model.graph, PAPER)
    scored = torch.ones(inputs, length, dtype=torch.bool)

    def plain() -> None:
        original.zero_grad(set_to_none=True)
        logits = original(clean).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), clean[:, 1:].flatten()).backward()

    def step() -> None:
        with torch.no_grad():
            target = model(clean)
        ablated = model.sources(corrupted)
        run.step([lambda mask: kl_divergence(model(clean, mask, ablated), target, scored).mean()])

    plain_s, step_s = in_turns(plain, step, rounds=ROUNDS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ratio": step_s / plain_s, "step_s": step_s, "plain_s": plain_s, "peak_rss_mb": peak}


def main() -> None:
    """Print one row, or one for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the first row alone, as one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    original = GPT2LMHeadModel(GPT2Config()).eval()
    if options.json:
        print(json.dumps(measure(original, *SHAPES[0])))
        return
    print("| batch | tokens | plain, s | step, s | ratio | peak so far, MB |\n|---|---|---|---|---|---|")
    for inputs, length in SHAPES:
        row = measure(original, inputs, length)
        took = f"{row['plain_s']:.2f} | {row['step_s']:.2f} | {row['ratio']:.2f} | {row['peak_rss_mb']:.0f}"
        print(f"| {inputs} | {length} | {took} |", flush=True)


if __name__ == "__main__":
    main()
