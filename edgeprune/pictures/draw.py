"""Pictures of circuits, on the graph's own grid of layers x heads."""

import io
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path as Curve

from edgeprune.errors import EdgePruneError
from edgeprune.files.store import SavedCircuit, UnwritableFile, write_atomically
from edgeprune.graph import EMBEDDINGS, Comparison, Edge, Graph, Node
from edgeprune.pictures.layout import WIDTH, Box, Layout, Line, lay_out, port_at

FORMATS: Final = ("svg", "png", "pdf")

_STYLES: Final[dict[str, tuple[str, Literal["-", "--", ":"]]]] = {
    "kept": ("#23466e", "-"),
    "true": ("#1b6e3c", "-"),
    "missing": ("#b3261e", "--"),
    "extra": ("#c77700", ":"),
}
PORT_OFFSET: Final = {"q": -0.22, "k": 0.0, "v": 0.22, "": 0.0}
"""Horizontal offset of a head's inputs from the middle of its box, in columns."""

MOST_EDGES: Final = 200
"""Most edges that are drawn one by one; if there are more, all edges between two layers are one line."""

_POINTS: Final = 9.0
"""Font size of names, points."""


@dataclass(frozen=True)
class _Drawing:
    """Boxes and lines, and how each is drawn."""

    boxes: list[Box]
    used: list[bool]
    lines: list[Line]
    widths: list[float]
    notes: list[str]
    """Remarks to print below the title."""


class UnknownFormat(EdgePruneError):
    """A picture's file name does not end in svg, png or pdf."""


def check_format(path: Path) -> str:
    """Return the format that a picture's file name ends in.

    Raises:
        UnknownFormat: the format is not one of `FORMATS`.
    """
    name = path.suffix.removeprefix(".").lower()
    if name not in FORMATS:
        raise UnknownFormat(f"Expected a picture ending in {', '.join(FORMATS)}; got {str(path)!r}")
    return name


def title_of(saved: SavedCircuit, true: int) -> str:
    """Return a picture's title: model, ablation, method and comparison. A model's folder is shortened to its name."""
    model = Path(saved.model).name if Path(saved.model).is_absolute() else saved.model
    against = f"against {'the true circuit' if true == 1 else f'the nearest of {true} true circuits'}" if true else ""
    return ", ".join(filter(None, (model, f"{saved.circuit.ablation} ablation", saved.method.get("name"), against)))


def draw_comparison(graph: Graph, found: Iterable[Edge], comparison: Comparison | None, title: str) -> Figure:
    """Draw the circuit found: true edges solid, missing ones dashed, extra ones dotted, nodes without edges pale.

    Without a comparison, all its edges are solid.
    Sources write from the top of their box; a head reads q, k and v at the bottom of its box, left to right. Keys and
    values that several heads share have their own box. If there are more than `MOST_EDGES` edges, all edges between two
    layers are one line.
    """
    found = set(found)
    kinds = dict.fromkeys(found, "kept" if comparison is None else "true")
    if comparison is not None:
        kinds |= dict.fromkeys(comparison.extra, "extra") | dict.fromkeys(comparison.missing, "missing")
    drawing = _by_layer(graph, kinds) if len(kinds) > MOST_EDGES else _by_node(graph, kinds)
    layout = lay_out(drawing.boxes, drawing.lines)
    shown = [kind for kind in _STYLES if kind in kinds.values()]
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in title)
    width = max(layout.size[0], 4.0)
    said = [line for text in (printable, *drawing.notes) for line in textwrap.wrap(text, int(width * 13)) or [""]]
    above = 0.35 + 0.17 * len(said)
    figure = Figure(figsize=(width, layout.size[1] + above))
    axes = figure.add_axes((0, 0, 1, layout.size[1] / (layout.size[1] + above)))
    left = (width - layout.size[0]) / 2
    axes.set_xlim(-left, width - left)
    axes.set_ylim(0, layout.size[1])
    axes.axis("off")
    for box, used, (x0, y0, _, y1) in zip(drawing.boxes, drawing.used, layout.boxes, strict=True):
        _draw_box(axes, box, (x0, y0, y1), used=used)
    for line, path, thick in zip(drawing.lines, layout.lines, drawing.widths, strict=True):
        colour, style = _STYLES[line.kind]
        axes.add_patch(
            FancyArrowPatch(
                path=path, arrowstyle="-|>", mutation_scale=8, color=colour, linestyle=style, linewidth=thick,
                joinstyle="miter", capstyle="butt", zorder=2,
            )
        )  # fmt: skip
    _draw_ports(axes, drawing, layout)
    handles = [Line2D([], [], color=_STYLES[k][0], linestyle=_STYLES[k][1], label=k) for k in shown]
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, ncols=4, borderaxespad=0.1
    )
    axes.set_title("\n".join(said), fontsize=9, parse_math=False, pad=22)
    return figure


