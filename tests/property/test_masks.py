"""Hard concrete masks: distribution, gradients and discretisation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import ConfigError
from edgeprune.graph import Edge, Graph, Node
from edgeprune.masks import (
    HardConcrete,
    LearnedMask,
    at_mean_sparsity,
    edge_exists,
    edges_of,
    live_circuit,
    mask_of,
    without_each,
)

HARD = HardConcrete()
GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=2)
SAMPLES = 50_000

log_alphas = st.floats(-4, 4)
uniforms = st.floats(0.01, 0.99)
subsets = st.sets(st.sampled_from(GRAPH.edges))


def noise(seed: int = 0) -> torch.Tensor:
    return torch.rand(SAMPLES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(log_alphas, uniforms)
def test_a_sample_is_the_papers_formula(log_alpha, u):
    s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + log_alpha) / (2 / 3)))
    expected = min(1.0, max(0.0, s * 1.2 - 0.1))
    z = HARD.sample(torch.tensor(log_alpha, dtype=torch.float64), torch.tensor(u, dtype=torch.float64))
    assert float(z) == pytest.approx(expected, abs=1e-9)


@given(log_alphas, uniforms)
def test_the_gradient_of_a_sample_agrees_with_finite_differences(log_alpha, u):
    x = torch.tensor(log_alpha, dtype=torch.float64, requires_grad=True)
    noise = torch.tensor(u, dtype=torch.float64)
    z = HARD.sample(x, noise)
    if not 1e-3 < float(z.detach()) < 1 - 1e-3:  # at the clamp's corner the difference straddles it
        return
    (gradient,) = torch.autograd.grad(z, x)
    step = 1e-5
    numeric = (HARD.sample(x.detach() + step, noise) - HARD.sample(x.detach() - step, noise)) / (2 * step)
    assert float(gradient) == pytest.approx(float(numeric), rel=1e-4, abs=1e-8)
    assert float(gradient) > 0


@given(log_alphas)
@settings(max_examples=10)
def test_closed_form_probabilities_agree_with_sampling(log_alpha):
    z = HARD.sample(torch.tensor(log_alpha, dtype=torch.float64), noise())
    error = 5 / math.sqrt(SAMPLES)
    x = torch.tensor(log_alpha, dtype=torch.float64)
    assert float((z > 0).double().mean()) == pytest.approx(float(HARD.probability_positive(x)), abs=error)
    assert float((z == 1).double().mean()) == pytest.approx(float(HARD.probability_one(x)), abs=error)


@given(log_alphas)
@settings(max_examples=10)
def test_the_score_has_mean_zero_and_gives_the_gradient_of_expectations(log_alpha):
    x = torch.tensor(log_alpha, dtype=torch.float64, requires_grad=True)
    u = noise()
    z = HARD.sample(x, u)
    score = HARD.score(x.detach(), u)
    error = 5 / math.sqrt(SAMPLES)
    assert float(score.mean()) == pytest.approx(0, abs=error)
    (path,) = torch.autograd.grad((z**2).mean(), x)
    ratio = ((z.detach() ** 2) * score).mean()
    assert float(ratio) == pytest.approx(float(path), abs=error)


def test_the_score_sees_a_step_that_the_path_cannot():
    x = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    u = noise()
    z = HARD.sample(x.detach(), u)
    step = (z > 0.5).double()
    ratio = float((step * HARD.score(x.detach(), u)).mean())
    # E[step] = P(logistic noise > -x), as z is 1/2 where its noise and log_alpha cancel.
    p = torch.sigmoid(x.detach())
    assert ratio == pytest.approx(float(p * (1 - p)), abs=5 / math.sqrt(SAMPLES))


@given(log_alphas, st.floats(0.01, 3))
def test_more_log_alpha_keeps_more(log_alpha, more):
    low, high = torch.tensor([log_alpha, log_alpha + more])
    assert HARD.mean(low) <= HARD.mean(high)
    assert HARD.probability_positive(low) < HARD.probability_positive(high)


@pytest.mark.parametrize("fault", [{"temperature": 0.0}, {"low": 0.1}, {"high": 0.9}])
def test_an_impossible_distribution_is_refused(fault):
    with pytest.raises(ConfigError, match="Expected temperature > 0, low < 0 and high > 1"):
        HardConcrete(**fault)


@given(subsets)
def test_edges_survive_the_way_through_a_mask(edges):
    mask = mask_of(GRAPH, edges)
    assert mask.sum() == len(edges)
    assert edges_of(GRAPH, mask > 0) == edges


@given(subsets)
def test_entries_that_no_edge_stands_behind_are_not_read(edges):
    mask = mask_of(GRAPH, edges)
    mask[~edge_exists(GRAPH)] = 1
    assert edges_of(GRAPH, mask > 0) == edges


def test_every_edge_of_the_graph_exists_and_nothing_else():
    exists = edge_exists(GRAPH)
    assert int(exists.sum()) == GRAPH.total
    assert all(exists[GRAPH.position(edge)] for edge in GRAPH.edges)


@pytest.mark.parametrize("of", ["edges and nodes", "edges and groups"])
def test_expected_edges_agree_with_sampling_with_masks_of_groups_too(of):
    masks = LearnedMask(GRAPH, HARD, initial=0.3, of=of)
    draw = masks.draw(20_000, torch.Generator().manual_seed(0))
    counted = (draw.mask.detach() > 0).sum((-1, -2)).double().mean()
    assert float(masks.expected_edges().detach()) == pytest.approx(float(counted), rel=0.01)


def test_a_node_mask_multiplies_the_edges_of_its_source():
    masks = LearnedMask(GRAPH, HARD, initial=8.0, of="edges and nodes")
    pos = GRAPH.total + 1  # nodes follow edges, and pos is the second source
    with torch.no_grad():
        masks.log_alpha[pos] = -8.0
    assert {edge.source.kind for edge in edges_of(GRAPH, masks.rounded() > 0)} == {"tok", "a", "m"}
    assert float(masks.mean().detach()[1].sum()) == 0


def test_a_destinations_mask_multiplies_the_edges_into_it():
    masks = LearnedMask(GRAPH, HARD, initial=8.0, of="edges and groups")
    with torch.no_grad():
        masks.log_alpha[GRAPH.total + len(GRAPH.sources) + GRAPH.destination_index[Node.parse("m0")]] = -8.0
    kept = edges_of(GRAPH, masks.rounded() > 0)
    assert kept == {edge for edge in GRAPH.edges if str(edge.destination) != "m0"}
    column = GRAPH.destination_index[Node.parse("m0")]
    exists = edge_exists(GRAPH)
    assert bool((masks.edge_log_alpha()[:, column][exists[:, column]] == -8).all())
    assert int((masks.edge_log_alpha() == 8).sum()) == len(kept)


def test_only_what_is_to_be_kept_is_left():
    masks = LearnedMask(GRAPH, HARD, initial=2.0, of="edges and groups")
    wanted = mask_of(GRAPH, GRAPH.edges[::3]) > 0
    masks.keep_only(wanted)
    assert torch.equal(masks.rounded() > 0, wanted)
    assert float(masks.mean().detach()[~wanted].max()) == 0


def test_entries_that_a_sample_does_not_draw_stand_at_their_rounded_mean():
    masks = LearnedMask(GRAPH, HARD, initial=0.5)
    with torch.no_grad():
        masks.log_alpha[::3] = -0.5
    draw = masks.draw(50, torch.Generator().manual_seed(0), explored=0.2)
    for mask, entries in zip(draw.mask, draw.entries, strict=True):
        changed = (mask != masks.rounded())[edge_exists(GRAPH)]
        assert set(changed.nonzero()[:, 0].tolist()) <= set(entries.tolist())
    assert draw.entries.shape == (50, math.ceil(GRAPH.total / 5))


def test_all_entries_are_drawn_equally_often():
    masks = LearnedMask(GRAPH, HARD, initial=0.5, of="edges and nodes")
    draw = masks.draw(50, torch.Generator().manual_seed(0), explored=0.2)
    assert torch.bincount(draw.entries.flatten())[: len(masks.log_alpha)].unique().tolist() == [10]


@pytest.mark.parametrize("explored", [1.0, 0.25])
def test_the_likelihood_ratio_agrees_with_the_path_on_a_smooth_loss(explored):
    masks = LearnedMask(GRAPH, HARD, initial=0.5)
    weights = torch.rand(len(GRAPH.sources), len(GRAPH.destinations), generator=torch.Generator().manual_seed(1))
    draw = masks.draw(40_000, torch.Generator().manual_seed(0), explored=explored)
    loss = (weights * draw.mask).sum((-1, -2))
    (path,) = torch.autograd.grad(loss.mean(), masks.log_alpha, retain_graph=True)
    advantage = loss.detach() - loss.detach().mean()
    ratio = masks.likelihood_ratio_gradient(draw, advantage)
    # The ratio is per sample that drew the entry, the path per sample.
    torch.testing.assert_close(ratio * explored, path, atol=0.03, rtol=0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_the_threshold_keeps_as_many_edges_as_the_mean_mask_in_sum(seed):
    exists = edge_exists(GRAPH)
    mean = torch.rand(exists.shape, generator=torch.Generator().manual_seed(seed)) * exists
    kept = torch.zeros_like(exists).masked_scatter(exists, at_mean_sparsity(mean[exists]))
    assert int(kept.sum()) == round(float(mean.sum()))
    assert float(mean[kept].min()) >= float(mean[exists & ~kept].max())


def test_an_empty_mean_mask_keeps_nothing():
    assert not at_mean_sparsity(torch.zeros(7)).any()


def test_rounded_samples_are_of_the_rounded_distribution_and_their_gradient_is_right():
    graph = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)
    masks = LearnedMask(graph, HardConcrete(), initial=0.7)
    draw = masks.draw(40_000, torch.Generator().manual_seed(0), rounded=True)
    assert set(draw.mask.unique().tolist()) == {0.0, 1.0}
    kept = draw.mask.sum((-1, -2))
    expected = masks.expected_edges(rounded=True)
    assert float(kept.mean()) == pytest.approx(expected.item(), rel=0.01)
    (exact,) = torch.autograd.grad(expected, masks.log_alpha)
    torch.testing.assert_close(masks.likelihood_ratio_gradient(draw, kept - kept.mean()), exact, atol=0.03, rtol=0)


WIDE = HardConcrete(temperature=0.5, low=-0.4, high=1.1)
"""A stretch whose middle is not that of the logistic's."""


