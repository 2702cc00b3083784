"""`import edgeprune as ep`: what is asked for is what runs, and bad input is told."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import edgeprune as ep
from edgeprune.data import Dataset
from edgeprune.masked_model import OnlyMasked
from edgeprune.masks import circuit_mask, mask_of
from edgeprune.methods.edge_pruning.configurations import PAPER, TOLERANCE
from tracr_bridge.recovery.known_models import certify_subject


@pytest.fixture
def model(compiled):
    return compiled("hist").model


@pytest.fixture
def tokens(compiled):
    rows = compiled("hist").dataset
    return rows.tokens[rows.group == rows.group.max()][:12]


def circuit_of(model, ablation="zero", without="logits"):
    """All edges but those into one destination."""
    edges = frozenset(edge for edge in model.graph.edges if str(edge.destination) != without)
    return ep.Circuit(model.graph, ablation, edges)


def test_a_circuit_is_run_as_its_mask_under_zero(model, tokens):
    circuit = circuit_of(model)
    expected = model(tokens, circuit_mask(circuit), None)
    assert torch.equal(ep.run_with(model, circuit, tokens), expected)
    assert not torch.equal(expected, model(tokens))


def test_under_resample_each_input_has_the_values_of_its_corrupted_one(model, tokens):
    circuit, corrupted = circuit_of(model, "resample"), tokens.flip(0)
    expected = model(tokens, circuit_mask(circuit), model.sources(corrupted))
    assert torch.equal(ep.run_with(model, circuit, tokens, corrupted), expected)


@pytest.mark.parametrize("many", [1, 5, 12, 150])
def test_under_mean_values_are_averaged_position_by_position(model, tokens, many):
    circuit, others = circuit_of(model, "mean"), tokens.repeat(13, 1)[3 : 3 + many]
    means = model.sources(others).double().mean(-3, keepdim=True).float()
    expected = model(tokens, circuit_mask(circuit), means.expand(-1, len(tokens), -1, -1))
    torch.testing.assert_close(ep.run_with(model, circuit, tokens, others), expected, atol=1e-5, rtol=1e-5)


def test_outputs_are_those_of_the_positions_asked_for(model, tokens):
    circuit, positions = circuit_of(model), torch.tensor([[1, 0]]).expand(len(tokens), 2)
    outputs = ep.run_with(model, circuit, tokens, positions=positions)
    assert torch.equal(outputs, ep.run_with(model, circuit, tokens)[:, [1, 0]])


@pytest.mark.parametrize(
    ("ablation", "corrupted", "told"),
    [
        ("zero", lambda t: t, "Expected no corrupted inputs, as the circuit is one under zero ablation"),
        ("resample", lambda _: None, "Expected corrupted inputs, as the circuit is one under resample ablation"),
        ("mean", lambda _: None, "Expected corrupted inputs, as the circuit is one under mean ablation"),
        ("resample", lambda t: t[:3], r"Expected corrupted inputs of the shape of tokens, \(12, \d\); got \(3, \d\)$"),
        ("mean", lambda t: t[:, :2], r"of the shape of tokens, \(12, \d\), or more or fewer of them; got \(12, 2\)$"),
    ],
)
@pytest.mark.fakes
def test_corrupted_inputs_that_do_not_fit_are_told(model, tokens, ablation, corrupted, told):
    with pytest.raises(ep.EdgePruneError, match=told):
        ep.run_with(model, circuit_of(model, ablation), tokens, corrupted(tokens))


@pytest.mark.parametrize(("layers", "heads", "total"), [(1, 1, 8), (2, 1, 23), (1, 2, 13)])
def test_a_circuit_of_another_model_is_refused(compiled, model, tokens, layers, heads, total):
    other = ep.Circuit(ep.Graph.transformer(embeddings=("embed",), layers=layers, heads=heads), "zero", frozenset())
    told = f"Expected a circuit of the model's graph, of {model.graph.total} edges; got one of a graph of {total}"
    for call in (
        lambda: ep.run_with(model, other, tokens),
        lambda: ep.CircuitModel(model, other),
        lambda: ep.evaluate(model, other, compiled("hist").dataset),
        lambda: ep.ablated(model, other).__enter__(),
    ):
        with pytest.raises(ep.EdgePruneError, match=told):
            call()


def test_inside_the_context_plain_calls_run_the_circuit_and_nothing_else_changes(model, tokens):
    circuit, kind, plain = circuit_of(model, "resample"), type(model), model(tokens)
    corrupted, ones = tokens.flip(0), mask_of(model.graph, model.graph.edges)
    sources = model.sources(tokens)
    with ep.ablated(model, circuit, corrupted) as inside:
        assert inside is model and isinstance(model, kind)
        assert torch.equal(model(tokens), ep.CircuitModel(model, circuit)(tokens, corrupted))
        assert not torch.equal(model(tokens), plain)
        assert torch.equal(model(tokens, ones), plain)
        assert torch.equal(model.sources(tokens), sources)
        with ep.ablated(model, circuit_of(model, without="m0")):
            assert torch.equal(model(tokens), ep.run_with(model, circuit_of(model, without="m0"), tokens))
        assert torch.equal(model(tokens), ep.run_with(model, circuit, tokens, corrupted))
    assert type(model) is kind and torch.equal(model(tokens), plain)


def test_the_model_is_as_it_was_after_an_error(model, tokens):
    kind = type(model)
    with pytest.raises(RuntimeError, match="mine"), ep.ablated(model, circuit_of(model)):
        raise RuntimeError("mine")
    assert type(model) is kind


def test_sources_of_a_model_that_calls_itself_are_plain(model, tokens):
    class Calls(type(model)):
        def sources(self, tokens):
            self.seen = self(tokens)
            return super().sources(tokens)

    calls = Calls.__new__(Calls)
    calls.__dict__.update(model.__dict__)
    with ep.ablated(calls, circuit_of(model)):
        calls.sources(tokens)
        assert torch.equal(calls.seen, model(tokens))
        assert not torch.equal(calls(tokens), model(tokens))


def test_gradients_pass_through_a_circuit_as_a_module(model, tokens):
    module = ep.CircuitModel(model, circuit_of(model))
    assert set(module.state_dict()) == {"mask"}
    module.mask.requires_grad_()
    module(tokens).sum().backward()
    assert module.mask.grad is not None and not ep.run_with(model, circuit_of(model), tokens).requires_grad


def test_a_method_of_a_name_is_that_of_the_registry(compiled):
    from edgeprune.methods import METHODS

    program = compiled("hist")
    for name, ablation, seed in (("acdc", "zero", 0), ("random", "mean", 3)):
        expected = METHODS[name](program.model, program.dataset, ablation, seed=seed)
        found = ep.discover(program.model, program.dataset, name, ablation=ablation, seed=seed)
        assert found.circuit == expected.circuit and torch.equal(found.scores, expected.scores)


def test_a_function_of_ones_own_sees_a_masked_model_and_a_copy(compiled):
    program, seen = compiled("hist"), []

    def mine(model, dataset, ablation, seed):
        seen.append((type(model), ablation, seed))
        dataset.tokens.zero_()
        return torch.ones(len(model.graph.sources), len(model.graph.destinations))

    before = program.dataset.tokens.clone()
    found = ep.discover(program.model, program.dataset, mine, seed=7)
    assert seen == [(OnlyMasked, "resample", 7)] and len(found.circuit) > 0
    assert torch.equal(program.dataset.tokens, before)
    with pytest.raises(ep.EdgePruneError, match=r"Expected scores of shape .* from method .*<lambda>; got \(2,\)"):
        ep.discover(program.model, program.dataset, lambda *_, **__: torch.ones(2))


@pytest.mark.fakes
def test_a_name_or_an_ablation_that_is_none_is_refused(compiled):
    program = compiled("hist")
    with pytest.raises(ep.EdgePruneError, match=r"Expected a method among .*; got 'magic'"):
        ep.discover(program.model, program.dataset, "magic")
    with pytest.raises(ep.EdgePruneError, match="resample"):
        ep.discover(program.model, program.dataset, "acdc", ablation="none")
    with pytest.raises(ep.EdgePruneError, match="resample"):
        ep.certify("hist", ablation="none")


def test_under_resample_corrupted_inputs_have_to_differ(compiled, tokens):
    model = compiled("hist").model
    data = ep.make_dataset(model, tokens, corrupted=tokens.clone(), logits=False)
    with pytest.raises(ep.EdgePruneError, match="Expected corrupted texts that differ from clean ones"):
        ep.discover(model, data, "random")
    ep.discover(model, data, "random", ablation="zero")
    ep.discover(model, ep.make_dataset(model, tokens, logits=False), "random")  # any other may be put in place


def test_edge_pruning_has_the_settings_asked_for():
    paper, within = ep.edge_pruning(target_sparsity=0.5, steps=40), ep.edge_pruning(tolerance=0.25, batch_size=5)
    assert isinstance(paper, partial) and isinstance(within, partial)
    config = paper.keywords["config"]
    assert (config.name, config.pressure.target_sparsity, config.steps) == (PAPER.name, 0.5, 40)
    config = within.keywords["config"]
    assert (config.name, config.pressure.tolerance, config.batch_size) == (TOLERANCE.name, 0.25, 5)
    for given, told in (({}, "neither"), ({"target_sparsity": 0.5, "tolerance": 0.1}, "both")):
        with pytest.raises(ep.EdgePruneError, match=f"Expected target_sparsity or tolerance; got {told}"):
            ep.edge_pruning(**given)
    for given, told in (
        ({"target_sparsity": 0.5, "stepss": 3}, "Expected settings of edge-pruning, which has no stepss"),
        ({"target_sparsity": 0.5, "criterion": "worst"}, "which has no criterion"),  # which would do nothing
        ({"tolerance": 0.5, "masked": "nodes", "explored": 0.1}, "-tolerance, which has no explored, masked$"),
    ):
        with pytest.raises(ep.EdgePruneError, match=told):
            ep.edge_pruning(**given)


@pytest.mark.fakes
def test_inputs_become_a_dataset_with_the_models_outputs(model, tokens):
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    data = ep.make_dataset(model, tokens, corrupted=tokens.flip(0), scored=scored, logits=False)
    assert isinstance(data, Dataset) and torch.equal(data.target, model(tokens)) and not data.logits
    assert data.scored is scored and torch.equal(data.counterparts, tokens.flip(0))
    assert data.group.tolist() == [0] * len(tokens)
    bare = ep.make_dataset(model, tokens)
    assert bare.counterparts is None and bare.scored.all() and bare.scored.shape == tokens.shape and bare.logits
    for name in ("corrupted", "scored"):
        with pytest.raises(
            ep.EdgePruneError, match=rf"Expected {name} of the shape of tokens, \(12, \d\); got \(2, \d\)"
        ):
            ep.make_dataset(model, tokens, **{name: tokens[:2]})


def test_a_dataset_without_answers_is_not_evaluated(compiled, model):
    with pytest.raises(ep.EdgePruneError, match="Expected a dataset with answers, as load_task gives one"):
        ep.evaluate(model, circuit_of(model), compiled("hist").dataset)


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_a_program_is_certified_by_name_file_or_itself(compiled, truth, ablation):
    expected = truth("hist", ablation)
    file = Path(__file__).parents[2] / "programs" / "hist.py"
    for subject in ("hist", compiled("hist").program, f"{file}:hist"):
        found = ep.certify(subject, ablation=ablation)
        assert found.circuit == expected.circuit and found.certificate.status == expected.certificate.status


def test_a_certificate_is_of_the_seed_and_the_ablation_asked_for(monkeypatch, truth):
    seen = []

    def known(subject, *, seed):
        return SimpleNamespace(
            truth=lambda ablation: seen.append((subject.name, seed, ablation)) or truth("hist", ablation)
        )

    monkeypatch.setattr("tracr_bridge.recovery.known_models.known", known)
    assert ep.certify("hist", ablation="resample", seed=7) is truth("hist", "resample")
    assert ep.certify("hist") is truth("hist", "zero")
    assert seen == [("hist", 7, "resample"), ("hist", 0, "zero")]


@pytest.mark.parametrize("given", [{"task": "t.jsonl"}, {"tolerance": 0.5}])
def test_a_task_without_a_tolerance_is_no_trained_model(given):
    (name,) = given
    with pytest.raises(
        ep.EdgePruneError, match=f"Expected task and tolerance together, as of a trained model; got {name} alone"
    ):
        certify_subject("hist", "zero", **given)


def test_without_the_package_that_certifies_its_users_are_told(monkeypatch):
    monkeypatch.setattr("edgeprune.api.entry_points", lambda group: ())
    with pytest.raises(ep.EdgePruneError, match="Expected one package that certifies, tracr_bridge; got 0: install it"):
        ep.certify("hist")


def test_a_circuit_is_read_from_where_it_was_saved(model, tmp_path):
    circuit = circuit_of(model)
    circuit.save(tmp_path / "it.json")
    assert ep.load_circuit(tmp_path / "it.json") == circuit == ep.load_circuit(str(tmp_path / "it.json"))
