"""Methods side by side on a language model: how far circuits of one size are from it, and what finding them takes.

As table 1 of arXiv:2406.16778 does. Edge Pruning is asked for a sparsity, and all others are then given as many edges
as it ends with: a method that scores edges keeps those that score highest; ACDC, which has a threshold, takes the
circuit nearest in size among those of a search over thresholds. Every method has one configuration for all models and
tasks, sees the training split alone, and is measured on the test split.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from edgeprune.data import Dataset
from edgeprune.draw import save_figure
from edgeprune.errors import ConfigError, RunError
from edgeprune.evaluate import Evaluation
from edgeprune.graph import Circuit
from edgeprune.masks import circuit_mask, edge_exists, edges_of
from edgeprune.methods import Discovery, Method, find_method
from edgeprune.methods.acdc import AcdcConfig, remove_greedily
from edgeprune.methods.baselines import draw_scores
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.methods.edge_pruning_target import prune_to_target
from edgeprune.pruning_run import RunConfig, Subject, load_subject
from edgeprune.store import SavedCircuit, UnwritableFile, save_circuit, versions, write_text
from edgeprune.tasks import metric_of

PRUNING: Final = "edge-pruning-target"
ACDC: Final = "acdc"

_ACDC: Final = AcdcConfig(logit_scale=1.0, inputs=10**9, at_once=1, batch_size=32)
"""All examples, and nothing run ahead: a language model fills a forward without it."""

_SCORING: Final[Mapping[str, Method]] = {
    "eap": partial(attribution_patching, config=EapConfig(batch_size=32)),
    "eap-ig-inputs": partial(integrate_gradients, config=EapIgConfig(logit_scale=1.0, steps=5, batch_size=32)),
    "eap-ig-activations": partial(
        integrate_gradients, config=EapIgConfig(over="activations", logit_scale=1.0, steps=5, batch_size=32)
    ),
    "random": draw_scores,
}
"""As in the registry, but for logits that are logits, with the five steps of their paper, in batches that fit."""

METHODS: Final = (PRUNING, ACDC, *_SCORING)

_THRESHOLDS: Final = (1e-6, 1e2)
"""Nats between which ACDC's threshold is searched for."""

_SEARCHES: Final = 8
"""Runs of ACDC for each size, at the most."""

_LEAST_KL: Final = 1e-6
"""Nats that are drawn, at the least."""

_FORMAT: Final = "edgeprune comparison 1"

_COLOURS: Final = ("#23466e", "#c77700", "#3c8d5a", "#8e4a9e", "#a03a3a", "#888888", "#4a90a4", "#b5a13a")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared; of `run`, the number of training examples and the target sparsity are those below."""

    run: RunConfig
    methods: tuple[str, ...] = (PRUNING, ACDC, "eap", "eap-ig-inputs", "eap-ig-activations")
    targets: tuple[float, ...] = (0.8, 0.9, 0.95)
    """Sparsities that Edge Pruning is asked for; without it, those that all others have."""

    examples: tuple[int, ...] = (200,)
    """Training examples."""

    def __post_init__(self) -> None:
        for name in ("methods", "targets", "examples"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(
                    f"Expected different {name}, at least one; got {', '.join(map(str, values)) or 'none'}"
                )
        for name in self.methods:
            if name not in METHODS and ":" not in name:
                raise ConfigError(
                    f"Expected a method among {', '.join(METHODS)}, or package.module:function; got {name!r}"
                )
        for target in self.targets:
            replace(self.run.pruning, target_sparsity=target)  # raises where it is no sparsity
        for count in self.examples:
            replace(self.run.sizes, train=count)

    def of(self, examples: int) -> RunConfig:
        """The run of so many examples."""
        return replace(self.run, sizes=replace(self.run.sizes, train=examples))


@dataclass(frozen=True)
class Row:
    """One circuit."""

    method: str
    examples: int
    target: float
    asked: int
    """Edges that it was to have."""

    seconds: float
    """Of finding it; runs of ACDC that serve several sizes count for each of them."""

    runs: int
    """How often the method ran."""

    evaluation: Evaluation

    @property
    def key(self) -> tuple[str, int, float, int | None]:
        """What was asked for; of Edge Pruning, no number of edges."""
        return self.method, self.examples, self.target, None if self.method == PRUNING else self.asked


@dataclass(frozen=True)
class _Found:
    circuit: Circuit
    scores: Float[Tensor, "source destination"]
    seconds: float
    runs: int = 1


@dataclass
class _Bench:
    """Methods on one training set, each timed; what serves several sizes is run once."""

    subject: Subject
    config: RunConfig
    progress: bool
    _scored: dict[str, _Found] = field(default_factory=dict)
    _cut: dict[float, _Found] = field(default_factory=dict)

    @property
    def _train(self) -> Dataset:
        return self.subject.splits["train"]

    def run(self, method: Callable[..., Discovery], **settings: Any) -> _Found:
        begin = time.perf_counter()
        found = method(
            self.subject.model,
            self._train,
            self.config.ablation,
            seed=self.config.seed,
            progress=self.progress,
            **settings,
        )
        return _Found(found.circuit, found.scores, time.perf_counter() - begin)

    def pruned(self, target: float) -> _Found:
        """What Edge Pruning finds."""
        return self.run(prune_to_target, config=replace(self.config.pruning, target_sparsity=target))

    def of_size(self, name: str, edges: int) -> _Found:
        """What any other method finds, of so many edges or as near as it comes."""
        if name == ACDC:
            return self._cut_to(edges)
        if name not in self._scored:
            self._scored[name] = self.run(_SCORING[name] if name in _SCORING else find_method(name))
        found = self._scored[name]
        graph = found.circuit.graph
        kept = keep_most(found.scores, edge_exists(graph), edges)
        return replace(found, circuit=replace(found.circuit, edges=edges_of(graph, kept)))

    def _cut_to(self, edges: int) -> _Found:
        """ACDC's circuit at the threshold whose circuit is nearest in size, by bisection of its logarithm."""
        low, high = _THRESHOLDS
        used = dict[float, _Found]()
        for _ in range(_SEARCHES):
            # Thresholds that were run for other sizes are run for this one as well, as far as they are in between.
            known = [threshold for threshold in self._cut if low < threshold < high]
            threshold = min(
                known, key=lambda each: abs(len(self._cut[each].circuit) - edges), default=math.sqrt(low * high)
            )
            if threshold not in self._cut:
                self._cut[threshold] = self.run(remove_greedily, config=replace(_ACDC, threshold=threshold))
            used[threshold] = found = self._cut[threshold]
            if len(found.circuit) == edges:
                break
            low, high = (threshold, high) if len(found.circuit) > edges else (low, threshold)
        best = min(used.values(), key=lambda found: abs(len(found.circuit) - edges))
        return replace(best, seconds=sum(found.seconds for found in used.values()), runs=len(used))


