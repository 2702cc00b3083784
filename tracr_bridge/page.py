"""Recoveries as pictures, and as a page that opens offline, in which edges come and go."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from matplotlib.figure import Figure

from edgeprune.draw import draw_comparison, places, read_at
from edgeprune.graph import Edge, Graph
from edgeprune.store import write_text
from tracr_bridge.recover import Recovery, effects
from tracr_bridge.report import edge_rows, summary_rows

_TEMPLATE: Final = Path(__file__).with_suffix(".html")

_LEGEND: Final = (
    ("true", "true, and kept"),
    ("missing", "missing: true, and not kept"),
    ("extra", "extra: kept, and not true"),
    ("structural", "structural: could carry something, and need not"),
)

_COLUMN, _ROW, _MARGIN = 96.0, 84.0, 60.0
"""Pixels between heads, between layers, and around all."""

_CHART: Final = {"width": 380, "height": 200, "left": 60, "right": 368, "top": 24, "bottom": 176}


def recovery_figure(recovery: Recovery) -> Figure:
    """The circuit found, drawn beside the truth."""
    graph = recovery.assessment.reference.graph
    title = f"{recovery.name}, {recovery.assessment.reference.ablation} ablation, {recovery.method}"
    return draw_comparison(graph, recovery.discovery.circuit.edges, recovery.assessment.comparison, title)


def write_page(recoveries: Sequence[Recovery], path: Path) -> None:
    """One self-contained HTML page that opens offline; it shows one of the recoveries at a time.

    Args:
        recoveries: of one program by one method, under one ablation each.
        path: the file.

    Raises:
        UnwritableFile: it cannot be written there.
    """
    first = recoveries[0]
    graph = first.assessment.reference.graph
    measured = [effects(recovery.assessment) for recovery in recoveries]
    views = [
        {
            "ablation": recovery.assessment.reference.ablation,
            "summary": summary_rows(recovery),
            "charts": _charts(recovery),
            "rows": [(*row[:3], f"{effect[Edge.parse(row[0])]:.3g}", row[3]) for row in edge_rows(recovery)],
        }
        for recovery, effect in zip(recoveries, measured, strict=True)
    ]
    data = _picture(graph) | {"views": [_view(*pair) for pair in zip(recoveries, measured, strict=True)]}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    title = f"{first.name}, {first.method}, seed {first.seed}"
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=title, doc=first.doc, views=views, legend=_LEGEND, data=data
    )
    write_text(path, page)


def _picture(graph: Graph) -> dict[str, Any]:
    """Where everything is drawn, in pixels from the top left."""
    grid = places(graph)
    left, top = min(x for x, _ in grid.values()), max(y for _, y in grid.values())
    at = {node: (_COLUMN * (x - left), _MARGIN + _ROW * (top - y)) for node, (x, y) in grid.items()}
    number = {node: n for n, node in enumerate(at)}
    ends = {node: read_at(node, graph, grid) for node in graph.destinations}
    down = {node: (_COLUMN * (x - left), _MARGIN + _ROW * (top - y)) for node, (x, y) in ends.items()}
    curves = [_curve(at[edge.source], down[edge.destination]) for edge in graph.edges]
    across = [x for curve in curves for x, _ in curve] + [x for x, _ in at.values()]
    edges: list[dict[str, Any]] = []
    for edge, (start, *bends, end) in zip(graph.edges, curves, strict=True):
        edges.append(
            {
                "name": str(edge),
                "path": f"M{start[0]} {start[1]}C" + " ".join(f"{x} {y}" for x, y in (*bends, end)),
                "end": end,
                "from": number[edge.source],
                "to": [number[node] for node in graph.readers[edge.destination] if node in number],
                "port": edge.destination.port,
                "reader": str(edge.destination),
            }
        )
    return {
        "left": round(min(across) - _MARGIN),
        "width": round(max(across) - min(across) + 2 * _MARGIN),
        "height": round(_MARGIN + max(y for _, y in at.values())),
        "nodes": [{"name": str(node), "x": round(x), "y": round(y)} for node, (x, y) in at.items()],
        "edges": edges,
    }


def _curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[int, int]]:
    """The four points of a Bézier curve from the top of a source's box to the bottom of its reader's.

    One over several rows bows to the side, the more the longer, so that it passes beside the boxes between.
    """
    (x0, y0), (x1, y1) = start, end
    y0, y1 = y0 - 13, y1 + 13
    rows = (y0 - y1) / _ROW
    bow = 0.0 if rows < 1.2 else math.copysign(0.32 * _COLUMN * math.log2(1 + rows), x1 - x0 or 1)
    reach = (y0 - y1) * 0.45
    points = ((x0, y0), (x0 + bow, y0 - reach), (x1 + bow, y1 + reach), (x1, y1))
    return [(round(x), round(y)) for x, y in points]


def _view(recovery: Recovery, measured: dict[Edge, float]) -> dict[str, Any]:
    """Everything that the page knows of each edge, in the order of the picture's."""
    graph, assessment, discovery = recovery.assessment.found.graph, recovery.assessment, recovery.discovery
    positions = [graph.position(edge) for edge in graph.edges]
    scores = [_rounded(float(discovery.scores[position])) for position in positions]
    strength = [abs(score) for score in scores] if discovery.signed else scores
    found = assessment.found.edges
    dropped = [score for edge, score in zip(graph.edges, strength, strict=True) if edge not in found]
    return {
        "method": f"{recovery.method}, seed {recovery.seed}",
        "true": [edge in assessment.reference.edges for edge in graph.edges],
        "found": [edge in found for edge in graph.edges],
        "structural": [edge in assessment.truth.structural for edge in graph.edges],
        "effects": [_rounded(measured[edge]) if edge in measured else None for edge in graph.edges],
        "scores": scores,
        "signed": discovery.signed,
        # Each keeps fewer edges than the one before; the first, below all scores, keeps every edge.
        "thresholds": [min(strength) - 1, *sorted(set(strength))],
        "cut": max(dropped, default=min(strength) - 1),
        "snapshots": [
            {
                "step": shot.step,
                "log_alpha": [round(float(shot.log_alpha[position]), 2) for position in positions],
                "kept": "".join(str(int(shot.kept[position])) for position in positions),
            }
            for shot in discovery.snapshots
        ],
    }


def _charts(recovery: Recovery) -> list[dict[str, Any]]:
    """Loss, expected edges and every edge's log_alpha over steps; none of a method that does not train."""
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


def _rounded(value: float) -> float:
    """Enough digits to tell scores apart, and no more."""
    return float(f"{value:.7g}")
