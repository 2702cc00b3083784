"""Compare methods on a language model: how faithful their circuits are at equal size, and what finding them costs.

The comparison follows table 1 of arXiv:2406.16778. Edge Pruning gets a target sparsity; other methods then get as many
live edges as its circuit has. A scoring method keeps its highest-scoring edges. ACDC has a threshold: a bisection over
thresholds takes the first circuit of about that size, or else the nearest. `edge-pruning-polished` starts from the
`edge-pruning` circuit and ends at the requested size; if it is compared, all methods get the requested size.
`edge-pruning-minimax` chooses its own size, and has one row. Every method has one configuration for all models and
tasks, sees only the training split, and is measured on the test split.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.data import Dataset
from edgeprune.errors import ConfigError, RunError, TaskError
from edgeprune.files.folders import clear, is_unused
from edgeprune.files.schemas import load
from edgeprune.files.store import SavedCircuit, UnwritableFile, save_circuit, versions, write_json, write_text
from edgeprune.graph import Circuit
from edgeprune.masks import circuit_mask, edge_exists, live_circuit
from edgeprune.methods import Discovery, Method, find_method
from edgeprune.methods.acdc import AcdcConfig, remove_greedily
from edgeprune.methods.baselines import draw_scores
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import PATHS, integrate_gradients
from edgeprune.methods.edge_pruning import configurations
from edgeprune.methods.edge_pruning.engine import circuit_loss, problem_of, prune_edges
from edgeprune.methods.greedy_elimination import GreedyConfig, eliminate
from edgeprune.methods.method import sizes
from edgeprune.methods.polish import Goal, Polish, PolishConfig, polish
from edgeprune.methods.ranking import keep_most_alive
from edgeprune.methods.settings import with_settings
from edgeprune.metrics.conventions import noted
from edgeprune.parallel import join, sole_writer
from edgeprune.pictures.draw import save_figure
from edgeprune.runs.compare_table import MINIMAX, POLISHED, PRUNING, ComparedRow, cells, draw, markdown
from edgeprune.runs.config import ModelOnTask, RunConfig, load_model_on_task

ACDC: Final = "acdc"

_ACDC: Final = AcdcConfig(logit_scale=1.0, inputs=10**9, at_once=1, batch_size=32)
"""Uses all examples, and decides one edge per forward pass: a language model fills a forward pass by itself."""

_SCORING: Final[Mapping[str, tuple[Callable[..., Discovery], Any]]] = {
    "eap": (attribution_patching, EapConfig(batch_size=32)),
    **{
        name: (integrate_gradients, replace(config, logit_scale=1.0, steps=5, batch_size=32))
        for name, config in PATHS.items()
    },
    "greedy-elimination": (eliminate, GreedyConfig(logit_scale=1.0)),
    "random": (draw_scores, None),
}
"""The registry's settings, except for logits without scaling, the five steps of EAP-IG's paper, and smaller batches."""

COMPARED_METHODS: Final = (PRUNING, POLISHED, MINIMAX, ACDC, *_SCORING)

_THRESHOLDS: Final = (1e-6, 1e2)
"""Smallest and largest ACDC threshold that is searched, nats."""

_SEARCHES: Final = 8
"""Maximum number of ACDC runs for each size."""

_NEAR: Final = 0.02
"""Allowed deviation of ACDC's circuit from the requested size, as a share of it; one edge is always allowed."""

_FORMAT: Final = "edgeprune comparison 3"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of a comparison; `examples` and `targets` replace the training examples and the sparsity of `run`.

    Raises:
        ConfigError: `methods`, `targets` or `examples` is empty, repeats a value or has an invalid one; or batches run
            in parts.
        UnknownMethod: a custom method, `package.module:function`, does not exist.
    """

    run: RunConfig
    methods: tuple[str, ...] = (PRUNING, ACDC, "eap", "eap-ig-inputs", "eap-ig-activations")
    targets: tuple[float, ...] = (0.8, 0.9, 0.95)
    """Target sparsities of Edge Pruning; without Edge Pruning, the sparsities of all other methods."""

    examples: tuple[int, ...] = (200,)
    """Numbers of training examples; every method runs with each."""

    def __post_init__(self) -> None:
        for name in ("methods", "targets", "examples"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"Expected different {name}, at least one; got {', '.join(map(str, values)) or 'none'}"
                )
        for name in self.methods:
            if name not in COMPARED_METHODS and ":" not in name:
                raise ConfigError(
                    f"Expected a method among {', '.join(COMPARED_METHODS)}, or package.module:function; got {name!r}"
                )
            if ":" in name:
                find_method(name)
        if self.run.parts > 1:
            raise ConfigError(f"Expected batches in one part, as methods run here; got {self.run.parts} parts")
        for target in self.targets:
            with_settings(self.run.pruning, {"target_sparsity": target})  # raises ConfigError if it is not a sparsity
        for count in self.examples:
            replace(self.run.sizes, train=count)

    def of(self, examples: int) -> RunConfig:
        """Return the run's settings with this number of training examples."""
        return replace(self.run, sizes=replace(self.run.sizes, train=examples))