def keep_most(
    scores: Float[Tensor, "source destination"], exists: Bool[Tensor, "source destination"], edges: int
) -> Bool[Tensor, "source destination"]:
    """The so many edges that score highest; of those that score alike, the first."""
    order = torch.sort(scores[exists].double().nan_to_num(-math.inf), descending=True, stable=True).indices
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:edges]] = True
    return torch.zeros_like(exists).masked_scatter(exists, kept)


def compare(comparison: Comparison, out: Path, *, device: str = "auto", progress: bool = False) -> list[Row]:
    """Run and measure every method; a second call goes on where it was, and may ask for more.

    Args:
        comparison: what is compared.
        out: the folder: `compare.json` has a row a circuit, `circuits/` all circuits, `compare.md` and `compare.svg`
            are to be looked at.
        device: where the model runs.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        RunError: the folder holds something else, or a comparison of something else.
        ModelError, TaskError: the model or the task cannot be had.
        UnwritableFile: the folder cannot be written to.
    """
    book, rows = _Book(comparison, out), list[Row]()
    count = len(comparison.examples) * len(comparison.methods) * len(comparison.targets)
    with tqdm(total=count, desc="circuits", disable=None if progress else True) as bar:
        for examples in comparison.examples:
            subject = load_subject(comparison.of(examples), ("train", "test"), device=device, progress=progress)
            book.check(subject, examples)
            for row in _rows(comparison, _Bench(subject, comparison.of(examples), progress), book):
                rows.append(row)
                bar.update()
    write_text(out / "compare.md", _markdown(cells(comparison, rows)))
    save_figure(draw(comparison, rows), out / "compare.svg")
    return rows