@pytest.mark.parametrize("hard", [HARD, WIDE])
@pytest.mark.parametrize("log_alpha", [-9.0, -1.2, 0.0, 0.7, 9.0])
def test_means_and_scores_by_hand(hard, log_alpha):
    x = torch.tensor([log_alpha], dtype=torch.float64)
    stretched = (hard.high - hard.low) / (1 + math.exp(-log_alpha)) + hard.low
    assert float(hard.mean(x)) == pytest.approx(min(1.0, max(0.0, stretched)))
    z = hard.sample(x, noise())
    error = 5 / math.sqrt(SAMPLES)
    assert float(hard.probability_kept(x)) == pytest.approx(float((z > 0.5).double().mean()), abs=error)
    # Where a clamp hides the noise: the mean of 2u - 1 over all noise that it hides.
    for value, u in ((0.0, 1e-9), (1.0, 1 - 1e-9)):
        u = torch.tensor([u], dtype=torch.float64)
        if float(hard.sample(x, u)) == value:
            hidden = 2 * noise()[z == value] - 1
            if len(hidden) > 100:
                expected = float(hidden.mean())
                assert float(hard.score(x, u)) == pytest.approx(expected, abs=5 / math.sqrt(len(hidden)))
    inside = torch.tensor([0.5], dtype=torch.float64)
    if 0 < float(hard.sample(x, inside)) < 1:
        assert float(hard.score(x, inside)) == 0


