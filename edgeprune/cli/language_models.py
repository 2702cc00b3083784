"""The commands of `edgeprune` that run language models. Imported when one of them is chosen."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from edgeprune.cli.options import AnySeed, Count, Counts, Device, Flag, Json, NoCheck, Seed, Split, counted
from edgeprune.cli.settings import (
    AllSettings,
    PaperSettings,
    RunOptions,
    ToySettings,
    given,
    pruning_config,
    run_config,
)
from edgeprune.cli.tables import print_json, print_rows, print_table
from edgeprune.errors import RunError
from edgeprune.files.folders import existing
from edgeprune.files.store import load_json
from edgeprune.methods.edge_pruning.configurations import PAPER
from edgeprune.metrics.conventions import SPARSITY, noted
from edgeprune.parallel import join
from edgeprune.runs import compare as comparing
from edgeprune.runs import plan as planning
from edgeprune.runs import prune as pruning_run
from edgeprune.runs import sweep as sweeping
from edgeprune.runs.compare_table import cells
from edgeprune.runs.config import RunConfig
from edgeprune.tasks import Sizes, metric_of
from edgeprune.toys import LESSONS
from edgeprune.toys.train import train_toy as train

_LEARNED: Final = 0.99
"""Accuracy from which on a model is said to know its task."""

Targets = Annotated[list[float], Parameter(help="Share of edges to remove; may be repeated.")]


def prune(
    *,
    run: RunOptions,
    method: Literal["edge-pruning", "edge-pruning-minimax"] = "edge-pruning",
    target_sparsity: float | None = None,
    tolerance: float | None = None,
    polish: Flag = False,
    resume: Flag = False,
    parts: Count = 1,
    save_every: Count = 250,
    sizes: Annotated[Sizes | None, Parameter(name="*")] = None,
    settings: AllSettings | None = None,
    seed: AnySeed = 0,
    json: Json = False,
) -> bool:
    """Prune the edges of a GPT-2 or Llama on a task, as the Edge Pruning paper does.

    Args:
        method: The paper's objective, or the worst case over inputs, which takes no sparsity.
        target_sparsity: Share of edges that edge-pruning removes, such as 0.95.
        tolerance: In its place, the loss, nats, on 256 training examples that the fewest edges are to stay within, such
            as 0.05 (edge-pruning-tolerance); --criterion says whether in the mean or at worst.
        polish: Then take out and exchange edges on trial, until no edge and no group of edges can go.
        resume: Go on with the run that --out holds, if it holds one.
        parts: Parts that a batch is run in, to save memory.
        save_every: Steps between checkpoints.
    """
    pruning = pruning_config(method, given(settings), target_sparsity, tolerance)
    config = run_config(run, seed, pruning, sizes or Sizes(), parts=parts, polish=polish)
    found = pruning_run.prune(
        config,
        run.out,
        resume=resume,
        device=run.device,
        check=not run.no_check,
        save_every=save_every,
        progress=True,
    )
    circuit, total = found.saved.circuit, found.saved.circuit.graph.total
    where = str((run.out / "circuit.json").resolve())
    if found.missed and _speaks():
        print(f"edgeprune: {found.missed}", file=sys.stderr)
    if json:
        print_json({"circuit": where, "method": config.method} | found.as_json())
        return _ends_well(well=found.reached is not False)
    rows = [
        ("method", config.method),
        ("edges kept", f"{len(circuit)} of {total}"),
        ("sparsity, the share of all edges that are removed", f"{1 - len(circuit) / total:.4f}"),
    ]
    if found.loss is not None:
        rows.append(("loss on training examples, nats", f"{found.loss:.4g}"))
    if found.reached is not None:
        rows.append(("reached", "yes" if found.reached else "no"))
    print_rows(f"{config.model} on {config.task}, {config.ablation}", rows)
    print(f"circuit: {where}\nmeasure it: edgeprune evaluate {run.out}")
    return _ends_well(well=found.reached is not False)


def sweep(
    *,
    run: RunOptions,
    target_sparsity: Targets,
    seeds: Count = 2,
    polish: Flag = False,
    parts: Count = 1,
    save_every: Count = 250,
    sizes: Annotated[Sizes | None, Parameter(name="*")] = None,
    settings: PaperSettings | None = None,
    seed: Annotated[Seed, Parameter(help="Of the first run at each sparsity.")] = 0,
    json: Json = False,
) -> bool:
    """Prune at several sparsities and seeds, to see which sparsity to choose.

    Args:
        target_sparsity: Share of edges to remove; may be repeated, and has to be three times for a knee.
        seeds: Runs at each sparsity.
        polish: Polish what each run found, as prune does.
        parts: Parts that a batch is run in, to save memory.
        save_every: Steps between checkpoints.
    """
    pruning = pruning_config(PAPER.name, given(settings), target_sparsity[0], None)
    config = run_config(run, seed, pruning, sizes or Sizes(), parts=parts, polish=polish)
    found = sweeping.sweep(
        config,
        target_sparsity,
        seeds,
        run.out,
        device=run.device,
        check=not run.no_check,
        save_every=save_every,
        progress=True,
    )
    missed = [f"{p.target:g} ({p.evaluation.sparsity:.3f}, seed {p.seed})" for p in found.points if not p.reached]
    _say_missed(missed, len(found.points), "--polish")
    if json:
        print_json(load_json(run.out / "sweep.json", "a sweep", RunError))
        return _ends_well(well=not missed)
    rows = [
        (
            f"{target:g}" + (" (knee)" if target == found.knee else ""),
            f"{mean(p.evaluation.sparsity for p in found.points if p.target == target):.4f}",
            f"{kl:.4g}",
            f"{mean(p.evaluation.accuracy for p in found.points if p.target == target):.2%}",
            f"{mean(found.agreement[target]):.3f}" if found.agreement[target] else "",
            str(len(found.common[target])),
        )
        for target, kl in found.curve.items()
    ]
    head = ("target", "sparsity", "KL, nats", "accuracy", "IoU of seeds", "edges of all seeds")
    title = f"{config.method}: {config.model} on {config.task}, {config.ablation}, {counted(seeds, 'seed')}"
    print_table(title, head, rows)
    print(SPARSITY)
    _print_note(config)
    print(f"picture: {(run.out / 'sweep.svg').resolve()}")
    return _ends_well(well=not missed)


def _speaks() -> bool:
    """Whether this is the process that says what all of them found."""
    return join().first


def _ends_well(*, well: bool) -> bool:
    """Return what the exit status says: the first process's alone, once all processes have come to the end."""
    join().wait()
    return well or not _speaks()


