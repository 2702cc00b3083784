"""KL divergence from trained models of circuits at five sizes: Edge Pruning, polished or not, and all other methods.

python benchmarks/sizes.py --out DIR [--seeds 3] [--task sort ...] [--model NAME MODEL TASK.jsonl ...]

Trains the toys that `--task` names (default: sort, parentheses and modular-addition; ioi takes an hour a seed), one for
each seed, and takes your own models with `--model`. `edgeprune compare` runs all methods on each; if it was stopped, it
resumes in DIR. If at most 40 edges can carry anything, the five sizes lie between a quarter and all of them; otherwise
they are 30, 20, 10, 5 and 2 % of all edges. A circuit with more edges than were asked for does not count.

Prints a row for each model and size: every method's KL divergence from the full model on the test split, in nats, seed
after seed; and in how many seeds that of `edge-pruning-polished` is at most 1.01 times that of the best method but Edge
Pruning, plus 1e-6. The test split of every toy but ioi is its whole task, on which methods learn too.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm

from edgeprune.masks import edge_exists
from edgeprune.methods.edge_pruning.configurations import PAPER
from edgeprune.methods.settings import with_settings
from edgeprune.models.load import load_model
from edgeprune.models.transformer import Transformer
from edgeprune.runs.compare import ACDC, POLISHED, PRUNING, CompareConfig, ComparedRow, compare
from edgeprune.runs.config import RunConfig
from edgeprune.tasks import Sizes
from edgeprune.toys import LESSONS
from edgeprune.toys.train import TASK, train_toy

OTHERS: Final = (
    ACDC,
    "greedy-elimination",
    "eap",
    "eap-ig-inputs",
    "eap-ig-inputs-middles",
    "eap-ig-activations",
    "eap-ig-activations-middles",
)

FEW: Final = 40
"""Largest number of edges for which the sizes lie between a quarter and all of them."""


@dataclass(frozen=True)
class Asked:
    """A model and a task, at one seed."""

    name: str
    model: Path
    task: str
    seed: int
    examples: int = 200


def toys(tasks: Sequence[str], seeds: int, out: Path) -> Iterator[Asked]:
    """Yield the toys; train those that are not in `out` yet."""
    for task in tasks:
        for seed in range(seeds):
            folder = out / "toys" / f"{task}-{seed}"
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                train_toy(folder, task, seed=seed, progress=True)
            file = folder / TASK
            count = len(file.read_text().splitlines()) if file.exists() else 200
            yield Asked(task, folder, str(file) if file.exists() else task, seed, count)


def sizes_of(model: Transformer) -> list[int]:
    """Return the five numbers of edges that circuits are to have, largest first."""
    graph, silent = model.graph, model.silent
    rows = torch.tensor([node in silent for node in graph.sources])
    columns = torch.tensor([node in silent for node in graph.destinations])
    many = int((edge_exists(graph) & ~rows[:, None] & ~columns).sum())
    if many > FEW:
        return [round(share * graph.total) for share in (0.3, 0.2, 0.1, 0.05, 0.02)]
    least, most = max(1, many // 4), min(many, graph.total - 1)
    return sorted({round(least + part * (most - least) / 4) for part in range(5)}, reverse=True)


def rows_of(asked: Asked, steps: int | None, out: Path) -> tuple[list[int], list[ComparedRow]]:
    """Run `edgeprune compare` on a model; return the sizes and the rows that it found."""
    model, _ = load_model(str(asked.model))
    sizes, total = sizes_of(model), model.graph.total
    pruning = PAPER if steps is None else with_settings(PAPER, {"steps": steps})
    run = RunConfig(
        model=str(asked.model), task=asked.task, seed=asked.seed, pruning=pruning, sizes=Sizes(validation=100)
    )
    asking = CompareConfig(
        run=run,
        methods=(PRUNING, POLISHED, *OTHERS),
        targets=tuple(1 - size / total for size in sizes),
        examples=(asked.examples,),
    )
    return sizes, compare(asking, out / f"{asked.name}-{asked.seed}", progress=True)


def shown(name: str, by_seed: Sequence[tuple[list[int], list[ComparedRow]]]) -> Iterator[tuple[str, int]]:
    """Yield a line for each size, and in how many seeds `edge-pruning-polished` leads or ties."""
    for number, size in enumerate(by_seed[0][0]):
        found = dict[str, list[float]]()
        for _, rows in by_seed:
            for method in (POLISHED, PRUNING, *OTHERS):
                target = sorted({row.target for row in rows})[number]
                (row,) = (row for row in rows if row.method == method and row.target == target)
                fits = row.evaluation.edges <= size
                found.setdefault(method, []).append(row.evaluation.kl if fits else math.nan)
        best = [min(kl[seed] for m in OTHERS if not math.isnan((kl := found[m])[seed])) for seed in range(len(by_seed))]
        leads = sum(mine <= 1.01 * other + 1e-6 for mine, other in zip(found[POLISHED], best, strict=True))
        cells = (", ".join("larger" if math.isnan(kl) else f"{kl:.2g}" for kl in found[method]) for method in found)
        yield f"| {name} | {size} | {' | '.join(cells)} | {leads} of {len(by_seed)} |", leads


def main() -> None:
    """Run all comparisons, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where toys and comparisons are kept")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--task", action="append", choices=tuple(LESSONS), help="a toy; may be repeated")
    parser.add_argument("--model", nargs=3, action="append", default=[], metavar=("NAME", "MODEL", "TASK"))
    parser.add_argument("--steps", type=int, metavar="N", help="of edge-pruning (default: the paper's 3,000)")
    options = parser.parse_args()
    tasks = options.task or ([] if options.model else ["sort", "parentheses", "modular-addition"])
    asked = list(toys(tasks, options.seeds, options.out))
    asked += [Asked(n, Path(m), t, seed) for n, m, t in options.model for seed in range(options.seeds)]
    found = dict[str, list[tuple[list[int], list[ComparedRow]]]]()
    for each in tqdm(asked, desc="models", disable=None):
        found.setdefault(each.name, []).append(rows_of(each, options.steps, options.out))
    head = ("model", "edges", POLISHED, PRUNING, *OTHERS, "polished leads or ties")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    leads = total = 0
    for name, by_seed in found.items():
        for line, count in shown(name, by_seed):
            print(line)
            leads, total = leads + count, total + len(by_seed)
    print(f"\npolished leads or ties {leads} of {total}")


if __name__ == "__main__":
    main()
