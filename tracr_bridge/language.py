"""The commands of `edgeprune` that are about language models. Nothing heavy is imported until one runs."""

import argparse
import ast
import inspect
import json
from collections.abc import Callable, Collection
from dataclasses import Field, asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from edgeprune.graph import ABLATIONS, parse_ablation
from tracr_bridge.arguments import count, seed

if TYPE_CHECKING:
    from edgeprune.subject import RunConfig

_OUTSIDE: Final = ("target_sparsity", "hard_concrete")
"""Settings of pruning that are options of another form."""

_LEARNED: Final = 0.99
"""Accuracy from which on a model is said to know its task."""


def add_commands(add: Callable[..., argparse.ArgumentParser], *, chosen: str) -> None:
    """Declare the commands.

    Args:
        add: declares one.
        chosen: the one that will run; its settings are read off their dataclasses, for which modules are imported.
    """
    prune_command = add("prune", "prune the edges of a GPT-2 or Llama on a task, as the Edge Pruning paper does", prune)
    sweep_command = add(
        "sweep",
        "prune at several sparsities and seeds, to see which sparsity to choose",
        sweep,
        seeds="of the first run",
    )
    compare_command = add("compare", "run several methods on a model, and compare circuits of one size", compare)
    prune_command.add_argument(
        "--target-sparsity", type=float, required=True, metavar="SHARE", help="share of edges to remove, such as 0.95"
    )
    prune_command.add_argument(
        "--resume", action="store_true", help="go on with the run that DIR holds, if it holds one"
    )
    for command, why in ((sweep_command, ", and has to be three times for a knee"), (compare_command, "")):
        command.add_argument(
            "--target-sparsity",
            type=float,
            required=True,
            action="append",
            metavar="SHARE",
            help=f"share of edges to remove; may be repeated{why}",
        )
    sweep_command.add_argument(
        "--seeds", type=count, default=2, metavar="N", help="how many runs at each sparsity (default: %(default)s)"
    )
    compare_command.add_argument(
        "--method",
        action="append",
        help="edge-pruning-target, acdc, eap, eap-ig-inputs, eap-ig-activations, random, or package.module:function "
        "for one of your own, whose scores are ranked; may be repeated (default: the first five)",
    )
    compare_command.add_argument(
        "--examples", type=count, action="append", metavar="N", help="training examples; may be repeated (default: 200)"
    )
    for command in (prune_command, sweep_command, compare_command):
        _add_run_options(command)
    for command in (prune_command, sweep_command):
        _add_training_options(command)
    if chosen in ("prune", "sweep", "compare"):
        _add_settings({"prune": prune_command, "sweep": sweep_command, "compare": compare_command}[chosen], chosen)
    evaluate_command = add("evaluate", "measure the circuit of a run beside the full model", evaluate)
    evaluate_command.add_argument("run_folder", type=Path, metavar="DIR", help="what `edgeprune prune` wrote")
    evaluate_command.add_argument(
        "--split", default="test", choices=("train", "validation", "test"), help="of the task (default: test)"
    )
    evaluate_command.add_argument(
        "--task", help="another task than the run's, to see whether its circuit serves there too"
    )
    evaluate_command.add_argument(
        "--circuit", type=Path, metavar="FILE", help="a circuit's file, or another run's folder, in place of this run's"
    )
    circuits_command = add("circuits", "intersect circuits of one model, or take their union", circuits)
    circuits_command.add_argument("operation", choices=("intersect", "union"), help="edges of all, or edges of any")
    circuits_command.add_argument(
        "circuit", type=Path, nargs="+", metavar="CIRCUIT", help="circuits' files, or folders of runs; two or more"
    )
    circuits_command.add_argument("-o", "--out", type=Path, metavar="FILE.json", help="write the circuit that results")
    toy_command = add("train-toy", "train a small GPT-2 that knows a task, to try the other commands on", train_toy)
    toy_command.add_argument("task", choices=("ioi",), help="what it learns: indirect object identification")
    toy_command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    if chosen == "train-toy":
        from edgeprune.toy import ToyConfig

        _add_fields(toy_command.add_argument_group("shape and training"), ToyConfig())
    for command in (prune_command, sweep_command, compare_command, evaluate_command):
        command.add_argument("--device", default="auto", help="cpu, cuda, … (default: auto, a GPU if there is one)")


