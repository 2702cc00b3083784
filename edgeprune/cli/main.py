"""The `edgeprune` command. Imports nothing heavy until a command runs, so that `--help` answers at once."""

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.metadata import entry_points, version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from edgeprune.cli import files, language_model_options
from edgeprune.cli.arguments import seed
from edgeprune.errors import EdgePruneError, one_line
from edgeprune.graph import ABLATIONS
from edgeprune.user_code import told

_DESCRIPTION = """\
Circuit discovery, checked against circuits that are known.

A RASP program compiled by Tracr is a transformer whose true circuit can be derived and certified. Start with

  edgeprune recover reverse

which compiles a program, certifies its true edges, finds a circuit by Edge Pruning, and compares the two.
"""

_EPILOG = """\
PROGRAM is a name from `edgeprune programs`, or path/to/file.py:name for one of your own. Where circuits are recovered,
the folder of a checkpoint that `edgeprune export` wrote does as well, or that of a trained model's truth, which
`edgeprune truth MODEL --task FILE --tolerance KL --save DIR` wrote.
Exit status: 0 it holds; 1 it ran and does not hold; 2 the input is unusable.
"""


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


class _Version(argparse.Action):
    """Says the version, which is looked up only then: a source tree that was never installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"edgeprune {version('edgeprune')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: what follows the command's name; those of the process unless given.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    goes_on = ""
    try:
        with _stopped_by_signals():
            options = _parser(chosen=arguments[0] if arguments else "").parse_args(arguments)
            goes_on = options.goes_on
            return _run(options)
    except KeyboardInterrupt as stop:
        print(f"edgeprune: stopped{goes_on}", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130


def _run(options: argparse.Namespace) -> int:
    """Run a command, unless a signal stops it; returns the exit status."""
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
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is, and exit")
    choices = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(
        name: str,
        summary: str,
        run: Callable[[argparse.Namespace], bool],
        *,
        seeds: str = "of everything random",
        goes_on: str = "",
    ) -> argparse.ArgumentParser:
        command = choices.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=_EPILOG, formatter_class=form
        )
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        command.add_argument("--seed", type=seed, default=0, help=f"{seeds} (default: %(default)s)")
        command.set_defaults(run=run, goes_on=goes_on)
        return command

    joining = entry_points(group="edgeprune.commands")
    for entry in joining:
        entry.load()(add)
    if not joining:
        parser.epilog = "Commands that need Tracr are missing: install the package again.\n\n" + _EPILOG
    _add_file_commands(add)
    language_model_options.add_commands(add, chosen=chosen)
    return parser


def _add_file_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What reads circuits that were saved, and runs no model."""
    draw = add("draw", "draw a saved circuit, alone or against another", files.draw)
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
    convert = add("convert", "turn a circuit's file into another tool's, or back", files.convert)
    convert.add_argument("file", type=Path, metavar="FILE", help="what to read")
    convert.add_argument("out", type=Path, metavar="OUT", help="the file to write")
    for option, says in (("--from", "of the file that is read"), ("--to", "of the file that is written")):
        convert.add_argument(
            option,
            dest=option.replace("--from", "source").replace("--to", "target"),
            default="circuit",
            choices=files.FORMATS,
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


if __name__ == "__main__":
    sys.exit(main())
