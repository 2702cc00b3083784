"""The commands of `edgeprune` that are about language models. Nothing heavy is imported until one runs."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeprune.cli.arguments import counted
from edgeprune.graph import parse_ablation

if TYPE_CHECKING:
    from edgeprune.methods.edge_pruning.config import PruningConfig
    from edgeprune.runs.config import RunConfig
    from edgeprune.runs.plan import Plan, Question

_LEARNED: Final = 0.99
"""Accuracy from which on a model is said to know its task."""


def _config(options: argparse.Namespace, target: float | None) -> "RunConfig":
    """What the options ask for."""
    from edgeprune.runs.config import RunConfig
    from edgeprune.tasks import Sizes

    return RunConfig(
        model=_resolved(options.model),
        task=_resolved(options.task),
        ablation=parse_ablation(options.ablation),
        sizes=_asked(Sizes(), options),
        seed=options.seed,
        data_seed=options.data_seed,
        precision=options.precision,
        parts=getattr(options, "parts", 1),
        pruning=_pruning(options, target),
        polish=getattr(options, "polish", False),
    )


def _pruning(options: argparse.Namespace, target: float | None) -> "PruningConfig":
    """The configuration of that name, with what options say of its settings."""
    from edgeprune.errors import ConfigError
    from edgeprune.methods.edge_pruning.configurations import BY_NAME, PAPER, TOLERANCE, foreign
    from edgeprune.methods.settings import settings, with_settings

    config, tolerance = BY_NAME[getattr(options, "pruning_method", PAPER.name)], getattr(options, "tolerance", None)
    if config == PAPER and (tolerance is None) == (target is None):
        got = "neither" if target is None else "both"
        raise ConfigError(
            "Expected --target-sparsity, the share of edges that edge-pruning removes, or --tolerance, the loss that "
            f"the fewest edges are to stay within; got {got}"
        )
    if config == PAPER and tolerance is not None:
        config = TOLERANCE
    known = set[str]().union(*(settings(each) for each in BY_NAME.values()))
    given = {name: value for name, value in vars(options).items() if name in known and value is not None}
    given |= {} if target is None else {"target_sparsity": target}
    if wrong := foreign(config, given):
        options_of = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise ConfigError(f"Expected settings of {config.name}, which has no {options_of}")
    return with_settings(config, given)


def _asked(config: Any, options: argparse.Namespace, **more: Any) -> Any:
    """The same with what options, or `more`, say of its fields."""
    said = {each.name: getattr(options, each.name) for each in fields(config) if each.name in options}
    return replace(config, **(said | more))


def _resolved(name: str) -> str:
    """A name, or the whole path of a file or folder, so that it means the same from elsewhere."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def prune(options: argparse.Namespace) -> bool:
    """`edgeprune prune`."""
    from edgeprune.cli.tables import as_json, print_rows
    from edgeprune.runs import prune as pruning_run

    config = _config(options, options.target_sparsity)
    found = pruning_run.prune(
        config,
        options.out,
        resume=options.resume,
        device=options.device,
        check=not options.no_check,
        save_every=options.save_every,
        progress=True,
    )
    circuit, total = found.saved.circuit, found.saved.circuit.graph.total
    where = str((options.out / "circuit.json").resolve())
    if found.missed and _speaks():
        print(f"edgeprune: {found.missed}", file=sys.stderr)
    if options.json:
        print(as_json({"circuit": where, "method": config.method} | found.as_json()), file=options.output)
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
    print(f"circuit: {where}\nmeasure it: edgeprune evaluate {options.out}")
    return _ends_well(well=found.reached is not False)


def sweep(options: argparse.Namespace) -> bool:
    """`edgeprune sweep`."""
    from statistics import mean

    from edgeprune.cli.tables import as_json, print_table
    from edgeprune.errors import RunError
    from edgeprune.files.store import load_json
    from edgeprune.metrics.conventions import SPARSITY
    from edgeprune.runs import sweep as sweeping

    targets: list[float] = options.target_sparsity
    config = _config(options, targets[0])
    found = sweeping.sweep(
        config,
        targets,
        options.seeds,
        options.out,
        device=options.device,
        check=not options.no_check,
        save_every=options.save_every,
        progress=True,
    )
    missed = [f"{p.target:g} ({p.evaluation.sparsity:.3f}, seed {p.seed})" for p in found.points if not p.reached]
    _say_missed(missed, len(found.points), "--polish")
    if options.json:
        written = load_json(options.out / "sweep.json", "a sweep", RunError)
        print(as_json(written), file=options.output)
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
    title = f"{config.method}: {config.model} on {config.task}, {config.ablation}, {counted(options.seeds, 'seed')}"
    print_table(title, head, rows)
    print(SPARSITY)
    _print_note(config)
    print(f"picture: {(options.out / 'sweep.svg').resolve()}")
    return _ends_well(well=not missed)


