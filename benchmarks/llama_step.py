"""What a step of Edge Pruning costs on Llama as it gets deeper, beside a plain forward and backward of Hugging Face's.

    python benchmarks/llama_step.py           a table: 2, 8 and 16 layers
    python benchmarks/llama_step.py --json    the same as one JSON object, whose `ratio` is that of 16 layers

Eight heads, width 256, random weights, batch 4 x 32 tokens, one thread; see `steps.py` for what is timed. The stack is
what all sources write in one run; memory is what a step adds to the process at its most, in stacks.
"""

import argparse
import json
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from steps import measure, random_run
from transformers import LlamaConfig, LlamaForCausalLM

from edgeprune.models.llama import LlamaModel

LAYERS = (2, 8, 16)
INPUTS, LENGTH, HEADS, WIDTH = 4, 32, 8, 256


def make(layers: int) -> LlamaForCausalLM:
    """A model of so many layers."""
    config = LlamaConfig(
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        hidden_size=WIDTH,
        intermediate_size=688,
        vocab_size=32016,
    )
    return LlamaForCausalLM(config).eval()


def stacks_held(layers: int) -> float:
    """How much memory a step adds to a fresh process at its most, weights and logits apart, in stacks."""
    torch.set_num_threads(1)
    model = LlamaModel(make(layers))
    run = random_run(model, INPUTS, LENGTH, positions=torch.full((INPUTS, 1), LENGTH - 1))
    stack = len(model.graph.sources) * INPUTS * LENGTH * WIDTH * 4
    most, done, before = [0], threading.Event(), _resident()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], _resident() - before)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run.advance()
    done.set()
    watcher.join()
    return most[0] / stack


def _resident() -> int:
    """Bytes that the process has in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def main() -> None:
    """Print a row for each depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {}
    for layers in LAYERS:
        # In a process of its own, as what was freed stays with this one.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            memory = {"stacks_held": apart.submit(stacks_held, layers).result()}
        original = make(layers)
        rows[layers] = memory | measure(original, LlamaModel(original), INPUTS, LENGTH)
    if options.json:
        print(json.dumps(rows[LAYERS[-1]] | {"layers": {str(layers): row for layers, row in rows.items()}}))
        return
    print("| layers | plain, s | step, s | ratio | memory of a step, stacks |\n|---|---|---|---|---|")
    for layers, row in rows.items():
        print(
            f"| {layers} | {row['plain_s']:.3f} | {row['step_s']:.3f} | {row['ratio']:.2f} | {row['stacks_held']:.1f} |"
        )


if __name__ == "__main__":
    main()