@dataclass(frozen=True)
class _Found:
    circuit: Circuit
    scores: Float[Tensor, "source destination"]
    seconds: float
    config: dict[str, Any]
    """Settings that were passed to the method; empty if none were."""

    runs: int = 1
    signed: bool = False
    """Whether edges are ranked by the absolute value of their scores; see `Discovery`."""

    @property
    def strength(self) -> Float[Tensor, "source destination"]:
        """Scores by which edges are ranked."""
        return sizes(self.scores) if self.signed else self.scores


@dataclass
class _Bench:
    """Runs and times methods on one training set; a run that serves several sizes is made once."""

    subject: ModelOnTask
    config: RunConfig
    progress: bool
    _learned: dict[float, _Found] = field(default_factory=dict)
    _scored: dict[str, _Found] = field(default_factory=dict)
    _cut: dict[float, _Found] = field(default_factory=dict)

    @property
    def _train(self) -> Dataset:
        return self.subject.splits["train"]

    def run(self, method: Method | Callable[..., Discovery], config: Any = None) -> _Found:
        """Run a method with `config`, or with its own defaults.

        Raises:
            RunError: a score is NaN or plus infinity.
        """
        settings = {} if config is None else {"config": config}
        begin = time.perf_counter()
        found = method(
            self.subject.model,
            self._train,
            self.config.ablation,
            seed=self.config.seed,
            progress=self.progress,
            **settings,
        )
        seconds = time.perf_counter() - begin
        if not (found.scores.isfinite() | (found.scores == -math.inf))[edge_exists(found.circuit.graph)].all():
            raise RunError("Expected scores that are numbers, or minus infinity for edges that are gone; got others")
        settings = {} if config is None else asdict(config)
        return _Found(found.circuit, found.scores, seconds, settings, signed=found.signed)

    def found(self, name: str, target: float, edges: int) -> _Found:
        """Return a method's result: at a target sparsity, at a size of its own choice, or with `edges` edges."""
        if name in (PRUNING, POLISHED):
            if target not in self._learned:
                config = with_settings(self.config.pruning, {"target_sparsity": target})
                self._learned[target] = self.run(prune_edges, config)
            return self._polished(self._learned[target], edges) if name == POLISHED else self._learned[target]
        if name == MINIMAX:
            return self.run(prune_edges, configurations.MINIMAX)
        return self.of_size(name, edges)

    def _polished(self, found: _Found, edges: int) -> _Found:
        """Polish a circuit; the result has at most `edges` edges."""
        begin, config, pruning = time.perf_counter(), PolishConfig(), self.config.pruning
        problem = problem_of(self.subject.model, self._train, self.config.ablation, pruning)
        loss = circuit_loss(problem, pruning, self.config.seed)
        run = Polish(loss, Goal(edges=edges), circuit_mask(found.circuit) > 0, config)
        polish(run, progress=self.progress)
        settings = found.config | {"polish": asdict(config)}
        seconds = found.seconds + time.perf_counter() - begin
        return replace(found, circuit=run.circuit(self.config.ablation), seconds=seconds, config=settings)

    def of_size(self, name: str, edges: int) -> _Found:
        """Return the result of any other method, with `edges` live edges or as near as it comes."""
        if name == ACDC:
            return self._cut_to(edges)
        if name not in self._scored:
            self._scored[name] = self.run(*_SCORING[name]) if name in _SCORING else self.run(find_method(name))
        found = self._scored[name]
        exists = edge_exists(found.circuit.graph)
        if len(found.strength[exists].unique()) < 3 < int(exists.sum()):
            raise RunError(
                f"Expected scores by which edges can be ranked, so that any number of them can be kept; {name!r} gave "
                "at most two values, as of a circuit"
            )
        kept = keep_most_alive(found.circuit.graph, found.strength, edges)
        return replace(found, circuit=live_circuit(found.circuit.graph, self.config.ablation, kept))

    def _cut_to(self, edges: int) -> _Found:
        """Return ACDC's circuit at the first threshold of a bisection that gives about `edges` edges, or the nearest.

        Bisections for all sizes use the same grid of thresholds, so each threshold is run only once.
        """
        low, high = _THRESHOLDS
        used = list[_Found]()
        for _ in range(_SEARCHES):
            threshold = math.sqrt(low * high)
            if threshold not in self._cut:
                self._cut[threshold] = self.run(remove_greedily, replace(_ACDC, threshold=threshold))
            used.append(found := self._cut[threshold])
            if abs(len(found.circuit) - edges) <= max(1, _NEAR * edges):
                break
            low, high = (threshold, high) if len(found.circuit) > edges else (low, threshold)
        best = min(used, key=lambda found: abs(len(found.circuit) - edges))
        return replace(best, seconds=sum(found.seconds for found in used), runs=len(used))