@pytest.mark.parametrize("bound", [{"low": 0.0}, {"high": 1.0}, {"temperature": -1.0}])
def test_a_stretch_that_ends_at_0_or_1_is_refused_too(bound):
    with pytest.raises(ConfigError, match="Expected temperature > 0, low < 0 and high > 1; got"):
        HardConcrete(**bound)


@pytest.mark.parametrize("explored", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_draw_is_that_of_its_generator_alone(explored, rounded):
    masks = LearnedMask(GRAPH, HARD, initial=0.3)
    draws = []
    for at_large, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(at_large)
        draws.append(masks.draw(7, torch.Generator().manual_seed(seed), explored=explored, rounded=rounded))
    one, again, other = draws
    for part in ("mask", "entries", "noise", "values"):
        assert torch.equal(getattr(one, part), getattr(again, part))
    assert not torch.equal(one.noise, other.noise)
    assert torch.equal(one.entries, other.entries) == (explored == 1)
    assert one.rounded is rounded and bool(((one.values == 0) | (one.values == 1)).all()) is rounded
    assert one.entries.shape == (7, math.ceil(GRAPH.total * explored))
    assert torch.equal(masks.edge_values(one), one.values)
    assert torch.equal(one.mask[:, edge_exists(GRAPH)], one.values)
    assert not one.mask[:, ~edge_exists(GRAPH)].any()


@pytest.mark.parametrize(("drawn", "bound"), [(0.0, 1e-6), (1.0, 1 - 1e-6)])
def test_noise_is_kept_away_from_where_a_logit_is_infinite(monkeypatch, drawn, bound):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(tuple(shape[0]), drawn))
    draw = LearnedMask(GRAPH, HARD, initial=0.3).draw(2, torch.Generator())
    assert draw.noise.unique().tolist() == pytest.approx([bound])
    assert bool(draw.values.isfinite().all())


