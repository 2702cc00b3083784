"""Discovery methods: seeds, settings and what they hand back."""

import inspect
from dataclasses import replace

import pytest
import torch
from pruning import compiled_paper, minimax, prune_compiled

from edgeprune import methods
from edgeprune.ablation import Ablator
from edgeprune.errors import ConfigError, UnknownMethod
from edgeprune.graph import Circuit
from edgeprune.masks import edge_exists, edges_of, mask_of
from edgeprune.methods.edge_pruning.configurations import MINIMAX
from edgeprune.methods.edge_pruning.counterexamples import CounterexampleConfig, Counterexamples
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.edge_pruning.gradient import losses_per_input
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.loss import DISTANCES, Objective, draw_pairs
from edgeprune.methods.settings import with_settings
from edgeprune.methods.subnetwork_probing import EDGES, NODES, probe_nodes
from edgeprune.metrics.distances import ATOL


def draw_batch(dataset, size):
    return dataset.take(*draw_pairs(dataset, size, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_has_the_one_signature(name):
    parameters = inspect.signature(methods.METHODS[name]).parameters
    assert list(parameters)[:3] == ["model", "dataset", "ablation"]
    assert {"seed", "progress"} <= parameters.keys()


def test_a_method_is_handed_a_masked_model_and_nothing_of_its_structure(compiled, monkeypatch):
    seen = []

    def spy(model, dataset, ablation, *, seed=0, progress=False):
        seen.append(model)
        scores = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
        return methods.Discovery(Circuit(model.graph, ablation, frozenset()), scores, ())

    monkeypatch.setattr(methods, "METHODS", {"spy": spy})
    program = compiled("hist")
    methods.find_method("spy")(program.model, program.dataset, "zero")
    assert {name for name in dir(seen[0]) if not name.startswith("_")} == {"graph", "sources", "weights"}
    tokens = program.dataset.tokens[:3]
    assert torch.equal(seen[0](tokens), program.model(tokens))


def test_an_unknown_method_is_refused():
    with pytest.raises(UnknownMethod, match=r"Expected a method among edge-pruning-minimax, .*; got 'magic'"):
        methods.find_method("magic")


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize(
    "config", [minimax(steps=5), compiled_paper(steps=5, initial_log_alpha=1.0)], ids=lambda config: config.name
)
def test_the_same_seed_gives_the_same_masks_and_another_seed_does_not(compiled, config, ablation):
    program = compiled("hist")

    def run(seed):
        return prune_compiled(program, ablation, config, seed=seed)

    assert torch.equal(run(3).scores, run(3).scores)
    assert run(3).history == run(3).history != run(4).history


def test_samples_equal_to_the_rounded_mask_are_not_run_again_and_lose_nothing(compiled):
    program = compiled("hist")
    objective = Objective(program.dataset, "worst")
    batch = draw_batch(program.dataset, 8)
    rounded = mask_of(program.model.graph, program.model.structural)
    sampled = rounded * torch.rand(6, *rounded.shape, generator=torch.Generator().manual_seed(0)).round()
    sampled[[1, 4]] = rounded
    seen = []

    class Spy:
        graph = program.model.graph

        def __call__(self, tokens, mask, ablated, positions):
            seen.append(len(mask))
            return program.model(tokens, mask, ablated)

        def sources(self, tokens):
            return program.model.sources(tokens)

    problem = Problem(Spy(), program.dataset, objective, Ablator(program.model, program.dataset, "zero"))
    losses = losses_per_input(problem, batch, sampled, rounded)
    assert seen == [5]
    torch.testing.assert_close(losses[1:], objective.per_input(program.model(batch.clean, sampled), batch))
    assert float(losses[0].amax()) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    "fault",
    [
        {"steps": 0},
        {"penalty": -1.0},
        {"explored": 0.0},
        {"mask_samples": 1},
        {"counterexamples": -1},
        {"certain_at": 2.0},
        {"learning_rate": float("nan")},
        {"joint_removals": True, "masked": "nodes"},
    ],
)
def test_an_impossible_setting_of_minimax_is_refused(fault):
    with pytest.raises(ConfigError, match=next(iter(fault))):
        minimax(**fault)


@pytest.mark.parametrize(
    "fault", [{"target_sparsity": 1.5}, {"steps": 0}, {"batch_size": 0}, {"mask_samples": 0}, {"learning_rate": 0.0}]
)
def test_an_impossible_setting_of_the_papers_is_refused(fault):
    with pytest.raises(ConfigError, match=next(iter(fault))):
        compiled_paper(**fault)


@pytest.mark.parametrize("loss", DISTANCES)
@pytest.mark.parametrize("name", ["hist", "xproportion"])
def test_every_loss_is_zero_at_the_target_and_larger_the_further_from_it(compiled, name, loss):
    dataset = compiled(name).dataset
    objective = Objective(dataset, loss, logit_scale=10.0)
    batch = draw_batch(dataset, 16)
    wrong = torch.stack([batch.target, batch.target + 0.1 * batch.target.flip(-1) + 0.1, 1 - batch.target])
    values = objective(wrong, batch)
    assert float(values[0]) == pytest.approx(0, abs=1e-6)
    assert 0 < float(values[1]) < float(values[2])


def test_the_units_of_a_loss_are_those_of_as_many_inputs_as_fit(compiled, monkeypatch):
    dataset = compiled("sort").dataset
    batch, some = draw_batch(dataset, 50), len(dataset) // 2
    half = replace(
        dataset, tokens=dataset.tokens[:some], target=dataset.target[:some], scored=dataset.scored[:some],
        group=dataset.group[:some],
    )  # fmt: skip
    outputs = batch.target + torch.randn(batch.target.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("edgeprune.methods.loss._ROOM", some * dataset.target[0].numel())
    found, expected = (Objective(each, "squared")(outputs, batch) for each in (dataset, half))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", DISTANCES)
def test_positions_that_the_truth_does_not_score_cost_nothing(compiled, loss):
    dataset = compiled("shift_by").dataset
    batch = draw_batch(dataset, 16)
    spoiled = torch.where(batch.scored[..., None], batch.target, 5.0)
    assert float(Objective(dataset, loss)(spoiled, batch)) == pytest.approx(0, abs=1e-6)
    assert not batch.scored[:, :2].any()  # BOS, and the position that has none before it


def test_the_worst_loss_is_bounded_and_takes_a_breakdown_for_the_worst(compiled):
    dataset = compiled("hist").dataset
    batch = draw_batch(dataset, 4)
    broken = torch.stack([batch.target + 1e9, torch.full_like(batch.target, torch.nan)])
    assert Objective(dataset, "worst")(broken, batch).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scale", [1, 1000])
def test_the_worst_loss_sees_what_the_truth_sees_and_nothing_less_in_any_range(compiled, scale):
    dataset = compiled("hist").dataset
    batch = draw_batch(dataset, 4)
    wide = replace(dataset, target=scale * dataset.target)
    moved = replace(batch, target=scale * batch.target)
    losses: list[float] = []
    for effect in (0.95 * ATOL, 1.05 * ATOL):
        off = moved.target.clone()
        off[0, 1, 0] += effect
        losses.append(float(Objective(wide, "worst")(off, moved)))
    assert losses[0] == 0
    assert 1.5 * MINIMAX.pressure.penalty < losses[1] < 0.3


def test_masks_are_compared_with_the_baseline_input_by_input(compiled):
    dataset = compiled("hist").dataset
    baseline = torch.tensor([0.0, 1.0, 0.0])  # the second input is as wrong as can be
    losses = torch.tensor([[0.0, 1.0, 0.0], [0.8, 1.0, 0.0], [0.0, 0.3, 0.0], [0.5, 0.0, 0.2]])
    torch.testing.assert_close(Objective(dataset, "worst").change(losses, baseline), torch.tensor([0, 0.8, -0.7, -0.5]))
    means = Objective(dataset, "squared").change(losses, baseline)
    torch.testing.assert_close(means, losses.mean(-1) - baseline.mean())


def test_a_pair_that_alone_shows_a_mask_to_be_wrong_is_remembered_until_no_longer_needed():
    hard = Counterexamples(CounterexampleConfig(counterexamples=2, counterexample_decay=0.5))
    fresh = torch.arange(8).view(2, 4)
    losses = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    hard.update(fresh, losses)
    assert hard.pairs.tolist() == [[1], [5]]
    hard.update(torch.cat([fresh, hard.pairs], dim=1), torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.4]]))
    assert hard.pairs.tolist() == [[1], [5]]
    for _ in range(20):
        hard.update(torch.cat([fresh, hard.pairs], dim=1), torch.zeros(3, 4 + hard.pairs.shape[1]))
    assert hard.pairs.shape == (2, 0)