def _add_run_options(command: argparse.ArgumentParser) -> None:
    """What every run is asked for."""
    command.add_argument(
        "--model", required=True, help="a name on the Hugging Face hub, such as gpt2, or a folder with safetensors"
    )
    command.add_argument(
        "--task",
        required=True,
        help="ioi-t1, ioi, gt, gp, boolean, boolean-few-shot, or a file of examples, FILE.jsonl (see edgeprune/tasks)",
    )
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="of a run: run.json, metrics.jsonl, checkpoints, circuit.json; of several: their circuits, a table, a "
        "picture; what was stopped goes on there",
    )
    command.add_argument(
        "--ablation",
        default="resample",
        help=f"what a removed edge carries: {', '.join(ABLATIONS)} (default: resample)",
    )
    command.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of the model")
    command.add_argument(
        "--data-seed", type=seed, default=0, metavar="SEED", help="of the task's examples (default: %(default)s)"
    )


def _add_training_options(command: argparse.ArgumentParser) -> None:
    """How runs in folders go."""
    command.add_argument(
        "--parts", type=count, default=1, metavar="N", help="parts that a batch is run in, to save memory (default: 1)"
    )
    command.add_argument(
        "--save-every", type=count, default=250, metavar="N", help="steps between checkpoints (default: 250)"
    )


def _add_settings(command: argparse.ArgumentParser, name: str) -> None:
    """Settings of pruning, with the paper's values, and how many examples there are."""
    from edgeprune.subject import PAPER
    from edgeprune.tasks import Sizes

    _add_fields(command.add_argument_group("settings of pruning"), PAPER, leave_out=_OUTSIDE)
    # `compare` has --examples for the training split, and nothing to validate.
    unused = ("train", "validation") if name == "compare" else ()
    _add_fields(command.add_argument_group("examples"), Sizes(), leave_out=unused)


def _add_fields(group: Any, config: Any, *, leave_out: Collection[str] = ()) -> None:
    """An option for every field of a dataclass, with its value here and the words that stand below it."""
    says = _docstrings(type(config))
    for setting in fields(config):
        if setting.name not in leave_out:
            value = getattr(config, setting.name)
            group.add_argument(
                f"--{setting.name.replace('_', '-')}",
                type=count if isinstance(value, int) else type(value),
                default=value,
                choices=get_args(_type_of(type(config), setting)) or None,
                metavar=None if isinstance(value, str) else "N" if isinstance(value, int) else "X",
                help=f"{says[setting.name].replace('%', '%%')} (default: %(default)s)",
            )


def _type_of(owner: type, setting: Field[Any]) -> Any:
    return inspect.get_annotations(owner, eval_str=True)[setting.name]


def _docstrings(owner: type) -> dict[str, str]:
    """What is written below each field of a dataclass, on one line."""
    (body,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
            case _:
                pass
    return found


def _config(options: argparse.Namespace, target: float) -> "RunConfig":
    """What the options ask for."""
    from edgeprune.subject import PAPER, RunConfig
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
        pruning=_asked(PAPER, options, target_sparsity=target),
    )


def _asked(config: Any, options: argparse.Namespace, **more: Any) -> Any:
    """The same with what options, or `more`, say of its fields."""
    said = {each.name: getattr(options, each.name) for each in fields(config) if each.name in options}
    return replace(config, **(said | more))


