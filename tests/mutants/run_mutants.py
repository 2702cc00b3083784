"""Would the suite notice? Plants one bug at a time in a copy of the packages, and runs the tests until one fails.

    python tests/mutants/run_mutants.py                          the table: bug, file, first test that fails
    python tests/mutants/run_mutants.py --out docs/planted-bugs.md
                                                                 written to a file too
    python tests/mutants/run_mutants.py --only "1 - z for z"     one of them
    python tests/mutants/run_mutants.py --file edgeprune/models --tests tests/models/test_export.py
                                                                 those planted there, and those tests alone

`noticed.json` has the test that failed last time, bug by bug. That test is run first; where it passes, or is no more,
the files most about the bug's file are run, then all others. The command writes what failed to it as it goes. A bug
counts as noticed only where a test fails in the run at hand, and passes without the bug.

POSIX only. Exit status 1 if a bug survives.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from forked import run_pytest, start
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
COPIED = ("edgeprune", "tracr_bridge", "programs", "tests", "examples", "_edgeprune_pytest.py", "pyproject.toml")
SUITE = (
    "tests/unit/test_stream.py", "tests/unit/test_weights.py", "tests/unit/test_scales.py",
    "tests/unit/test_losses.py", "tests/unit/test_found.py", "tests/unit/test_custom.py",
    "tests/unit/test_pruning_parts.py", "tests/unit/test_pruning_settings.py", "tests/unit/test_pruning_memory.py",
    "tests/unit/test_pruning_engine.py", "tests/unit/test_polish_steps.py", "tests/unit/test_subject.py",
    "tests/unit/test_elimination.py", "tests/unit/test_subsets.py", "tests/unit/test_schemas.py",
    "tests/unit/test_suite_reports.py", "tests/unit/test_certificate_folder.py", "tests/unit/test_known.py",
    "tests/models/test_task_parts.py", "tests/unit/test_circuit.py", "tests/unit/test_run_folder.py",
    "tests/property/test_masks.py", "tests/property/test_circuits.py", "tests/unit/test_graph.py",
    "tests/unit/test_ablation.py", "tests/unit/test_store_and_draw.py", "tests/property/test_model.py",
    "tests/unit/test_compile.py", "tests/unit/test_verify.py", "tests/unit/test_judge.py",
    "tests/unit/test_fingerprints.py", "tests/property/test_true_circuits.py", "tests/unit/test_behaviours.py",
    "tests/unit/test_truth.py", "tests/unit/test_check_certificate.py", "tests/unit/test_groups.py",
    "tests/unit/test_methods.py", "tests/unit/test_suite.py", "tests/unit/test_ranking.py",
    "tests/unit/test_measures.py", "tests/unit/test_metrics.py", "tests/unit/test_seeds.py",
    "tests/unit/test_asked.py", "tests/unit/test_boundaries.py", "tests/unit/test_isolation.py",
    "tests/unit/test_hard_pairs.py", "tests/unit/test_peers.py", "tests/unit/test_true_circuit_files.py",
    "tests/unit/test_user_code.py", "tests/unit/test_pictures.py", "tests/property/test_readers.py",
    "tests/models/test_export_boundaries.py", "tests/models/test_transformers.py", "tests/models/test_loading.py",
    "tests/models/test_tokenizers.py", "tests/models/test_dry_run.py", "tests/models/test_tasks.py",
    "tests/models/test_pruning_run.py", "tests/unit/test_bench.py",
    "tests/models/test_paper_step.py", "tests/models/test_exported_path.py", "tests/models/test_compare.py",
    "tests/unit/test_api.py", "tests/models/test_python_api.py",
    "tests/models/test_polish.py", "tests/models/test_trained.py", "tests/models/test_toy.py",
    "tests/models/test_language_commands.py", "tests/models/test_parallel.py",
    "tests/models/test_export.py", "tests/recovery/test_discoveries.py",
    "programs/hist.py", "programs/xproportion.py", "programs/seldom_together.py",
)  # fmt: skip
"""What is run, quickest first: part of what plain `pytest` runs."""

OWN = {
    "_edgeprune_pytest": "tests/plugin/test_plugin.py",
    "edgeprune/files/checkpoint": "tests/unit/test_checkpoint.py",
    "edgeprune/files/folders": "tests/unit/test_folders.py",
    "edgeprune/files/store": "tests/property/test_readers.py",
    "tracr_bridge/checkpoints/read_back": "tests/property/test_readers.py",
    "tracr_bridge/recovery/summary": "tests/unit/test_cli.py",
    "tracr_bridge/checkpoints/schemas": "tests/property/test_readers.py",
    "edgeprune/methods/edge_pruning/standing": "tests/unit/test_checkpoint.py",
    "edgeprune/api": "tests/unit/test_api.py",
    "edgeprune/data": "tests/unit/test_isolation.py",
    "edgeprune/graph": "tests/unit/test_graph.py",
    "edgeprune/files/other_tools": "tests/unit/test_formats.py",
    "edgeprune/runs/dry_run": "tests/models/test_dry_run.py",
    "edgeprune/toys": "tests/models/test_toy.py",
    "tracr_bridge/certify/trained_models": "tests/models/test_trained.py",
    "tracr_bridge/certify/subsets": "tests/models/test_trained.py",
    "tracr_bridge/bench/run": "tests/unit/test_bench.py",
    "tracr_bridge/compile/weights": "tests/unit/test_compile.py",
    "edgeprune/methods/acdc": "tests/unit/test_peers.py",
    "edgeprune/methods/eap": "tests/unit/test_peers.py",
    "edgeprune/methods/hisp": "tests/unit/test_peers.py",
    "edgeprune/methods/subnetwork": "tests/unit/test_peers.py",
    "edgeprune/evaluation/measures": "tests/unit/test_measures.py",
    "edgeprune/metrics/overlap": "tests/unit/test_measures.py",
    "edgeprune/files/true_circuits": "tests/unit/test_true_circuit_files.py",
    "examples/verify_your_tool/score": "tests/unit/test_true_circuit_files.py",
    "edgeprune/user_code": "tests/unit/test_user_code.py",
    "edgeprune/pictures/layout": "tests/unit/test_pictures.py",
    "edgeprune/methods": "tests/unit/test_methods.py",
    "edgeprune/methods/edge_pruning": "tests/recovery/test_discoveries.py",
    "edgeprune/methods/loss": "tests/recovery/test_discoveries.py",
    "edgeprune/metrics/distances": "tests/unit/test_metrics.py",
    "edgeprune/models/unsupported": "tests/models/test_loading.py",
    "edgeprune/models/guard": "tests/models/test_loading.py",
    "edgeprune/models/load": "tests/models/test_loading.py",
    "edgeprune/models/gpt2": "tests/models/test_export.py",
    "edgeprune/models/llama": "tests/models/test_export.py",
    "edgeprune/models/transformer": "tests/models/test_export.py",
    "tracr_bridge/checkpoints/transplant": "tests/models/test_export.py",
    "edgeprune/models": "tests/models/test_transformers.py",
    "edgeprune/streams/by_source": "tests/models/test_transformers.py",
    "edgeprune/metrics/answers": "tests/models/test_tasks.py",
    "edgeprune/tasks": "tests/models/test_tasks.py",
    "edgeprune/evaluation/evaluate": "tests/models/test_pruning_run.py",
    "edgeprune/parallel": "tests/models/test_parallel.py",
    "edgeprune/models/sharded": "tests/models/test_parallel.py",
    "edgeprune/methods/circuit_loss": "tests/models/test_polish.py",
    "edgeprune/methods/polish": "tests/models/test_polish.py",
    "edgeprune/methods/greedy_elimination": "tests/unit/test_peers.py",
    "edgeprune/methods/ranking": "tests/unit/test_ranking.py",
    "edgeprune/runs/outcome": "tests/models/test_language_commands.py",
    "edgeprune/runs/prune": "tests/models/test_pruning_run.py",
    "edgeprune/runs/compare": "tests/models/test_compare.py",
    "edgeprune/methods/edge_pruning/optimizer": "tests/models/test_pruning_run.py",
    "edgeprune/methods/edge_pruning/gradient": "tests/models/test_pruning_run.py",
    "tracr_bridge/bench/results": "tests/unit/test_bench.py",
    "tracr_bridge/compile/model": "tests/property/test_model.py",
    "tracr_bridge/compile/compile": "tests/unit/test_compile.py",
    "tracr_bridge/compile/verify": "tests/unit/test_verify.py",
    "tracr_bridge/certify/truth": "tests/unit/test_truth.py",
    "tracr_bridge/certify/behaviours": "tests/property/test_true_circuits.py",
    "tracr_bridge/certify/elimination": "tests/unit/test_truth.py",
    "tracr_bridge/certify/faithfulness": "tests/unit/test_judge.py",
    "tracr_bridge/certify/check_certificate": "tests/unit/test_check_certificate.py",
    "edgeprune/groups": "tests/unit/test_groups.py",
    "edgeprune/methods/edge_pruning/final_check": "tests/unit/test_groups.py",
    "edgeprune/masks": "tests/property/test_masks.py",
    "tracr_bridge/recovery/recover": "tests/unit/test_truth.py",
    "tracr_bridge/recovery/pytest_checks": "tests/unit/test_suite.py",
    "tracr_bridge/random_programs/expressions": "tests/recovery/test_random_programs.py",
    "edgeprune/fingerprints": "tests/unit/test_fingerprints.py",
}
"""What is run before all else, by where the bug is: the order alone, to be done sooner."""

SECONDS = 1800
"""After which a run is given up; the code as it is takes a fraction of it."""

NOTICED = Path(__file__).with_name("noticed.json")
"""The test that failed last time, by the bug's name."""