def test_a_sample_of_exactly_one_half_is_not_kept():
    masks = LearnedMask(GRAPH, HARD, initial=0.0)
    draw = masks.draw(1, torch.Generator().manual_seed(0))
    half = masks._sample(torch.zeros(1), torch.full((1,), 0.5), rounded=True)
    assert float(half) == 0
    assert not masks.rounded().any()  # the mean of log_alpha 0 is one half
    assert float(draw.values[0, 0].detach()) == float(HARD.sample(torch.zeros(1), draw.noise[:, 0]))


@pytest.mark.parametrize("rounded", [False, True])
def test_the_likelihood_ratio_of_one_sample_by_hand(rounded):
    masks = LearnedMask(GRAPH, WIDE, initial=0.7)
    draw = masks.draw(1, torch.Generator().manual_seed(3), explored=0.5, rounded=rounded)
    found = masks.likelihood_ratio_gradient(draw, torch.tensor([2.0]))
    x = torch.tensor(0.7)
    drawn = [entry for entry in draw.entries[0].tolist() if entry < GRAPH.total]
    for entry, u in zip(draw.entries[0].tolist(), draw.noise[0], strict=True):
        if entry in drawn:
            z = WIDE.sample(x, u)
            kept = float(z > 0.5) - float(WIDE.probability_kept(x))
            assert float(found[entry]) == pytest.approx(2 * (kept if rounded else float(WIDE.score(x, u))), abs=1e-6)
    left = torch.ones(GRAPH.total, dtype=torch.bool)
    left[drawn] = False
    assert not found[left].any() and int(left.sum()) >= GRAPH.total // 2


def test_masks_of_nodes_alone_have_no_entries_of_edges():
    masks = LearnedMask(GRAPH, HARD, initial=0.4, of="nodes")
    assert len(masks.log_alpha) == len(GRAPH.sources)
    draw = masks.draw(3, torch.Generator().manual_seed(0))
    values = masks.edge_values(draw)
    assert values.shape == (3, GRAPH.total) and torch.equal(values, draw.mask[:, edge_exists(GRAPH)])
    rows = edge_exists(GRAPH).nonzero()[:, 0]
    assert torch.equal(values, draw.values[:, rows])


