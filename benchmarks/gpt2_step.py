"""Cost of a step of Edge Pruning on GPT-2, compared with a plain forward and backward pass of Hugging Face's model.

    python benchmarks/gpt2_step.py           a table: batch 4 x 32 tokens first, then more inputs, then longer ones
    python benchmarks/gpt2_step.py --json    the first row alone, as one JSON object

The model has the shape of GPT-2 small and random weights, on one thread; `steps.py` says what is timed.
"""

import argparse
import json

import torch
from steps import measure
from transformers import GPT2Config, GPT2LMHeadModel

from edgeprune.models.gpt2 import Gpt2Model

SHAPES = ((4, 32), (8, 32), (16, 32), (4, 64), (4, 128))
"""Inputs in a batch, and tokens of each input."""


def main() -> None:
    """Print a row for each shape, or the first alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the first row alone, as one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    original = GPT2LMHeadModel(GPT2Config()).eval()
    model = Gpt2Model(original)
    if options.json:
        print(json.dumps(measure(original, model, *SHAPES[0])))
        return
    print("| batch | tokens | plain, s | step, s | ratio | peak so far, MB |\n|---|---|---|---|---|---|")
    for inputs, length in SHAPES:
        row = measure(original, model, inputs, length)
        took = f"{row['plain_s']:.2f} | {row['step_s']:.2f} | {row['ratio']:.2f} | {row['peak_rss_mb']:.0f}"
        print(f"| {inputs} | {length} | {took} |", flush=True)


if __name__ == "__main__":
    main()
