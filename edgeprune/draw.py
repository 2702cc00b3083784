"""Pictures of circuits, on the layer x head grid that the graph already is."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from edgeprune.errors import EdgePruneError
from edgeprune.graph import EMBEDDINGS, Comparison, Edge, Graph, Node
from edgeprune.store import UnwritableFile, write_atomically

FORMATS: Final = ("svg", "png", "pdf")

_STYLES: Final[dict[str, tuple[str, Literal["-", "--", ":"]]]] = {
    "kept": ("#23466e", "-"),
    "true": ("#1b6e3c", "-"),
    "missing": ("#b3261e", "--"),
    "extra": ("#c77700", ":"),
}
PORT_OFFSET: Final = {"q": -0.22, "k": 0.0, "v": 0.22, "": 0.0}
"""How far from the middle of a head's box its inputs are read, in columns."""


class UnknownFormat(EdgePruneError):
    """A picture's file name whose ending is none of svg, png and pdf."""


def check_format(path: Path) -> str:
    """The format that a picture's file name asks for.

    Raises:
        UnknownFormat: there is no such format.
    """
    name = path.suffix.removeprefix(".").lower()
    if name not in FORMATS:
        raise UnknownFormat(f"Expected a picture ending in {', '.join(FORMATS)}; got {str(path)!r}")
    return name


def draw_comparison(graph: Graph, found: Iterable[Edge], comparison: Comparison | None, title: str) -> Figure:
    """The circuit found: true edges solid, missing ones dashed, extra ones dotted, nodes without edges left pale.

    Without anything to compare it with, all its edges are solid.
    Sources write from the top of their box; a head's q, k and v are read at its bottom, left to right, and what several
    heads share between them.
    """
    found = set(found)
    kinds = dict.fromkeys(found, "kept" if comparison is None else "true")
    if comparison is not None:
        kinds |= dict.fromkeys(comparison.extra, "extra") | dict.fromkeys(comparison.missing, "missing")
    place = places(graph)
    columns, rows = [x for x, _ in place.values()], [y for _, y in place.values()]
    width, height = max(columns) - min(columns) + 1.5, max(rows) + 1.5
    figure = Figure(figsize=(max(6.0, 1.5 * width), max(4.0, 0.8 * height)), layout="constrained")
    axes = figure.subplots()
    used = {edge.source for edge in kinds}
    # Of heads that share what is read, those that nothing reads need not be used.
    for edge in sorted(kinds, key=lambda edge: graph.position(edge)[::-1]):
        used |= used.intersection(readers := graph.readers[edge.destination]) or set(readers)
    for node, (x, y) in place.items():
        shade = "black" if node in used else "#b8b8b8"
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": shade}
        axes.text(x, y, str(node), ha="center", va="center", color=shade, bbox=box, zorder=3, family="monospace")
    for edge, kind in sorted(kinds.items()):
        axes.add_patch(_arrow(place[edge.source], read_at(edge.destination, graph, place), edge, kind))
    for port in sorted({edge.destination for edge in kinds if edge.destination.port}):
        x, y = read_at(port, graph, place)
        axes.text(x, y - 0.35, port.port, ha="center", va="center", fontsize=7, zorder=4)
    shown = [kind for kind in _STYLES if kind in kinds.values()]
    handles = [Line2D([], [], color=_STYLES[k][0], linestyle=_STYLES[k][1], label=k) for k in shown]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in title)
    axes.set_title(printable, fontsize=10, parse_math=False)
    axes.set_xlim(min(columns) - 0.75, max(columns) + 0.75)
    axes.set_ylim(-0.75, max(rows) + 0.75)
    axes.axis("off")
    return figure


def _arrow(start: tuple[float, float], end: tuple[float, float], edge: Edge, kind: str) -> FancyArrowPatch:
    """An edge from the top of its source's box to the bottom of its destination's, or to the port's letter there."""
    colour, line = _STYLES[kind]
    (x0, y0), (x1, y1) = start, end
    below = 0.42 if edge.destination.port else 0.28
    # Long edges bow outwards, so that they pass beside the nodes in between.
    bow = 0.0 if y1 - y0 <= 1 else (0.12 if x1 <= x0 else -0.12)
    return FancyArrowPatch(
        (x0, y0 + 0.25), (x1, y1 - below), connectionstyle=f"arc3,rad={bow}", arrowstyle="-|>", mutation_scale=10,
        color=colour, linestyle=line, linewidth=1.4, zorder=2,
    )  # fmt: skip


def places(graph: Graph) -> dict[Node, tuple[float, float]]:
    """Where each node's box goes: a row for each stage, a column for each head, and one more for the MLPs.

    Embeddings stand between the columns, so that what they write does not pass behind the boxes above them.
    """
    nodes = list(dict.fromkeys([*graph.sources, *(node.owner for node in graph.destinations)]))
    rows = {stage: row for row, stage in enumerate(sorted({node.stage for node in nodes}))}
    heads = 1 + max(node.head for node in nodes)
    middle = {"logits": heads / 2, "m": heads + 0.5}
    place: dict[Node, tuple[float, float]] = {}
    for index, node in enumerate(nodes):
        beside = (-0.8, heads - 0.3)[index % 2]
        x = beside if node.kind in EMBEDDINGS else middle.get(node.kind, float(node.head))
        place[node] = (1.3 * x, float(rows[node.stage]))
    return place


def read_at(destination: Node, graph: Graph, place: Mapping[Node, tuple[float, float]]) -> tuple[float, float]:
    """Where a destination reads: at its box, or amid those of the heads that share it."""
    boxes = [place[node] for node in graph.readers[destination] if node in place] or [place[destination.owner]]
    return sum(x for x, _ in boxes) / len(boxes) + PORT_OFFSET[destination.port], boxes[0][1]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its file name asks for.

    Raises:
        UnknownFormat: there is no such format.
        UnwritableFile: it cannot be written there, or the picture is larger than the format can hold.
    """
    form = check_format(path)
    metadata = {"Date": None} if form == "svg" else None
    try:
        write_atomically(path, lambda file: figure.savefig(file, format=form, metadata=metadata))
    except EdgePruneError:
        raise
    except ValueError as error:  # matplotlib's, of too many pixels
        raise UnwritableFile(f"Expected a picture that {form} can hold; {error}: draw it as svg") from error
