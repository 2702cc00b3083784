"""Circuits of several methods as a table and a plot: requested size, measurements on the task, and time taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final

from matplotlib.figure import Figure

from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.runs.outcome import sparsity_reached
from edgeprune.tasks import metric_of

PRUNING: Final = "edge-pruning"

POLISHED: Final = "edge-pruning-polished"
"""Starts from the `edge-pruning` circuit, and ends with the requested number of edges, or fewer."""

MINIMAX: Final = "edge-pruning-minimax"
"""Chooses the size of its circuit, whatever size is requested."""

_LEAST_KL: Final = 1e-6
"""Smallest KL that is plotted, nats; smaller values are drawn here."""

_COLOURS: Final = ("#23466e", "#c77700", "#3c8d5a", "#8e4a9e", "#a03a3a", "#888888", "#4a90a4", "#b5a13a")


@dataclass(frozen=True)
class ComparedRow:
    """One circuit of a comparison."""

    method: str
    examples: int
    target: float
    """Target sparsity; 0 for a method that takes none."""

    asked: int
    """Requested number of edges; for `edge-pruning` and `edge-pruning-minimax`, the number they ended with."""

    seconds: float
    """Time to find the circuit; ACDC runs that serve several sizes count for each of them."""

    runs: int
    """Number of times the method ran."""

    device: str
    evaluation: Evaluation

    @property
    def key(self) -> tuple[str, int, float, int | None]:
        """Request that identifies the row: method, examples, target sparsity and size.

        The size is None for `edge-pruning`, polished or not; `edge-pruning-minimax` has neither target nor size.
        """
        if self.method == MINIMAX:
            return self.method, self.examples, 0.0, None
        return self.method, self.examples, self.target, None if self.method in (PRUNING, POLISHED) else self.asked

    @property
    def missed(self) -> bool:
        """Whether Edge Pruning missed its sparsity, or its polished circuit has too many edges; False for others."""
        it = self.evaluation
        if self.method == POLISHED:
            return it.edges > self.asked
        if self.method != PRUNING:
            return False
        total = it.edges / (1 - it.sparsity) if it.edges else math.inf
        return not sparsity_reached(self.target, it.sparsity, total)

    @property
    def size(self) -> str:
        """Number of edges as text, with the requested number if it differs."""
        edges = self.evaluation.edges
        return str(edges) if edges == self.asked else f"{edges}, not {self.asked}"

    @property
    def sparsity(self) -> str:
        """Sparsity as text, with the target if this method, or the method that set its size, missed it."""
        it = self.evaluation
        total = it.edges / (1 - it.sparsity) if it.edges else math.inf
        free = self.method in (POLISHED, MINIMAX) or not self.target
        reached = free or sparsity_reached(self.target, it.sparsity, total)
        return f"{it.sparsity:.1%}" + ("" if reached and not self.missed else f", not {self.target:.1%}")

    @property
    def file(self) -> str:
        """Name of the circuit's file."""
        name, *more = (str(part) for part in self.key if part is not None)
        return f"{name.replace(':', '.')}-{'-'.join(more)}.json"


def cells(task: str, rows: Sequence[ComparedRow]) -> list[tuple[str, ...]]:
    """Return the table as text: a header, then the rows sorted by number of examples and target sparsity."""
    metric = metric_of(task)
    found = [("examples", "method", "edges", "sparsity", "KL, nats", metric, "exact match", "accuracy", "seconds")]
    for row in sorted(rows, key=lambda row: (row.examples, row.target)):
        it, runs = row.evaluation, f" ({row.runs} runs)" if row.runs > 1 else ""
        found.append(
            (
                f"{row.examples:,}",
                row.method,
                row.size,
                row.sparsity,
                f"{it.kl:.4f}",
                f"{it.metric:.3f}",
                f"{it.exact_match:.1%}",
                f"{it.accuracy:.1%}",
                f"{row.seconds:.1f}{runs}",
            )
        )
    return found


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Return the table of `cells` in Markdown."""
    head, *body = cells
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def draw(rows: Sequence[ComparedRow]) -> Figure:
    """Plot KL against sparsity: one line per method, one panel per number of examples."""
    panels, methods = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("examples", "method"))
    figure = Figure(figsize=(1 + 4.5 * len(panels), 4), layout="constrained")
    for place, (axes, examples) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True)
    ):
        for name, colour in zip(methods, cycle(_COLOURS)):
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
