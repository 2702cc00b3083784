"""Cost of a step of Edge Pruning on deeper and deeper Llamas, compared with Hugging Face's plain forward and backward.

    python benchmarks/llama_step.py           a table: 2, 8 and 16 layers
    python benchmarks/llama_step.py --json    the same as one JSON object, with the `ratio` of 16 layers

Eight heads, width 256, random weights, batch 4 x 32 tokens, one thread; `steps.py` says what is timed. A stack is the
per-source activations of one run; memory is the peak that a step adds to the process, in stacks.
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
    """Return a Llama with `layers` layers and random weights."""
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
    """Return the peak memory, in stacks, that a step adds to a fresh process that holds the model."""
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
    """Return the bytes of the process that are in memory now (pages of 4,096 bytes)."""
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
        # In a fresh process: this one keeps memory that was freed before.
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
