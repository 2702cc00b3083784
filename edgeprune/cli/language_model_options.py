"""The options of the commands that are about language models, read off the dataclasses that they set."""

import argparse
import ast
import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args

from edgeprune.cli import language_models, task
from edgeprune.cli.arguments import AGAIN, count, seed
from edgeprune.graph import ABLATIONS

_OUTSIDE: Final = (
    "target_sparsity",
    "name",
    "kept",
    "betas",
    "temperature",
    "low",
    "high",
    "ending",
    "final_check",
    "tolerance",
)
"""Settings of pruning that are options of another form, or none."""


def add_commands(add: Callable[..., argparse.ArgumentParser], *, chosen: str) -> None:
    """Declare the commands.

    Args:
        add: declares one.
        chosen: the one that will run; its settings are read off their dataclasses, for which modules are imported.
    """
    prune_command = add(
        "prune",
        "prune the edges of a GPT-2 or Llama on a task, as the Edge Pruning paper does",
        language_models.prune,
        goes_on=": go on with the same command and --resume",
    )
    sweep_command = add(
        "sweep",
        "prune at several sparsities and seeds, to see which sparsity to choose",
        language_models.sweep,
        seeds="of the first run",
        goes_on=AGAIN,
    )
    compare_command = add(
        "compare",
        "run several methods on a model, and compare circuits of one size",
        language_models.compare,
        goes_on=AGAIN,
    )
    prune_command.add_argument(
        "--method",
        dest="pruning_method",
        choices=("edge-pruning", "edge-pruning-minimax"),
        default="edge-pruning",
        help="the paper's objective, or the worst case over inputs, which takes no sparsity (default: edge-pruning)",
    )
    prune_command.add_argument(
        "--target-sparsity",
        type=float,
        metavar="SHARE",
        help="share of edges that edge-pruning removes, such as 0.95",
    )
    prune_command.add_argument(
        "--tolerance",
        type=float,
        metavar="KL",
        help="in its place, the loss, nats, on 256 training examples that the fewest edges are to stay within, such as "
        "0.05 (edge-pruning-tolerance); --criterion says whether in the mean or at worst",
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
        help="edge-pruning, edge-pruning-polished, edge-pruning-minimax, acdc, greedy-elimination, eap, eap-ig-inputs, "
        "eap-ig-activations, both also with -middles, random, or package.module:function for one of your own, whose "
        "scores are ranked; may be repeated (default: edge-pruning, acdc, eap, eap-ig-inputs and eap-ig-activations)",
    )
    compare_command.add_argument(
        "--examples", type=count, action="append", metavar="N", help="training examples; may be repeated (default: 200)"
    )
    for command in (prune_command, sweep_command, compare_command):
        _add_run_options(command)
    for command in (prune_command, sweep_command):
        command.add_argument(
            "--polish",
            action="store_true",
            help="then take out and exchange edges on trial, until no edge and no group of edges can go",
        )
        _add_training_options(command)
    if chosen in ("prune", "sweep", "compare"):
        _add_settings({"prune": prune_command, "sweep": sweep_command, "compare": compare_command}[chosen], chosen)
    _add_others(add, chosen=chosen)
    for command in (prune_command, sweep_command, compare_command):
        _add_device(command)


def _add_others(add: Callable[..., argparse.ArgumentParser], *, chosen: str) -> None:
    """What comes before and after runs."""
    _add_task_command(add)
    evaluate_command = add("evaluate", "measure the circuit of a run beside the full model", language_models.evaluate)
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
    plan_command = add(
        "plan", "tell from a model's configuration what pruning it takes: memory, GPUs, hours", language_models.plan
    )
    if chosen == "plan":
        from edgeprune.runs.plan import Question

        plan_command.add_argument("--model", required=True, help=_docstrings(Question)["model"])
        _add_fields(plan_command, Question(model=""), leave_out=("model",))
    circuits_command = add("circuits", "intersect circuits of one model, or take their union", language_models.circuits)
    circuits_command.add_argument("operation", choices=("intersect", "union"), help="edges of all, or edges of any")
    circuits_command.add_argument(
        "circuit", type=Path, nargs="+", metavar="CIRCUIT", help="circuits' files, or folders of runs; two or more"
    )
    circuits_command.add_argument("-o", "--out", type=Path, metavar="FILE.json", help="write the circuit that results")
    toy_command = add(
        "train-toy",
        "train a small GPT-2 that knows a task, to try the other commands on",
        language_models.train_toy,
        goes_on=": nothing was written; begin again",
    )
    toy_command.add_argument(
        "task",
        choices=("ioi", "sort", "parentheses", "modular-addition"),
        help="what it learns: indirect object identification; five numbers, sorted, by one head; whether ten "
        "parentheses are balanced; sums modulo 23",
    )
    toy_command.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder to make; task.jsonl in it is the task, but for ioi",
    )
    if chosen == "train-toy":
        _add_toy_settings(toy_command)
    _add_device(evaluate_command)


_TASK_HELP: Final = """\
A file of examples has one JSON object a line:

  {"clean": "2 + 2 =<predict> 4</predict>", "corrupted": "2 + 3 =<predict> 5</predict>"}
  {"clean": "The cat<label> noun</label> sat", "corrupted": "The sat<label> verb</label> cat"}

<predict> is around an answer that the text goes on with, <label> around one that it does not; what the corrupted text
marks are wrong answers. Each is one token of the model's. See what they become, before `edgeprune prune --task FILE`:

  edgeprune task mine.jsonl --model gpt2

shows tokens in quotes, those at which outputs are measured in [brackets], and what the full model answers there.
Exit status: 0 every example is usable; 1 some are refused, for which `prune` refuses the file; 2 the task, or the
model, is unusable.
"""


