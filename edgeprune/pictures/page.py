"""An interactive page of a circuit that opens offline: the positions of nodes and edges, and the text beside them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2

from edgeprune.files.store import SavedCircuit, load_json, write_text
from edgeprune.files.true_circuits import nearest
from edgeprune.graph import Circuit, Edge, Graph
from edgeprune.pictures.draw import places, read_at

_TEMPLATE: Final = Path(__file__).with_name("page.html")

LEGEND: Final = (
    ("true", "true, and kept"),
    ("missing", "missing: true, and not kept"),
    ("extra", "extra: kept, and not true"),
    ("structural", "structural: could carry something, and need not"),
)

MOST_EDGES: Final = 4000
"""Most edges on a page: all of the circuit and the truth, then the highest-scoring others up to this number."""

_COLUMN, _ROW, _MARGIN = 96.0, 84.0, 60.0
"""Pixels between heads, between layers, and around the picture."""


def render(path: Path, *, title: str, doc: str, views: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> None:
    """Write a page.

    Args:
        path: the file.
        title: the heading.
        doc: the text below the heading.
        views: the text for each ablation: `ablation`, `summary`, `charts`, and `header` and `rows` of the edges' table.
        data: what `picture` returns, with `compared` (whether there is a truth) and `views` (each from `view`).

    Raises:
        UnwritableFile: the file cannot be written.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    legend = LEGEND if data["compared"] else (("kept", "kept"),)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    write_text(path, template.render(title=title, doc=doc, views=views, legend=legend, data=data))


def view(
    edges: Sequence[Edge],
    found: frozenset[Edge],
    true: frozenset[Edge],
    scores: Sequence[float],
    *,
    signed: bool,
    **more: Any,
) -> dict[str, Any]:
    """Return the data of each edge on a page, in the order of `edges`.

    Args:
        edges: all edges on the page.
        found: the kept edges.
        true: the true edges.
        scores: score of each edge; empty if there are none.
        signed: whether edges were chosen by the absolute value of scores.
        more: `method`, and any of `structural`, `effects` and `snapshots` that are known.
    """
    scores = [rounded(score) for score in scores]
    strength = [abs(score) for score in scores] if signed else scores
    dropped = [score for edge, score in zip(edges, strength, strict=bool(scores)) if edge not in found]
    return {
        "true": [edge in true for edge in edges],
        "found": [edge in found for edge in edges],
        "structural": [False] * len(edges),
        "effects": [],
        "scores": scores,
        "signed": signed,
        # Each threshold keeps fewer edges than the one before; the first is below all scores, and keeps every edge.
        "thresholds": [min(strength) - 1, *sorted(set(strength))] if scores else [],
        "cut": max(dropped, default=min(strength) - 1) if scores else 0,
        "snapshots": [],
    } | more


def write_circuit_page(
    saved: SavedCircuit, path: Path, *, title: str, true: Sequence[Circuit], facts: Sequence[tuple[str, str]]
) -> None:
    """Write the page of a saved circuit, such as a run's.

    Args:
        saved: the circuit, with its scores.
        path: the file.
        title: the page's title.
        true: the true circuits, if any are known; the page compares with the nearest.
        facts: more rows of the summary, as name and value.

    Raises:
        CircuitMismatch: a true circuit has another graph or ablation.
        UnwritableFile: the file cannot be written.
    """
    circuit, graph = saved.circuit, saved.circuit.graph
    compared = nearest(circuit, true) if true else None
    of_truth = frozenset[Edge]() if compared is None else circuit.edges - compared.extra | compared.missing
    own = circuit.edges | of_truth
    signed = bool(saved.method.get("signed", False))
    strength = {edge: abs(score) if signed else score for edge, score in saved.scores.items()}
    others = sorted((edge for edge in strength if edge not in own), key=lambda edge: -strength[edge])
    chosen = own | {*others[: max(0, MOST_EDGES - len(own))]}
    edges = sorted(chosen, key=lambda edge: graph.position(edge)[::-1])
    scored = all(edge in saved.scores for edge in edges)
    scores = [saved.scores[edge] for edge in edges] if scored else []
    kept = sorted(own, key=lambda edge: (-strength.get(edge, 0.0), graph.position(edge)[::-1]))
    method = saved.method.get("name", "")
    seen = view(edges, circuit.edges, of_truth, scores, signed=signed, method=method)
    doc = f"{len(circuit)} of {graph.total:,} edges are kept."
    if len(others) > len(edges) - len(own):
        doc += f" The page has these and the {len(edges) - len(own):,} that score highest of the others."
    rows = [
        (str(e), *(("yes" if e in of_truth else "-",) if true else ()), "yes" if e in circuit.edges else "-",
         f"{saved.scores[e]:.4g}" if e in saved.scores else "-")
        for e in kept[:MOST_EDGES]
    ]  # fmt: skip
    header = ("edge", *(("true",) if true else ()), "kept", "score")
    summary = [("ablation", circuit.ablation), ("method", method or "none: it was not found by one"), *facts]
    said = {"ablation": circuit.ablation, "summary": summary, "charts": [], "header": header, "rows": rows}
    data = picture(graph, edges) | {"compared": bool(true), "views": [seen]}
    render(path, title=title, doc=doc, views=[said], data=data)


def facts_of(path: Path) -> list[tuple[str, str]]:
    """Return what a run's folder says beside its circuit: model, task and outcome; nothing for a file alone."""
    found: list[tuple[str, str]] = []
    for name, wanted in (("run.json", ("model", "task")), ("outcome.json", ("sparsity", "reached", "loss", "missed"))):
        if (path / name).is_file():
            content = load_json(path / name)
            content = content.get("config", content) if isinstance(content, dict) else {}
            found += [(each, _in_words(content[each])) for each in wanted if content.get(each) is not None]
    return found


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def picture(graph: Graph, edges: Sequence[Edge]) -> dict[str, Any]:
    """Return where everything is drawn, in pixels from the top left."""
    grid = places(graph)
    left, top = min(x for x, _ in grid.values()), max(y for _, y in grid.values())
    at = {node: (_COLUMN * (x - left), _MARGIN + _ROW * (top - y)) for node, (x, y) in grid.items()}
    number = {node: n for n, node in enumerate(at)}
    ends = {node: read_at(node, graph, grid) for node in graph.destinations}
    down = {node: (_COLUMN * (x - left), _MARGIN + _ROW * (top - y)) for node, (x, y) in ends.items()}
    curves = [_curve(at[edge.source], down[edge.destination]) for edge in edges]
    across = [x for curve in curves for x, _ in curve] + [x for x, _ in at.values()]
    drawn: list[dict[str, Any]] = []
    for edge, (start, *bends, end) in zip(edges, curves, strict=True):
        drawn.append(
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
        "edges": drawn,
    }


def _curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[int, int]]:
    """Return the four points of a Bézier curve from the top of a source's box to the bottom of the destination's.

    A curve over several rows bows to the side, longer ones more, so that it passes beside the boxes between.
    """
    (x0, y0), (x1, y1) = start, end
    y0, y1 = y0 - 13, y1 + 13
    rows = (y0 - y1) / _ROW
    bow = 0.0 if rows < 1.2 else math.copysign(0.32 * _COLUMN * math.log2(1 + rows), x1 - x0 or 1)
    reach = (y0 - y1) * 0.45
    points = ((x0, y0), (x0 + bow, y0 - reach), (x1 + bow, y1 + reach), (x1, y1))
    return [(round(x), round(y)) for x, y in points]


def rounded(value: float) -> float:
    """Round to 7 significant digits, which are enough to tell scores apart."""
    return float(f"{value:.7g}")