def _say_missed(missed: Sequence[str], runs: int, instead: str) -> None:
    """Print on standard error which sparsities were not reached."""
    if missed and _speaks():
        what = f"{len(missed)} of {runs} circuits missed the sparsity that was asked for"
        change = f"try more --steps, or {instead}, which ends with at most as many edges as were asked for"
        print(f"edgeprune: {what} (in brackets what they have): {', '.join(missed)}; {change}", file=sys.stderr)


def compare(
    *,
    run: RunOptions,
    target_sparsity: Targets,
    method: list[str] | None = None,
    examples: Counts = None,
    test: Count = Sizes.test,
    settings: PaperSettings | None = None,
    seed: AnySeed = 0,
    json: Json = False,
) -> bool:
    """Run several methods on a model, and compare circuits of one size.

    Args:
        method: One of edge-pruning, edge-pruning-polished, edge-pruning-minimax, acdc, greedy-elimination, eap,
            eap-ig-inputs, eap-ig-activations, both also with -middles, random, or package.module:function for one of
            your own, whose scores are ranked; may be repeated [default: edge-pruning, acdc, eap, eap-ig-inputs and
            eap-ig-activations].
        examples: Training examples; may be repeated [default: 200].
        test: Examples that circuits are measured on.
    """
    pruning = pruning_config(PAPER.name, given(settings), target_sparsity[0], None)
    config = run_config(run, seed, pruning, Sizes(test=test))
    asked = comparing.CompareConfig(
        run=config,
        methods=tuple(method or comparing.CompareConfig.methods),
        targets=tuple(target_sparsity),
        examples=tuple(examples or comparing.CompareConfig.examples),
    )
    rows = comparing.compare(asked, run.out, device=run.device, check=not run.no_check, progress=True)
    missed = [f"{row.method} {row.target:g} ({row.evaluation.sparsity:.3f})" for row in rows if row.missed]
    _say_missed(missed, len(rows), "edge-pruning-polished")
    if json:
        print_json({"rows": [asdict(row) | {"missed": row.missed} for row in rows]} | noted(config.ablation))
        return _ends_well(well=not missed)
    head, *body = cells(config.task, rows)
    print_table(f"{config.model} on {config.task}, {config.ablation}: the test split", head, body)
    print(SPARSITY)
    _print_note(config)
    print(f"table and picture: {(run.out / 'compare.md').resolve()}, compare.svg")
    return _ends_well(well=not missed)