class _Book:
    """A folder with the rows that there are so far.

    Raises:
        RunError: it holds something else.
        UnwritableFile: it cannot be made.
    """

    def __init__(self, comparison: Comparison, out: Path) -> None:
        self.folder, self._path = out, out / "compare.json"
        sizes = replace(comparison.run.sizes, train=1)
        pruning = replace(comparison.run.pruning, target_sparsity=1.0)
        asked = json.loads(json.dumps(asdict(replace(comparison.run, sizes=sizes, pruning=pruning))))
        self._content: dict[str, Any] = {"format": _FORMAT, "run": asked, "about": {}, "rows": []}
        try:
            (out / "circuits").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableFile(f"Expected a folder for the comparison; got {str(out)!r}: {error.strerror}") from error
        if self._path.exists():
            self._content = self._read(asked)
        self.done = {row.key: row for row in map(_parse, self._content["rows"])}

    def _read(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["format"] == _FORMAT and content["run"] == asked:
                list(map(_parse, content["rows"]))
                return content
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"Expected a comparison in {str(self._path)!r}; it is none: {error!r:.200}") from error
        raise RunError(
            f"Expected what {str(self._path)!r} compares: the same model, task, ablation, seeds and settings; what is "
            "asked for is another comparison: name another folder"
        )

    def check(self, subject: Subject, examples: int) -> None:
        """The model and the task are those of the rows that there are."""
        for what, digest in (("weights", subject.digests["weights"]), (f"task {examples}", subject.digests["task"])):
            if self._content["about"].setdefault(what, digest) != digest:
                raise RunError(
                    f"Expected the {what.split()[0]} that {str(self._path)!r} began with; what is there now is another"
                )

    def add(self, row: Row) -> None:
        """Keep a row, whatever comes after."""
        self.done[row.key] = row
        self._content["rows"] = [asdict(each) for each in self.done.values()]
        write_text(self._path, json.dumps(self._content | {"versions": dict(versions())}, indent=1) + "\n")


def _parse(row: dict[str, Any]) -> Row:
    fields: dict[str, Any] = row | {"evaluation": Evaluation(**row["evaluation"])}
    return Row(**fields)


def _rows(comparison: Comparison, bench: _Bench, book: _Book) -> Iterator[Row]:
    """Every method at every sparsity, from what was done before or anew; Edge Pruning first, as it sets the sizes."""
    examples, graph = bench.config.sizes.train, bench.subject.model.graph
    sizes = {target: round((1 - target) * graph.total) for target in comparison.targets}
    for name in sorted(comparison.methods, key=lambda name: name != PRUNING):
        for target in comparison.targets:
            key = (name, examples, target, None if name == PRUNING else sizes[target])
            if key not in book.done:
                found = bench.pruned(target) if name == PRUNING else bench.of_size(name, sizes[target])
                book.add(_measure(bench, name, target, sizes[target], found, book.folder))
            if name == PRUNING:
                sizes[target] = book.done[key].evaluation.edges
            yield book.done[key]


def _measure(bench: _Bench, name: str, target: float, asked: int, found: _Found, out: Path) -> Row:
    """Run a circuit on the test split, and save it."""
    circuit, config = found.circuit, bench.config
    measured = bench.subject.evaluate("test", config.ablation, circuit_mask(circuit))
    scores = {edge: float(found.scores[circuit.graph.position(edge)]) for edge in circuit.graph.edges}
    scores = {edge: score for edge, score in scores.items() if math.isfinite(score)}  # JSON has no others
    method = {"name": name, "seed": config.seed, "config": {"examples": config.sizes.train}}
    file = f"{name.replace(':', '.')}-{config.sizes.train}-{target!r}.json"
    save_circuit(SavedCircuit(circuit, scores, config.model, method, versions()), out / "circuits" / file)
    return Row(name, config.sizes.train, target, asked, found.seconds, found.runs, measured)


def cells(comparison: Comparison, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows as text below their header, by number of examples and sparsity."""
    metric = metric_of(comparison.run.task)
    found = [("examples", "method", "edges", "sparsity", "KL, nats", metric, "exact match", "accuracy", "seconds")]
    for row in sorted(rows, key=lambda row: (row.examples, row.target)):
        it, runs = row.evaluation, f" ({row.runs} runs)" if row.runs > 1 else ""
        found.append(
            (
                f"{row.examples:,}",
                row.method,
                str(it.edges),
                f"{it.sparsity:.1%}",
                f"{it.kl:.4f}",
                f"{it.metric:.3f}",
                f"{it.exact_match:.1%}",
                f"{it.accuracy:.1%}",
                f"{row.seconds:.1f}{runs}",
            )
        )
    return found


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    head, *body = cells
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def draw(comparison: Comparison, rows: Sequence[Row]) -> Figure:
    """KL against sparsity, a line a method and a panel a number of examples."""
    panels = comparison.examples
    figure = Figure(figsize=(1 + 4.5 * len(panels), 4), layout="constrained")
    for place, (axes, examples) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True)
    ):
        for name, colour in zip(comparison.methods, cycle(_COLOURS)):
            mine = sorted(
                (row.evaluation.sparsity, max(row.evaluation.kl, _LEAST_KL))
                for row in rows
                if (row.method, row.examples) == (name, examples)
            )
            axes.plot(*zip(*mine, strict=True), color=colour, marker="o", markersize=4, linewidth=1, label=name)
        axes.set_yscale("log")
        axes.set_title(f"{examples:,} examples")
        axes.set_xlabel("sparsity: share of edges removed")
        if place == 0:
            axes.set_ylabel("KL(full model ‖ circuit), nats")
            axes.legend(frameon=False)
    return figure