def _speaks() -> bool:
    """Whether this is the process that says what all of them found."""
    from edgeprune.parallel import join

    return join().first


def _ends_well(*, well: bool) -> bool:
    """What the exit status says: of several processes the first one's alone, once all have come to the end."""
    from edgeprune.parallel import join

    join().wait()
    return well or not _speaks()


def _say_missed(missed: Sequence[str], runs: int, instead: str) -> None:
    """On standard error, which sparsities were not reached."""
    if missed and _speaks():
        what = f"{len(missed)} of {runs} circuits missed the sparsity that was asked for"
        change = f"try more --steps, or {instead}, which ends with as many edges as were asked for"
        print(f"edgeprune: {what} (in brackets what they have): {', '.join(missed)}; {change}", file=sys.stderr)


def compare(options: argparse.Namespace) -> bool:
    """`edgeprune compare`."""
    from edgeprune.cli.tables import as_json, print_table
    from edgeprune.metrics.conventions import SPARSITY, noted
    from edgeprune.runs import compare as comparing
    from edgeprune.runs.compare_table import cells

    config = _config(options, options.target_sparsity[0])
    asked = comparing.CompareConfig(
        run=config,
        methods=tuple(options.method or comparing.CompareConfig.methods),
        targets=tuple(options.target_sparsity),
        examples=tuple(options.examples or comparing.CompareConfig.examples),
    )
    rows = comparing.compare(asked, options.out, device=options.device, check=not options.no_check, progress=True)
    missed = [f"{row.method} {row.target:g} ({row.evaluation.sparsity:.3f})" for row in rows if row.missed]
    _say_missed(missed, len(rows), "edge-pruning-polished")
    if options.json:
        said = {"rows": [asdict(row) | {"missed": row.missed} for row in rows]} | noted(config.ablation)
        print(as_json(said), file=options.output)
        return _ends_well(well=not missed)
    head, *body = cells(config.task, rows)
    print_table(f"{config.model} on {config.task}, {config.ablation}: the test split", head, body)
    print(SPARSITY)
    _print_note(config)
    print(f"table and picture: {(options.out / 'compare.md').resolve()}, compare.svg")
    return _ends_well(well=not missed)


def plan(options: argparse.Namespace) -> bool:
    """`edgeprune plan`."""
    from edgeprune.cli.tables import as_json, print_rows
    from edgeprune.runs import plan as planning

    question = _asked(planning.Question(model=options.model), options)
    found = planning.plan(question, progress=True)
    if options.json:
        print(as_json(asdict(found)), file=options.output)
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


def _polishing(found: "Plan", question: "Question") -> str:
    if not found.polish_fits:
        return "too many: a mask is held without each of them"
    from edgeprune.runs.plan import duration

    what = f"{counted(found.polish_circuits, 'circuit')} on {counted(question.judged, 'input')}"
    most = f"{what}, {duration(found.polish_hours)}, at the most"
    return f"the last round is {most}; there are several"


def train_toy(options: argparse.Namespace) -> bool:
    """`edgeprune train-toy`."""
    from edgeprune.cli.tables import as_json, print_rows
    from edgeprune.toys import LESSONS
    from edgeprune.toys.train import train_toy as train

    lesson = LESSONS[options.task]
    said = {each.name: getattr(options, each.name) for each in fields(lesson.config)}
    config = replace(lesson.config, **{name: value for name, value in said.items() if value is not None})
    toy = train(options.out, options.task, config, seed=options.seed, progress=True)
    where = str(options.out.resolve())
    if options.json:
        print(as_json({"model": where} | asdict(toy)), file=options.output)
    else:
        rows = [(f"accuracy on {lesson.tested_on}", f"{toy.accuracy:.2%}"), ("loss, nats a token", f"{toy.loss:.3f}")]
        print_rows(options.task, [*rows, ("seconds", f"{toy.seconds:.0f}")])
        print(f"model: {where}")
    if toy.accuracy < _LEARNED:
        print(
            f"edgeprune: {options.task} was not learned: {toy.accuracy:.1%} are right, and {_LEARNED:.0%} are wanted; "
            "give it more --steps, another --seed or another shape",
            file=sys.stderr,
        )
    return toy.accuracy >= _LEARNED