def test_the_circuit_at_mean_sparsity_and_the_least_certain_edge_by_hand():
    masks = LearnedMask(GRAPH, HARD, initial=6.0, of="edges and nodes")
    with torch.no_grad():
        masks.log_alpha[:5] = -6.0
        masks.log_alpha[5] = 0.25
        masks.log_alpha[GRAPH.total + 1] = -6.0  # pos, the second source
    kept = masks.kept_at_mean_sparsity()
    cells = edge_exists(GRAPH).nonzero()
    expected = {number for number, (row, _) in enumerate(cells.tolist()) if number >= 6 and row != 1}
    got = {number for number, (row, column) in enumerate(cells.tolist()) if kept[row, column]}
    assert got in (expected, expected | {5})  # the sum of means is rounded to whole edges
    assert len(got) == len(expected) + (5 in got)
    alone = LearnedMask(GRAPH, HARD, initial=6.0)
    with torch.no_grad():
        alone.log_alpha[3], alone.log_alpha[4] = -0.5, 1.5
    assert alone.least_certain() == 0.5
    assert masks.least_certain() == pytest.approx(0.25)


def test_thresholds_of_few_entries_by_hand():
    assert at_mean_sparsity(torch.tensor([0.6, 0.3])).tolist() == [True, False]
    assert at_mean_sparsity(torch.tensor([0.3, 0.1])).tolist() == [False, False]
    assert at_mean_sparsity(torch.tensor([0.3, 0.1])).dtype == torch.bool
    assert at_mean_sparsity(torch.tensor([0.9, 0.5, 0.0, 0.5])).tolist() == [True, True, False, True]
    assert at_mean_sparsity(torch.tensor([1.0, 0.0])).tolist() == [True, False]


@given(subsets)
def test_a_circuit_without_each_of_its_edges(edges):
    kept = mask_of(GRAPH, edges) > 0
    cells = kept.nonzero()
    without = without_each(kept, cells)
    assert without.shape == (len(edges), *kept.shape) and torch.equal(kept, mask_of(GRAPH, edges) > 0)
    for mask, (row, column) in zip(without, cells.tolist(), strict=True):
        assert edges_of(GRAPH, mask) == edges - {Edge(GRAPH.sources[row], GRAPH.destinations[column])}


def test_each_round_of_turns_has_an_order_of_its_own():
    draw = LearnedMask(GRAPH, HARD, initial=0.3).draw(10, torch.Generator().manual_seed(0), explored=0.2)
    first, second = draw.entries[:5], draw.entries[5:]
    assert not torch.equal(first, second)
    for each in (first, second):
        assert sorted(each.flatten().tolist())[: GRAPH.total] == list(range(GRAPH.total))


def test_every_entry_is_drawn_where_nothing_is_said_of_a_share():
    draw = LearnedMask(GRAPH, HARD, initial=0.3).draw(2, torch.Generator().manual_seed(0))
    assert draw.entries.tolist() == [list(range(GRAPH.total))] * 2


PATHS = [
    ("tok->a0.h0.v", "a0.h0->m0", "m0->logits"),
    ("pos->m0", "m0->m1", "m1->logits"),
    ("tok->a0.h1.q", "a0.h1->a1.h0.k", "a1.h0->m1", "m1->logits"),
    ("tok->m0", "m0->a1.h1.v", "a1.h1->logits"),
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_to_the_logits_is_alive_and_dead_without_any_step_of_it(path):
    edges = [Edge.parse(name) for name in path]
    for ablation in ("zero", "mean", "resample"):
        found = live_circuit(GRAPH, ablation, mask_of(GRAPH, edges) > 0)
        assert found.edges == {*edges} and found.ablation == ablation
    for gone in range(len(edges)):
        kept = mask_of(GRAPH, [*edges[:gone], *edges[gone + 1 :]]) > 0
        # What comes before the gap is dead; what comes after it still writes to the logits.
        assert live_circuit(GRAPH, "zero", kept).edges == {*edges[gone + 1 :]}


def test_of_ties_at_zero_none_is_kept():
    assert at_mean_sparsity(torch.tensor([0.3, 0.3, 0.0])).tolist() == [True, True, False]
    assert at_mean_sparsity(torch.tensor([1.0, 0.6, 0.0, 0.0])).tolist() == [True, True, False, False]
    assert at_mean_sparsity(torch.tensor([0.9, 0.0, 0.0]).repeat(1)).tolist() == [True, False, False]
