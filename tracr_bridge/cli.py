"""The `edgeprune` command. Imports nothing heavy until a command runs, so that `--help` answers at once."""

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from edgeprune.errors import EdgePruneError, one_line
from edgeprune.graph import ABLATIONS
from edgeprune.user_code import told
from tracr_bridge import commands, file_commands, language_options
from tracr_bridge.arguments import count, seconds, seed

_DESCRIPTION = """\
Circuit discovery, checked against circuits that are known.

A RASP program compiled by Tracr is a transformer whose true circuit can be derived and certified. Start with

  edgeprune recover reverse

which compiles a program, certifies its true edges, finds a circuit by Edge Pruning, and compares the two.
"""

_EPILOG = """\
PROGRAM is a name from `edgeprune programs`, or path/to/file.py:name for one of your own. Where circuits are recovered,
the folder of a checkpoint that `edgeprune export` wrote does as well.
Exit status: 0 it holds; 1 it ran and does not hold; 2 the input is unusable.
"""


_OR_FOLDER = ", or the folder of a checkpoint that `export` wrote"


_AGAIN = ": the same command goes on where it was"
_GOES_ON = {
    "prune": ": go on with the same command and --resume",
    "sweep": _AGAIN,
    "compare": _AGAIN,
    "bench": _AGAIN,
    "export": ": checkpoints that were finished stand; name the others again",
    "train-toy": ": nothing was written; begin again",
}
"""What follows where a command was stopped."""


class _Terminated(KeyboardInterrupt):
    """Told to end by a signal other than that of Ctrl-C."""


@contextmanager
def _stopped_by_signals() -> Generator[None]:
    """Let a command that is told to end do what it does at Ctrl-C: remove what is unfinished, and say how to go on."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        before = {number: handler for number, handler in before.items() if handler is signal.SIG_DFL}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Parser(argparse.ArgumentParser):
    """Reports unusable arguments as one line, as every other unusable input is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"edgeprune: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: what follows the command's name; those of the process unless given.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _stopped_by_signals():
            return _run(arguments)
    except KeyboardInterrupt as stop:
        print(f"edgeprune: stopped{_GOES_ON.get(arguments[0], '') if arguments else ''}", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130


def _run(arguments: Sequence[str]) -> int:
    """Run the command line, unless a signal stops it; returns the exit status."""
    options = _parser(chosen=arguments[0] if arguments else "").parse_args(arguments)
    run: Callable[[argparse.Namespace], bool] = options.run
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever a path or a program is called, it can be said
            stream.reconfigure(errors="backslashreplace")
    options.output = sys.stdout
    # A user's file may print as it likes: with --json, standard output holds the one object and nothing else.
    aside = redirect_stdout(sys.stderr) if options.json else nullcontext()
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
        # Of processes that torchrun started, all find the same; the first says so.
        options.output = io.StringIO()
        aside = redirect_stdout(io.StringIO())
    try:
        with aside:
            return 0 if run(options) else 1
    except EdgePruneError as error:
        print(f"edgeprune: {' '.join(told(error).split())}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for its name alone
            raise
        print(
            "edgeprune: out of memory on the device; use --precision bfloat16, or run a batch in --parts: "
            f"{one_line(error):.200}",
            file=sys.stderr,
        )
        return 2


def _parser(*, chosen: str) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="edgeprune", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=form)
    choices = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(
        name: str, summary: str, run: Callable[[argparse.Namespace], bool], *, seeds: str = "of everything random"
    ) -> argparse.ArgumentParser:
        command = choices.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=_EPILOG, formatter_class=form
        )
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        command.add_argument("--seed", type=seed, default=0, help=f"{seeds} (default: %(default)s)")
        command.set_defaults(run=run)
        return command

    programs = add("programs", "list the programs that come with the toolkit", commands.programs)
    programs.add_argument("--coverage", action="store_true", help="show which constructs of RASP each of them uses")
    bench = add(
        "bench",
        "run methods on many programs, and compare how well they recover circuits",
        commands.bench,
        seeds="by which --random draws programs; methods have --seeds",
    )
    _add_bench_options(bench)
    verify = add("verify", "check that RASP, Tracr's model and ours agree on the whole domain", commands.verify)
    _add_export_options(
        add("export", "write causal programs as checkpoints of Hugging Face with known circuits", commands.export)
    )
    truth = add("truth", "derive and certify a program's true circuits", commands.truth)
    recover = add("recover", "discover a program's circuit and compare it with the truth", commands.recover)
    _add_file_commands(add)
    language_options.add_commands(add, chosen=chosen)
    for command, or_folder in ((verify, ""), (truth, _OR_FOLDER), (recover, _OR_FOLDER)):
        command.add_argument("program", metavar="PROGRAM", help=f"a name, or path/to/file.py:name{or_folder}")
    for command in (truth, recover):
        _add_trained_options(command)
    carried = f"what a removed edge carries: {', '.join(ABLATIONS)}"
    truth.add_argument("--ablation", default="zero", help=f"{carried} (default: %(default)s)")
    recover.add_argument(
        "--ablation", action="append", help=f"{carried}; may be repeated, for a report of both (default: zero)"
    )
    recover.add_argument(
        "--method",
        default="edge-pruning-minimax",
        help="the discovery method; of a trained model edge-pruning-tolerance and edge-pruning-tolerance-polished too, "
        "which are told the tolerance (default: %(default)s)",
    )
    for command in (recover, bench):
        command.add_argument(
            "--timeout",
            type=seconds,
            default=600.0,
            metavar="SECONDS",
            help="how long one discovery may take (default: %(default)g)",
        )
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
    truth.add_argument(
        "--save",
        type=Path,
        metavar="FILE.json",
        help="write all true circuits and their certificate in one file, which draw, convert and score.py take; any "
        "other name makes a folder, which check_certificate.py checks, unless it is of a trained model",
    )
    return parser


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
    language_options.add_no_check(group)