def test_no_more_pairs_are_remembered_than_asked_for():
    losses = torch.eye(6) * torch.arange(1, 7)
    hard = Counterexamples(CounterexampleConfig(counterexamples=2, counterexample_decay=0.5))
    hard.update(torch.arange(12).view(2, 6), losses)
    assert sorted(hard.pairs[0].tolist()) == [4, 5]
    none = Counterexamples(CounterexampleConfig())
    none.update(torch.arange(12).view(2, 6), losses)
    assert none.pairs.shape == (2, 0)


def test_a_batch_holds_each_input_once():
    from edgeprune.data import Dataset

    dataset = Dataset(
        tokens=torch.arange(10)[:, None],
        scored=torch.ones(10, 1, dtype=torch.bool),
        target=torch.zeros(10, 1, 1),
        group=torch.tensor([0] * 4 + [1] * 6),
    )
    batch = draw_batch(dataset, 99)
    assert sorted(batch.clean.flatten().tolist()) == list(range(10))
    assert ((batch.clean < 4) == (batch.corrupted < 4)).all()


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (prune_edges, minimax(steps=150)),
        (prune_edges, compiled_paper(steps=150, mask_samples=2)),
        (prune_edges, with_settings(EDGES, {"steps": 150, "mask_samples": 2})),
        (probe_nodes, with_settings(NODES, {"steps": 150, "mask_samples": 2})),
    ],
)
def test_the_last_snapshot_is_of_what_was_found(compiled, method, config):
    program = compiled("hist")
    graph = program.model.graph
    found = method(program.model, program.dataset, "resample", config=config)
    steps = [shot.step for shot in found.snapshots]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, len(found.history) - 1)
    assert edges_of(graph, found.snapshots[-1].kept) == found.circuit.edges
    log_alpha = found.snapshots[-1].log_alpha
    assert (log_alpha[~edge_exists(graph)] == 0).all()
    if config.masks.masked == "edges":
        assert torch.equal(log_alpha > 0, found.snapshots[-1].kept)
