"""The commands of `edgeprune` that are about language models. Nothing heavy is imported until one runs."""

import argparse
import ast
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, fields, replace
from pathlib import Path
from typing import Any, Final, get_args

from edgeprune.graph import ABLATIONS, parse_ablation
from tracr_bridge.arguments import count

_OUTSIDE: Final = ("target_sparsity", "hard_concrete")
"""Settings of pruning that are options of another form."""


def add_commands(add: Callable[..., argparse.ArgumentParser], *, every_option: bool) -> None:
    """Declare the commands.

    Args:
        add: declares one.
        every_option: whether to declare the settings of pruning too, for which its module has to be imported.
    """
    prune_command = add("prune", "prune the edges of a GPT-2 on a task, as the Edge Pruning paper does", prune)
    prune_command.add_argument(
        "--model", required=True, help="a name on the Hugging Face hub, such as gpt2, or a folder with safetensors"
    )
    prune_command.add_argument(
        "--task", required=True, help="ioi-t1, ioi, gt, gp, or a file of examples, FILE.jsonl (see edgeprune/tasks)"
    )
    prune_command.add_argument(
        "--target-sparsity", type=float, required=True, metavar="SHARE", help="share of edges to remove, such as 0.95"
    )
    prune_command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="run.json, metrics.jsonl, checkpoints and circuit.json"
    )
    prune_command.add_argument("--resume", action="store_true", help="go on with the run that DIR holds")
    prune_command.add_argument(
        "--ablation",
        default="resample",
        help=f"what a removed edge carries: {', '.join(ABLATIONS)} (default: resample)",
    )
    for split, size in (("train", 200), ("validation", 200), ("test", 1000)):
        prune_command.add_argument(
            f"--{split}", type=count, default=size, metavar="N", help=f"examples to {_USES[split]} (default: {size})"
        )
    prune_command.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of the model")
    prune_command.add_argument(
        "--parts", type=count, default=1, metavar="N", help="parts that a batch is run in, to save memory (default: 1)"
    )
    prune_command.add_argument(
        "--save-every", type=count, default=250, metavar="N", help="steps between checkpoints (default: 250)"
    )
    evaluate_command = add("evaluate", "measure the circuit of a run beside the full model", evaluate)
    evaluate_command.add_argument("run_folder", type=Path, metavar="DIR", help="what `edgeprune prune` wrote")
    evaluate_command.add_argument(
        "--split", default="test", choices=("train", "validation", "test"), help="of the task (default: test)"
    )
    toy_command = add("train-toy", "train a small GPT-2 that knows a task, to try the other commands on", train_toy)
    toy_command.add_argument("task", choices=("ioi",), help="what it learns: indirect object identification")
    toy_command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    for setting, size, what in (("layers", 4, "blocks"), ("heads", 4, "heads a layer"), ("width", 64, "d_model")):
        toy_command.add_argument(
            f"--{setting}", type=count, default=size, metavar="N", help=f"{what} (default: {size})"
        )
    toy_command.add_argument("--steps", type=count, default=800, metavar="N", help="of training (default: 800)")
    for command in (prune_command, evaluate_command):
        command.add_argument("--device", default="auto", help="cpu, cuda, … (default: auto, a GPU if there is one)")
    if every_option:
        _add_settings(prune_command)


_LEARNED: Final = 0.99
"""Accuracy from which on a model is said to know its task."""

_USES: Final = {"train": "prune on", "validation": "watch a run on", "test": "measure circuits on"}


def _add_settings(command: argparse.ArgumentParser) -> None:
    """An option for every setting of pruning, with the paper's value and the words that stand below its field."""
    from edgeprune.methods.edge_pruning_target import TargetConfig
    from edgeprune.pruning_run import PAPER

    group = command.add_argument_group("settings of pruning")
    says = _docstrings(TargetConfig)
    for setting in fields(TargetConfig):
        if setting.name not in _OUTSIDE:
            value = getattr(PAPER, setting.name)
            group.add_argument(
                f"--{setting.name.replace('_', '-')}",
                type=type(value),
                default=value,
                choices=get_args(_type_of(TargetConfig, setting)) or None,
                metavar=None if isinstance(value, str) else type(value).__name__.upper(),
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


def prune(options: argparse.Namespace) -> bool:
    """`edgeprune prune`."""
    from edgeprune import pruning_run
    from edgeprune.methods.edge_pruning_target import TargetConfig
    from edgeprune.tasks import Sizes
    from tracr_bridge import report

    settings = {
        setting.name: getattr(options, setting.name)
        for setting in fields(TargetConfig)
        if setting.name not in _OUTSIDE and setting.default is not MISSING
    }
    config = pruning_run.RunConfig(
        model=options.model,
        task=options.task,
        ablation=parse_ablation(options.ablation),
        sizes=Sizes(train=options.train, validation=options.validation, test=options.test),
        seed=options.seed,
        precision=options.precision,
        parts=options.parts,
        pruning=replace(pruning_run.PAPER, **settings, target_sparsity=options.target_sparsity),
    )
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


def train_toy(options: argparse.Namespace) -> bool:
    """`edgeprune train-toy`."""
    from edgeprune.toy import ToyConfig
    from edgeprune.toy import train_toy as train
    from tracr_bridge import report

    config = ToyConfig(layers=options.layers, heads=options.heads, width=options.width, steps=options.steps)
    toy = train(options.out, config, seed=options.seed, progress=True)
    where = str(options.out.resolve())
    if options.json:
        print(report.as_json({"model": where} | asdict(toy)), file=options.output)
    else:
        rows = [("accuracy on held-out names", f"{toy.accuracy:.2%}"), ("loss, nats a token", f"{toy.loss:.3f}")]
        report.print_rows(options.task, [*rows, ("seconds", f"{toy.seconds:.0f}")])
        print(f"model: {where}")
    return toy.accuracy >= _LEARNED


def evaluate(options: argparse.Namespace) -> bool:
    """`edgeprune evaluate`."""
    import json

    from edgeprune import pruning_run
    from edgeprune.evaluate import evaluate as measure
    from edgeprune.masks import circuit_mask, edge_exists
    from edgeprune.store import load_circuit, write_text
    from edgeprune.tasks import metric_of
    from tracr_bridge import report

    config = pruning_run.read_config(options.run_folder)
    circuit = load_circuit(options.run_folder / "circuit.json")
    subject = pruning_run.load_subject(config, [options.split], device=options.device, progress=True)
    dataset, model = subject.splits[options.split], subject.model
    masks = {"circuit": circuit_mask(circuit), "full model": edge_exists(model.graph).float()}
    found = {name: measure(model, dataset, config.ablation, mask, progress=True) for name, mask in masks.items()}
    content = {"split": options.split, "inputs": len(dataset), "metric": metric_of(config.task)}
    content |= {name.replace(" ", "_"): asdict(each) for name, each in found.items()}
    write_text(options.run_folder / f"evaluation-{options.split}.json", json.dumps(content, indent=1) + "\n")
    if options.json:
        print(report.as_json(content), file=options.output)
        return True
    names = {"kl": "KL(full model ‖ circuit), nats", "metric": metric_of(config.task), "exact_match": "same best token"}
    rows = [
        (names.get(measured, measured), *(f"{asdict(each)[measured]:.4g}" for each in found.values()))
        for measured in asdict(found["circuit"])
    ]
    title = f"{config.model} on {config.task}, {config.ablation}: {len(dataset)} inputs of {options.split}"
    report.print_table(title, ("", *found), rows)
    return True
