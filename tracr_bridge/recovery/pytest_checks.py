"""The checks that the pytest plugin runs on every program; each program is compiled and certified once a session."""

import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Final

from edgeprune.errors import UnknownProgram
from edgeprune.graph import Ablation, edge_names, parse_ablation
from edgeprune.methods import Discovery, find_method
from edgeprune.methods.custom import time_limit
from tracr_bridge.certify import check_certificate
from tracr_bridge.certify.certificate_folder import save_certificate
from tracr_bridge.certify.truth import Truth
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.compile.compile import Compiled, compile_program
from tracr_bridge.compile.program import Program
from tracr_bridge.compile.verify import verify
from tracr_bridge.recovery.known_models import certify
from tracr_bridge.recovery.recover import Assessment, assess, effects

_AFFORDABLE: Final = ("--subsets", "16384", "--rows", "200000")
"""Limits on the checker's subsets and masked inputs: below its defaults, because it runs on every program."""


class CheckFailed(AssertionError):
    """A check failed; the message is the whole report."""


class Suite:
    """Compiles and certifies programs and runs a method on them; compiled programs and truths are cached.

    A program is given as a `Program`, or by its name on the command line.

    Args:
        method: a name in the registry, or `package.module:function`.
        seconds: time limit of one discovery.
        load: returns the program of a name.
    """

    def __init__(
        self,
        method: str = "edge-pruning-minimax",
        *,
        seconds: float = float("inf"),
        load: Callable[[str], Program] = load_program,
    ) -> None:
        self.method, self._seconds, self._load = method, seconds, load
        self._discover = find_method(method)
        self._compiled: dict[Program, Compiled] = {}
        self._truths: dict[tuple[Program, Ablation], Truth] = {}

    def compiled(self, program: object) -> Compiled:  # a test may pass anything
        """Return the compiled program.

        Raises:
            EdgePruneError: there is no such program, or it is unusable.
        """
        program = self._load(program) if isinstance(program, str) else program
        if not isinstance(program, Program):
            raise UnknownProgram(
                f"Expected a program, its name or path/to/file.py:name; got {type(program).__name__}: a function is a "
                "program once @rasp_program(vocab=..., max_seq_len=...) stands above it"
            )
        program.check()  # a faulty program may be unhashable
        if program not in self._compiled:
            self._compiled[program] = compile_program(program)
        return self._compiled[program]

    def truth(self, program: object, ablation: str) -> Truth:
        """Return the program's certified truth.

        Raises:
            UnknownAblation: there is no such ablation.
            DegenerateProgram: no method could fail on the program under this ablation.
        """
        carried, compiled = parse_ablation(ablation), self.compiled(program)
        key = (compiled.program, carried)
        if key not in self._truths:
            self._truths[key] = certify(compiled, carried)
        return self._truths[key]

    def discover(self, program: Program | str, ablation: Ablation, *, seed: int = 0) -> Discovery:
        """Run the method within its time limit, and return what it found.

        Raises:
            MethodError: the method raised, took too long, or returned what no method may return.
        """
        compiled = self.compiled(program)
        with time_limit(self._seconds, self.method):
            return self._discover(compiled.model, compiled.dataset, ablation, seed=seed)

    def recover(self, program: Program | str, ablation: Ablation, *, seed: int = 0) -> Assessment:
        """Run the method, and compare the circuit that it found with the truth."""
        truth = self.truth(program, ablation)
        return assess(truth, self.discover(program, ablation, seed=seed).circuit)

    def check_verify(self, program: Program) -> None:
        """Check that RASP, Tracr's model and the PyTorch model agree.

        Raises:
            CheckFailed: they differ.
        """
        verification = verify(self.compiled(program))
        if not verification.equal:
            listed = "\n".join(f"  {text}" for text in verification.mismatches)
            raise CheckFailed(f"{program.name}: RASP, Tracr's model and PyTorch differ\n{listed}")

    def check_truth(self, program: Program, ablation: Ablation) -> None:
        """Check that every certified circuit is true and within the structural edges, and that its certificate holds.

        The code that made the certificate does not run again: `check_certificate.py` proves it anew from its folder.

        Raises:
            CheckFailed: a certified statement does not hold.
        """
        truth = self.truth(program, ablation)
        for circuit in truth.certificate.circuits:
            if not circuit.edges <= truth.structural:
                stray = ", ".join(edge_names(circuit.graph, circuit.edges - truth.structural))
                raise CheckFailed(
                    f"{program.name}, {ablation}: a true circuit has edges that can carry nothing: {stray}"
                )
        if wrong := refused(truth, self.compiled(program)):
            listed = "\n".join(f"  {text}" for text in wrong)
            raise CheckFailed(f"{program.name}, {ablation}: what is certified does not hold\n{listed}")

    def check_recovery(self, program: Program, ablation: Ablation, *, seed: int, spec: str) -> None:
        """Check that the method finds a true circuit exactly.

        Args:
            program: the program to recover.
            ablation: what removed edges carry.
            seed: the method's seed.
            spec: the program's name on the command line, for the command that reproduces a failure.

        Raises:
            CheckFailed: it does not; the message lists missing and extra edges with their effects.
        """
        assessment = self.recover(program, ablation, seed=seed)
        if not assessment.comparison.exact:
            arguments = [spec, "--ablation", ablation, "--method", self.method, "--seed", str(seed)]
            command = f"{_search_path(self.method)}edgeprune recover {shlex.join(arguments)}"
            raise CheckFailed(
                f"{_report(assessment, f'{self.method}, seed {seed}', program.name)}\nreproduce: {command}"
            )


