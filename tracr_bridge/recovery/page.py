"""Recoveries as pictures, and as an offline HTML page that shows the edges at any threshold or step."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from edgeprune.graph import Edge
from edgeprune.pictures.draw import draw_comparison
from edgeprune.pictures.page import picture, render, rounded, view
from tracr_bridge.recovery.recover import Recovery, effects
from tracr_bridge.recovery.summary import edge_rows, summary_rows

_CHART: Final = {"width": 380, "height": 200, "left": 60, "right": 368, "top": 24, "bottom": 176}


def recovery_figure(recovery: Recovery) -> Figure:
    """Draw the circuit found beside the true one."""
    graph = recovery.assessment.reference.graph
    title = f"{recovery.name}, {recovery.assessment.reference.ablation} ablation, {recovery.method}"
    return draw_comparison(graph, recovery.discovery.circuit.edges, recovery.assessment.comparison, title)


def write_page(recoveries: Sequence[Recovery], path: Path) -> None:
    """Write one self-contained HTML page, which opens offline and shows one recovery at a time.

    Args:
        recoveries: recoveries of one program by one method, each under another ablation.
        path: the file to write.

    Raises:
        UnwritableFile: the file cannot be written.
    """
    first = recoveries[0]
    graph = first.assessment.reference.graph
    measured = [effects(recovery.assessment) for recovery in recoveries]
    views = [
        {
            "ablation": recovery.assessment.reference.ablation,
            "summary": summary_rows(recovery),
            "charts": _charts(recovery),
            "header": ("edge", "true", "found", "effect", "score"),
            "rows": [(*row[:3], f"{effect[Edge.parse(row[0])]:.3g}", row[3]) for row in edge_rows(recovery)],
        }
        for recovery, effect in zip(recoveries, measured, strict=True)
    ]
    seen = [_view(*pair) for pair in zip(recoveries, measured, strict=True)]
    data = picture(graph, graph.edges) | {"compared": True, "views": seen}
    title = f"{first.name}, {first.method}, seed {first.seed}"
    render(path, title=title, doc=first.doc, views=views, data=data)


def _view(recovery: Recovery, measured: dict[Edge, float]) -> dict[str, Any]:
    """Return the page's data on each edge, in the order of the picture's edges."""
    graph, assessment, discovery = recovery.assessment.found.graph, recovery.assessment, recovery.discovery
    positions = [graph.position(edge) for edge in graph.edges]
    return view(
        graph.edges,
        assessment.found.edges,
        assessment.reference.edges,
        [float(discovery.scores[position]) for position in positions],
        signed=discovery.signed,
        method=f"{recovery.method}, seed {recovery.seed}",
        structural=[edge in assessment.truth.structural for edge in graph.edges],
        effects=[rounded(measured[edge]) if edge in measured else None for edge in graph.edges],
        snapshots=[
            {
                "step": shot.step,
                "log_alpha": [round(float(shot.log_alpha[position]), 2) for position in positions],
                "kept": "".join(str(int(shot.kept[position])) for position in positions),
            }
            for shot in discovery.snapshots
        ],
    )


def _charts(recovery: Recovery) -> list[dict[str, Any]]:
    """Return charts of loss, expected edges and each edge's log_alpha over steps; none if the method does not train."""
    history, snapshots = recovery.discovery.history, recovery.discovery.snapshots
    if not history:
        return []
    every = history[:: max(1, len(history) // 300)]
    curves = {
        "loss": [("", [(record.step, record.loss) for record in every])],
        "expected edges": [("", [(record.step, record.expected_edges) for record in every])],
    }
    graph, true = recovery.assessment.found.graph, recovery.assessment.reference.edges
    structural = recovery.assessment.truth.structural
    drawn = sorted(structural | recovery.assessment.found.edges, key=lambda edge: edge in true)
    if snapshots:
        curves["log α of each edge, the true ones dark"] = [
            (
                "true" if edge in true else "false",
                [(shot.step, float(shot.log_alpha[graph.position(edge)])) for shot in snapshots],
            )
            for edge in drawn
        ]
    return [_chart(title, lines, last=history[-1].step) for title, lines in curves.items()]


def _chart(title: str, curves: list[tuple[str, list[tuple[int, float]]]], *, last: int) -> dict[str, Any]:
    curves = [(kind, [point for point in points if math.isfinite(point[1])]) for kind, points in curves]
    values = [0.0, *(value for _, points in curves for _, value in points)]
    low, high = min(values), max(values)
    wide, tall = _CHART["right"] - _CHART["left"], _CHART["bottom"] - _CHART["top"]

    def place(step: int, value: float) -> str:
        up = (value - low) / (high - low or 1)
        return f"{_CHART['left'] + wide * step / max(1, last):.1f},{_CHART['bottom'] - tall * up:.1f}"

    drawn = [(kind, " ".join(place(*point) for point in points)) for kind, points in curves]
    return {**_CHART, "title": title, "low": f"{low:.3g}", "high": f"{high:.3g}", "last": last, "curves": drawn}
