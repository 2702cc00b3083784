"""The options of the commands that need Tracr. `pyproject.toml` names `add_commands` as an entry point."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeprune.cli import language_model_options
from edgeprune.cli.arguments import AGAIN, count, seconds
from edgeprune.graph import ABLATIONS
from tracr_bridge.cli import commands

_PROGRAM: Final = "a name, or path/to/file.py:name"
_OR_FOLDER: Final = (
    f"{_PROGRAM}, or the folder of a checkpoint that `export` wrote, or of the truth of a trained model that "
    "`truth --save` wrote"
)
_CARRIED: Final = f"what a removed edge carries: {', '.join(ABLATIONS)}"

_Add = Callable[..., argparse.ArgumentParser]
"""Declares a command."""


def add_commands(add: _Add) -> None:
    """Declare the commands.

    Args:
        add: declares one, of a name, a summary and what it does.
    """
    programs = add("programs", "list the programs that come with the toolkit", commands.programs)
    programs.add_argument("--coverage", action="store_true", help="show which constructs of RASP each of them uses")
    _add_bench(add)
    verify = add("verify", "check that RASP, Tracr's model and ours agree on the whole domain", commands.verify)
    verify.add_argument("program", metavar="PROGRAM", help=_PROGRAM)
    _add_export(add)
    _add_truth(add)
    _add_recover(add)


def _add_truth(add: _Add) -> None:
    truth = add("truth", "derive and certify a program's true circuits", commands.truth)
    truth.add_argument("program", metavar="PROGRAM", help=_OR_FOLDER)
    _add_trained_options(truth)
    truth.add_argument("--ablation", default="zero", help=f"{_CARRIED} (default: %(default)s)")
    truth.add_argument(
        "--save",
        type=Path,
        metavar="FILE.json",
        help="write all true circuits and their certificate in one file, which draw, convert and score.py take; any "
        "other name makes a folder, which check_certificate.py checks, unless it is of a trained model",
    )


def _add_recover(add: _Add) -> None:
    recover = add("recover", "discover a program's circuit and compare it with the truth", commands.recover)
    recover.add_argument("program", metavar="PROGRAM", help=_OR_FOLDER)
    _add_trained_options(recover)
    recover.add_argument(
        "--ablation", action="append", help=f"{_CARRIED}; may be repeated, for a report of both (default: zero)"
    )
    recover.add_argument(
        "--method",
        default="edge-pruning-minimax",
        help="the discovery method; of a trained model edge-pruning-tolerance and edge-pruning-tolerance-polished too, "
        "which are told the tolerance (default: %(default)s)",
    )
    _add_timeout(recover)
    recover.add_argument("--picture", type=Path, metavar="FILE", help="draw the circuit (.svg, .png or .pdf)")
    recover.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write a page that opens offline, to look at every edge",
    )
    recover.add_argument(
        "--save", type=Path, metavar="FILE.json", help="write the circuit that was found, and all true ones"
    )


def _add_timeout(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long one discovery may take (default: %(default)g)",
    )


def _add_trained_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "trained models",
        "PROGRAM is the folder, or the name on the Hugging Face hub, of a model so small that all subsets of its edges "
        "can be run, and a task says on what; see `train-toy`",
    )
    group.add_argument("--task", metavar="FILE.jsonl", help="its task: all examples are run (see edgeprune/tasks)")
    group.add_argument(
        "--tolerance", type=float, metavar="KL", help="largest divergence of a faithful circuit, nats, such as 0.1"
    )
    group.add_argument(
        "--criterion",
        choices=("mean", "worst"),
        help="whether in the mean over examples, or on each of them (default: mean)",
    )
    language_model_options.add_no_check(group)


def _add_export(add: _Add) -> None:
    export = add(
        "export",
        "write causal programs as checkpoints of Hugging Face with known circuits",
        commands.export,
        goes_on=": checkpoints that were finished stand; name the others again",
    )
    export.add_argument("program", nargs="*", metavar="PROGRAM", help=f"{_PROGRAM} (default: all causal ones)")
    export.add_argument(
        "--as",
        dest="family",
        action="append",
        required=True,
        choices=("gpt2", "llama"),
        help="the architecture of the checkpoint; may be repeated, for checkpoints of both",
    )
    export.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder to make: model.safetensors, a tokenizer, circuit.json; of several checkpoints, a folder for "
        "each in it, PROGRAM-gpt2 or PROGRAM-llama",
    )


def _add_bench(add: _Add) -> None:
    bench = add(
        "bench",
        "run methods on many programs, and compare how well they recover circuits",
        commands.bench,
        seeds="by which --random draws programs; methods have --seeds",
        goes_on=AGAIN,
    )
    bench.add_argument("program", nargs="*", metavar="PROGRAM", help=f"{_OR_FOLDER} (default: all)")
    bench.add_argument("--random", type=count, metavar="N", help="run on N random programs instead, drawn by --seed")
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("bench"),
        metavar="DIR",
        help="results.jsonl, leaderboard.md, pictures, and every random program not recovered; a second run goes on "
        "there (default: %(default)s)",
    )
    bench.add_argument(
        "--seeds", type=count, default=1, metavar="N", help="run methods at seeds 0 to N - 1 (default: %(default)s)"
    )
    bench.add_argument(
        "--method",
        action="append",
        help="a discovery method, or all; may be repeated; one that is none lists them (default: edge-pruning-minimax)",
    )
    bench.add_argument("--jobs", type=count, default=2, metavar="N", help="processes (default: %(default)s)")
    bench.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster, on as many processes as it has CPUs: auto (the one that this machine belongs to), "
        "HOST:6379, ray://HOST:10001 (from outside of it) or local (one started here, for this run); its machines need "
        "the versions of edgeprune and of what it depends on that are here, and files of your own at the same path; "
        "comes with pip install 'edgeprune[ray]'",
    )
    bench.add_argument(
        "--ablation", action="append", help=f"{', '.join(ABLATIONS)}; may be repeated (default: zero and resample)"
    )
    _add_timeout(bench)