def _add_task_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    command = add(
        "task",
        "show a task in a model's tokens, what the model answers, and which examples are refused and why",
        task.task,
        seeds="by which examples are drawn and dealt to splits, as --data-seed of prune is",
    )
    command.epilog = _TASK_HELP
    command.add_argument(
        "task",
        metavar="FILE",
        help="a file of examples, .jsonl, or ioi-t1, ioi, gt, gp, boolean or boolean-few-shot",
    )
    command.add_argument(
        "--model", required=True, help="a name on the Hugging Face hub, such as gpt2, or a folder with safetensors"
    )
    command.add_argument(
        "--examples", type=count, default=3, metavar="N", help="how many to show (default: %(default)s)"
    )
    _add_device(command)


def _add_toy_settings(command: argparse.ArgumentParser) -> None:
    """Shape and training, with each lesson's values."""
    from edgeprune.toys import LESSONS, ToyConfig

    group = command.add_argument_group("shape and training")
    for setting in fields(ToyConfig):
        values = {task: getattr(lesson.config, setting.name) for task, lesson in LESSONS.items()}
        first, others = values["ioi"], {task: value for task, value in values.items() if value != values["ioi"]}
        says = ", ".join([_shown(first), *(f"{task}: {_shown(value)}" for task, value in others.items())])
        _add_field(group, ToyConfig, setting.name, first, default=None, says=f" (default: {says})")


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="cpu, cuda, … (default: auto, a GPU if there is one)")
    add_no_check(command)


def add_no_check(command: Any) -> None:
    """Declare the option of all commands that load a model."""
    command.add_argument(
        "--no-check",
        action="store_true",
        help="of a model that is known: do not compare its logits on a few prompts with AutoModelForCausalLM's, nor "
        "refuse weights that nothing reads",
    )


def _add_run_options(command: argparse.ArgumentParser) -> None:
    """What every run is asked for."""
    command.add_argument(
        "--model", required=True, help="a name on the Hugging Face hub, such as gpt2, or a folder with safetensors"
    )
    command.add_argument(
        "--task",
        required=True,
        help="ioi-t1, ioi, gt, gp, boolean, boolean-few-shot, or a file of examples, .jsonl (edgeprune task --help)",
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
    from edgeprune.methods.edge_pruning.configurations import BY_NAME, FIXED, PAPER
    from edgeprune.tasks import Sizes

    group = command.add_argument_group("settings of pruning" if name == "prune" else "settings of edge-pruning alone")
    configs = list(BY_NAME.values()) if name == "prune" else [PAPER]
    found = dict[str, list[tuple[str, type, Any]]]()
    for config in configs:
        for owner, setting, value in _leaves(config):
            if setting not in _OUTSIDE and setting not in FIXED[config.name]:
                found.setdefault(setting, []).append((config.name.replace("edge-pruning-", ""), owner, value))
    for setting, places in found.items():
        # The paper's is the default, and named where it stands beside another, or where another stands alone.
        shown = [_shown(value) if method == PAPER.name else f"{method}: {_shown(value)}" for method, _, value in places]
        says = ", ".join(shown)
        alone = " alone" if places[0][0] != PAPER.name else ""
        owner, value = next(((owner, value) for _, owner, value in places if value is not None), places[0][1:])
        _add_field(group, owner, setting, value, default=None, says=f" (default: {says}{alone})")
    # `compare` has --examples for the training split, and nothing to validate.
    unused = ("train", "validation") if name == "compare" else ()
    _add_fields(command.add_argument_group("examples"), Sizes(), leave_out=unused)


def _leaves(config: Any) -> Iterator[tuple[type, str, Any]]:
    """Settings of all parts of a configuration: whose, its name and its value."""
    for setting in fields(config):
        value = getattr(config, setting.name)
        if is_dataclass(value):
            yield from _leaves(value)
        else:
            yield type(config), setting.name, value


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _add_fields(group: Any, config: Any, *, leave_out: Collection[str] = ()) -> None:
    """An option for every field of a dataclass, with its value here and the words that stand below it."""
    for setting in fields(config):
        if setting.name not in leave_out:
            value = getattr(config, setting.name)
            says = "" if value is None else " (default: %(default)s)"
            _add_field(group, type(config), setting.name, value, default=value, says=says)


def _add_field(group: Any, owner: type, name: str, value: Any, *, default: Any, says: str) -> None:
    """An option for one of them, of the type that `value` has."""
    metavar, choices, kind = "X", None, type(value)
    if isinstance(value, bool):
        metavar, choices, kind = None, (True, False), _yes
    elif isinstance(value, str):
        metavar, choices = None, get_args(_type_of(owner, name))
    elif isinstance(value, int | None):
        metavar, kind = "N", count
    group.add_argument(
        f"--{name.replace('_', '-')}",
        type=kind,
        default=default,
        choices=choices,
        metavar=metavar,
        help=_docstrings(owner)[name].replace("%", "%%") + says,
    )


def _yes(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text == "True"


def _type_of(owner: type, name: str) -> Any:
    return inspect.get_annotations(owner, eval_str=True)[name]


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