def refused(truth: Truth, compiled: Compiled) -> list[str]:
    """Return what the independent checker finds wrong with a certificate, in words; empty if it accepts it."""
    with tempfile.TemporaryDirectory() as parent, redirect_stdout(StringIO()) as output:
        folder = Path(parent) / "certificate"
        save_certificate(truth, compiled, folder)
        code = check_certificate.main([str(folder), "--json", "--tolerance", str(truth.certificate.atol), *_AFFORDABLE])
    found: dict[str, list[str]] = json.loads(output.getvalue())["certificates"][str(folder)]
    wrong = [*found["refused"], *found["unusable"]]
    return wrong or ([] if code == 0 else ["it is refused without a reason"])


def _search_path(method: str) -> str:
    """Return the `PYTHONPATH=...` that a command needs to find a custom method's module; mostly empty."""
    module = sys.modules.get(method.partition(":")[0])
    file = getattr(module, "__file__", None)
    if ":" not in method or module is None or file is None:
        return ""
    parts = module.__name__.count(".") + (Path(file).name == "__init__.py")
    folder = Path(file).resolve().parents[parts]
    found_anyway = folder == Path.cwd() or folder.name in ("site-packages", "dist-packages")
    return "" if found_anyway else f"PYTHONPATH={shlex.quote(str(folder))} "


def _report(assessment: Assessment, method: str, name: str) -> str:
    """Return a report of missing and extra edges, each with its effect."""
    graph, comparison = assessment.found.graph, assessment.comparison
    certificate, measured = assessment.truth.certificate, effects(assessment)
    lines = [
        f"{name}, {assessment.found.ablation} ablation: {method}, found {len(assessment.found)} edges, not the true "
        f"{len(assessment.reference)} (certificate: {certificate.status})"
    ]
    kinds = {
        "missing": (comparison.missing, "without it the true circuit is off by"),
        "extra": (comparison.extra, "without it the circuit found is off by"),
    }
    for kind, (edges, says) in kinds.items():
        by_name = {str(edge): measured[edge] for edge in edges}
        lines += [f"  {kind}  {edge:<24} {says} {by_name[edge]:.3g}" for edge in edge_names(graph, edges)]
    return "\n".join(lines)
