"""How often methods recover the circuits of exported checkpoints, through the path of GPT-2 or Llama.

    edgeprune export --as gpt2 --out set; edgeprune export --as llama --out set
    python benchmarks/exported.py set                                  a row a method and family
    python benchmarks/exported.py set --method edge-pruning --seeds 5  one method, more seeds

A run is exact if its circuit is a true one; with --misses, every run that is not is printed as it comes.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from edgeprune.methods import find_method
from tracr_bridge.exported import load_exported

METHODS = ("edge-pruning", "acdc", "eap-ig-activations", "eap-ig-inputs", "eap", "random")


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path, help="a folder of folders that `edgeprune export` made")
    parser.add_argument("--method", action="append", help="may be repeated (default: six of them)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--misses", action="store_true", help="name runs that are not exact, on standard error")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exact, runs, seconds = (defaultdict[tuple[str, str, str], float](float) for _ in range(3))
    exported = [load_exported(file.parent) for file in sorted(options.set.glob("*/circuit.json"))]
    for name in tqdm(options.method or METHODS, disable=None):
        method = find_method(name)
        for each in tqdm(exported, desc=name, leave=False, disable=None):
            for ablation in (ablation for ablation, circuits in each.circuits.items() if circuits):
                for seed in range(options.seeds):
                    key, begin = (name, each.family, ablation), time.perf_counter()
                    found = method(each.model, each.dataset, ablation, seed=seed).circuit
                    seconds[key] += time.perf_counter() - begin
                    runs[key] += 1
                    exact[key] += (is_exact := each.is_true(found))
                    if options.misses and not is_exact:
                        print(f"not exact: {name}, {each.folder.name}, {ablation}, seed {seed}", file=sys.stderr)
    rows = [
        {"method": key[0], "family": key[1], "ablation": key[2], "exact": int(exact[key]), "runs": int(runs[key])}
        | {"seconds": seconds[key] / runs[key]}
        for key in runs
    ]
    if options.json:
        print(json.dumps({"rows": rows}))
        return
    print("| method | family | ablation | exact | seconds a run |\n|---|---|---|---|---|")
    for row in rows:
        counts = f"{row['exact']} of {row['runs']}"
        print(f"| {row['method']} | {row['family']} | {row['ablation']} | {counts} | {row['seconds']:.2f} |")


if __name__ == "__main__":
    main()
