"""The `edgeprune` command. Imports nothing heavy until a command is chosen, so that `--help` answers at once."""

import difflib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.metadata import entry_points, version
from types import FrameType
from typing import Any, Final, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from edgeprune.cli.options import AGAIN, strict
from edgeprune.cli.tables import only_json
from edgeprune.errors import EdgePruneError, one_line, printable
from edgeprune.user_code import told

_DESCRIPTION = """\
Circuit discovery, checked against circuits that are known.

A RASP program compiled by Tracr is a transformer whose true circuit can be derived and certified. Start with

  edgeprune recover reverse

which compiles a program, certifies its true edges, finds a circuit by Edge Pruning, and compares the two.
"""

_EPILOG = (
    "PROGRAM is a name from `edgeprune programs`, or path/to/file.py:name for one of your own. Where circuits are "
    "recovered, the folder of a checkpoint that `edgeprune export` wrote does as well, or that of a trained model's "
    "truth, which `edgeprune truth MODEL --task FILE --tolerance KL --save DIR` wrote.\n\n"
    "Exit status: 0 it holds; 1 it ran and does not hold; 2 the input is unusable."
)

PROGRAMS: Final = Group("Programs and their circuits", sort_key=1)
LANGUAGE_MODELS: Final = Group("Language models", sort_key=2)
FILES: Final = Group("Circuits and files", sort_key=3)

_TASK_FILE = """\
A file of examples has one JSON object a line:

    {"clean": "2 + 2 =<predict> 4</predict>", "corrupted": "2 + 3 =<predict> 5</predict>"}
    {"clean": "The cat<label> noun</label> sat", "corrupted": "The sat<label> verb</label> cat"}

`<predict>` is around an answer that the text goes on with, `<label>` around one that it does not; \
what the corrupted text marks are wrong answers. Each is one token of the model's. \
The command shows tokens in quotes, those at which outputs are measured in [brackets], \
and what the full model answers there.

Exit status: 0 every example is usable; 1 some are refused, for which `prune` refuses the file; \
2 the task, or the model, is unusable.
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


class _Commands:
    """The command line: what is declared, and how each command goes on if it is stopped."""

    def __init__(self) -> None:
        self.app = App(
            name="edgeprune",
            version=_version,
            help=_DESCRIPTION,
            help_format="plaintext",
            help_epilogue=_EPILOG,
            default_parameter=Parameter(negative=(), converter=strict, json_list=False, json_dict=False),
        )
        self.goes_on = dict[str, str]()
        self.app.register_install_completion_command()

    def add(
        self, name: str, where: str, summary: str, *, group: Group, example: str, after: str = "", goes_on: str = ""
    ) -> None:
        """Declare a command.

        Args:
            name: as one types it.
            where: the function that runs it, `package.module:function`, which is imported when it is chosen; it returns
                whether what was asked holds, and has a parameter `json` if it prints that.
            summary: one line for the list of commands.
            group: what it stands under in that list.
            example: a command line that its help ends with, without `edgeprune`.
            after: what follows the example.
            goes_on: follows "stopped", and says how to go on.
        """
        self.app.command(
            where,
            name=name,
            group=group,
            help=f"{summary[0].upper()}{summary[1:]}.",
            help_epilogue=f"Example:\n\n    edgeprune {example}\n\n{after}",
            help_format="markdown",
        )
        self.goes_on[name] = goes_on


def _version() -> str:
    """Look the version up only when it is asked for: a source tree that was never installed has none."""
    return f"edgeprune {version('edgeprune')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Args:
        arguments: what follows the command's name; those of the process unless given.

    Raises:
        SystemExit: the arguments are unusable, which was said on standard error (status 2).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    goes_on = ""
    try:
        with _stopped_by_signals():
            commands = _declared()
            goes_on = commands.goes_on.get(arguments[0], "") if arguments else ""
            return _run(*_parsed(commands.app, arguments))
    except KeyboardInterrupt as stop:
        print(f"edgeprune: stopped{goes_on}", file=sys.stderr)
        return 143 if isinstance(stop, _Terminated) else 130


def _parsed(app: App, arguments: Sequence[str]) -> tuple[Callable[[], Any], bool]:
    """Return what is to be run, and whether it prints JSON.

    Raises:
        SystemExit: arguments are missing, unknown or out of range.
    """
    if not arguments:
        _refuse("Expected a command", ())
    if not re.fullmatch(r"[1-9][0-9]{0,4}", os.environ.get("COLUMNS", "")):
        os.environ.pop("COLUMNS", None)  # it is no width, and rich would take it for one
    known = [name for name in app if not name.startswith("-")]
    if not arguments[0].startswith("-") and arguments[0] not in known:  # before any command's module is imported
        close = difflib.get_close_matches(arguments[0], known, n=1)
        meant = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(sorted(known))}"
        _refuse(f'Unknown command "{arguments[0]:.80}"; {meant}', ())
    try:
        command, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _refuse(f"{error!s}", error.command_chain or ())
    except EdgePruneError as error:
        _refuse(told(error), arguments[:1])
    except ValueError as error:  # a number of thousands of digits
        _refuse(one_line(error)[:200], arguments[:1])
    if arguments[0] == "--install-completion":
        return (lambda: _complete(lambda: command(*bound.args, **bound.kwargs))), False
    return (lambda: command(*bound.args, **bound.kwargs)), bool(bound.arguments.get("json"))


def _complete(install: Callable[[], Any]) -> None:
    """Set up completion.

    Raises:
        SystemExit: the shell is unknown, or its files cannot be written.
    """
    try:
        install()
    except (OSError, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        _refuse(f"Expected bash, zsh or fish in $SHELL, and a home folder that can be written to; {error}", ())


def _refuse(message: str, chain: Sequence[str]) -> NoReturn:
    """Say on one line what is wrong with the arguments, and end."""
    said = printable(" ".join(message.split()))
    said = said if said.endswith("...") else said.removesuffix(".")
    print(f"edgeprune: {said}; see {' '.join(['edgeprune', *chain])} --help", file=sys.stderr)
    raise SystemExit(2)


def _run(command: Callable[[], Any], json: bool) -> int:  # noqa: FBT001
    """Run a command, unless a signal stops it; return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever a path or a program is called, it can be said
            stream.reconfigure(errors="backslashreplace")
    # Of processes that torchrun started, all find the same; the first says so.
    silent = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0"
    try:
        # A user's file may print as it likes: with --json, standard output holds the one object and nothing else.
        with redirect_stdout(io.StringIO()) if silent else nullcontext(), only_json() if json else nullcontext():
            return 1 if command() is False else 0
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