def _resolved(name: str) -> str:
    """A name, or the whole path of a file or folder, so that it means the same from elsewhere."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def prune(options: argparse.Namespace) -> bool:
    """`edgeprune prune`."""
    from edgeprune import pruning_run
    from tracr_bridge import report

    config = _config(options, options.target_sparsity)
    saved = pruning_run.prune(
        config,
        options.out,
        resume=options.resume,
        device=options.device,
        save_every=options.save_every,
        progress=True,
    )
    circuit, total = saved.circuit, saved.circuit.graph.total
    where = str((options.out / "circuit.json").resolve())
    if options.json:
        found = {"circuit": where, "edges": len(circuit), "total": total, "sparsity": 1 - len(circuit) / total}
        print(report.as_json(found), file=options.output)
        return True
    rows = [("edges kept", f"{len(circuit)} of {total}"), ("sparsity", f"{1 - len(circuit) / total:.4f}")]
    report.print_rows(f"{config.model} on {config.task}, {config.ablation}", rows)
    print(f"circuit: {where}\nmeasure it: edgeprune evaluate {options.out}")
    return True


def sweep(options: argparse.Namespace) -> bool:
    """`edgeprune sweep`."""
    from statistics import mean

    from edgeprune import sweep as sweeping
    from tracr_bridge import report

    targets: list[float] = options.target_sparsity
    config = _config(options, targets[0])
    found = sweeping.sweep(
        config,
        targets,
        options.seeds,
        options.out,
        device=options.device,
        save_every=options.save_every,
        progress=True,
    )
    if options.json:
        print(report.as_json(json.loads((options.out / "sweep.json").read_text(encoding="utf-8"))), file=options.output)
        return True
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
    report.print_table(f"{config.model} on {config.task}, {config.ablation}, {options.seeds} seeds", head, rows)
    print(f"picture: {(options.out / 'sweep.svg').resolve()}")
    return True


def compare(options: argparse.Namespace) -> bool:
    """`edgeprune compare`."""
    from edgeprune import compare as comparing
    from edgeprune.compare_table import cells
    from tracr_bridge import report

    config = _config(options, options.target_sparsity[0])
    asked = comparing.Comparison(
        run=config,
        methods=tuple(options.method or comparing.Comparison.methods),
        targets=tuple(options.target_sparsity),
        examples=tuple(options.examples or comparing.Comparison.examples),
    )
    rows = comparing.compare(asked, options.out, device=options.device, progress=True)
    if options.json:
        print(report.as_json({"rows": [asdict(row) for row in rows]}), file=options.output)
        return True
    head, *body = cells(config.task, rows)
    report.print_table(f"{config.model} on {config.task}, {config.ablation}: the test split", head, body)
    print(f"table and picture: {(options.out / 'compare.md').resolve()}, compare.svg")
    return True


def train_toy(options: argparse.Namespace) -> bool:
    """`edgeprune train-toy`."""
    from edgeprune.toy import ToyConfig
    from edgeprune.toy import train_toy as train
    from tracr_bridge import report

    toy = train(options.out, _asked(ToyConfig(), options), seed=options.seed, progress=True)
    where = str(options.out.resolve())
    if options.json:
        print(report.as_json({"model": where} | asdict(toy)), file=options.output)
    else:
        rows = [("accuracy on held-out names", f"{toy.accuracy:.2%}"), ("loss, nats a token", f"{toy.loss:.3f}")]
        report.print_rows(options.task, [*rows, ("seconds", f"{toy.seconds:.0f}")])
        print(f"model: {where}")
    return toy.accuracy >= _LEARNED


def circuits(options: argparse.Namespace) -> bool:
    """`edgeprune circuits`."""
    from functools import reduce

    from edgeprune.errors import CircuitMismatch
    from edgeprune.measures import overlap
    from edgeprune.store import SavedCircuit, load_saved, save_circuit, versions
    from tracr_bridge import report

    files = [path / "circuit.json" if path.is_dir() else path for path in options.circuit]
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
        save_circuit(SavedCircuit(result, model="".join(models), method=how, versions=versions()), options.out)
    shared = [overlap(first.edges, other.edges).iou for other in others]
    if options.json:
        print(
            report.as_json({"edges": result.names(), "of": [len(e) for e in found], "iou": shared}), file=options.output
        )
        return True
    rows = [(str(file), f"{len(each)} edges") for file, each in zip(files, found, strict=True)]
    rows += [("IoU with the first", ", ".join(f"{iou:.3f}" for iou in shared))]
    report.print_rows(options.operation, [*rows, ("result", f"{len(result)} of {result.graph.total} edges")])
    return True


def evaluate(options: argparse.Namespace) -> bool:
    """`edgeprune evaluate`."""
    from edgeprune.pruning_run import evaluate_run, evaluation_file
    from edgeprune.tasks import metric_of
    from tracr_bridge import report

    about: dict[str, Any] = {"task": options.task and _resolved(options.task), "circuit": options.circuit}
    config, found = evaluate_run(options.run_folder, options.split, **about, device=options.device, progress=True)
    if options.json:
        written = evaluation_file(options.run_folder, options.split, **about)
        print(report.as_json(json.loads(written.read_text(encoding="utf-8"))), file=options.output)
        return True
    names = {"kl": "KL(full model ‖ circuit), nats", "metric": metric_of(config.task), "exact_match": "same best token"}
    rows = [
        (names.get(measured, measured), *(f"{asdict(each)[measured]:.4g}" for each in found.values()))
        for measured in asdict(found["circuit"])
    ]
    title = f"{config.model} on {config.task}, {config.ablation}: the {options.split} split"
    report.print_table(title, ("", *found), rows)
    return True
