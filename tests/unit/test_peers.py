"""Methods beside Edge Pruning, each against the slow and obvious way to the same numbers.

On small models of random weights, whose attention is not saturated, so that derivatives say something.
"""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from oracle import sources_and_output

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Edge, Graph
from edgeprune.masks import HardConcrete, LearnedMask, edge_exists, edges_of, live_circuit
from edgeprune.methods import METHODS
from edgeprune.methods.acdc import AcdcConfig, remove_greedily, traversal
from edgeprune.methods.baselines import SingleEdgeConfig, ablate_each, draw_scores
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.edge_pruning.pressure import Penalty
from edgeprune.methods.greedy_elimination import GreedyConfig, eliminate
from edgeprune.methods.hisp import HispConfig, edge_scores, score_nodes
from edgeprune.methods.loss import Objective, draw_pairs
from edgeprune.methods.method import sizes
from edgeprune.methods.ranking import keep_most
from edgeprune.methods.settings import with_settings
from edgeprune.methods.subnetwork_probing import EDGES, NODES, probe_nodes
from edgeprune.runs import compare as comparing
from tracr_bridge.compile.model import TracrModel
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights

VOCAB, LENGTH, D_MODEL = 3, 2, 5
STEP = 1e-4


def random_weights(seed: int, *, layers: int = 2, heads: int = 2, linear: bool = False) -> Weights:
    """A transformer of random weights; a linear one attends to all positions alike and has no MLPs."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    def attends(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32) if linear else 0.5 * draw(*shape)

    def head() -> HeadWeights:
        return HeadWeights(attends(D_MODEL, 4), attends(D_MODEL, 4), draw(D_MODEL, 4), 0.5 * draw(4, D_MODEL))

    def layer() -> LayerWeights:
        output = np.zeros((6, D_MODEL), np.float32) if linear else 0.5 * draw(6, D_MODEL)
        return LayerWeights(tuple(head() for _ in range(heads)), draw(D_MODEL, 6), output)

    blocks = tuple(layer() for _ in range(layers))
    return Weights(draw(VOCAB, D_MODEL), draw(LENGTH, D_MODEL), blocks, draw(D_MODEL, 4), causal=False, pad_id=-1)


def build(weights: Weights, *, logits: bool = True) -> tuple[TracrModel, Dataset]:
    model = TracrModel(weights, token_ids=list(range(VOCAB)))
    tokens = torch.tensor(list(product(range(VOCAB), repeat=LENGTH)))
    scored = torch.ones(tokens.shape, dtype=torch.bool)
    scored[:, 0] = False
    group = torch.zeros(len(tokens), dtype=torch.long)
    with torch.no_grad():
        return model, Dataset(tokens, scored, model(tokens), group, logits)


def cells(model: TracrModel) -> list[tuple[int, int]]:
    return torch.nonzero(edge_exists(model.graph)).tolist()


def ones(model: TracrModel, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(len(model.graph.sources), len(model.graph.destinations), dtype=dtype)


def batch_of(dataset: Dataset):
    """The batch that a method with the seed 0 takes when it runs all inputs at once."""
    (batch,) = dataset.batches(len(dataset), torch.Generator().manual_seed(0))
    return batch


def loop_losses(weights, model, batch, ablated, mask, kind):
    """The loss of each input, from runs in double precision one edge and one input at a time."""
    losses = []
    for row in range(len(batch.clean)):
        carried = torch.zeros(len(mask), 1, 1) if ablated is None else ablated[:, row].double()
        outputs = sources_and_output(weights, model.graph, batch.clean[row], mask, carried)[1][1:]
        target = batch.target[row, 1:].double()
        if kind == "values":
            losses.append(-(outputs * target).sum(-1).mean() / batch.target[:, 1:].double().square().mean())
        else:
            answer = target.argmax(-1)
            others = (outputs.sum(-1) - outputs[range(len(answer)), answer]) / (outputs.shape[-1] - 1)
            losses.append((others - outputs[range(len(answer)), answer]).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("kind", ["logits", "values"])
def test_eap_is_the_finite_difference_of_each_edge(ablation, kind):
    weights = random_weights(1, layers=1, heads=2)
    model, dataset = build(weights, logits=kind == "logits")
    scores = attribution_patching(model, dataset, ablation, config=EapConfig(batch_size=1000)).scores
    batch = batch_of(dataset)
    ablated = Ablator(model, dataset, ablation)(batch)
    signs = set[bool]()
    for row, column in cells(model):
        sides = []
        for step in (-STEP, STEP):
            mask = ones(model, dtype=torch.float64)
            mask[row, column] += step
            sides.append(loop_losses(weights, model, batch, ablated, mask, kind).mean())
        expected = float(sides[0] - sides[1]) / (2 * STEP)  # how much the loss rises without the edge
        assert float(scores[row, column]) == pytest.approx(expected, rel=1e-2, abs=1e-3)
        signs |= {expected > 0} if abs(expected) > 1e-2 else set()
    assert signs == {True, False}


ATTRIBUTIONS = [name for name in METHODS if name.startswith("eap")]


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_attributions_keep_their_sign_and_choose_by_size(name):
    model, dataset = build(random_weights(1))
    found = METHODS[name](model, dataset, "resample")
    threshold = METHODS[name].keywords["config"].threshold
    assert found.signed and torch.equal(found.strength, found.scores.abs())
    assert found.circuit == live_circuit(model.graph, "resample", found.scores.abs() > threshold)
    kept = [float(found.scores[model.graph.position(edge)]) for edge in found.circuit.edges]
    assert min(kept) < -threshold and max(kept) > threshold


def test_what_is_no_attribution_is_ranked_as_it_is():
    """A circuit is better off without an edge that ACDC scores below 0."""
    model, dataset = build(random_weights(8))
    for name in METHODS.keys() - LEARNED - {*ATTRIBUTIONS}:
        found = METHODS[name](model, dataset, "zero")
        assert not found.signed and torch.equal(found.strength, found.scores)


def test_an_edge_that_is_gone_stays_below_all_others_by_size():
    assert sizes(torch.tensor([-2.0, 1.0, -math.inf, 0.0])).tolist() == [2, 1, -math.inf, 0]


def test_eap_runs_in_parts_what_it_runs_at_once():
    model, dataset = build(random_weights(2))
    whole, parts = (attribution_patching(model, dataset, "zero", config=EapConfig(batch_size=n)) for n in (1000, 7))
    torch.testing.assert_close(whole.scores, parts.scores)


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_hisp_is_the_finite_difference_of_each_node_input_by_input(ablation):
    weights = random_weights(3)
    model, dataset = build(weights)
    scores = score_nodes(model, dataset, ablation, config=HispConfig(batch_size=1000)).scores
    batch = batch_of(dataset)
    ablated = Ablator(model, dataset, ablation)(batch)
    expected = []
    for row in range(len(model.graph.sources)):
        sides = []
        for step in (-STEP, STEP):
            mask = ones(model, dtype=torch.float64)
            mask[row] += step
            sides.append(loop_losses(weights, model, batch, ablated, mask, "logits"))
        expected.append(float((sides[1] - sides[0]).abs().mean() / (2 * STEP)))
    exists = edge_exists(model.graph)
    found = edge_scores(model.graph, torch.tensor(expected))
    torch.testing.assert_close(scores[exists], found[exists], rtol=1e-2, atol=1e-3)


def test_an_edge_scores_as_the_lesser_of_its_nodes():
    graph = build(random_weights(0))[0].graph
    nodes = torch.arange(len(graph.sources)).float()
    rising, falling = edge_scores(graph, nodes), edge_scores(graph, nodes.flip(0))
    for text, *expected in [("tok->a0.h1.k", 0, 4), ("m0->m1", 4, 0), ("a0.h1->logits", 3, 4), ("m1->logits", 7, 0)]:
        position = graph.position(Edge.parse(text))
        assert [rising[position], falling[position]] == expected


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (attribution_patching, EapConfig),
        (integrate_gradients, partial(EapIgConfig, over="inputs")),
        (integrate_gradients, partial(EapIgConfig, over="activations")),
    ],
)
def test_on_a_linear_model_attribution_is_the_exact_patch(method, kind, ablation):
    model, dataset = build(random_weights(4, linear=True), logits=False)
    scores = method(model, dataset, ablation, config=kind(loss="disagreement", batch_size=1000)).scores
    batch = batch_of(dataset)
    ablated = Ablator(model, dataset, ablation)(batch)
    objective = Objective(dataset, "disagreement")
    full = objective(model(batch.clean), batch)
    seen = 0
    for row, column in cells(model):
        mask = ones(model)
        mask[row, column] = 0
        patched = objective(model(batch.clean, mask, ablated), batch)
        assert float(scores[row, column]) == pytest.approx(float(patched - full), rel=1e-3, abs=1e-4)
        seen += abs(float(scores[row, column])) > 0.01
    assert seen > 5


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_many_steps_of_activations_add_up_to_ablating_the_node(ablation):
    model, dataset = build(random_weights(5))
    batch = batch_of(dataset)
    ablated = Ablator(model, dataset, ablation)(batch)
    objective = Objective(dataset, "squared")
    config = EapIgConfig(loss="squared", steps=300, batch_size=1000)
    signed = _signed("_along_activations", model, dataset, ablation, config)
    for row in range(len(model.graph.sources)):
        mask = ones(model)
        mask[row] = 0
        expected = float(objective(model(batch.clean, mask, ablated), batch))
        assert -float(signed[row].sum()) == pytest.approx(expected, rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_many_steps_of_inputs_add_up_to_ablating_the_embeddings(ablation):
    model, dataset = build(random_weights(6))
    batch = batch_of(dataset)
    ablated = Ablator(model, dataset, ablation)(batch)
    mask = ones(model)
    mask[:2] = 0
    expected = float(Objective(dataset, "squared")(model(batch.clean, mask, ablated), batch))
    config = EapIgConfig(loss="squared", steps=300, batch_size=1000)
    signed = _signed("_along_inputs", model, dataset, ablation, config)
    assert -float(signed[:2].sum()) == pytest.approx(expected, rel=2e-2)


def test_a_source_of_no_embedding_scores_by_what_it_writes_in_the_clean_run():
    """On the path of the input it writes something else, which must not count."""
    weights = random_weights(7)
    model, dataset = build(weights)
    batch = batch_of(dataset)
    config = EapIgConfig(loss="squared", steps=3, batch_size=1000)
    signed = _signed("_along_inputs", model, dataset, "resample", config)
    clean, ablated = model.sources(batch.clean), model.sources(batch.corrupted)
    row, column = model.graph.position(Edge.parse("m0->logits"))
    expected = 0.0
    for alpha in config.path:
        mask = ones(model)
        mask[:2] = alpha
        # The logits are linear in what they read: their weights take a derivative by the output to one by the input.
        outputs = model(batch.clean, mask, ablated).detach().requires_grad_()
        (by_output,) = torch.autograd.grad(Objective(dataset, "squared")(outputs, batch), outputs)
        by_input = by_output @ torch.from_numpy(weights.unembed).T
        expected += float(((clean - ablated)[row] * by_input).sum()) / config.steps
    assert float(signed[row, column]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("over", "points", "expected"),
    [
        ("inputs", "ends", [0, 0.25, 0.5, 0.75]),
        ("activations", "ends", [0.25, 0.5, 0.75, 1]),
        ("inputs", "middles", [0.125, 0.375, 0.625, 0.875]),
        ("activations", "middles", [0.125, 0.375, 0.625, 0.875]),
    ],
)
def test_the_points_of_a_path_are_those_of_the_authors_code_or_the_middles(over, points, expected):
    assert EapIgConfig(over=over, points=points, steps=4).path.tolist() == expected


@pytest.mark.parametrize("names", [METHODS, comparing._SCORING], ids=["registry", "compare"])
def test_the_published_name_is_of_the_published_points_and_the_middles_have_a_name_of_their_own(names):
    for over in ("inputs", "activations"):
        for name, points in ((f"eap-ig-{over}", "ends"), (f"eap-ig-{over}-middles", "middles")):
            config = names[name].keywords["config"] if names is METHODS else names[name][1]
            assert (config.over, config.points) == (over, points)


def _signed(path, model, dataset, ablation, config):
    from edgeprune.methods import eap_ig

    batch = batch_of(dataset)
    ablated = Ablator(model, dataset, ablation)(batch)
    total = getattr(eap_ig, path)(model, Objective(dataset, config.loss), batch, ablated, config.path)
    return total / len(dataset)


@pytest.mark.parametrize("order", ["latest first", "earliest first"])
@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_acdc_decides_as_a_loop_of_plain_forwards_does(order, ablation):
    model, dataset = build(random_weights(8))
    config = AcdcConfig(order=order, threshold=0.3, inputs=1000, batch_size=7)
    found = remove_greedily(model, dataset, ablation, config=config)
    batch = dataset.sample(1000, torch.Generator().manual_seed(0))
    ablated = Ablator(model, dataset, ablation)(batch)
    objective = Objective(dataset, "divergence", logit_scale=config.logit_scale)
    kept, scores = edge_exists(model.graph).float(), torch.zeros_like(ones(model))
    current = objective(model(batch.clean), batch)
    for edge in by_hand(order):
        position = model.graph.position(Edge.parse(edge))
        trial = kept.clone()
        trial[position] = 0
        loss = objective(model(batch.clean, trial, ablated), batch)
        scores[position] = loss - current
        if loss - current < config.threshold:
            kept, current = trial, loss
    assert found.circuit.edges == edges_of(model.graph, kept > 0)
    assert 3 < len(found.circuit) < model.graph.total - 3
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=1e-3)


def by_hand(order: str) -> list[str]:
    """The edges of two layers of two heads as ACDC is to try them: nothing before all that comes after it."""
    sources = ["tok", "pos", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    backwards = (
        "logits m1 a1.h1.v a1.h0.v a1.h1.k a1.h0.k a1.h1.q a1.h0.q m0 a0.h1.v a0.h0.v a0.h1.k a0.h0.k a0.h1.q a0.h0.q"
    )
    edges = list[str]()
    for destination in backwards.split():
        earlier = sources[: {"logits": 8, "m1": 7, "a1": 5, "m0": 4, "a0": 2}[destination.split(".")[0]]]
        tried = earlier if order == "earliest first" else earlier[::-1]
        edges += [f"{source}->{destination}" for source in tried]
    return edges


def test_acdc_decides_alike_where_ablated_values_do_not_fit(compiled, monkeypatch):
    program = compiled("hist")
    config = AcdcConfig(batch_size=50)
    held = remove_greedily(program.model, program.dataset, "resample", config=config)
    calls, sources = [], type(program.model).sources
    monkeypatch.setattr(type(program.model), "sources", lambda *given: calls.append(given) or sources(*given))
    monkeypatch.setattr("edgeprune.methods.circuit_loss._ROOM", 0)
    anew = remove_greedily(program.model, program.dataset, "resample", config=config)
    assert torch.equal(held.scores, anew.scores) and len(calls) > 10


@pytest.mark.parametrize("order", ["latest first", "earliest first"])
def test_acdc_tries_destinations_backwards_and_sources_in_either_order(order):
    graph = Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=2)
    assert [str(edge) for edge in traversal(graph, order)] == by_hand(order)


def test_exact_runs_each_edge_alone():
    model, dataset = build(random_weights(9))
    scores = ablate_each(model, dataset, "zero", config=SingleEdgeConfig(inputs=1000)).scores
    batch = dataset.sample(1000, torch.Generator().manual_seed(0))
    for row, column in cells(model)[::3]:
        mask = ones(model)
        mask[row, column] = 0
        expected = Objective(dataset, "worst")(model(batch.clean, mask), batch)
        torch.testing.assert_close(scores[row, column], expected)


def test_random_scores_are_drawn_by_the_seed_and_for_edges_alone():
    model, dataset = build(random_weights(0))
    first, again, other = (draw_scores(model, dataset, "zero", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.scores, other.scores)
    assert (first.scores[~edge_exists(model.graph)] == 0).all()
    assert 0 < len(first.circuit) < model.graph.total


def test_probing_nodes_learns_one_mask_for_all_edges_of_a_node(compiled):
    program = compiled("reverse")
    few = [with_settings(config, {"steps": 20, "initial_log_alpha": 1.0}) for config in (EDGES, NODES)]
    edges = prune_edges(program.model, program.dataset, "zero", config=few[0])
    nodes = probe_nodes(program.model, program.dataset, "zero", config=few[1])
    assert len(edges.history) == len(nodes.history) == 20
    into_logits = edge_exists(program.model.graph)[:, -1]
    learned = nodes.scores[:, -1][into_logits]
    assert len(learned.unique()) > 1
    torch.testing.assert_close(nodes.scores, edge_scores(program.model.graph, learned))
    assert len(edges.scores.unique()) > len(nodes.scores.unique())


@pytest.mark.parametrize("masked", ["edges", "nodes"])
def test_probing_goes_down_the_finite_difference_of_its_objective(masked):
    """Adam's first step is as long as its learning rate, against the sign of each entry's derivative."""
    weights = random_weights(4, layers=1, heads=1)
    model, dataset = build(weights)
    few = {"steps": 1, "mask_samples": 3, "batch_size": 5, "initial_log_alpha": 0.3, "masked": masked, "penalty": 0.02}
    method = {"edges": prune_edges, "nodes": probe_nodes}[masked]
    (snapshot,) = method(model, dataset, "resample", config=with_settings(EDGES, few)).snapshots
    generator = torch.Generator().manual_seed(0)
    batch = dataset.take(*draw_pairs(dataset, 5, generator))
    draw = LearnedMask(model.graph, HardConcrete(), initial=0.3, of=masked).draw(3, generator)
    ablated = Ablator(model, dataset, "resample")(batch).double()
    # An entry's place: an edge, or any edge of a source.
    places = cells(model) if masked == "edges" else [(row, -1) for row in range(len(model.graph.sources))]
    count, told = len(places), 0
    noise = torch.empty(3, count, dtype=torch.float64).scatter_(1, draw.entries, draw.noise.double())

    def objective(log_alpha):
        total = 0.0
        for u in noise:
            stretched = 1.2 * torch.sigmoid((torch.log(u) - torch.log(1 - u) + log_alpha) * 1.5) - 0.1
            z, mask = stretched.clamp(0, 1), torch.zeros_like(ones(model), dtype=torch.float64)
            for index, (row, column) in enumerate(cells(model)):
                mask[row, column] = z[index if masked == "edges" else row]
            for row in range(len(batch.clean)):
                outputs = sources_and_output(weights, model.graph, batch.clean[row], mask, ablated[:, row])[1][1:]
                full = (10 * batch.target[row, 1:].double()).log_softmax(-1)
                total += float((full.exp() * (full - (10 * outputs).log_softmax(-1))).sum(-1).mean()) / 15
        return total + 0.02 * float(torch.sigmoid(log_alpha - 2 / 3 * math.log(0.1 / 1.1)).sum())

    for index, place in enumerate(places):
        step = torch.zeros(count, dtype=torch.float64)
        step[index] = 1e-4
        start = torch.full((count,), 0.3, dtype=torch.float64)
        slope = (objective(start + step) - objective(start - step)) / 2e-4
        if abs(slope) > 1e-3:
            told, moved = told + 1, float(snapshot.log_alpha[tuple(place)])
            assert moved == pytest.approx(0.3 - 0.1 * math.copysign(1, slope), abs=1e-3)
    assert told >= count - 1


def test_probing_keeps_what_is_true_and_drops_most_else(compiled, truth):
    true = truth("hist", "resample").circuit
    program = compiled("hist")
    edges, nodes = (
        method(program.model, program.dataset, "resample", config=config).circuit.edges
        for method, config in ((prune_edges, EDGES), (probe_nodes, NODES))
    )
    assert edges == true.edges
    assert true.edges <= nodes
    assert len(nodes) < program.model.graph.total


WRONG = [
    (EapConfig, {"batch_size": 0}, "batch_size >= 1, got 0"),
    (EapIgConfig, {"steps": 0, "batch_size": 0}, "steps >= 1, got 0; batch_size >= 1, got 0"),
    (HispConfig, {"batch_size": 0}, "batch_size >= 1, got 0"),
    (AcdcConfig, {"inputs": 0, "at_once": 0}, "inputs >= 1, got 0; at_once >= 1, got 0"),
    (SingleEdgeConfig, {"inputs": 0}, "inputs >= 1, got 0"),
    (Penalty, {"penalty": 0.0, "penalty_warmup": -1}, r"0 < penalty <= 1e\+06, got 0.0; 0 <= penalty_warmup"),
]


@pytest.mark.parametrize(("config", "settings", "message"), WRONG, ids=[c.__name__ for c, _, _ in WRONG])
def test_settings_outside_their_range_are_refused(config, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)


LEARNED = {name for name in METHODS if "pruning" in name or "probing" in name}


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - LEARNED))
def test_every_method_finds_a_circuit_under_every_ablation(compiled, name, ablation):
    program = compiled("hist")
    found = METHODS[name](program.model, program.dataset, ablation, seed=0)
    assert found.circuit.ablation == ablation
    assert found.scores.shape == (len(program.model.graph.sources), len(program.model.graph.destinations))
    assert torch.isfinite(found.scores).all()
    again = METHODS[name](program.model, program.dataset, ablation, seed=0)
    assert again.circuit == found.circuit
    assert torch.equal(again.scores, found.scores)


@pytest.mark.parametrize("many", [250, 4])
@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_greedy_elimination_ranks_a_true_circuit_highest(compiled, truth, ablation, many):
    """One at a time, and several at a time while there are many."""
    program, true = compiled("xproportion"), truth("xproportion", ablation).circuit
    config = GreedyConfig(many=many, share=0.2)
    found = eliminate(program.model, program.dataset, ablation, config=config)
    assert found.circuit == true
    assert edges_of(true.graph, keep_most(true.graph, found.scores, len(true))) == true.edges


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_single_edges_are_ablated_as_is_asked_for(ablation):
    model, dataset = build(random_weights(9))
    scores = ablate_each(model, dataset, ablation, seed=3, config=SingleEdgeConfig(inputs=5)).scores
    batch = dataset.sample(5, torch.Generator().manual_seed(3))
    ablated = {"zero": None, "resample": model.sources(batch.corrupted)}
    ablated["mean"] = model.sources(dataset.tokens).mean(1, keepdim=True).expand(-1, 5, -1, -1)
    for row, column in cells(model)[::3]:
        mask = ones(model)
        mask[row, column] = 0
        expected = Objective(dataset, "worst")(model(batch.clean, mask, ablated[ablation]), batch)
        torch.testing.assert_close(scores[row, column], expected, atol=1e-4, rtol=1e-4)