@dataclass(frozen=True)
class Mutant:
    """A planted bug."""

    name: str
    file: str
    before: str
    """What stands in the file, exactly once."""

    after: str

    def apply(self, text: str) -> str:
        """The file's text with the bug in it."""
        assert text.count(self.before) == 1, f"{self.name}: expected once in {self.file}: {self.before!r}"
        return text.replace(self.before, self.after)


MUTANTS = [
    Mutant(**planted) for planted in tomllib.loads((Path(__file__).parent / "planted.toml").read_text())["mutant"]
]


def copy_of_the_code(folder: Path) -> Path:
    """A copy of what the tests need, which further editing does not change."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "mutants"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@contextmanager
def planted(mutant: Mutant, code: Path) -> Generator[Path]:
    """A further copy of a copy, with the bug in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "code"
        shutil.copytree(code, copy)
        file = copy / mutant.file
        file.write_text(mutant.apply(file.read_text()))
        yield copy


def in_order(mutant: Mutant) -> list[str]:
    """All files of tests, those that are most about the bug's file first."""
    own = sorted((where for where in OWN if mutant.file.startswith(where)), key=len, reverse=True)
    return list(dict.fromkeys([*(OWN[where] for where in own), *SUITE]))


def first_failure(
    mutant: Mutant, code: Path, *, tests: Sequence[str] | None = None, recorded: str | None = None
) -> str | None:
    """The first test that fails with the bug planted; None if all pass.

    Args:
        mutant: the bug.
        code: what `copy_of_the_code` made.
        tests: what is run, in place of the suite and of what is recorded.
        recorded: the test to run first, which may be one that is no more.

    Raises:
        TimeoutError: nothing had failed after `SECONDS`.
    """
    with planted(mutant, code) as copy:
        if recorded is not None and tests is None:
            ran = run_pytest(copy, ["-x", recorded], seconds=SECONDS)
            if ran.failed:
                return ran.failed[0]
        for chosen in [[file] for file in in_order(mutant)] if tests is None else [tests]:
            ran = run_pytest(copy, ["-x", *chosen], seconds=SECONDS)
            if ran.failed:
                return ran.failed[0]
            # An error without a test's name is of a file that cannot be imported: no test noticed anything.
            assert ran.status == 0, f"{mutant.name}: no test was run:\n{ran.said}"
    return None