def _by_node(graph: Graph, kinds: Mapping[Edge, str]) -> _Drawing:
    """Return a box for each node, a box for keys and values that several heads share, and a line for each edge."""
    nodes = list(dict.fromkeys([*graph.sources, *(node.owner for node in graph.destinations)]))
    shared = {node for node in graph.destinations if len(graph.readers[node]) > 1}
    groups = list(dict.fromkeys(node.owner for node in shared))
    heads = max(1, 1 + max(node.head for node in nodes))
    of_groups = {
        group: 0.5 + max(n.head for d in shared if d.owner == group for n in graph.readers[d]) for group in groups
    }
    keys = sorted({*map(float, range(max(heads + 1, 2))), *of_groups.values()})
    column = {key: number for number, key in enumerate(keys)}
    rows = {stage: row for row, stage in enumerate(sorted({node.stage for node in nodes}))}
    embeddings = [node for node in nodes if node.kind in EMBEDDINGS]
    own: dict[Node, str] = dict.fromkeys(nodes, "")
    for node in graph.destinations:
        own[node.owner] += "" if node in shared else node.port
    boxes: list[Box] = []
    for node in nodes:
        at = {"m": column[heads], "logits": len(keys) // 2}.get(node.kind)
        at = embeddings.index(node) if node in embeddings else column[node.head] if at is None else at
        boxes.append(Box(str(node), rows[node.stage], at, own[node]))
    number: dict[tuple[Node, bool], int] = {(node, False): n for n, node in enumerate(nodes)}
    for group in groups:
        number[group, True] = len(boxes)
        boxes.append(Box(f"a{group.layer}.kv{group.head}", rows[group.stage], column[of_groups[group]], "kv"))
    ordered = sorted(kinds, key=lambda edge: graph.position(edge)[::-1])
    used = {number[edge.source, False] for edge in ordered}
    for edge in ordered:
        end = edge.destination
        readers = {number[node, False] for node in graph.readers[end] if (node, False) in number}
        # Of heads that share keys and values, only those already in use count; if none is in use, all count.
        used |= {number[end.owner, end in shared]} | (used & readers or readers)
    lines = [
        Line(
            number[e.source, False], number[e.destination.owner, e.destination in shared], e.destination.port, kinds[e]
        )
        for e in ordered
    ]
    notes: list[str] = []
    if groups:
        group = max(groups, key=lambda node: (-node.layer, node.head))
        readers = graph.readers[next(node for node in shared if node.owner == group)]
        notes.append(
            f"a{group.layer}.kv{group.head}: {group}.k and {group}.v, keys and values that heads "
            f"{readers[0].head} to {readers[-1].head} share, and so on"
        )
    return _Drawing(boxes, [n in used for n in range(len(boxes))], lines, [1.2] * len(lines), notes)


def _by_layer(graph: Graph, kinds: Mapping[Edge, str]) -> _Drawing:
    """Return a box for all heads of a layer, one for every other node, and a line per kind of edge between boxes."""
    nodes = list(dict.fromkeys([*graph.sources, *(node.owner for node in graph.destinations)]))
    together = {node: Node(node.kind, node.layer) for node in nodes}
    names = list(dict.fromkeys(together.values()))
    rows = {stage: row for row, stage in enumerate(sorted({node.stage for node in names}))}
    columns = {"m": 1, "pos": 1}
    boxes = [
        Box(f"a{node.layer}" if node.kind == "a" else str(node), rows[node.stage], columns.get(node.kind, 0))
        for node in names
    ]
    number = {node: names.index(whole) for node, whole in together.items()}
    count = Counter((number[edge.source], number[edge.destination.owner], kind) for edge, kind in kinds.items())
    drawn = sorted(sorted(count), key=lambda each: -count[each])[:MOST_EDGES]
    lines = [Line(start, end, "", kind) for start, end, kind in sorted(drawn)]
    most = max(count.values())
    widths = [0.7 + 2.8 * (count[line.start, line.end, line.kind] / most) ** 0.5 for line in lines]
    notes = [
        f"{len(kinds):,} edges, by layer: a3 is all heads of layer 3; a line is the wider, the more edges it stands for"
    ]
    if left := sum(count.values()) - sum(count[each] for each in drawn):
        notes.append(f"the {len(count) - len(drawn)} thinnest lines, of {left:,} edges, are left out")
    used = {end for start, to, _ in count for end in (start, to)}
    return _Drawing(boxes, [n in used for n in range(len(boxes))], lines, widths, notes)


def _draw_box(axes: Any, box: Box, at: tuple[float, float, float], *, used: bool) -> None:
    """Draw a box around its name; the name stands above the ports."""
    left, bottom, top = at
    shade = "black" if used else "#b8b8b8"
    raised = 0.06 if box.ports else 0.0

    def outline(x: Any, y: Any, width: Any, height: Any, size: Any) -> Curve:
        """Return the box around a text of this extent, in pixels; `size` is the text's size."""
        inch = size * 72 / _POINTS
        x, y = x + width / 2, y + height / 2 - raised * inch
        w, h = WIDTH * inch / 2, (top - bottom) * inch / 2
        return Curve([(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h), (x - w, y - h)], closed=True)

    style: Any = {"boxstyle": outline, "facecolor": "white", "edgecolor": shade}
    axes.text(
        left + WIDTH / 2, (bottom + top) / 2 + raised, box.name, ha="center", va="center", color=shade, bbox=style,
        fontsize=_POINTS, zorder=3, family="monospace",
    )  # fmt: skip


def _draw_ports(axes: Any, drawing: _Drawing, layout: Layout) -> None:
    """Draw the letter of each port that a line leads to, inside its box."""
    for end, port in sorted({(line.end, line.port) for line in drawing.lines if line.port}):
        left, bottom = layout.boxes[end][:2]
        x, _ = port_at(drawing.boxes[end], left, port)
        axes.text(x, bottom + 0.09, port, ha="center", va="center", fontsize=7, color="#55555a", zorder=4)


def places(graph: Graph) -> dict[Node, tuple[float, float]]:
    """Return where each node's box goes: a row for each stage, a column for each head, and one more for the MLPs.

    Embeddings stand beside the columns, so that their edges do not pass behind the boxes above them.
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
    """Return where a destination reads: at its box, or at the mean position of the heads that share it."""
    boxes = [place[node] for node in graph.readers[destination] if node in place] or [place[destination.owner]]
    return sum(x for x, _ in boxes) / len(boxes) + PORT_OFFSET[destination.port], boxes[0][1]


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG text."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that its file name ends in.

    Raises:
        UnknownFormat: the format is not one of `FORMATS`.
        UnwritableFile: the file cannot be written, or the picture is larger than the format can hold.
    """
    form = check_format(path)
    metadata = {"Date": None} if form == "svg" else None
    try:
        write_atomically(path, lambda file: figure.savefig(file, format=form, metadata=metadata))
    except EdgePruneError:
        raise
    except ValueError as error:  # matplotlib raises it for too many pixels
        raise UnwritableFile(f"Expected a picture that {form} can hold; {error}: draw it as svg") from error
