"""Would the suite notice? Plants one bug at a time in a copy of the packages, and runs the tests until one fails.

    python tests/mutants/run_mutants.py                          the table: bug, first test that fails
    python tests/mutants/run_mutants.py --only "1 - z for z"     one of them
    python tests/mutants/run_mutants.py --file edgeprune/models --tests tests/models/test_export.py
                                                                 those planted there, and those tests alone

Exit status 1 if a bug survives.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
COPIED = ("edgeprune", "tracr_bridge", "programs", "tests", "examples", "_edgeprune_pytest.py", "pyproject.toml")
SUITE = (
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
    "tests/models/test_polish.py", "tests/models/test_trained.py", "tests/models/test_toy.py",
    "tests/models/test_language_commands.py", "tests/models/test_parallel.py",
    "tests/models/test_export.py", "tests/recovery/test_discoveries.py",
    "programs/hist.py", "programs/xproportion.py", "programs/seldom_together.py",
)  # fmt: skip
"""What is run, quickest first: part of what plain `pytest` runs."""

OWN = {
    "_edgeprune_pytest": "tests/plugin/test_plugin.py",
    "edgeprune/checkpoint": "tests/unit/test_checkpoint.py",
    "edgeprune/folders": "tests/unit/test_folders.py",
    "edgeprune/store": "tests/property/test_readers.py",
    "tracr_bridge/exported": "tests/property/test_readers.py",
    "tracr_bridge/report": "tests/unit/test_cli.py",
    "tracr_bridge/schemas": "tests/property/test_readers.py",
    "edgeprune/methods/edge_pruning/standing": "tests/unit/test_checkpoint.py",
    "edgeprune/data": "tests/unit/test_isolation.py",
    "edgeprune/graph": "tests/unit/test_graph.py",
    "edgeprune/formats": "tests/unit/test_formats.py",
    "edgeprune/dry_run": "tests/models/test_dry_run.py",
    "edgeprune/toys": "tests/models/test_toy.py",
    "tracr_bridge/trained": "tests/models/test_trained.py",
    "tracr_bridge/subsets": "tests/models/test_trained.py",
    "tracr_bridge/bench": "tests/unit/test_bench.py",
    "tracr_bridge/weights": "tests/unit/test_compile.py",
    "edgeprune/methods/acdc": "tests/unit/test_peers.py",
    "edgeprune/methods/eap": "tests/unit/test_peers.py",
    "edgeprune/methods/hisp": "tests/unit/test_peers.py",
    "edgeprune/methods/subnetwork": "tests/unit/test_peers.py",
    "edgeprune/measures": "tests/unit/test_measures.py",
    "edgeprune/true_circuits": "tests/unit/test_true_circuit_files.py",
    "examples/verify_your_tool/score": "tests/unit/test_true_circuit_files.py",
    "edgeprune/user_code": "tests/unit/test_user_code.py",
    "edgeprune/layout": "tests/unit/test_pictures.py",
    "edgeprune/methods": "tests/unit/test_methods.py",
    "edgeprune/methods/edge_pruning": "tests/recovery/test_discoveries.py",
    "edgeprune/methods/loss": "tests/recovery/test_discoveries.py",
    "edgeprune/metrics": "tests/unit/test_metrics.py",
    "edgeprune/models/files": "tests/models/test_loading.py",
    "edgeprune/models/guard": "tests/models/test_loading.py",
    "edgeprune/models/load": "tests/models/test_loading.py",
    "edgeprune/models/gpt2": "tests/models/test_export.py",
    "edgeprune/models/llama": "tests/models/test_export.py",
    "edgeprune/models/transformer": "tests/models/test_export.py",
    "tracr_bridge/transplant": "tests/models/test_export.py",
    "edgeprune/models": "tests/models/test_transformers.py",
    "edgeprune/wide_stream": "tests/models/test_transformers.py",
    "edgeprune/answers": "tests/models/test_tasks.py",
    "edgeprune/tasks": "tests/models/test_tasks.py",
    "edgeprune/evaluate": "tests/models/test_pruning_run.py",
    "edgeprune/parallel": "tests/models/test_parallel.py",
    "edgeprune/models/sharded": "tests/models/test_parallel.py",
    "edgeprune/methods/circuit_loss": "tests/models/test_polish.py",
    "edgeprune/methods/polish": "tests/models/test_polish.py",
    "edgeprune/methods/greedy_elimination": "tests/unit/test_peers.py",
    "edgeprune/ranking": "tests/unit/test_ranking.py",
    "edgeprune/outcome": "tests/models/test_language_commands.py",
    "edgeprune/pruning_run": "tests/models/test_pruning_run.py",
    "edgeprune/compare": "tests/models/test_compare.py",
    "edgeprune/methods/edge_pruning/optimizer": "tests/models/test_pruning_run.py",
    "edgeprune/methods/edge_pruning/gradient": "tests/models/test_pruning_run.py",
    "tracr_bridge/results": "tests/unit/test_bench.py",
    "tracr_bridge/model": "tests/property/test_model.py",
    "tracr_bridge/compile": "tests/unit/test_compile.py",
    "tracr_bridge/verify": "tests/unit/test_verify.py",
    "tracr_bridge/truth": "tests/unit/test_truth.py",
    "tracr_bridge/behaviours": "tests/property/test_true_circuits.py",
    "tracr_bridge/elimination": "tests/unit/test_truth.py",
    "tracr_bridge/judge": "tests/unit/test_judge.py",
    "tracr_bridge/check_certificate": "tests/unit/test_check_certificate.py",
    "edgeprune/groups": "tests/unit/test_groups.py",
    "edgeprune/methods/edge_pruning/final_check": "tests/unit/test_groups.py",
    "edgeprune/masks": "tests/property/test_masks.py",
    "tracr_bridge/recover": "tests/unit/test_truth.py",
    "tracr_bridge/suite": "tests/unit/test_suite.py",
    "tracr_bridge/writer": "tests/recovery/test_random_programs.py",
    "edgeprune/fingerprints": "tests/unit/test_fingerprints.py",
}
"""What is run before all else, by where the bug is: the order alone, to be done sooner."""

SLICE = (
    "q and k swapped", "a mean divided twice", "a threshold that keeps one entry more",
    "the edges that score lowest kept", "GPT-2 sees what is later", "queries of Llama not scaled",
    "fingerprints are sums of products", "a lock that is held by nobody", "a pair between the first few never run",
    "a tolerance of layers ten times as wide",
)  # fmt: skip
"""Bugs of every part that are noticed within minutes, for all checks to plant."""

SECONDS = 1800
"""After which a run is given up; the code as it is takes a fraction of it."""


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


def first_failure(mutant: Mutant | None, code: Path, *, tests: Sequence[str] | None = None) -> str | None:
    """The first test that fails with the bug planted; None if all pass.

    Args:
        mutant: the bug; None for the code as it is.
        code: what `copy_of_the_code` made.
        tests: what is run; by default the suite, those that are about the file first.

    Raises:
        subprocess.TimeoutExpired: nothing had failed after `SECONDS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "code"
        shutil.copytree(code, copy)
        if mutant is not None:
            file = copy / mutant.file
            file.write_text(mutant.apply(file.read_text()))
        own = [tests for where, tests in OWN.items() if mutant is not None and mutant.file.startswith(where)]
        suite = tests or dict.fromkeys([*own, *SUITE])
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0", *suite]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment["OMP_NUM_THREADS"] = "1"  # several run at once
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    if done.returncode == 0:
        return None
    # An error without a test's name is of a file that cannot be imported: no test noticed anything.
    found = re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - |$)", done.stdout, re.MULTILINE)
    assert found is not None, f"no test was run:\n{done.stdout}\n{done.stderr}"
    return found[1]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, files = ([getattr(mutant, part) for mutant in MUTANTS] for part in ("name", "file"))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="these bugs")
    parser.add_argument("--file", nargs="+", default=files, help="bugs planted in these files, or below these folders")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="run these tests, in place of the suite")
    parser.add_argument("--slice", action="store_true", help="ten bugs, where tests have passed without any")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once (default: %(default)s)")
    options = parser.parse_args()
    chosen = [each for each in MUTANTS if each.name in options.only and each.file.startswith(tuple(options.file))]
    if options.slice:
        chosen = [each for each in MUTANTS if each.name in SLICE]
    if not chosen:
        parser.error(f"no bug is planted in {' or '.join(options.file)}")
    killed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        code = copy_of_the_code(Path(folder))
        noticed = partial(first_failure, code=code, tests=options.tests)
        unplanted = None if options.slice else pool.submit(noticed, None)
        print("| bug | first test that fails |\n|---|---|", flush=True)
        failures = tqdm(pool.map(noticed, chosen), total=len(chosen), disable=None)
        for mutant, failure in zip(chosen, failures, strict=True):
            tqdm.write(f"| {mutant.name} | {failure or '**none**'} |")
            sys.stdout.flush()
            killed += failure is not None
        if unplanted is not None and (failure := unplanted.result()) is not None:
            print(f"\nNone of this counts: without any bug, {failure} fails too")
            return 1
    print(f"\n{killed} of {len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