def _declared() -> _Commands:
    """Return all commands: ours, and those that other packages add by the entry point `edgeprune.commands`."""
    commands = _Commands()
    joining = entry_points(group="edgeprune.commands")
    for entry in joining:
        entry.load()(commands.add)
    if not joining:
        missing = "Commands that need Tracr are missing: install the package again."
        commands.app.help_epilogue = f"{missing}\n\n{_EPILOG}"
    _add_language_models(commands.add)
    _add_files(commands.add)
    return commands


def _add_language_models(add: Callable[..., None]) -> None:
    """Declare what runs language models."""

    def declare(name: str, summary: str, example: str, **more: str) -> None:
        function = name.replace("-", "_")
        module = "task" if name == "task" else "language_models"
        add(name, f"edgeprune.cli.{module}:{function}", summary, group=LANGUAGE_MODELS, example=example, **more)

    declare(
        "train-toy",
        "train a small GPT-2 that knows a task, to try the other commands on",
        "train-toy ioi --out toy",
        goes_on=": nothing was written; begin again",
    )
    declare(
        "task",
        "show a task in a model's tokens, what the model answers, and which examples are refused and why",
        "task mine.jsonl --model gpt2",
        after=_TASK_FILE,
    )
    declare(
        "prune",
        "prune the edges of a GPT-2 or Llama on a task, as the Edge Pruning paper does",
        "prune --model toy --task ioi --target-sparsity 0.9 --out run",
        goes_on=": go on with the same command and --resume",
    )
    declare("evaluate", "measure the circuit of a run beside the full model", "evaluate run")
    declare(
        "sweep",
        "prune at several sparsities and seeds, to see which sparsity to choose",
        "sweep --model toy --task ioi --target-sparsity 0.8 --target-sparsity 0.9 --target-sparsity 0.95 --out sweep",
        goes_on=AGAIN,
    )
    declare(
        "compare",
        "run several methods on a model, and compare circuits of one size",
        "compare --model toy --task ioi --target-sparsity 0.9 --method edge-pruning --method acdc --out compare",
        goes_on=AGAIN,
    )
    declare(
        "plan",
        "tell from a model's configuration what pruning it takes: memory, GPUs, hours",
        "plan --model codellama/CodeLlama-13b-hf --tokens 72 --gpus 8",
    )


def _add_files(add: Callable[..., None]) -> None:
    """Declare what reads circuits that were saved, and runs no model."""
    for name, summary, example in (
        ("draw", "draw a saved circuit, alone or against another", "draw run --out run.html"),
        ("circuits", "intersect circuits of one model, or take their union", "circuits intersect run-a run-b"),
        ("convert", "turn a circuit's file into another tool's, or back", "convert run graph.json --to eap-ig"),
    ):
        add(name, f"edgeprune.cli.files:{name}", summary, group=FILES, example=example)


if __name__ == "__main__":
    sys.exit(main())
