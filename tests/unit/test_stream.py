"""Both streams, and compiled models on them, beside sums that are written out edge by edge."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import sources_and_output

from edgeprune.graph import Edge
from edgeprune.masked_model import OnlyMasked
from edgeprune.streams import by_source
from edgeprune.streams.by_column import ColumnStream, Wiring, align, project
from edgeprune.streams.by_source import PlainStream, SourceStream, mixing_as_on
from tracr_bridge.compile.model import TracrModel, structural_mask
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Streams of compiled models

SUPPORTS = [torch.tensor([0, 2]), torch.tensor([1]), torch.tensor([0, 1, 3])]
EDGES = torch.tensor([[True, True, True, True], [True, False, False, True], [False, False, True, True]])
"""Of three sources and four destinations, one of which nobody reads for; the first reads two sources."""


def weights() -> dict[int, torch.Tensor]:
    """Of three destinations; some rows of some are 0, which no slot is needed for."""
    found = {0: drawn(4, 2, seed=1), 2: drawn(4, 3, seed=2), 3: drawn(4, 1, seed=3)}
    found[0][2], found[2][:2] = 0, 0
    return found


def dense(*lead, seed):
    """What each source writes, `[source, *lead, pos, d_model]`, 0 outside its columns."""
    values = drawn(3, *lead, 2, 4, seed=seed)
    for source, support in enumerate(SUPPORTS):
        gone = [column for column in range(4) if column not in support.tolist()]
        values[source][..., gone] = 0
    return values


def columns(values, source):
    """The columns that a source writes, as a stream has them."""
    return values[source][..., SUPPORTS[source]].movedim((-1, -2), (0, 1))


def test_a_slot_is_held_for_every_column_that_a_source_writes_and_read_where_a_weight_reaches_it():
    wiring = Wiring(SUPPORTS, weights(), EDGES)
    assert (wiring.d_model, wiring.sources) == (4, 3)
    assert wiring.cells.tolist() == [0, 2, 4 + 1, 8 + 0, 8 + 1, 8 + 3]
    assert {number: read.slots.tolist() for number, read in wiring.reads.items()} == {
        0: [0, 2],  # column 2 has no weight, and there is no edge from the last source
        2: [1, 5],
        3: [0, 1, 2, 3, 4, 5],
    }
    assert [read.number for read in wiring.reads.values()] == [0, 1, 2]
    assert wiring.entries.tolist() == [0, 4, 2, 8 + 2, 3, 3, 4 + 3, 8 + 3, 8 + 3, 8 + 3]
    for number, weight in weights().items():
        assert torch.equal(wiring.reads[number].weight, weight[[0, 2, 1, 0, 1, 3]][wiring.reads[number].slots].T)
    expected = torch.zeros(6, 6)
    for rows, read in zip(([0, 1], [2, 3, 4], [5]), wiring.reads.values(), strict=True):
        for row, weight in zip(rows, read.weight, strict=True):
            expected[row, read.slots] = weight
    assert torch.equal(wiring.weight, expected)


@pytest.mark.parametrize("ablate", [False, True])
@pytest.mark.parametrize("masks", [None, (), (5,), (5, 3)], ids=str)
def test_a_destination_reads_each_edge_mixed_by_its_entry_of_the_mask(masks, ablate):
    """Each of five runs may have inputs of its own, and of three masks."""
    wiring, own = Wiring(SUPPORTS, weights(), EDGES), (5,) if masks else ()
    lead = 0 if masks is None else len(masks)
    shape = (*own, 1, 6) if masks and len(masks) == 2 else (*own, 6)
    clean, ablated = dense(*shape, seed=4), dense(*shape, seed=5)
    mask = None if masks is None else drawn(*masks, 3, 4, seed=6)
    stream = ColumnStream(wiring, lead, mask, ablated if ablate else None)
    stream.write([align(columns(clean, 0), lead)])
    stream.write([align(columns(clean, 1), lead), align(columns(clean, 2), lead)])
    for destination, weight in weights().items():
        expected = torch.zeros(1)
        for source in range(3):
            z = torch.tensor(1.0) if mask is None else mask[..., source, destination, None, None, None]
            kept = z * clean[source] + (1 - z) * (ablated[source] if ablate else 0)
            expected = expected + (kept @ weight) * EDGES[source, destination]
        found = stream.read(destination).permute(*range(2, lead + 3), 1, 0)
        torch.testing.assert_close(found, expected)


def test_what_is_written_for_all_runs_alike_is_held_for_each_and_for_none_where_there_is_none():
    stream = ColumnStream(Wiring(SUPPORTS, weights(), EDGES), 1, None, None)
    stream.write([drawn(2, 3, 1, 4), drawn(1, 3, 5, 1, seed=1)])
    assert stream.written.shape == (3, 3, 5, 4)
    assert torch.equal(stream.written[:2], drawn(2, 3, 1, 4).expand(2, 3, 5, 4))
    assert torch.equal(stream.written[2:], drawn(1, 3, 5, 1, seed=1).expand(1, 3, 5, 4))
    none = ColumnStream(Wiring(SUPPORTS, weights(), EDGES), 1, None, None)
    none.write([drawn(2, 3, 1, 4), drawn(1, 3, 0, 1)])
    assert none.written.shape == (3, 3, 0, 4)


def test_columns_are_multiplied_position_by_position_and_aligned_by_dimensions_of_size_1():
    weight, values = drawn(2, 3), drawn(3, 4, 5, 6, seed=1)
    torch.testing.assert_close(project(weight, values), torch.einsum("oc,cplb->oplb", weight, values))
    for lead, shape in ((1, (3, 4, 5, 6)), (2, (3, 4, 1, 5, 6)), (3, (3, 4, 1, 1, 5, 6))):
        assert align(values, lead).shape == shape
    assert align(values[..., 0], 0).shape == (3, 4, 5)


# Compiled models

BOS, PAD = 0, 4


def some(random, *shape):
    """Numbers a third of which are 0."""
    return (random.normal(size=shape) * (random.random(shape) < 0.7)).astype(np.float32)


def small(*, causal=True, seed=0) -> Weights:
    """Two layers of two heads; the last head writes nothing, and some units and columns have no effect."""
    random = np.random.default_rng(seed)

    def head():
        return HeadWeights(*(some(random, 5, 3) for _ in range(3)), some(random, 3, 5))

    layers = [LayerWeights((head(), head()), some(random, 5, 4), some(random, 4, 5)) for _ in range(2)]
    last = layers[1].heads[1]
    last.output[:] = 0
    layers[0].heads[0].query[:, 1], layers[0].heads[1].key[:, 0], layers[0].heads[1].output[2] = 0, 0, 0
    layers[1].hidden[:, 2], layers[1].output[0] = 0, 0
    return Weights(some(random, 5, 5), some(random, 4, 5), tuple(layers), some(random, 5, 2), causal, PAD)


TOKENS = torch.tensor([[BOS, 1, 2, 3], [BOS, 3, PAD, PAD], [BOS, 2, 2, PAD]])
OTHERS = torch.tensor([[BOS, 3, 3, 1], [BOS, 1, PAD, PAD], [BOS, 1, 3, PAD]])
LENGTHS = [4, 2, 3]


def model_of(weights: Weights) -> TracrModel:
    return TracrModel(weights, token_ids=[0, 1, 2, 3])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("causal", [True, False])
def test_masked_runs_of_a_compiled_model_are_those_of_a_loop_over_edges(causal, seed):
    weights = small(causal=causal, seed=seed)
    model = model_of(weights)
    graph = model.graph
    masks = drawn(2, len(graph.sources), len(graph.destinations), seed=seed)
    sources, clean = model.sources(OTHERS), model.sources(TOKENS)
    batched, plain = model(TOKENS, masks, sources), model(TOKENS)
    none, ones = torch.zeros(len(graph.sources), 1, 1), torch.ones(masks[0].shape)
    for row, length in enumerate(LENGTHS):
        written, output = sources_and_output(weights, graph, TOKENS[row, :length], ones, none)
        torch.testing.assert_close(clean[:, row, :length].double(), written, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plain[row, :length].double(), output, atol=1e-5, rtol=1e-5)
        ablated = sources[:, row, :length].double()
        for mask, found in zip(masks, batched[:, row, :length], strict=True):
            expected = sources_and_output(weights, graph, TOKENS[row, :length], mask.double(), ablated)[1]
            torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.fakes
def test_runs_may_each_have_inputs_and_ablated_values_of_their_own_and_positions_be_asked_for():
    model = model_of(small())
    masks = drawn(3, len(model.graph.sources), len(model.graph.destinations))
    sources = model.sources(OTHERS)
    together = model(TOKENS, masks, sources)
    own = model(TOKENS[:, None], masks, sources[:, :, None])
    for run in range(3):
        torch.testing.assert_close(together[run], model(TOKENS, masks[run], sources))
        torch.testing.assert_close(own[run, 0], together[run, run])
    several = torch.stack([sources, model.sources(TOKENS.flip(0))], dim=1)  # more runs of ablated values than of masks
    torch.testing.assert_close(model(TOKENS, masks[0], several)[0], together[0])
    torch.testing.assert_close(
        model.sources(TOKENS.expand(2, 3, 4)), model.sources(TOKENS)[:, None].expand(-1, 2, -1, -1, -1)
    )
    positions = torch.tensor([[3, 0], [1, 1], [0, 2]])
    plain = model(TOKENS, positions=positions)
    asked = model(TOKENS, masks, sources, positions)
    for row, places in enumerate(positions.tolist()):
        assert torch.equal(asked[:, row], together[:, row, places])
        assert torch.equal(plain[row], model(TOKENS)[row, places])


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_shown_scaled_head_by_head_before_what_is_hidden_is(causal):
    weights = small(causal=causal)
    model, seen = model_of(weights), {}
    outputs = model.observe(TOKENS, lambda layer, head, scores: seen.__setitem__((layer, head), scores))
    assert torch.equal(outputs, model(TOKENS))
    assert list(seen) == [(0, 0), (0, 1), (1, 0)]  # the last one writes nothing
    written = torch.from_numpy(weights.token[TOKENS] + weights.position)
    for index, head in enumerate(weights.layers[0].heads):
        query, key = written @ torch.from_numpy(head.query), written @ torch.from_numpy(head.key)
        torch.testing.assert_close(seen[0, index], query @ key.mT / math.sqrt(3), atol=1e-5, rtol=1e-5)


def test_an_edge_is_structural_where_what_is_written_is_read():
    weights = small()
    model = model_of(weights)
    graph = model.graph
    written = [weights.token[:4], weights.position, *(each for layer in weights.layers for each in layer.written)]
    read = [*(each for layer in weights.layers for each in layer.read), weights.unembed]
    for edge in graph.edges:
        row, column = graph.position(edge)
        assert (edge in model.structural) == bool((written[row] @ read[column] != 0).any())
    assert 0 < len(model.structural) < graph.total
    assert torch.equal(model.structural_mask, structural_mask(graph, written, read))
    assert int(model.structural_mask.sum()) == len(model.structural)
    assert [each.tolist() for each in model.read] == [each.tolist() for each in read]
    # PAD is in no input, and what it alone writes is read by nobody.
    token, unembed = np.zeros((5, 5), np.float32), np.zeros((5, 2), np.float32)
    token[PAD, 0] = token[1, 1] = unembed[0, 0] = 1
    assert Edge.parse("tok->logits") not in model_of(replace(weights, token=token, unembed=unembed)).structural
    unembed[1, 1] = 1
    assert Edge.parse("tok->logits") in model_of(replace(weights, token=token, unembed=unembed)).structural


def test_columns_and_units_without_an_effect_are_neither_held_nor_multiplied():
    weights = small()
    weights.layers[0].heads[0].value[:, 0] = 0
    model = model_of(weights)
    widths = {str(model.graph.destinations[at]): len(read.weight) for at, read in model._wiring.reads.items()}
    assert widths == {
        **{"a0.h0.q": 2, "a0.h0.k": 2, "a0.h0.v": 2, "a0.h1.q": 2, "a0.h1.k": 2, "a0.h1.v": 2, "m0": 4},
        **{"a1.h0.q": 3, "a1.h0.k": 3, "a1.h0.v": 3, "m1": 2, "logits": 2},
    }
    assert [layer.output.shape[1] for layer in model._layers] == [4, 2]
    assert [[head.output.shape[1] for head in layer.heads] for layer in model._layers] == [[2, 2], [3]]


def test_a_model_in_double_precision_computes_the_same_in_more_digits():
    model = model_of(small())
    double = model.in_double
    assert double(TOKENS).dtype == double.sources(TOKENS).dtype == torch.float64
    torch.testing.assert_close(double(TOKENS).float(), model(TOKENS), atol=1e-5, rtol=1e-5)
    assert double.structural == model.structural and double.in_double(TOKENS).dtype == torch.float64
    assert torch.equal(model.is_token(TOKENS), TOKENS != PAD)


@pytest.mark.parametrize("ablate", [False, True])
def test_fingerprints_are_the_same_for_what_is_written_alike_and_others_for_what_is_not(ablate):
    """Of three runs, one removes all that a token is read by; the others are the same bit by bit."""
    model = model_of(small(causal=False))
    ablated = model.sources(OTHERS) if ablate else None
    count = len(model.graph.sources)
    masks, relevant = torch.ones(3, count, len(model.graph.destinations)), torch.ones(count, 3, 4, dtype=torch.bool)
    whole = model.fingerprints(TOKENS, masks, ablated, relevant, 2)
    masks[1, 0] = 0
    found = model.fingerprints(TOKENS, masks, ablated, relevant, 2)
    assert found.shape == (count, 3, 3) and found.dtype == torch.int64
    assert torch.equal(found[:, [0, 2]], whole[:, [0, 2]]) and torch.equal(found[:2], whole[:2])
    writes = [2, 3, 4, 5, 7]  # all but the last head
    assert bool((found[writes, 1] != whole[writes, 1]).any(1).all()) and not found[6].any()
    without = model.fingerprints(TOKENS, masks, None, relevant, 2)
    assert torch.equal(without, found) != ablate
    # Of no layer and of one, what later ones write has none.
    for layers, sources in ((0, 2), (1, 5)):
        first = model.fingerprints(TOKENS, masks, ablated, relevant, layers)
        assert bool((first[:sources] == found[:sources]).all()) and not first[sources:].any()


def test_what_is_written_where_it_does_not_count_or_beyond_the_end_has_no_part_in_a_fingerprint():
    model = model_of(small())
    count = len(model.graph.sources)
    mask = torch.ones(1, count, len(model.graph.destinations))

    def of_tokens(*ids, counts=4):
        relevant = (torch.arange(len(ids)) < counts).expand(count, 1, -1)
        return model.fingerprints(torch.tensor([ids]), mask, None, relevant, 0)[:2, 0, 0].tolist()

    assert of_tokens(BOS, 1, 2, counts=2) == of_tokens(BOS, 1, 3, counts=2) != of_tokens(BOS, 2, 2, counts=2)
    assert of_tokens(BOS, 1, 2) != of_tokens(BOS, 1, 3)
    assert of_tokens(BOS, 3) == of_tokens(BOS, 3, PAD, PAD) != of_tokens(BOS, 3, 3, PAD)


def test_values_that_change_places_between_positions_columns_or_sources_have_other_fingerprints():
    weights = small()
    model, relevant = model_of(weights), torch.ones(8, 1, 3, dtype=torch.bool)
    mask = torch.ones(1, len(model.graph.sources), len(model.graph.destinations))
    found = {
        int(model.fingerprints(torch.tensor([ids]), mask, None, relevant, 0)[0, 0, 0])
        for ids in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
    }
    assert len(found) == 6
    swapped = replace(weights, token=weights.token[:, ::-1].copy())
    (one, other) = (
        model_of(each).fingerprints(torch.tensor([[0, 1, 2]]), mask, None, relevant, 0)[0]
        for each in (weights, swapped)
    )
    assert not torch.equal(one, other)


@pytest.mark.fakes
def test_a_model_that_is_handed_out_passes_all_on():
    class Echo:
        graph = model_of(small()).graph

        def sources(self, tokens):
            return tokens + 1

        def __call__(self, tokens, mask=None, ablated=None, positions=None):
            return [tokens, mask, ablated, positions]

    only = OnlyMasked(Echo())
    assert only.graph is Echo.graph and only.sources(TOKENS).equal(TOKENS + 1)
    mask, ablated, positions = drawn(1), drawn(2), TOKENS
    assert [id(each) for each in only(TOKENS, mask, ablated, positions)] == list(
        map(id, (TOKENS, mask, ablated, positions))
    )
    assert only(TOKENS)[1:] == [None] * 3 and only.weights is None


# Streams of language models

RUNS, SOURCES, ROWS, WIDTH = 3, 5, 4, 6


def norm(values):
    return values / (1 + values.square().mean(-1, keepdim=True))


def walk(stream, contributions, parts):
    """Two sources, what three destinations read, a source, a constant, two destinations without weights, the rest."""
    first, second, third = contributions
    stream.write(first)
    found = [stream.read(norm, parts)]
    stream.write(second)
    stream.add(drawn(WIDTH, seed=7, dtype=torch.float64))
    found += [stream.read(norm), stream.read(norm)]
    stream.write(third)
    return [*found, stream.read(norm, (parts[0][:1],))]


def naive(contributions, mask, ablated, parts):
    """The same, edge by edge; `[destination, run, row, width]`."""
    clean = torch.cat([each.expand(RUNS, -1, -1, -1) for each in contributions], dim=1)
    gone = torch.zeros_like(clean) if ablated is None else ablated.expand(RUNS, -1, -1, -1)
    weights, constant = torch.cat(parts), drawn(WIDTH, seed=7, dtype=torch.float64)

    def read(destination, written, weight=None, more=0.0):
        total = torch.zeros(RUNS, ROWS, WIDTH, dtype=torch.float64) + more
        for source in range(written):
            z = mask.expand(RUNS, -1, -1)[:, source, destination, None, None]
            total = total + z * clean[:, source] + (1 - z) * gone[:, source]
        return norm(total) if weight is None else norm(total) @ weight

    first = torch.stack([read(number, 2, weights[number]) for number in range(3)])
    return [first, *(read(number, 3, more=constant)[None] for number in (3, 4)), read(5, 5, weights[0], constant)[None]]


def case(*, own=True):
    contributions = [drawn(RUNS, count, ROWS, WIDTH, seed=count, dtype=torch.float64) for count in (2, 1)]
    contributions.append(drawn(1, 2, ROWS, WIDTH, seed=9, dtype=torch.float64))
    parts = (drawn(1, WIDTH, 4, seed=3, dtype=torch.float64), drawn(2, WIDTH, 4, seed=4, dtype=torch.float64))
    mask = drawn(RUNS if own else 1, SOURCES, 6, seed=5, dtype=torch.float64)
    return contributions, parts, mask, drawn(RUNS if own else 1, SOURCES, ROWS, WIDTH, seed=6, dtype=torch.float64)


@pytest.mark.parametrize(("at_once", "held"), [(10**9, 10**9), (10**9, 0), (1, 0), (1, 10**9), (108, 0)])
@pytest.mark.parametrize("ablate", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_wide_reads_and_all_gradients_are_those_of_a_loop_over_edges(monkeypatch, own, ablate, at_once, held):
    monkeypatch.setattr(by_source, "_AT_ONCE", {"cpu": at_once})
    monkeypatch.setattr(by_source, "_HELD", held)
    contributions, parts, mask, ablated = case(own=own)
    ablated = ablated if ablate else None
    inputs = [mask, *contributions]
    for each in inputs:
        each.requires_grad_()
    stream = SourceStream((RUNS, ROWS, WIDTH), mask, ablated)
    found, expected = walk(stream, contributions, parts), naive(contributions, mask, ablated, parts)
    outputs = [drawn(*each.shape, seed=number, dtype=torch.float64) for number, each in enumerate(found)]
    for ours, slow in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, slow)
    held_values = torch.cat([each.expand(RUNS, -1, -1, -1) for each in contributions], dim=1)
    torch.testing.assert_close(stream.held, held_values - (0 if ablated is None else ablated))
    # The logits alone read every source, and are walked back through first; as in a model, all else comes before them.
    gradients = [
        torch.autograd.grad(sum((one * two).sum() for one, two in zip(values, outputs, strict=True)), inputs)
        for values in (found, expected)
    ]
    for ours, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, slow)


def test_a_plain_run_reads_the_sum_of_all_that_was_written():
    contributions, parts, _, _ = case()
    ones = torch.ones(1, SOURCES, 6, dtype=torch.float64)
    held = torch.full((RUNS, SOURCES, ROWS, WIDTH), torch.nan, dtype=torch.float64)
    for stream in (PlainStream(), PlainStream(held)):
        found = walk(stream, contributions, parts)
        for ours, slow in zip(found, naive(contributions, ones, None, parts), strict=True):
            torch.testing.assert_close(ours, slow)
        assert stream.on_the_way_back(lambda: None) is None
    torch.testing.assert_close(held, torch.cat([each.expand(RUNS, -1, -1, -1) for each in contributions], dim=1))


def test_calls_come_on_the_way_back_in_the_reverse_order():
    contributions, parts, mask, _ = case()
    said, stream = [], SourceStream((RUNS, ROWS, WIDTH), mask.requires_grad_(), None)
    stream.on_the_way_back(lambda: said.append("first"))
    stream.write(torch.cat([each.expand(RUNS, -1, -1, -1) for each in contributions], dim=1))
    stream.on_the_way_back(lambda: said.append("second"))
    stream.read(norm, parts).sum().backward()
    assert said == ["second", "first"]


@pytest.mark.parametrize(
    ("at_once", "slices"), [(1, [1] * 4), (2 * 3 * 6 * 2 - 1, [1] * 4), (72, [2, 2]), (108, [3, 1])]
)
def test_as_many_rows_are_mixed_at_a_time_as_fit_and_one_at_least(monkeypatch, at_once, slices):
    """Of three runs that two destinations read, each six columns wide."""
    seen = []

    def noted(values):
        seen.append(values.shape[2])
        return values

    monkeypatch.setattr(by_source, "_AT_ONCE", {"cpu": at_once, "gpu": 10**9})
    mask = torch.ones(3, 1, 2)
    for kind, expected in (("cpu", slices), ("gpu", [4]), ("another", [4])):
        with mixing_as_on(kind):
            stream = SourceStream((3, 4, 6), mask, None)
            stream.write(drawn(3, 1, 4, 6))
            seen.clear()
            stream.read(noted, (torch.ones(2, 6, 1),))
            assert seen == expected
    with pytest.raises(ValueError, match="inside"), mixing_as_on("gpu"), mixing_as_on("cpu"):
        raise ValueError("inside")
    stream = SourceStream((3, 4, 6), mask, None)
    stream.write(drawn(3, 1, 4, 6))
    seen.clear()
    stream.read(noted, (torch.ones(2, 6, 1),))
    assert seen == slices  # on the device that tensors are on


@pytest.mark.parametrize(("most", "times"), [(3 * 2 * 4 * 6, 2), (3 * 2 * 4 * 6 - 1, 4)])
def test_what_is_read_is_held_for_the_way_back_if_it_is_small_and_mixed_anew_otherwise(monkeypatch, most, times):
    mixed, count = by_source._mixed, []
    monkeypatch.setattr(by_source, "_HELD", most)
    monkeypatch.setattr(by_source, "_AT_ONCE", {"cpu": 72})
    monkeypatch.setattr(by_source, "_mixed", lambda *given: count.append(1) or mixed(*given))
    stream = SourceStream((3, 4, 6), torch.ones(3, 1, 2, requires_grad=True), None)
    stream.write(drawn(3, 1, 4, 6))
    stream.read(norm, (torch.ones(2, 6, 2),)).sum().backward()
    assert len(count) == times
