"""What `edgeprune plan` says about CodeLlama-13B, and how memory grows with depth; needs no weights and no GPU.

    python benchmarks/codellama_plan.py           two tables, and the seconds that masks take per step
    python benchmarks/codellama_plan.py --json    the same as one JSON object

CodeLlama-13B's configuration is part of this file, so that no model hub is needed. The plan is for 72 tokens, bfloat16,
and the paper's 6,000 steps of 32 examples. The time of masks is measured here: a step that draws and optimises all of
them, on as many threads as torch has. A stack is the per-source activations of one run.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace

import torch
from steps import masks_run
from transformers import LlamaConfig

from edgeprune.graph import Graph
from edgeprune.runs.plan import GIGABYTE, Question, plan
from edgeprune.runs.step_cost import load_config, step_cost

GPUS = ((80.0, None), (80.0, 8), (40.0, None), (24.0, None))
"""Gigabytes of memory of each GPU, and number of GPUs; None stands for the fewest that suffice."""

CODELLAMA_13B = LlamaConfig(
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=40,
    hidden_size=5120,
    intermediate_size=13824,
    vocab_size=32016,
    max_position_embeddings=16384,
)
DEPTHS = (5, 10, 20, 40)
INPUTS = 4


def seconds_of_masks() -> float:
    """Return the seconds of the fastest of four steps of masks whose loss costs nothing."""
    run = masks_run(Graph.transformer(embeddings=("embed",), layers=40, heads=40))
    taken = list[float]()
    for _ in range(4):
        begin = time.perf_counter()
        run.advance()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        CODELLAMA_13B.save_pretrained(folder)
        question, config = Question(model=folder, steps=6000), load_config(folder)
        plans = [plan(replace(question, gpu_memory=memory, gpus=gpus), progress=True) for memory, gpus in GPUS]
    stacks = {}
    for config.num_hidden_layers in DEPTHS:
        cost = step_cost(config, INPUTS, plans[0].tokens, precision=question.precision)
        stacks[config.num_hidden_layers] = cost.memory / cost.stack
    masks_s = seconds_of_masks()
    if options.json:
        found = {"plans": [asdict(each) for each in plans], "stacks_of_a_step": stacks, "masks_s": masks_s}
        print(json.dumps(found))
        return
    print(
        "| GPUs | of | weights, GB | a step, GB | inputs at a time | `--parts` | hours |\n|---|---|---|---|---|---|---|"
    )
    for (memory, _), each in zip(GPUS, plans, strict=True):
        weights, step = (f"{size / GIGABYTE:.1f}" for size in (each.weights, each.step))
        at_once = f"{each.inputs_at_a_time} | {each.parts} | {each.hours:.2f} |"
        print(f"| {each.gpus} | {memory:g} GB | {weights} | {step} | {at_once}")
    print(f"\n| layers | memory of a step of {INPUTS} inputs, stacks |\n|---|---|")
    for layers, count in stacks.items():
        print(f"| {layers} | {count:.2f} |")
    print(f"\nmasks: {masks_s:.2f} s a step, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
