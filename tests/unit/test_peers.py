"""Methods beside Edge Pruning, each against the slow and obvious way to the same numbers.

On small models of random weights, whose attention is not saturated, so that derivatives say something.
"""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from oracle import sources_and_output

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Edge
from edgeprune.masks import edge_exists, edges_of
from edgeprune.methods import METHODS
from edgeprune.methods.acdc import AcdcConfig, remove_greedily, traversal
from edgeprune.methods.baselines import ExactConfig, ablate_each, draw_scores
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.methods.hisp import HispConfig, edge_scores, score_nodes
from edgeprune.methods.objective import Objective
from edgeprune.methods.subnetwork_probing import ProbingConfig, probe_subnetwork
from tracr_bridge.model import TracrModel
from tracr_bridge.weights import HeadWeights, LayerWeights, Weights

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
    weights = random_weights(1)
    model, dataset = build(weights, logits=kind == "logits")
    scores = attribution_patching(model, dataset, ablation, config=EapConfig(batch_size=1000)).scores
    batch = batch_of(dataset)
    ablated = Ablator(model, dataset, ablation)(batch)
    for row, column in [*cells(model)[::9], (0, len(model.graph.destinations) - 1)]:
        sides = []
        for step in (-STEP, STEP):
            mask = ones(model, dtype=torch.float64)
            mask[row, column] += step
            sides.append(loop_losses(weights, model, batch, ablated, mask, kind).mean())
        expected = abs(float(sides[1] - sides[0])) / (2 * STEP)
        assert float(scores[row, column]) == pytest.approx(expected, rel=1e-2, abs=1e-3)


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
        assert float(scores[row, column]) == pytest.approx(abs(float(patched - full)), rel=1e-3, abs=1e-4)
        seen += float(scores[row, column]) > 0.01
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
    config = AcdcConfig(order=order, threshold=0.3, inputs=1000)
    found = remove_greedily(model, dataset, ablation, config=config)
    batch = dataset.sample(1000, torch.Generator().manual_seed(0))
    ablated = Ablator(model, dataset, ablation)(batch)
    objective = Objective(dataset, "divergence", logit_scale=config.logit_scale)
    kept, scores = edge_exists(model.graph).float(), torch.zeros_like(ones(model))
    current = objective(model(batch.clean), batch)
    for edge in traversal(model.graph, order):
        position = model.graph.position(edge)
        trial = kept.clone()
        trial[position] = 0
        loss = objective(model(batch.clean, trial, ablated), batch)
        scores[position] = loss - current
        if loss - current < config.threshold:
            kept, current = trial, loss
    assert found.circuit.edges == edges_of(model.graph, kept > 0)
    assert 3 < len(found.circuit) < model.graph.total - 3
    torch.testing.assert_close(found.scores, scores, atol=1e-4, rtol=1e-3)


def test_acdc_tries_destinations_backwards_and_sources_in_either_order():
    graph = build(random_weights(0, layers=1, heads=1))[0].graph
    names = [[str(edge) for edge in traversal(graph, order)] for order in ("latest first", "earliest first")]
    assert names[0][:5] == ["m0->logits", "a0.h0->logits", "pos->logits", "tok->logits", "a0.h0->m0"]
    assert names[1][:5] == ["tok->logits", "pos->logits", "a0.h0->logits", "m0->logits", "tok->m0"]
    assert [name.partition("->")[2] for name in names[0]] == [name.partition("->")[2] for name in names[1]]


def test_exact_runs_each_edge_alone():
    model, dataset = build(random_weights(9))
    scores = ablate_each(model, dataset, "zero", config=ExactConfig(inputs=1000)).scores
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
    few = [ProbingConfig(steps=20, initial_log_alpha=1.0, masked=masked) for masked in ("edges", "nodes")]
    edges, nodes = (probe_subnetwork(program.model, program.dataset, "zero", config=config) for config in few)
    assert len(edges.history) == len(nodes.history) == 20
    into_logits = edge_exists(program.model.graph)[:, -1]
    learned = nodes.scores[:, -1][into_logits]
    assert len(learned.unique()) > 1
    torch.testing.assert_close(nodes.scores, edge_scores(program.model.graph, learned))
    assert len(edges.scores.unique()) > len(nodes.scores.unique())


def test_probing_keeps_what_is_true_and_drops_most_else(compiled, truth):
    true = truth("hist", "resample").circuit
    program = compiled("hist")
    edges, nodes = (
        probe_subnetwork(program.model, program.dataset, "resample", config=ProbingConfig(masked=masked)).circuit.edges
        for masked in ("edges", "nodes")
    )
    assert edges == true.edges
    assert true.edges <= nodes
    assert len(nodes) < program.model.graph.total


WRONG = [
    (EapConfig, {"batch_size": 0}, "batch_size >= 1, got 0"),
    (EapIgConfig, {"steps": 0, "batch_size": 0}, "steps >= 1, got 0; batch_size >= 1, got 0"),
    (HispConfig, {"batch_size": 0}, "batch_size >= 1, got 0"),
    (AcdcConfig, {"inputs": 0, "at_once": 0}, "inputs >= 1, got 0; at_once >= 1, got 0"),
    (ExactConfig, {"inputs": 0}, "inputs >= 1, got 0"),
    (ProbingConfig, {"penalty": 0.0, "steps": 0}, "penalty > 0, got 0.0; steps > 0, got 0"),
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