def _add_file_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What reads circuits that were saved, and runs no model."""
    draw = add("draw", "draw a saved circuit, alone or against another", file_commands.draw)
    draw.add_argument("circuit", type=Path, metavar="CIRCUIT.json", help="what --save wrote, or the folder of a run")
    draw.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="PICTURE",
        required=True,
        help="the file to draw: .svg, .png or .pdf, or .html, a page with filters by score, node and path",
    )
    draw.add_argument(
        "--against",
        type=Path,
        metavar="TRUE",
        help="what counts as true: what truth --save wrote, or recover --save (its truth, not what was found), or an "
        "exported checkpoint, of whose true circuits the nearest counts; or any other circuit's file",
    )
    convert = add("convert", "turn a circuit's file into another tool's, or back", file_commands.convert)
    convert.add_argument("file", type=Path, metavar="FILE", help="what to read")
    convert.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    for option, says in (("--from", "of the file that is read"), ("--to", "of the file that is written")):
        convert.add_argument(
            option,
            dest=option.replace("--from", "source").replace("--to", "target"),
            default="circuit",
            choices=file_commands.FORMATS,
            help=f"format {says}: circuit (ours), edge-pruning (edges.json of the paper's code) or eap-ig (the graph "
            "of EAP-IG and MIB) (default: %(default)s)",
        )
    convert.add_argument(
        "--like",
        type=Path,
        metavar="CIRCUIT.json",
        help="a circuit of the same model, for the graph and the ablation that the other formats leave out",
    )
    convert.add_argument(
        "--family",
        choices=("gpt2", "llama"),
        help="the kind of model, for --to edge-pruning: GPT-2 has two embeddings there, others one (default: as the "
        "circuit's file or the model's config.json says)",
    )
    convert.add_argument(
        "--ablation", help=f"what removed edges carry, where no file says: {', '.join(ABLATIONS)} (default: as --like)"
    )


def _add_export_options(export: argparse.ArgumentParser) -> None:
    export.add_argument(
        "program", nargs="*", metavar="PROGRAM", help="a name, or path/to/file.py:name (default: all causal ones)"
    )
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


def _add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "program", nargs="*", metavar="PROGRAM", help=f"a name, or path/to/file.py:name{_OR_FOLDER} (default: all)"
    )
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


if __name__ == "__main__":
    sys.exit(main())