def compare(
    comparison: CompareConfig, out: Path, *, device: str = "auto", check: bool = True, progress: bool = False
) -> list[ComparedRow]:
    """Run and measure every method. A second call resumes, and may add methods, targets or numbers of examples.

    Args:
        comparison: what to compare.
        out: the folder: `compare.json` has one row per circuit, `circuits/` all circuits, `compare.md` the table and
            `compare.svg` the plot.
        device: where the model runs.
        check: whether to check the loaded model against its files, as `load_model` does.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        RunError: the folder holds other files or another comparison; or a method's loss is not finite, or its scores
            are NaN or plus infinity, or do not rank edges.
        ModelError, TaskError: the model or the task cannot be loaded, or the task has too few examples.
        UnwritableFile: the folder cannot be written to.
    """
    with sole_writer(out, "the comparison"):
        return _compare(comparison, out, device=device, check=check, progress=progress and join().first)


def _compare(comparison: CompareConfig, out: Path, *, device: str, check: bool, progress: bool) -> list[ComparedRow]:
    """Do the work of `compare` in the locked folder."""
    ranks = join()
    book, rows = _Book(comparison, out, writes=ranks.first), list[ComparedRow]()
    ranks.wait()
    circuits = sum(1 if name == MINIMAX else len(comparison.targets) for name in comparison.methods)
    total = len(comparison.examples) * circuits
    with tqdm(total=total, desc="circuits", disable=None if progress else True) as bar:
        for examples in comparison.examples:
            run = comparison.of(examples)
            subject = load_model_on_task(run, ("train", "test"), device=device, check=check, progress=progress)
            if (count := len(subject.splits["train"])) < examples:
                raise TaskError(f"Expected {examples} training examples of {comparison.run.task!r}; it has {count}")
            book.check(subject, examples)
            for row in _rows(comparison, _Bench(subject, comparison.of(examples), progress), book):
                rows.append(row)
                bar.update()
    if ranks.first:
        notes = "".join(f"\n{note}\n" for note in noted(comparison.run.ablation).values())
        write_text(out / "compare.md", markdown(cells(comparison.run.task, rows)) + notes)
        save_figure(draw(rows), out / "compare.svg")
    ranks.wait()
    return rows


@dataclass(frozen=True)
class _Kept:
    """Content of `compare.json`."""

    format: str
    run: dict[str, Any]
    about: dict[str, str]
    """Digests of the weights, and of the task for each number of examples."""

    rows: list[ComparedRow]