def plan(*, question: Annotated[planning.Question, Parameter(name="*")], json: Json = False) -> bool:
    """Tell from a model's configuration what pruning it takes: memory, GPUs, hours."""
    found = planning.plan(question, progress=True)
    if json:
        print_json(asdict(found))
        return found.fits
    size = {name: planning.amount(getattr(found, name), "B") for name in ("weights", "step", "memory")}
    rows = [
        ("parameters", f"{found.parameters:,}"),
        ("sources, edges", f"{found.sources:,}, {found.edges:,}"),
        ("what sources write, a token", planning.amount(found.stack_per_token, "B")),
        ("forward of the model, a token", planning.amount(found.model_flops_per_token, "FLOP")),
        ("mixing all edges once, a token", planning.amount(found.mixing_flops_per_token, "FLOP")),
        ("a step, a token", planning.amount(found.step_flops_per_token, "FLOP")),
        ("GPUs", f"{found.gpus}" if found.fits else f"{found.gpus}, which is not enough"),
        (
            "inputs at a time on each",
            f"{found.inputs_at_a_time} (--parts {found.parts}; {found.most_inputs} would fit)",
        ),
        ("weights on each", size["weights"]),
        ("a step on each", size["step"]),
        ("together", f"{size['memory']} of {question.gpu_memory:g} GB"),
        (
            f"{counted(question.steps, 'step')} of {counted(question.batch, 'input')}",
            f"{planning.duration(found.hours)} at {question.tflops:g} TFLOP/s",
        ),
        (f"--polish, {counted(found.polished_edges, 'edge')}", _polishing(found, question)),
    ]
    title = f"{question.model}, {counted(found.tokens, 'token')}, {question.precision}"
    print_rows(title, rows)
    return found.fits


def _polishing(found: planning.Plan, question: planning.Question) -> str:
    if not found.polish_fits:
        return "too many: a mask is held without each of them"
    what = f"{counted(found.polish_circuits, 'circuit')} on {counted(question.judged, 'input')}"
    most = f"{what}, {planning.duration(found.polish_hours)}, at the most"
    return f"the last round is {most}; there are several"


def train_toy(
    task: Literal["ioi", "sort", "parentheses", "modular-addition"],
    /,
    *,
    out: Path,
    settings: ToySettings | None = None,
    seed: AnySeed = 0,
    json: Json = False,
) -> bool:
    """Train a small GPT-2 that knows a task, to try the other commands on.

    Args:
        task: What it learns: indirect object identification; five numbers, sorted, by one head; whether ten parentheses
            are balanced; sums modulo 23.
        out: The folder to make; task.jsonl in it is the task, but for ioi.
    """
    lesson = LESSONS[task]
    toy = train(out, task, replace(lesson.config, **given(settings)), seed=seed, progress=True)
    where = str(out.resolve())
    if json:
        print_json({"model": where} | asdict(toy))
    else:
        rows = [(f"accuracy on {lesson.tested_on}", f"{toy.accuracy:.2%}"), ("loss, nats a token", f"{toy.loss:.3f}")]
        print_rows(task, [*rows, ("seconds", f"{toy.seconds:.0f}")])
        print(f"model: {where}")
    if toy.accuracy < _LEARNED:
        print(
            f"edgeprune: {task} was not learned: {toy.accuracy:.1%} are right, and {_LEARNED:.0%} are wanted; "
            "give it more --steps, another --seed or another shape",
            file=sys.stderr,
        )
    return toy.accuracy >= _LEARNED


def evaluate(
    run_folder: Path,
    /,
    *,
    split: Split = "test",
    task: str | None = None,
    circuit: Path | None = None,
    device: Device = "auto",
    no_check: NoCheck = False,
    json: Json = False,
) -> bool:
    """Measure the circuit of a run beside the full model.

    Args:
        run_folder: What `edgeprune prune` wrote.
        split: Of the task.
        task: Another task than the run's, to see whether its circuit serves there too.
        circuit: A circuit's file, or another run's folder, in place of this run's circuit.
    """
    about: dict[str, Any] = {"task": task and existing(task), "circuit": circuit}
    config, found = pruning_run.evaluate_run(
        run_folder, split, device=device, check=not no_check, progress=True, **about
    )
    if json:
        written = pruning_run.evaluation_file(run_folder, split, **about)
        print_json(load_json(written, "an evaluation", RunError))
        return True
    names = {"kl": "KL(full model ‖ circuit), nats", "metric": metric_of(config.task), "exact_match": "same best token"}
    names["sparsity"] = "sparsity, the share of all edges that are removed"
    rows = [
        (names.get(measured, measured), *(f"{asdict(each)[measured]:.4g}" for each in found.values()))
        for measured in asdict(found["circuit"])
    ]
    title = f"{config.model} on {config.task}, {config.ablation}: the {split} split"
    print_table(title, ("", *found), rows)
    _print_note(config)
    return True


def _print_note(config: RunConfig) -> None:
    """Print what other tools define otherwise."""
    for note in noted(config.ablation).values():
        print(f"note: {note}")
