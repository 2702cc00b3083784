"""The `edgeprune` command. Imports nothing heavy until a command runs, so that `--help` answers at once."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edgeprune.errors import EdgePruneError
from edgeprune.graph import ABLATIONS, Ablation, parse_ablation

if TYPE_CHECKING:
    from tracr_bridge.recover import Recovery

_DESCRIPTION = """\
Circuit discovery, checked against circuits that are known.

A RASP program compiled by Tracr is a transformer whose true circuit can be derived and certified. Start with

  edgeprune recover reverse

which compiles a program, certifies its true edges, finds a circuit by Edge Pruning, and compares the two.
"""

_EPILOG = """\
PROGRAM is a name from `edgeprune programs`, or path/to/file.py:name for one of your own.
Exit status: 0 it holds; 1 it ran and does not hold; 2 the input is unusable.
"""


class _Parser(argparse.ArgumentParser):
    """Reports unusable arguments as one line, as every other unusable input is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"edgeprune: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Args:
        arguments: what follows the command's name; those of the process unless given.
    """
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], bool] = options.run
    options.output = sys.stdout
    # A user's file may print as it likes: with --json, standard output holds the one object and nothing else.
    aside = redirect_stdout(sys.stderr) if options.json else nullcontext()
    try:
        with aside:
            return 0 if run(options) else 1
    except EdgePruneError as error:
        print(f"edgeprune: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="edgeprune", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=form)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, summary: str, run: Callable[[argparse.Namespace], bool]) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=_EPILOG, formatter_class=form
        )
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        command.add_argument("--seed", type=_seed, default=0, help="of everything random (default: %(default)s)")
        command.set_defaults(run=run)
        return command

    programs = add("programs", "list the programs that come with the toolkit", _programs)
    programs.add_argument("--coverage", action="store_true", help="show which constructs of RASP each of them uses")
    bench = add("bench", "run methods on many programs, and compare how well they recover circuits", _bench)
    _add_bench_options(bench)
    verify = add("verify", "check that RASP, Tracr's model and ours agree on the whole domain", _verify)
    truth = add("truth", "derive and certify a program's true circuit", _truth)
    recover = add("recover", "discover a program's circuit and compare it with the truth", _recover)
    for command in (verify, truth, recover):
        command.add_argument("program", metavar="PROGRAM", help="a name, or path/to/file.py:name")
    for command in (truth, recover):
        command.add_argument(
            "--ablation",
            default="zero",
            help=f"what a removed edge carries: {', '.join(ABLATIONS)} (default: %(default)s)",
        )
    recover.add_argument("--method", default="edge-pruning", help="the discovery method (default: %(default)s)")
    for command in (recover, bench):
        command.add_argument(
            "--timeout",
            type=_seconds,
            default=600.0,
            metavar="SECONDS",
            help="how long one discovery may take (default: %(default)g)",
        )
    recover.add_argument("--picture", type=Path, metavar="FILE", help="draw the circuit (.svg, .png or .pdf)")
    recover.add_argument("--report", type=Path, metavar="FILE.html", help="write a page that opens offline")
    recover.add_argument("--save", type=Path, metavar="FILE.json", help="write the circuit that was found")
    return parser


def _add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("program", nargs="*", metavar="PROGRAM", help="a name, or path/to/file.py:name (default: all)")
    bench.add_argument("--random", type=_count, metavar="N", help="run on N random programs instead, drawn by --seed")
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("bench"),
        metavar="DIR",
        help="results.jsonl, leaderboard.md, pictures, and every random program not recovered; a second run goes on "
        "there (default: %(default)s)",
    )
    bench.add_argument(
        "--seeds", type=_count, default=1, metavar="N", help="run methods at seeds 0 to N - 1 (default: %(default)s)"
    )
    bench.add_argument(
        "--method",
        action="append",
        help="a discovery method, or all; may be repeated; one that is none lists them (default: edge-pruning)",
    )
    bench.add_argument("--jobs", type=_count, default=2, metavar="N", help="processes (default: %(default)s)")
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


def _seed(text: str) -> int:
    if not text.isdecimal() or not int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"expected a seed from 0 to 2**32 - 1, got {text}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0 seconds, got {text}")
    return seconds


def _programs(options: argparse.Namespace) -> bool:
    from tracr_bridge import report
    from tracr_bridge.catalogue import catalogue

    if options.coverage:
        return _coverage(options)
    programs = catalogue().values()
    if options.json:
        listed = [
            {
                "name": p.name,
                "doc": p.doc,
                "vocab": list(p.vocab),
                "min_seq_len": p.min_seq_len,
                "max_seq_len": p.max_seq_len,
                "causal": p.causal,
            }
            for p in programs
        ]
        print(report.as_json({"programs": listed}), file=options.output)
    else:
        rows = [(p.name, p.doc, " ".join(map(str, p.vocab)), f"{p.min_seq_len}-{p.max_seq_len}") for p in programs]
        report.print_table("Programs", ("name", "computes", "vocabulary", "length"), rows)
    return True


def _coverage(options: argparse.Namespace) -> bool:
    from tracr_bridge import report
    from tracr_bridge.catalogue import catalogue
    from tracr_bridge.coverage import CONSTRUCTS, constructs

    used = {name: constructs(program) for name, program in catalogue().items()}
    if options.json:
        by_construct = {what: [name for name, found in used.items() if what in found] for what in CONSTRUCTS}
        print(report.as_json({"constructs": by_construct}), file=options.output)
    else:
        report.print_matrix(used, CONSTRUCTS)
    return True


def _verify(options: argparse.Namespace) -> bool:
    from tracr_bridge import report
    from tracr_bridge.catalogue import load_program
    from tracr_bridge.compile import compile_program
    from tracr_bridge.verify import verify

    _use_one_thread()
    program = load_program(options.program)
    verification = verify(compile_program(program, seed=options.seed), progress=True)
    if options.json:
        print(report.as_json(report.verification_json(verification, program.name)), file=options.output)
        return verification.equal
    rows = [
        ("RASP = Tracr = PyTorch", "yes" if verification.equal else "no"),
        ("inputs", f"{verification.inputs}, {'all there are' if verification.exhaustive else 'a seeded sample'}"),
        ("largest difference, Tracr to PyTorch", f"{verification.max_abs_diff:.3g}"),
        *(("mismatch", text) for text in verification.mismatches),
    ]
    report.print_rows(f"{program.name}: {program.doc}", rows)
    return verification.equal


def _truth(options: argparse.Namespace) -> bool:
    ablation = parse_ablation(options.ablation)
    from tracr_bridge import report
    from tracr_bridge.catalogue import load_program
    from tracr_bridge.recover import certify
    from tracr_bridge.verify import compile_and_verify

    _use_one_thread()
    program = load_program(options.program)
    truth = certify(compile_and_verify(program, seed=options.seed), ablation, seed=options.seed)
    if options.json:
        print(report.as_json(report.truth_json(truth, program.name)), file=options.output)
    else:
        report.print_truth(truth, program.name, program.doc)
    return True


def _recover(options: argparse.Namespace) -> bool:
    ablation = parse_ablation(options.ablation)
    from edgeprune.methods import find_method
    from tracr_bridge import report
    from tracr_bridge.catalogue import load_program
    from tracr_bridge.recover import recover

    _use_one_thread()
    find_method(options.method)
    _check_outputs(options)
    program = load_program(options.program)
    recovery = recover(
        program, ablation, method=options.method, seed=options.seed, seconds=options.timeout, progress=True
    )
    if options.json:
        print(report.as_json(report.recovery_json(recovery)), file=options.output)
    else:
        report.print_recovery(recovery)
    _write_outputs(options, recovery)
    return recovery.exact


def _bench(options: argparse.Namespace) -> bool:
    from edgeprune.methods import METHODS, find_method
    from tracr_bridge import leaderboard, report
    from tracr_bridge.bench import Run, drawn_subject, named_subject, sweep
    from tracr_bridge.catalogue import catalogue
    from tracr_bridge.sample import draw_programs

    chosen: list[str] = options.ablation or ["zero", "resample"]
    ablations: list[Ablation] = [parse_ablation(text) for text in chosen]
    named: list[str] = options.method or ["edge-pruning"]
    methods = [method for name in named for method in (METHODS if name == "all" else [name])]
    for method in methods:
        find_method(method)
    if options.random is None:
        subjects = [named_subject(spec) for spec in options.program or catalogue()]
    elif options.program:
        raise EdgePruneError(f"Expected either programs or --random; got both, {options.program[0]!r} and more")
    else:
        subjects = [drawn_subject(p) for p in draw_programs(options.random, seed=options.seed, progress=True)]
    runs = [
        Run(a, m, s) for a in dict.fromkeys(ablations) for m in dict.fromkeys(methods) for s in range(options.seeds)
    ]
    rows = sweep(
        subjects, runs, options.out, jobs=options.jobs, seconds=options.timeout, progress=True, ray=options.ray
    )
    leaderboard.write(rows, options.out)
    if options.json:
        print(report.as_json(leaderboard.as_json(rows)), file=options.output)
    else:
        if options.random is not None:
            report.print_table("What was drawn", ("", "programs"), leaderboard.distribution(rows))
        report.print_table(f"{len(subjects)} programs", *leaderboard.table(rows, leaderboard.FEW))
        counts = leaderboard.outcomes(rows)
        print(f"refused, as nothing could fail on them: {counts['refused']}; broken: {counts['broken']}")
        print(f"results: {(options.out / 'leaderboard.md').resolve()}")
    return all(row["outcome"] in ("exact", "refused") for row in rows)


def _use_one_thread() -> None:
    """Compiled models are so small that threads wait for each other longer than they work."""
    import torch

    torch.set_num_threads(1)


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse what `_write_outputs` could not write, before the work begins."""
    from edgeprune.store import check_writable

    for path in filter(None, (options.picture, options.report, options.save)):
        check_writable(path)
    if options.picture is not None:
        from edgeprune.draw import check_format

        check_format(options.picture)


def _write_outputs(options: argparse.Namespace, recovery: "Recovery") -> None:
    """Write the picture and the page that were asked for, and say where they are."""
    stream = sys.stderr if options.json else sys.stdout
    if options.picture is not None:
        from edgeprune.draw import save_figure
        from tracr_bridge.page import recovery_figure

        save_figure(recovery_figure(recovery), options.picture)
        print(f"picture: {options.picture.resolve()}", file=stream)
    if options.save is not None:
        from edgeprune.store import save_circuit

        save_circuit(recovery.discovery.circuit, options.save)
        print(f"circuit: {options.save.resolve()}", file=stream)
    if options.report is not None:
        from tracr_bridge.page import write_page

        write_page(recovery, options.report)
        print(f"report: {options.report.resolve()}", file=stream)


if __name__ == "__main__":
    sys.exit(main())