def write(file: Path, text: str) -> None:
    """Replace a file's text at once: what is there is whole."""
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_text(text)
    unfinished.replace(file)


class Noticed:
    """The test that failed last time, bug by bug: what is run first."""

    def __init__(self, file: Path | None = None):
        self.file = file = file or NOTICED
        self.tests: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}

    def record(self, mutant: Mutant, test: str) -> None:
        """Write down what failed; bugs that are planted no more are left out, those that now survive are not."""
        found = {**self.tests, mutant.name: test}
        self.tests = {each.name: found[each.name] for each in MUTANTS if each.name in found}
        write(self.file, json.dumps(self.tests, indent=1, ensure_ascii=False) + "\n")


def row(mutant: Mutant, failure: str | None) -> str:
    """One of the table."""
    cells = (mutant.name, f"`{mutant.file}`", "**none**" if failure is None else f"`{failure}`")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command was asked, with the chosen bugs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, files = ([getattr(mutant, part) for mutant in MUTANTS] for part in ("name", "file"))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="these bugs")
    parser.add_argument("--file", nargs="+", default=files, help="bugs planted in these files, or below these folders")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="run these tests, in place of the suite")
    parser.add_argument("--slice", action="store_true", help="those alone that were noticed last time: minutes")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to a file of Markdown, too")
    options = parser.parse_args(arguments)
    options.bugs = [each for each in MUTANTS if each.name in options.only and each.file.startswith(tuple(options.file))]
    if options.slice:
        options.bugs = [each for each in options.bugs if each.name in Noticed().tests]
    if not options.bugs:
        parser.error(f"no bug is planted in {' or '.join(options.file)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    options = options_of(arguments)
    noticed, failures, rows = Noticed(), [], ["| bug | file | first test that fails |", "|---|---|---|"]
    start()
    print(*rows, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        code = copy_of_the_code(Path(folder))
        recorded = [noticed.tests.get(mutant.name) for mutant in options.bugs]
        find = partial(_find, code=code, tests=options.tests)
        for mutant, failure in zip(
            options.bugs, tqdm(pool.map(find, options.bugs, recorded), total=len(recorded), disable=None), strict=True
        ):
            rows.append(row(mutant, failure))
            tqdm.write(rows[-1])
            sys.stdout.flush()
            failures += [] if failure is None else [failure]
            if failure is not None and options.tests is None:
                noticed.record(mutant, failure)
        # A test that fails without a bug, too, notices none.
        unplanted = run_pytest(code, sorted(set(failures)), seconds=SECONDS) if failures else None
    if unplanted is not None and unplanted.status != 0:
        print(f"\nNone of this counts: without any bug, {', '.join(unplanted.failed) or unplanted.said} fails too")
        return 1
    count = f"{len(failures)} of {len(rows) - 2} killed"
    print(f"\n{count}")
    if options.out is not None:
        asked = sys.argv[1:] if arguments is None else arguments
        command = shlex.join(["python", "tests/mutants/run_mutants.py", *asked])
        write(options.out, "\n".join(["# Planted bugs", "", "```", command, "```", "", *rows, "", count, ""]))
    return 0 if len(failures) == len(options.bugs) else 1


def _find(mutant: Mutant, recorded: str | None, *, code: Path, tests: Sequence[str] | None) -> str | None:
    return first_failure(mutant, code, tests=tests, recorded=recorded)


if __name__ == "__main__":
    sys.exit(main())
