"""How methods run what they are asked for and note what they found: samples, positions, batches, bars and traces."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_peers import batch_of, build, cells, ones, random_weights

from edgeprune.ablation import Ablator
from edgeprune.errors import ConfigError
from edgeprune.graph import Circuit, Edge, Graph
from edgeprune.masks import HardConcrete, LearnedMask, edge_exists, edges_of, live, live_circuit
from edgeprune.methods import (
    acdc,
    baselines,
    eap,
    eap_ig,
    greedy_elimination,
    hisp,
    subnetwork_probing,
    within_tolerance,
)  # fmt: skip
from edgeprune.methods.acdc import AcdcConfig, remove_greedily
from edgeprune.methods.baselines import SingleEdgeConfig, ablate_each, draw_scores
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.methods.edge_pruning.configurations import TOLERANCE
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.greedy_elimination import GreedyConfig, eliminate
from edgeprune.methods.hisp import HispConfig, edge_scores, score_nodes
from edgeprune.methods.loss import Objective
from edgeprune.methods.method import Discovery, Record, Trace, keep_above
from edgeprune.methods.settings import settings, with_settings
from edgeprune.methods.subnetwork_probing import NODES, probe_nodes
from edgeprune.methods.within_tolerance import methods_within

WEIGHTS = random_weights(8, layers=1)
MODEL, DATA = build(WEIGHTS)

RUNS = {
    "acdc": partial(remove_greedily, config=AcdcConfig(threshold=0.3, inputs=7)),
    "greedy": partial(eliminate, config=GreedyConfig(threshold=0.3, inputs=7)),
    "single edges": partial(ablate_each, config=SingleEdgeConfig(inputs=7)),
    "eap": partial(attribution_patching, config=EapConfig(batch_size=4)),
    "eap-ig": partial(integrate_gradients, config=EapIgConfig(steps=3, batch_size=4)),
    "eap-ig of activations": partial(integrate_gradients, config=EapIgConfig(steps=3, over="activations")),
    "hisp": partial(score_nodes, config=HispConfig(batch_size=4)),
}
every_run = pytest.mark.parametrize("name", RUNS)


@every_run
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_outputs_are_asked_for_where_the_inputs_say(name, ablation):
    """The only position that counts, alone or after itself, or all of them: scores are the same."""
    expected = RUNS[name](MODEL, DATA, ablation)
    assert expected.circuit.ablation == ablation and expected.circuit.graph == MODEL.graph
    for places in ([1], [0, 1]):
        positions = torch.tensor(places).expand(len(DATA), -1)
        data = replace(DATA, positions=positions, scored=DATA.scored[:, places], target=DATA.target[:, places])
        found = RUNS[name](MODEL, data, ablation)
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=1e-3)


@every_run
def test_another_seed_pairs_or_samples_otherwise_and_0_is_meant_unless_one_is_given(name):
    one, same, other = (RUNS[name](MODEL, DATA, "resample", **given).scores for given in ({}, {"seed": 0}, {"seed": 1}))
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (remove_greedily, AcdcConfig),
        (eliminate, GreedyConfig),
        (ablate_each, SingleEdgeConfig),
        (attribution_patching, EapConfig),
        (integrate_gradients, EapIgConfig),
        (score_nodes, HispConfig),
    ],
)
def test_a_method_without_settings_has_those_of_its_own(method, config):
    assert torch.equal(method(MODEL, DATA, "zero").scores, method(MODEL, DATA, "zero", config=config()).scores)


BARS = {
    "acdc": (acdc, MODEL.graph.total),
    "greedy": (greedy_elimination, MODEL.graph.total),
    "single edges": (baselines, 1),
    "eap": (eap, None),
    "eap-ig": (eap_ig, None),
    "hisp": (hisp, None),
}


@pytest.mark.parametrize("name", BARS)
@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_that_is_asked_for_is_shown_on_a_terminal_and_runs_to_its_end(monkeypatch, name, progress):
    module, total = BARS[name]
    made = []

    class Bar:
        def __init__(self, over=None, *, desc, disable, total=None):
            self.over, self.disable, self.total, self.n = over, disable, total, 0
            assert "zero" in desc
            made.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def __iter__(self):
            for each in self.over:
                yield each
                self.n += 1

        def update(self, more):
            assert more >= 0
            self.n += more

    monkeypatch.setattr(module, "tqdm", Bar)
    RUNS[name](MODEL, DATA, "zero", progress=progress)
    RUNS[name](MODEL, DATA, "zero")
    (bar, silent) = made
    assert bar.disable is (None if progress else True) and silent.disable is True
    assert bar.n == (3 if total is None else total)  # three batches of four, four and one
    if bar.over is None:
        assert bar.total == total


# ACDC


def slow_loss(loss, inputs, seed, scale=1.0, ablation="resample"):
    """The loss of one mask on a sample, at once."""
    (batch,) = DATA.sample_batches(inputs, 99, torch.Generator().manual_seed(seed), among=torch.arange(len(DATA)))
    ablated, objective = Ablator(MODEL, DATA, ablation)(batch), Objective(DATA, loss, logit_scale=scale)
    return lambda mask: float(objective(MODEL(batch.clean, mask[None].float(), ablated), batch)[0])


def test_acdc_judges_by_the_loss_the_sample_and_the_seed_that_it_is_given():
    config = AcdcConfig(loss="squared", threshold=0.05, inputs=4)
    found = remove_greedily(MODEL, DATA, "resample", seed=3, config=config)
    loss, kept = slow_loss("squared", 4, 3), edge_exists(MODEL.graph)
    current, scores = loss(kept), torch.zeros(kept.shape)
    for edge in acdc.traversal(MODEL.graph, "latest first"):
        trial = kept.clone()
        trial[MODEL.graph.position(edge)] = False
        scores[MODEL.graph.position(edge)] = change = loss(trial) - current
        if change < 0.05:
            kept, current = trial, current + change
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=1e-3)
    assert found.circuit == live_circuit(MODEL.graph, "resample", kept) and len(found.circuit) > 3


class Count:
    """Stands in for `CircuitLoss`: notes what it is asked, and says what a function of the masks does."""

    def __init__(self, says):
        self.says, self.asked = says, []

    def __call__(self, *given, **more):
        self.settings = more
        return self.loss

    def loss(self, masks):
        self.asked.append(len(masks))
        return self.says(masks)


@pytest.mark.fakes
@pytest.mark.parametrize(("at_once", "widths"), [(4, [1, 2, *[4] * 10]), (1, [1] * 43), (100, [1, 2, 4, 8, 16, 32])])
def test_acdc_runs_ever_more_decisions_at_once_while_edges_go(monkeypatch, at_once, widths):
    graph = Graph.transformer(embeddings=("embed",), layers=2, heads=2)
    model = replace_graph(graph)
    count = Count(lambda masks: torch.zeros(len(masks)))
    monkeypatch.setattr(acdc, "CircuitLoss", count)
    found = remove_greedily(model, DATA, "zero", config=AcdcConfig(at_once=at_once))
    assert len(found.circuit) == 0 and not found.scores.any()
    done = 0
    for width, asked in zip(widths, count.asked[1:], strict=False):
        assert asked == min(width, graph.total - done)
        done += asked
    assert sum(count.asked) == 1 + graph.total


def replace_graph(graph):
    class Model:
        pass

    model = Model()
    model.graph = graph
    return model


def test_acdc_starts_over_with_one_decision_at_an_edge_that_stays_and_an_edge_without_a_loss_stays(monkeypatch):
    """A loss at the threshold keeps an edge; what is no number counts for a million."""
    graph = MODEL.graph
    order = [graph.position(edge) for edge in acdc.traversal(graph, "latest first")]
    at, broken = order[4], order[9]

    def says(masks):
        losses = torch.where(masks[:, *at] == 0, 0.5, 0.0)
        return torch.where(masks[:, *broken] == 0, torch.inf, losses)

    count = Count(says)
    monkeypatch.setattr(acdc, "CircuitLoss", count)
    found = remove_greedily(MODEL, DATA, "zero", config=AcdcConfig(threshold=0.5))
    assert found.scores[*at] == 0.5 and found.scores[*broken] == 1e6
    assert int((found.scores != 0).sum()) == 2
    # One, one and two more, and of four the second stays: again from one; of 1 + 2 + 4 the third last stays.
    assert count.asked[:8] == [1, 1, 2, 4, 1, 2, 4, 1]
    assert count.settings == {
        "loss": "divergence", "logit_scale": 10.0, "inputs": 256, "batch_size": 512, "seed": 0,
    }  # fmt: skip


# Greedy elimination


@pytest.mark.parametrize(
    ("config", "seed"),
    [
        (GreedyConfig(threshold=0.05, inputs=5, batch_size=2, loss="squared"), 2),
        (GreedyConfig(threshold=0.05, inputs=5, many=20, share=0.3), 0),
        (GreedyConfig(threshold=0.5, inputs=5, many=1, share=0.01), 0),
        (GreedyConfig(threshold=0.05, inputs=5, many=MODEL.graph.total, share=0.5), 0),
        (GreedyConfig(threshold=0.05, inputs=5, many=MODEL.graph.total - 1, share=0.5), 0),
    ],
)
def test_greedy_elimination_takes_what_harms_least_of_what_is_left_and_what_is_dead_at_once(config, seed):
    """Up to rounding: some edges harm alike."""
    found = eliminate(MODEL, DATA, "zero", seed=seed, config=config)
    sample = {"inputs": config.inputs, "batch_size": config.batch_size, "seed": seed}
    loss = CircuitLoss(MODEL, DATA, "zero", loss=config.loss, logit_scale=10.0, **sample)
    kept = last = edge_exists(MODEL.graph)
    total = int(kept.sum())
    while kept.any():
        share = (total - int(kept.sum())) / total
        gone = kept & (found.scores == torch.tensor(share))
        alive = live(MODEL.graph, kept)
        if torch.equal(alive, kept):
            each = torch.nonzero(kept)
            fewer = kept.float().repeat(len(each), 1, 1)
            fewer[range(len(each)), each[:, 0], each[:, 1]] = 0
            losses, out = loss(fewer), gone[kept]
            assert int(out.sum()) == (max(1, int(config.share * len(each))) if len(each) > config.many else 1)
            assert out.all() or float(losses[out].max()) <= float(losses[~out].min()) + 1e-5
        else:
            assert torch.equal(gone, kept & ~alive)
        kept = kept & ~gone
        last = kept if float(loss(kept[None].float())[0]) <= config.threshold else last
    assert found.circuit == live_circuit(MODEL.graph, "zero", last) and 0 < len(found.circuit) < total


def test_so_many_masks_are_run_in_one_call_while_a_share_goes(monkeypatch):
    asked, called = [], CircuitLoss.__call__
    monkeypatch.setattr(greedy_elimination, "_TOGETHER", 10)
    monkeypatch.setattr(CircuitLoss, "__call__", lambda self, masks: asked.append(len(masks)) or called(self, masks))
    found = eliminate(MODEL, DATA, "zero", config=GreedyConfig(many=1, share=1.0, inputs=3))
    alive = int(edge_exists(MODEL.graph).sum())
    assert asked == [*[10] * (alive // 10), *([alive % 10] if alive % 10 else []), 1]
    assert not found.scores.any()


@pytest.mark.fakes
def test_a_tie_goes_by_the_order_of_edges_and_a_loss_at_the_threshold_is_within(monkeypatch):
    """Half of all edges go at once: of edges that are alike, the first half."""
    exists = edge_exists(MODEL.graph)
    cells = torch.nonzero(exists)

    class Alike(CircuitLoss):
        graph = MODEL.graph

        def __init__(self, *_, **__):
            pass

        def best(self, masks):
            return 0, 0.0

        def __call__(self, masks):
            return len(cells) - masks.flatten(1).sum(1)

    monkeypatch.setattr(greedy_elimination, "CircuitLoss", Alike)
    monkeypatch.setattr(greedy_elimination, "live", lambda graph, kept: kept)
    found = eliminate(MODEL, DATA, "zero", config=GreedyConfig(many=1, share=0.5, threshold=len(cells) // 2))
    gone = cells[: len(cells) // 2]
    assert not found.scores[gone[:, 0], gone[:, 1]].any()
    kept = exists.clone()
    kept[gone[:, 0], gone[:, 1]] = False
    assert found.circuit == live_circuit(MODEL.graph, "zero", kept)


@pytest.mark.parametrize("share", [0.0, 1.0001, -0.5])
def test_a_share_is_above_0_and_1_at_the_most(share):
    with pytest.raises(ConfigError, match=rf"^Expected many >= 1, got 0; 0 < share <= 1, got {share}$"):
        GreedyConfig(many=0, share=share)
    assert GreedyConfig(share=1.0, inputs=1, batch_size=1, many=1).share == 1
    with pytest.raises(ConfigError, match=r"^Expected 0 < logit_scale <= 1e\+06, got 0.0; inputs >= 1, got 0; batch_"):
        GreedyConfig(inputs=0, batch_size=0, logit_scale=0.0)


# Single edges and scores drawn at random


@pytest.mark.parametrize(("rows", "asked"), [(0, 1), (13, 1), (14, 2), (10**6, 99)])
def test_as_many_edges_are_tried_at_once_as_fit_and_one_at_least(monkeypatch, rows, asked):
    """On seven inputs."""
    seen, model = [], type(MODEL).__call__
    monkeypatch.setattr(baselines, "_ROWS", rows)
    monkeypatch.setattr(type(MODEL), "__call__", lambda *given: seen.append(len(given[2])) or model(*given))
    RUNS["single edges"](MODEL, DATA, "zero")
    total = MODEL.graph.total
    assert seen[0] == min(asked, total) and sum(seen) == total and len(seen) == math.ceil(total / asked)


def test_single_edges_are_judged_by_the_loss_and_kept_above_the_threshold():
    found = ablate_each(MODEL, DATA, "zero", config=SingleEdgeConfig(loss="squared", threshold=0.05, inputs=9))
    loss = slow_loss("squared", 9, 0, ablation="zero")
    for row, column in cells(MODEL):
        mask = edge_exists(MODEL.graph)
        mask[row, column] = False
        assert float(found.scores[row, column]) == pytest.approx(loss(mask), rel=1e-3, abs=1e-5)
    assert found.circuit == live_circuit(MODEL.graph, "zero", found.scores > 0.05)
    for loss, threshold in (("worst", 0.0),):
        assert (SingleEdgeConfig().loss, SingleEdgeConfig().threshold) == (loss, threshold)


def test_random_scores_are_even_and_the_better_half_is_kept():
    found = draw_scores(MODEL, DATA, "mean")
    exists = edge_exists(MODEL.graph)
    expected = torch.rand(exists.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.scores, expected * exists) and found.history == ()
    assert found.circuit == live_circuit(MODEL.graph, "mean", expected * exists > 0.5)


@pytest.mark.parametrize("config", [AcdcConfig, EapConfig, EapIgConfig, HispConfig, SingleEdgeConfig, GreedyConfig])
def test_counts_may_be_1_and_not_0(config):
    counts = [name for name in ("inputs", "at_once", "batch_size", "steps", "many") if hasattr(config(), name)]
    assert all(getattr(config(**dict.fromkeys(counts, 1)), name) == 1 for name in counts)
    with pytest.raises(ConfigError) as error:
        config(**dict.fromkeys(counts, 0))
    assert sorted(str(error.value).removeprefix("Expected ").split("; ")) == sorted(f"{n} >= 1, got 0" for n in counts)


# Attributions


@pytest.mark.parametrize("loss", ["disagreement", "squared"])
def test_attributions_are_by_the_loss_that_is_asked_for(loss):
    """Of a divergence or a squared error nothing is seen at the full model, but along a path."""
    batch = batch_of(DATA)
    ablated = Ablator(MODEL, DATA, "resample")(batch)
    mask = ones(MODEL).requires_grad_()
    (gradient,) = torch.autograd.grad(Objective(DATA, loss)(MODEL(batch.clean, mask, ablated), batch), mask)
    found = attribution_patching(MODEL, DATA, "resample", config=EapConfig(loss=loss, threshold=0.2)).scores
    torch.testing.assert_close(found, -gradient, atol=1e-5, rtol=1e-3)
    of_nodes = score_nodes(MODEL, DATA, "resample", config=HispConfig(loss=loss, threshold=0.2))
    assert bool((of_nodes.scores > 0.01).any()) == (loss == "disagreement")
    assert of_nodes.circuit == live_circuit(MODEL.graph, "resample", of_nodes.scores > 0.2)
    assert of_nodes.scores.min() >= 0 and not of_nodes.signed


@pytest.mark.parametrize("over", ["inputs", "activations"])
def test_a_path_is_by_the_divergence_of_scaled_logits(over):
    found = {}
    for scale in (1.0, 5.0):
        config = EapIgConfig(over=over, steps=2, points="middles", logit_scale=scale, threshold=0.1)
        found[scale] = integrate_gradients(MODEL, DATA, "resample", config=config)
        scaled = replace(DATA, target=scale * DATA.target)
        model = build(replace(WEIGHTS, unembed=scale * WEIGHTS.unembed))[0]
        by_hand = integrate_gradients(model, scaled, "resample", config=replace(config, logit_scale=1.0))
        torch.testing.assert_close(found[scale].scores, by_hand.scores, atol=1e-4, rtol=1e-3)
        assert found[scale].signed
        assert found[scale].circuit == live_circuit(MODEL.graph, "resample", found[scale].scores.abs() > 0.1)
    assert not torch.allclose(found[1.0].scores, found[5.0].scores)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (attribution_patching, EapConfig),
        (integrate_gradients, partial(EapIgConfig, steps=2)),
        (integrate_gradients, partial(EapIgConfig, steps=2, over="activations")),
        (score_nodes, HispConfig),
    ],
)
def test_scores_are_means_over_all_inputs_whatever_runs_at_once(method, config):
    whole, parts = (method(MODEL, DATA, "zero", config=config(batch_size=size)).scores for size in (999, 2))
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-3)


@pytest.mark.fakes
def test_of_several_processes_each_runs_the_inputs_whose_ablated_values_it_has():
    asked, model = [], copy.copy(MODEL)

    class Noted:
        def own(self, value, dim):
            asked.append((value.ndim, dim))
            return value

        def rows(self, batch):
            return torch.arange(batch)

    model.ranks = Noted()
    found = integrate_gradients(model, DATA, "resample", config=EapIgConfig(steps=2))
    assert set(asked) == {(2, -2), (1, -1)} and asked.count((2, -2)) == 2  # clean and corrupted
    expected = integrate_gradients(MODEL, DATA, "resample", config=EapIgConfig(steps=2))
    torch.testing.assert_close(found.scores, expected.scores)


def test_probing_nodes_is_that_of_edges_with_an_edge_for_both_of_its_ends(monkeypatch):
    seen, found = [], prune_edges(MODEL, DATA, "mean", config=with_settings(NODES, {"steps": 1}))
    scores = torch.zeros_like(found.scores)
    kept = torch.zeros_like(found.snapshots[0].kept)
    scores[0], scores[2], scores[3, -1] = 0.9, 0.6, 0.4  # tokens, one head and, to the logits alone, another
    kept[0, :], kept[2, -1] = True, True
    made = replace(found, scores=scores, snapshots=(replace(found.snapshots[0], kept=kept),))

    def noted(*given, **more):
        seen.append((given, more))
        return made

    monkeypatch.setattr(subnetwork_probing, "prune_edges", noted)
    for given, seed, progress in (({}, 0, False), ({"seed": 4, "progress": True}, 4, True)):
        probed = probe_nodes(MODEL, DATA, "mean", **given)
        assert seen.pop() == ((MODEL, DATA, "mean"), {"seed": seed, "progress": progress, "config": NODES})
    names = {"tok": 0.9, "a0.h0": 0.6, "a0.h1": 0.4, "logits": 0.9}
    for edge in MODEL.graph.edges:
        ends = [names.get(str(node), 0.0) for node in (edge.source, edge.destination.owner)]
        assert float(probed.scores[MODEL.graph.position(edge)]) == pytest.approx(min(ends))
    both = {"tok->a0.h0.q", "tok->a0.h0.k", "tok->a0.h0.v", "a0.h0->logits", "tok->logits"}
    assert {str(edge) for edge in probed.circuit.edges} == both and probed.circuit.ablation == "mean"
    (shot,) = probed.snapshots
    assert {str(edge) for edge in edges_of(MODEL.graph, shot.kept)} == both


@pytest.mark.parametrize("over", ["inputs", "activations"])
def test_a_path_is_that_of_what_is_asked_for(over):
    along = {"inputs": eap_ig._along_inputs, "activations": eap_ig._along_activations}
    config, batch = EapIgConfig(over=over, steps=3), batch_of(DATA)
    objective = Objective(DATA, config.loss, logit_scale=config.logit_scale)
    found = integrate_gradients(MODEL, DATA, "zero", config=config).scores
    for name, path in along.items():
        expected = -path(MODEL, objective, batch, None, config.path) / len(DATA)
        assert torch.allclose(found, expected, atol=1e-4, rtol=1e-3) == (name == over)


def test_heads_that_share_a_key_score_by_the_better_one_and_the_logits_are_above_all():
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=4, kv_heads=2)
    nodes = torch.tensor([10.0, 1.0, 5.0, 2.0, 3.0, 4.0])  # embed, four heads, m0
    found = edge_scores(graph, nodes)
    for name, score in [
        ("embed->a0.h0.q", 1.0), ("embed->a0.h1.q", 5.0), ("embed->a0.h0.k", 5.0), ("embed->a0.h1.v", 3.0),
        ("embed->m0", 4.0), ("a0.h1->m0", 4.0), ("a0.h0->m0", 1.0), ("embed->logits", 10.0), ("m0->logits", 4.0),
    ]:  # fmt: skip
        assert found[graph.position(Edge.parse(name))] == score


# What is noted and kept


def test_edges_above_the_threshold_are_kept_and_of_signed_scores_by_size():
    graph = Graph.transformer(embeddings=("embed",), layers=0, heads=0)
    for score, signed, kept in (
        (0.5, False, 0),
        (0.51, False, 1),
        (-0.51, False, 0),
        (-0.51, True, 1),
        (-0.5, True, 0),
    ):
        found = keep_above(graph, "mean", torch.tensor([[score]]), 0.5, signed=signed)
        assert (len(found.circuit), found.circuit.ablation, found.signed) == (kept, "mean", signed)
        assert found.strength.tolist() == [[pytest.approx(abs(score) if signed else score)]]
        assert found.scores.tolist() == [[pytest.approx(score)]] and found.history == found.snapshots == ()
    assert not keep_above(graph, "mean", torch.tensor([[-0.51]]), 0.5).signed


@pytest.mark.parametrize(
    ("planned", "noted", "steps"),
    [
        (5, 5, [0, 1, 2, 3, 4]),
        (100, 3, [0, 1, 2]),
        (101, 5, [0, 2, 4]),
        (101, 4, [0, 2, 3]),
        (250, 8, [0, 3, 6, 7]),
        (300, 1, [0]),
        (300, 0, []),
    ],
)
def test_of_a_run_every_step_is_noted_and_a_hundred_of_them_are_kept_with_the_last(planned, noted, steps):
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=1)
    masks, now = LearnedMask(graph, HardConcrete(), initial=0.0), edge_exists(graph)
    trace = Trace(masks, planned, lambda: now)
    for step in range(noted):
        masks.log_alpha.data[:] = float(step)
        now = edge_exists(graph) if step < noted - 1 else torch.zeros_like(edge_exists(graph))
        trace.note(step / 2, step / 4)
    scores = torch.rand(now.shape)
    found = trace.discovery("resample", scores)
    assert isinstance(found, Discovery) and found.scores is scores
    assert found.history == tuple(Record(step, step / 2, step / 4) for step in range(noted))
    assert [shot.step for shot in found.snapshots] == steps
    for shot in found.snapshots:
        assert float(shot.log_alpha[edge_exists(graph)].mean()) == shot.step
        assert bool(shot.kept.any()) == (shot.step < noted - 1)
    assert found.circuit.ablation == "resample" and found.circuit.edges == edges_of(graph, now)


# Within a tolerance


def test_methods_within_a_tolerance_are_judged_on_all_inputs_by_its_criterion():
    for tolerance, criterion in ((0.2, "worst"), (0.1, "mean")):
        methods = methods_within(tolerance, criterion)
        assert list(methods) == ["edge-pruning-tolerance", "edge-pruning-tolerance-polished"]
        for method in methods.values():
            expected = settings(TOLERANCE) | {"tolerance": tolerance, "criterion": criterion, "judged": 2**20}
            assert settings(method.keywords["config"]) == expected
        assert methods["edge-pruning-tolerance"].func is prune_edges


def test_polishing_is_asked_for_what_the_run_was(monkeypatch):
    seen, names = {}, ("prune_edges", "problem_of", "circuit_loss", "polish")
    run = prune_edges(MODEL, DATA, "mean", config=within_tolerance.with_settings(TOLERANCE, {"steps": 1}))
    names_of_edges = ("tok->a0.h0.v", "a0.h0->m0", "m0->logits")
    run = replace(run, circuit=Circuit(MODEL.graph, "mean", frozenset(map(Edge.parse, names_of_edges))))
    returned = {"prune_edges": run, "problem_of": "problem", "circuit_loss": CircuitLoss(
        MODEL, DATA, "mean", inputs=3, batch_size=3, seed=0
    )}  # fmt: skip

    def noted(name):
        def call(*given, **more):
            seen[name] = (given, more)
            return returned.get(name)

        return call

    for name in names:
        monkeypatch.setattr(within_tolerance, name, noted(name))
    method = methods_within(0.25, "worst")["edge-pruning-tolerance-polished"]
    config = method.keywords["config"]
    for given, seed, progress in (({}, 0, False), ({"seed": 4, "progress": True}, 4, True)):
        found = method(MODEL, DATA, "mean", **given)
        assert seen["prune_edges"] == ((MODEL, DATA, "mean"), {"seed": seed, "progress": progress, "config": config})
        assert seen["problem_of"] == ((MODEL, DATA, "mean", config), {})
        assert seen["circuit_loss"] == (("problem", config, seed), {})
        (polished,), more = seen["polish"]
        assert more == {"progress": progress} and polished._goal.tolerance == 0.25
        assert found == replace(run, circuit=polished.circuit("mean")) and found.circuit.edges == run.circuit.edges


def test_a_polished_circuit_is_of_the_same_run_and_nothing_of_it_can_go():
    quick = {"steps": 30, "batch_size": 4, "learning_rate": 0.5}
    plain, polished = (
        partial(each.func, config=within_tolerance.with_settings(each.keywords["config"], quick))
        for each in methods_within(0.5, "mean").values()
    )
    first, found = (method(MODEL, DATA, "resample", seed=5) for method in (plain, polished))
    assert torch.equal(first.scores, found.scores) and first.history == found.history
    loss = CircuitLoss(MODEL, DATA, "resample", loss="divergence", inputs=999, batch_size=999, seed=5)
    mask = torch.zeros_like(edge_exists(MODEL.graph)).float()
    for edge in found.circuit.edges:
        mask[MODEL.graph.position(edge)] = 1
    assert float(loss(mask[None])[0]) <= 0.5 and 0 < len(found.circuit) <= len(first.circuit)
    for edge in found.circuit.edges:
        fewer = mask.clone()
        fewer[MODEL.graph.position(edge)] = 0
        assert float(loss(fewer[None])[0]) > 0.5
    assert found.circuit.ablation == "resample"