def circuits(options: argparse.Namespace) -> bool:
    """`edgeprune circuits`."""
    from functools import reduce

    from edgeprune.cli.tables import as_json, print_rows
    from edgeprune.errors import CircuitMismatch
    from edgeprune.files.folders import circuit_file
    from edgeprune.files.store import load_saved, save_circuit, versions
    from edgeprune.metrics.overlap import overlap

    files = list(map(circuit_file, options.circuit))
    if len(files) < 2:
        raise CircuitMismatch(f"Expected two circuits or more; got {len(files)}")
    saved = [load_saved(file) for file in files]
    first, *others = found = [each.circuit for each in saved]
    models = {each.model for each in saved if each.model}
    if len(models) > 1:
        raise CircuitMismatch(f"Expected circuits of one model; got those of {', '.join(sorted(models))}")
    for file, other in zip(files[1:], others, strict=True):
        if (other.graph, other.ablation) != (first.graph, first.ablation):
            raise CircuitMismatch(
                f"Expected circuits of one model under one ablation; {str(files[0])!r} is of a graph of "
                f"{first.graph.total} edges under {first.ablation}, and {str(file)!r} of {other.graph.total} under "
                f"{other.ablation}"
            )
    operator = frozenset.intersection if options.operation == "intersect" else frozenset.union
    result = replace(first, edges=reduce(operator, (each.edges for each in found)))
    if options.out is not None:
        how = {"name": options.operation, "config": {"of": [str(file.resolve()) for file in files]}}
        about = next((each for each in saved if each.model), saved[0])
        about = replace(about, circuit=result, scores={}, method=how, versions=versions(), certificate={})
        save_circuit(about, options.out)
    shared = [overlap(first.edges, other.edges).iou for other in others]
    if options.json:
        print(as_json({"edges": result.names(), "of": [len(e) for e in found], "iou": shared}), file=options.output)
        return True
    rows = [(str(file), f"{len(each)} edges") for file, each in zip(files, found, strict=True)]
    rows += [("IoU with the first", ", ".join(f"{iou:.3f}" for iou in shared))]
    print_rows(options.operation, [*rows, ("result", f"{len(result)} of {result.graph.total} edges")])
    return True


def evaluate(options: argparse.Namespace) -> bool:
    """`edgeprune evaluate`."""
    from edgeprune.cli.tables import as_json, print_table
    from edgeprune.errors import RunError
    from edgeprune.files.store import load_json
    from edgeprune.runs.prune import evaluate_run, evaluation_file
    from edgeprune.tasks import metric_of

    about: dict[str, Any] = {"task": options.task and _resolved(options.task), "circuit": options.circuit}
    how: dict[str, Any] = {"device": options.device, "check": not options.no_check, "progress": True}
    config, found = evaluate_run(options.run_folder, options.split, **about, **how)
    if options.json:
        written = evaluation_file(options.run_folder, options.split, **about)
        print(as_json(load_json(written, "an evaluation", RunError)), file=options.output)
        return True
    names = {"kl": "KL(full model ‖ circuit), nats", "metric": metric_of(config.task), "exact_match": "same best token"}
    names["sparsity"] = "sparsity, the share of all edges that are removed"
    rows = [
        (names.get(measured, measured), *(f"{asdict(each)[measured]:.4g}" for each in found.values()))
        for measured in asdict(found["circuit"])
    ]
    title = f"{config.model} on {config.task}, {config.ablation}: the {options.split} split"
    print_table(title, ("", *found), rows)
    _print_note(config)
    return True


def _print_note(config: "RunConfig") -> None:
    """What other tools define otherwise, below figures."""
    from edgeprune.metrics.conventions import noted

    for note in noted(config.ablation).values():
        print(f"note: {note}")