class _Book:
    """The folder of a comparison, with the rows that are finished so far.

    Args:
        comparison: what to compare.
        out: the folder.
        writes: whether this process writes to the folder.

    Raises:
        RunError: the folder holds other files or another comparison.
    """

    def __init__(self, comparison: CompareConfig, out: Path, *, writes: bool) -> None:
        self.writes = writes
        self.folder, self._path = out, out / "compare.json"
        sizes = replace(comparison.run.sizes, train=1)
        pruning = with_settings(comparison.run.pruning, {"target_sparsity": 1.0})
        asked = asdict(replace(comparison.run, sizes=sizes, pruning=pruning))
        asked["methods"] = {name: config and asdict(config) for name, (_, config) in _SCORING.items()}
        asked["methods"][POLISHED] = asdict(PolishConfig())
        asked["methods"][MINIMAX] = asdict(configurations.MINIMAX)
        asked["methods"][ACDC] = asdict(_ACDC) | {"thresholds": _THRESHOLDS, "searches": _SEARCHES, "near": _NEAR}
        self._about, self._run, rows = dict[str, str](), json.loads(json.dumps(asked)), list[ComparedRow]()
        if os.path.lexists(self._path):
            rows = self._read()
        elif not is_unused(out):
            raise RunError(f"Expected an empty folder for a new comparison; {str(out)!r} holds other files")
        self.done = {row.key: row for row in rows}

    def _read(self) -> list[ComparedRow]:
        kept = load(_Kept, self._path, "a comparison", RunError)
        self._about = kept.about
        if kept.format != _FORMAT or kept.run != self._run:
            raise RunError(
                f"Expected what {str(self._path)!r} compares: the same model, task, ablation, seeds and settings; what "
                "is asked for is another comparison: name another folder"
            )
        return kept.rows

    def check(self, subject: ModelOnTask, examples: int) -> None:
        """Raise RunError unless the weights and the task match the finished rows; prepare the folder for more rows."""
        for what, digest in (("weights", subject.digests["weights"]), (f"task {examples}", subject.digests["task"])):
            if self._about.setdefault(what, digest) != digest:
                raise RunError(
                    f"Expected the {what.split()[0]} that {str(self._path)!r} began with; what is there now is another"
                )
        if not self.writes:
            return
        try:
            self._write()
            (self.folder / "circuits").mkdir(exist_ok=True)
        except OSError as error:
            raise UnwritableFile(
                f"Expected a folder for the comparison; got {str(self.folder)!r}: {error.strerror}"
            ) from error
        clear(self.folder / "circuits")

    def add(self, row: ComparedRow, saved: SavedCircuit) -> None:
        """Save a row and its circuit at once."""
        self.done[row.key] = row
        if self.writes:
            save_circuit(saved, self.folder / "circuits" / row.file)
            self._write()

    def _write(self) -> None:
        content = asdict(_Kept(_FORMAT, self._run, self._about, list(self.done.values())))
        write_json(self._path, content)


def _rows(comparison: CompareConfig, bench: _Bench, book: _Book) -> Iterator[ComparedRow]:
    """Yield the row of every method at every sparsity, finished or newly run; Edge Pruning first, as it sets sizes."""
    examples, graph = bench.config.sizes.train, bench.subject.model.graph
    sizes = {target: max(1, round((1 - target) * graph.total)) for target in comparison.targets}
    for name in sorted(comparison.methods, key=lambda name: name != PRUNING):
        for target in (0.0,) if name == MINIMAX else comparison.targets:
            key = (name, examples, target, None if name in (PRUNING, POLISHED, MINIMAX) else sizes[target])
            # Custom methods are always rerun: their code may have changed.
            if key not in book.done or ":" in name:
                asked = sizes.get(target, graph.total)
                book.add(*_measure(bench, name, target, asked, bench.found(name, target, asked)))
            if name == PRUNING and POLISHED not in comparison.methods:
                sizes[target] = book.done[key].evaluation.edges
            yield book.done[key]


def _measure(bench: _Bench, name: str, target: float, asked: int, found: _Found) -> tuple[ComparedRow, SavedCircuit]:
    """Measure a circuit on the test split; return its row, and the circuit to save."""
    circuit, config = found.circuit, bench.config
    measured = bench.subject.evaluate("test", config.ablation, circuit_mask(circuit))
    asked = measured.edges if name in (PRUNING, MINIMAX) else asked
    row = ComparedRow(
        name, config.sizes.train, target, asked, found.seconds, found.runs, str(bench.subject.model.device), measured
    )
    scores = {edge: float(found.scores[circuit.graph.position(edge)]) for edge in circuit.graph.edges}
    scores = {edge: score for edge, score in scores.items() if math.isfinite(score)}  # JSON has no infinity
    method = {"name": name, "seed": config.seed, "config": found.config | {"examples": config.sizes.train}}
    method |= {"signed": True} if found.signed else {}
    return row, SavedCircuit(circuit, scores, config.model, method, versions(), bench.subject.model.family)
