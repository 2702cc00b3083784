"""Pictures by geometry: no line runs behind a box or over a name, and every arrowhead touches its box."""

import random
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from edgeprune.graph import Circuit, Edge, Graph, Node, compare_circuits
from edgeprune.pictures.draw import MOST_EDGES, draw_comparison

GRAPHS = {
    "compiled": Graph.transformer(embeddings=("tok", "pos"), layers=3, heads=2),
    "one head": Graph.transformer(embeddings=("tok", "pos"), layers=6, heads=1),
    "gpt2": Graph.transformer(embeddings=("embed",), layers=4, heads=6),
    "deep": Graph.transformer(embeddings=("embed",), layers=12, heads=12),
    "grouped": Graph.transformer(embeddings=("embed",), layers=3, heads=4, kv_heads=2),
    "one group": Graph.transformer(embeddings=("embed",), layers=2, heads=4, kv_heads=1),
}


def drawn(graph, count, seed):
    """A picture of a random circuit, beside another one, with its axes laid out."""
    rng = random.Random(seed)
    edges = rng.sample(graph.edges, min(count, graph.total))
    found, true = (Circuit(graph, "zero", frozenset(each)) for each in (edges[3:], edges[:-3] or edges))
    figure = draw_comparison(graph, found.edges, compare_circuits(found, true), "a title")
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def boxes_of(axes):
    """Names, and the extents of their boxes, in pixels; other texts of the picture too."""
    named = {text: text.get_bbox_patch().get_window_extent() for text in axes.texts if text.get_bbox_patch()}
    return {text.get_text(): box for text, box in named.items()}, named


def points_of(axes, patch):
    """A line's points in pixels, closely sampled; arrowheads are separate."""
    path = axes.transData.transform_path(patch._path_original)
    (points,) = path.interpolated(1).to_polygons(closed_only=False)
    return np.concatenate([np.linspace(a, b, 8) for a, b in pairwise(points)])


def ends(graph, edge):
    """The names of the boxes that an edge joins."""
    if len(graph.readers[edge.destination]) > 1:
        return str(edge.source), f"a{edge.destination.layer}.kv{edge.destination.head}"
    return str(edge.source), str(edge.destination.owner)


@pytest.mark.parametrize(("count", "seed"), [(12, 0), (60, 1), (MOST_EDGES, 2)])
@pytest.mark.parametrize("name", GRAPHS)
def test_no_line_runs_behind_a_box_or_over_a_name_and_both_ends_touch(name, count, seed):
    axes = drawn(GRAPHS[name], count, seed)
    boxes, named = boxes_of(axes)
    assert axes.patches and len(boxes) == len(named)
    joined = set()
    for patch in axes.patches:
        points = points_of(axes, patch)
        for box in named.values():
            inside = (points > (box.x0 + 0.5, box.y0 + 0.5)).all(1) & (points < (box.x1 - 0.5, box.y1 - 0.5)).all(1)
            assert not inside.any()
        (start,) = [n for n, b in boxes.items() if abs(points[0][1] - b.y1) < 1 and b.x0 < points[0][0] < b.x1]
        (end,) = [n for n, b in boxes.items() if abs(points[-1][1] - b.y0) < 1 and b.x0 < points[-1][0] < b.x1]
        assert abs(points[-1][0] - points[-2][0]) < abs(points[-1][1] - points[-2][1])  # it comes from below
        joined.add((start, end))
    rng = random.Random(seed)
    edges = rng.sample(GRAPHS[name].edges, min(count, GRAPHS[name].total))
    assert joined == {ends(GRAPHS[name], edge) for edge in edges}
    for text in axes.texts:  # the names and the ports' letters stand inside their boxes
        extent = text.get_window_extent()
        assert any(b.x0 <= extent.x0 and extent.x1 <= b.x1 and b.y0 <= extent.y0 <= b.y1 for b in named.values())
    for (one, a), (other, b) in ((p, q) for p in named.items() for q in named.items() if p[0] is not q[0]):
        assert not a.overlaps(b), (one, other)


def test_lines_that_share_a_lane_come_from_one_box_and_are_of_one_kind():
    axes = drawn(GRAPHS["gpt2"], MOST_EDGES - 1, 0)
    lanes, shared = {}, 0
    for patch in axes.patches:
        vertices = patch._path_original.vertices
        if len(vertices) == 8:  # a bend, the lane, a bend
            (x, bottom), (_, top) = vertices[3:5]
            for other, low, high in lanes.setdefault(round(float(x), 6), []):
                if low < top and bottom < high:
                    assert other == (tuple(vertices[0]), patch.get_edgecolor())
                    shared += 1
            lanes[round(float(x), 6)].append(((tuple(vertices[0]), patch.get_edgecolor()), bottom, top))
    assert shared and len(lanes) > 20


def test_up_to_two_hundred_edges_are_drawn_one_by_one_and_more_by_layer_which_is_said():
    graph = GRAPHS["deep"]
    for count, lines in ((MOST_EDGES, MOST_EDGES), (MOST_EDGES + 1, None)):
        edges = random.Random(0).sample(graph.edges, count)
        (axes,) = draw_comparison(graph, edges, None, "many").axes
        between = {(e.source.stage, e.destination.stage) for e in edges}
        assert len(axes.patches) == (lines or len(between))
        assert ("201 edges, by layer" in " ".join(axes.get_title().split())) == (lines is None)
        assert ("a3.h5" in {text.get_text() for text in axes.texts}) == (lines is not None)


def test_of_very_many_lines_the_thinnest_are_left_out_and_counted():
    graph = Graph.transformer(embeddings=("embed",), layers=16, heads=2)
    (axes,) = draw_comparison(graph, graph.edges, None, "all").axes
    between = {(e.source.stage, e.destination.stage) for e in graph.edges}
    assert len(axes.patches) == MOST_EDGES < len(between)
    assert f"the {len(between) - MOST_EDGES} thinnest lines" in " ".join(axes.get_title().split())


def test_a_group_that_shares_keys_is_no_head_and_is_explained():
    graph = GRAPHS["grouped"]
    edges = list(map(Edge.parse, ("embed->a0.h1.k", "embed->a0.h1.q", "a0.h3->logits")))
    (axes,) = draw_comparison(graph, edges, None, "grouped").axes
    boxes, _ = boxes_of(axes)
    assert {"a0.kv0", "a0.kv1", "a0.h1", "a0.h3"} <= boxes.keys()
    said = " ".join(axes.get_title().split())
    assert "a0.kv1: a0.h1.k and a0.h1.v, keys and values that heads 2 to 3 share" in said
    plain = Graph((Node("tok"),), (Node("a", 0, 1, "k"), Node("logits")))
    assert "kv" not in draw_comparison(plain, plain.edges, None, "t").axes[0].get_title()


def test_a_circuit_without_edges_is_drawn_pale():
    (axes,) = draw_comparison(GRAPHS["gpt2"], [], None, "none").axes
    assert not axes.patches and {text.get_color() for text in axes.texts} == {"#b8b8b8"}
