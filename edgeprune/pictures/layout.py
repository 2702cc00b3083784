"""Place the boxes and lines of a picture, in inches, so that no line passes behind a box.

Boxes stand in rows, counted from below, and in columns. A channel lies between two rows, and a corridor beside every
column. A line leaves the top of its box, bends in the channel above it, passes further rows straight up in a lane of a
corridor, bends in the channel below its end, and enters that box from below. Lines from one box, of one kind, share a
lane in each corridor.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.path import Path

WIDTH, TALL, LOW = 0.8, 0.42, 0.28
"""Width of a box, and its height with ports and without."""

_MARGIN: Final = 0.25
_CORRIDOR, _LANE = 0.16, 0.07
"""Width of a corridor without lanes, and distance between two lanes."""

_CHANNEL, _BEND, _HIGHEST = 0.45, 0.02, 1.6
"""Height of an empty channel, added height for each line that bends in it, and maximum height."""

_EDGE: Final = 0.08
"""Distance from the corner of a box to the first line."""


@dataclass(frozen=True)
class Box:
    """A named box, its row from below, and its column."""

    name: str
    row: int
    column: int
    ports: str = ""
    """Letters of its inputs, from left to right; without any, lines enter anywhere along the bottom."""


@dataclass(frozen=True)
class Line:
    """A line up from one box to another, both given by their numbers."""

    start: int
    end: int
    port: str = ""
    kind: str = ""
    """Lines of different kinds share no lane."""


@dataclass(frozen=True)
class Layout:
    """Positions of all boxes and lines, in inches."""

    size: tuple[float, float]
    boxes: tuple[tuple[float, float, float, float], ...]
    """Left, bottom, right and top of each box."""

    lines: tuple[Path, ...]
    """Path of each line, from the top of one box to the bottom of another."""


def port_at(box: Box, left: float, port: str) -> tuple[float, float]:
    """Return the middle of a port, and how far from it lines may enter."""
    if port not in box.ports or not port:
        return left + WIDTH / 2, WIDTH / 2 - _EDGE
    share = WIDTH / len(box.ports)
    return left + share * (box.ports.index(port) + 0.5), share * 0.3


def lay_out(boxes: Sequence[Box], lines: Sequence[Line]) -> Layout:
    """Place boxes and lines."""
    trunks = [_corridor(boxes, line, load) if _is_long(boxes, line) else None for load in [_Load()] for line in lines]
    lanes, widths = _lanes(boxes, lines, trunks)
    columns = _spread([WIDTH] * (1 + max(box.column for box in boxes)), widths)
    rows = _rows(boxes, lines)
    edges = [(columns[b.column], rows[b.row][0], columns[b.column] + WIDTH, rows[b.row][1]) for b in boxes]
    corridor = [start + WIDTH for start in [_MARGIN - WIDTH, *columns]]  # the left side of each corridor
    lane_at = {trunk: corridor[trunk[2]] + (lane + 1) * _LANE + _CORRIDOR / 2 for trunk, lane in lanes.items()}
    starts = _starts(boxes, lines, trunks, lane_at, columns)
    ends = _ends(boxes, lines, trunks, lane_at, columns, starts)
    paths = tuple(
        _path(
            (starts[number], rows[boxes[line.start].row][1]),
            None if trunk is None else (lane_at[trunk], rows[boxes[line.start].row + 1], rows[boxes[line.end].row - 1]),
            (ends[number], rows[boxes[line.end].row][0]),
        )
        for number, (line, trunk) in enumerate(zip(lines, trunks, strict=True))
    )
    size = columns[-1] + WIDTH + widths[-1] + _MARGIN, rows[-1][1] + _MARGIN
    return Layout(size, tuple(edges), paths)


_Trunk = tuple[int, str, int]
"""Lines from one box, of one kind, in one corridor: the box's number, the kind, and the corridor's number."""


class _Load(defaultdict[int, set[_Trunk]]):
    """Trunks chosen so far, by corridor."""

    def __init__(self) -> None:
        super().__init__(set)


def _is_long(boxes: Sequence[Box], line: Line) -> bool:
    return boxes[line.end].row > boxes[line.start].row + 1


def _corridor(boxes: Sequence[Box], line: Line, load: _Load) -> _Trunk:
    """Choose a corridor on the way: one that the same box and kind already use, else the emptiest and then nearest."""
    first, last = boxes[line.start].column, boxes[line.end].column
    low, high = (first, first + 1) if first == last else (min(first, last) + 1, max(first, last))
    near = sorted(range(low, high + 1), key=lambda each: abs(each - 0.5 - first))[:16]
    trunks = [(line.start, line.kind, each) for each in near]
    chosen = next((t for t in trunks if t in load[t[2]]), None) or min(trunks, key=lambda t: len(load[t[2]]))
    load[chosen[2]].add(chosen)
    return chosen


def _lanes(
    boxes: Sequence[Box], lines: Sequence[Line], trunks: Sequence[_Trunk | None]
) -> tuple[dict[_Trunk, int], list[float]]:
    """Return the lane of each trunk, free on all rows that it passes, and the width of every corridor."""
    until: dict[_Trunk, int] = {}
    for line, trunk in zip(lines, trunks, strict=True):
        if trunk is not None:
            until[trunk] = max(until.get(trunk, 0), boxes[line.end].row)
    lanes: dict[_Trunk, int] = {}
    free: defaultdict[int, list[int]] = defaultdict(list)
    for trunk in sorted(until, key=lambda trunk: (boxes[trunk[0]].row, -until[trunk], trunk)):
        rows, start = free[trunk[2]], boxes[trunk[0]].row
        lanes[trunk] = next((lane for lane, row in enumerate(rows) if row <= start), len(rows))
        rows[lanes[trunk] : lanes[trunk] + 1] = [until[trunk]]
    count = 2 + max(box.column for box in boxes)
    widths = [_CORRIDOR + _LANE * (len(free[each]) + 1) if free.get(each) else _CORRIDOR for each in range(count)]
    return lanes, widths


def _spread(sizes: Sequence[float], between: Sequence[float]) -> list[float]:
    """Return the left side of each column, with corridors before and between columns."""
    found, at = list[float](), _MARGIN
    for size, before in zip(sizes, between, strict=False):
        found.append(at + before)
        at = found[-1] + size
    return found


def _rows(boxes: Sequence[Box], lines: Sequence[Line]) -> list[tuple[float, float]]:
    """Return the bottom and the top of each row."""
    bends: defaultdict[int, int] = defaultdict(int)
    for line in lines:
        for channel in {boxes[line.start].row, boxes[line.end].row - 1}:
            bends[channel] += 1
    found, at = list[tuple[float, float]](), _MARGIN
    for row in range(1 + max(box.row for box in boxes)):
        height = TALL if any(box.ports for box in boxes if box.row == row) else LOW
        found.append((at, at + height))
        at += height + min(_HIGHEST, _CHANNEL + _BEND * bends[row])
    return found


def _starts(
    boxes: Sequence[Box],
    lines: Sequence[Line],
    trunks: Sequence[_Trunk | None],
    lane_at: dict[_Trunk, float],
    columns: Sequence[float],
) -> list[float]:
    """Return where each line leaves the top of its box: lines that go left start on the left; a trunk leaves once."""
    strands: defaultdict[int, dict[object, float]] = defaultdict(dict)
    for number, (line, trunk) in enumerate(zip(lines, trunks, strict=True)):
        end = boxes[line.end]
        goes = port_at(end, columns[end.column], line.port)[0] if trunk is None else lane_at[trunk]
        strands[line.start][number if trunk is None else trunk] = goes
    at: dict[object, float] = {}
    for start, going in strands.items():
        left, ordered = columns[boxes[start].column], sorted(going, key=lambda strand: (going[strand], str(strand)))
        for place, strand in enumerate(ordered):
            at[strand] = left + _EDGE + (WIDTH - 2 * _EDGE) * (place + 1) / (len(ordered) + 1)
    return [at[number if trunk is None else trunk] for number, trunk in enumerate(trunks)]


def _ends(
    boxes: Sequence[Box],
    lines: Sequence[Line],
    trunks: Sequence[_Trunk | None],
    lane_at: dict[_Trunk, float],
    columns: Sequence[float],
    starts: Sequence[float],
) -> list[float]:
    """Return where each line enters the bottom of its box: lines that come from the left enter on the left."""
    entering: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for number, line in enumerate(lines):
        entering[line.end, line.port].append(number)
    found = [0.0] * len(lines)
    for (end, port), numbers in entering.items():
        middle, reach = port_at(boxes[end], columns[boxes[end].column], port)
        comes = {n: starts[n] if (trunk := trunks[n]) is None else lane_at[trunk] for n in numbers}
        for place, number in enumerate(sorted(numbers, key=lambda n: (comes[n], n))):
            found[number] = middle + reach * ((2 * place + 1) / len(numbers) - 1)
    return found


def _path(
    start: tuple[float, float],
    lane: tuple[float, tuple[float, float], tuple[float, float]] | None,
    end: tuple[float, float],
) -> Path:
    """Return a curve from start to end; or a curve into a lane, the lane, and a curve out; vertical at the joins."""
    if lane is None:
        return Path([start, *_bend(start, end)], [Path.MOVETO, *[Path.CURVE4] * 3])
    x, (bottom, _), (_, top) = lane
    vertices = [start, *_bend(start, (x, bottom)), (x, top), *_bend((x, top), end)]
    return Path(vertices, [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3])


def _bend(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    middle = (start[1] + end[1]) / 2
    return [(start[0], middle), (end[0], middle), end]
