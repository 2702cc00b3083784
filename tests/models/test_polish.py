"""Polishing: what is taken out, exchanged and certified, beside running all subsets; and as a stage of a run."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from test_pruning_run import QUICK, save_model

from edgeprune.cli.main import main
from edgeprune.errors import ConfigError, RunError
from edgeprune.graph import Edge, Graph, Node
from edgeprune.groups import masks_without, removals
from edgeprune.masks import HardConcrete, LearnedMask, edge_exists, edges_of, live, mask_of
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.edge_pruning.configurations import TOLERANCE
from edgeprune.methods.edge_pruning.engine import Pruning, problem_of
from edgeprune.methods.edge_pruning.pressure import Penalty
from edgeprune.methods.edge_pruning.within import FewestWithin
from edgeprune.methods.polish import Goal, Polish, PolishConfig, Step, last_round, polish
from edgeprune.methods.settings import with_settings
from edgeprune.models.transformer import Transformer
from edgeprune.runs import polish as polish_run
from edgeprune.runs.config import RunConfig, load_model_on_task
from edgeprune.runs.prune import prune
from edgeprune.tasks import Sizes

CONFIG = PolishConfig()


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    model = save_model(tmp_path_factory.mktemp("model"))
    return RunConfig(model=model, task="gp", sizes=Sizes(train=8, validation=4, test=6), pruning=QUICK)


@pytest.fixture(scope="module")
def subject(asked):
    return load_model_on_task(asked, ["train"])


def loss_of(subject, **more):
    return CircuitLoss(subject.model, subject.splits["train"], "resample", inputs=8, batch_size=3, seed=0, **more)


def removals_of(loss, kept):
    listed = sorted(edges_of(loss.graph, kept))
    return masks_without(loss.graph, listed, removals(loss.graph, listed))


# The loss


@pytest.mark.parametrize("over", ["mean", "worst"])
def test_a_limit_changes_no_loss_that_is_within_it(subject, over):
    loss = loss_of(subject, over=over)
    masks = torch.rand(40, *edge_exists(loss.graph).shape, generator=torch.Generator().manual_seed(0)).round()
    whole = loss(masks)
    limit = float(whole.median())
    found = loss(masks, limit=limit)
    assert torch.equal(found, torch.where(whole <= limit, whole, torch.inf))
    assert loss(masks, limit=0.0).isinf().all()
    number, least = loss.best(masks)
    assert (number, least) == (int(whole.argmin()), float(whole.min()))
    assert loss.best(masks, limit=least / 2)[1] == float("inf")
    assert loss.masks_run == 5 * 40


def test_the_worst_is_the_largest_over_examples_and_the_mean_their_mean(subject):
    mask = torch.zeros(1, *edge_exists(subject.model.graph).shape)
    each = [
        float(CircuitLoss(subject.model, subject.splits["train"], "resample", inputs=n, batch_size=99, seed=0)(mask)[0])
        * n
        for n in range(1, 9)
    ]
    per_input = torch.tensor(each).diff(prepend=torch.zeros(1))
    assert float(loss_of(subject, over="worst")(mask)[0]) == pytest.approx(float(per_input.max()), rel=1e-3)
    assert float(loss_of(subject)(mask)[0]) == pytest.approx(float(per_input.mean()), rel=1e-3)


# The search


@pytest.mark.parametrize("tolerance", [1e-3, 1e-2])
def test_within_a_tolerance_nothing_that_is_listed_can_go(subject, tolerance):
    loss = loss_of(subject)
    run = Polish(loss, Goal(tolerance=tolerance), edge_exists(loss.graph), CONFIG)
    polish(run)
    assert run.loss <= tolerance and run.edges < loss.graph.total
    assert float(loss(run.kept[None].float())[0]) == pytest.approx(run.loss, rel=1e-3)
    assert (loss(removals_of(loss, run.kept)) > tolerance).all()
    assert torch.equal(live(loss.graph, run.kept), run.kept)


@pytest.mark.parametrize("edges", [3, 12, 25])
def test_of_so_many_edges_none_can_go_and_none_be_exchanged(subject, edges):
    """From a random circuit; afterwards no removal is as good, and no exchange of one edge is better."""
    loss = loss_of(subject)
    drawn = torch.rand(edge_exists(loss.graph).shape, generator=torch.Generator().manual_seed(edges))
    start = edge_exists(loss.graph) & (drawn < 0.5)
    run = Polish(loss, Goal(edges=edges), start, replace(CONFIG, exchanges=99))
    polish(run)
    assert run.edges <= edges
    assert (loss(removals_of(loss, run.kept)) > run.limit).all()
    inside, outside = (torch.nonzero(each) for each in (run.kept, edge_exists(loss.graph) & ~run.kept))
    exchanged = run.kept.repeat(len(inside), len(outside), 1, 1)
    for (n, gone), (m, new) in itertools.product(enumerate(inside), enumerate(outside)):
        exchanged[n, m, gone[0], gone[1]], exchanged[n, m, new[0], new[1]] = False, True
    better = loss(exchanged.flatten(0, 1).float()) < run.loss * (1 - 0.01) - 1e-6
    assert run.edges < edges or not better.any()


@pytest.mark.parametrize("ablation", ["zero", "resample"])
@pytest.mark.parametrize("head", [None, 0, 1])
def test_a_true_circuit_is_found_from_all_edges_and_from_one_that_lacks_a_head(compiled, truth, ablation, head):
    """No edge into a head that is missing, or out of it, serves alone: it comes with all of them, and is cut down."""
    program, true = compiled("end_pair"), truth("end_pair", ablation).circuit
    graph = program.model.graph
    lacks = None if head is None else Node("a", 1, head)
    start = {edge for edge in true.edges if lacks not in (edge.source, edge.destination.owner)}
    assert lacks is None or len(start) < len(true) - 1
    loss = CircuitLoss(program.model, program.dataset, ablation, loss="squared", inputs=999, batch_size=64, seed=0)
    kept = edge_exists(graph) if lacks is None else mask_of(graph, start) > 0
    run = Polish(loss, Goal(edges=len(true)), kept, CONFIG)
    polish(run)
    assert run.circuit(ablation) == true


class Said(CircuitLoss):
    """A loss that is what a function says of the edges that are kept."""

    def __init__(self, graph, says):
        self._of, self._says, self.masks_run, self.inputs = graph, says, 0, 1

    graph = property(lambda self: self._of)

    def __call__(self, masks, *, limit=float("inf")):
        losses = torch.tensor([self._says(edges_of(self._of, mask > 0)) for mask in masks])
        return torch.where(losses <= limit, losses, torch.inf)

    glance = __call__

    def best(self, masks, *, limit=float("inf")):
        losses = self(masks, limit=limit)
        return int(losses.argmin()), float(losses.min())

    def gradient(self, mask):
        return torch.zeros_like(mask)


def test_two_edges_that_serve_only_together_are_added_together():
    """As to a head's keys and values, where either alone does harm."""
    graph = Graph.transformer(embeddings=("embed",), layers=2, heads=1)
    start = {Edge.parse(name) for name in ("embed->a0.h0.v", "a0.h0->a1.h0.v", "a1.h0->logits", "embed->logits")}
    pair = {Edge.parse("embed->a1.h0.k"), Edge.parse("embed->a1.h0.q")}

    def says(edges):
        return 9.0 if not start <= edges else {0: 0.5, 1: 0.7, 2: 0.1}[len(pair & edges)]

    run = Polish(Said(graph, says), Goal(edges=6), mask_of(graph, start) > 0, CONFIG)
    polish(run)
    assert run.circuit("zero").edges == start | pair and run.loss == pytest.approx(0.1)


def test_polishing_that_is_restored_before_every_step_is_the_same(subject):
    def states(*, restored):
        run, found = Polish(loss_of(subject), Goal(edges=12), edge_exists(subject.model.graph), CONFIG), []
        while not run.ended:
            if restored:
                before, run = run.state(), Polish(loss_of(subject), Goal(edges=12), run.kept, CONFIG)
                run.restore(before)
            run.advance()
            found.append(run.state())
        return found

    whole, again = states(restored=False), states(restored=True)
    assert len(whole) == len(again) and Step(int(whole[-1]["at"][0])) == Step.DONE
    for one, other in zip(whole, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("edges", [6, 20])
def test_the_last_round_runs_about_as_many_circuits_as_is_planned(subject, edges):
    graph = subject.model.graph
    run, before = Polish(loss_of(subject), Goal(edges=edges), edge_exists(graph), CONFIG), [0, 0]
    while not run.ended:
        before.append(run._run.masks_run)
        run.advance()
    ran = run._run.masks_run - before[-2]  # exchanges, then the certificate
    planned = last_round(len(graph.sources), len(graph.destinations), edges, CONFIG)
    assert run.edges == edges and 0.3 * planned < ran <= planned


@pytest.mark.parametrize("goal", [{}, {"edges": 3, "tolerance": 0.1}, {"edges": 0}, {"tolerance": 0.0}])
def test_goals_that_are_none_are_refused(goal):
    with pytest.raises(ConfigError, match="Expected"):
        Goal(**goal)


def test_a_circuit_whose_masks_would_not_fit_is_refused(subject, monkeypatch):
    monkeypatch.setattr("edgeprune.methods.polish._ROOM", 99)
    with pytest.raises(ConfigError, match="Expected a circuit of fewer edges to polish"):
        Polish(loss_of(subject), Goal(edges=3), edge_exists(subject.model.graph), CONFIG)


def test_a_size_whose_masks_would_not_fit_is_refused_before_anything_is_learned(asked, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeprune.methods.polish._ROOM", 99)
    with pytest.raises(ConfigError, match="those of 23 edges take"):
        prune(replace(asked, polish=True), tmp_path / "run")
    assert not [*(tmp_path / "run").iterdir()]


# As a stage of a run


def test_a_run_is_polished_to_the_size_that_was_asked_for(asked, tmp_path, monkeypatch):
    polished = replace(asked, polish=True)
    plain, found = prune(asked, tmp_path / "plain"), prune(polished, tmp_path / "whole")
    assert plain.saved.method["name"] == "edge-pruning" and found.saved.method["name"] == "edge-pruning-polished"
    wanted = round(0.5 * found.saved.circuit.graph.total)
    assert found.reached and len(found.saved.circuit) <= wanted != len(plain.saved.circuit)
    certificate = json.loads((tmp_path / "whole" / "polish.json").read_text())
    assert certificate["criterion"] == {"loss": "divergence", "over": "mean", "examples": 8, "edges": wanted}
    assert certificate["found"]["edges"] == len(found.saved.circuit)
    assert (
        certificate["tried"]["removals"] > wanted and certificate["tried"]["masks"] > certificate["tried"]["removals"]
    )
    calls, advance = [], Polish.advance

    def stops(run):
        calls.append(run)
        if len(calls) == 3:
            raise KeyboardInterrupt
        advance(run)

    monkeypatch.setattr(Polish, "advance", stops)
    with pytest.raises(KeyboardInterrupt):
        prune(polished, tmp_path / "run")
    prune(polished, tmp_path / "run", resume=True)
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "run" / file.name).read_bytes() == file.read_bytes(), file.name


def test_what_polishing_left_is_refused_where_it_is_damaged(asked, tmp_path):
    polished = replace(asked, polish=True, pruning=replace(QUICK, steps=2))
    prune(polished, tmp_path / "run")
    (tmp_path / "run" / "polish.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"Expected a checkpoint of this run in .*polish"):
        prune(polished, tmp_path / "run", resume=True)


def test_the_masks_of_fewest_edges_that_were_within_are_remembered():
    within, masks = FewestWithin(0.5), torch.arange(10.0)
    for number in range(3):
        within.note(0.6, 3, masks + number)
    assert not len(within.log_alpha)
    for loss, edges, number in ((0.5, 5, 1), (0.4, 6, 2), (0.4, 4, 3), (0.3, 4, 4), (0.51, 1, 5)):
        within.note(loss, edges, masks + number)
    assert torch.equal(within.log_alpha, masks + 4)
    again = FewestWithin(0.5)
    again.restore(within.state())
    again.note(0.1, 5, masks)
    assert torch.equal(again.log_alpha, masks + 4)


def test_a_run_within_a_tolerance_that_is_restored_before_every_step_is_the_same(subject):
    settings = {"tolerance": 0.003, "steps": 40, "batch_size": 4, "learning_rate": 1.0, "price_learning_rate": 0.5}
    config = with_settings(TOLERANCE, settings)

    def start():
        return Pruning(problem_of(subject.model, subject.splits["train"], "resample", config), config, seed=0)

    def states(*, restored):
        run, found = start(), []
        while not run.ended:
            if restored:
                before, run = run.state(), start()
                run.restore(before)
            run.advance()
            found.append({name: value.clone() for name, value in run.state().items()})
        return found

    whole, again = states(restored=False), states(restored=True)
    assert len({tuple(each["within/log_alpha"].tolist()) for each in whole}) > 3
    for one, other in zip(whole, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("criterion", ["mean", "worst"])
@pytest.mark.parametrize("polished", [False, True])
def test_a_run_within_a_tolerance(asked, tmp_path, criterion, polished):
    settings = {"tolerance": 0.01, "steps": 60, "batch_size": 4, "criterion": criterion, "learning_rate": 0.5}
    config = replace(asked, pruning=with_settings(TOLERANCE, settings), polish=polished)
    found = prune(config, tmp_path / "run", save_every=25)
    assert found.saved.method["name"] == "edge-pruning-tolerance" + ("-polished" if polished else "")
    loss = loss_of(load_model_on_task(config, ["train"]), over=criterion)
    mask = torch.zeros(edge_exists(loss.graph).shape)
    for edge in found.saved.circuit.edges:
        mask[loss.graph.position(edge)] = 1
    assert (
        found.reached and found.loss == pytest.approx(float(loss(mask[None])[0]), rel=1e-3) and 0 < found.loss <= 0.01
    )
    assert len(found.saved.circuit) < loss.graph.total
    if polished:
        assert (loss(removals_of(loss, mask > 0)) > 0.01).all()
    prune(config, tmp_path / "run", resume=True)


def test_the_command_takes_a_tolerance_and_polishes(asked, tmp_path, capsys):
    sizes = ["--train", "8", "--validation", "4", "--test", "6", "--batch-size", "4", "--steps", "20", "--json"]
    about = ["prune", "--model", asked.model, "--task", "gp", "--out", str(tmp_path / "run")]
    assert main([*about, *sizes, "--tolerance", "0.05", "--criterion", "worst", "--polish"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "edge-pruning-tolerance-polished" and found["reached"] and found["loss"] <= 0.05
    assert json.loads((tmp_path / "run" / "outcome.json").read_text()) == {
        name: value for name, value in found.items() if name not in ("circuit", "method")
    }


def test_what_is_asked_for_neither_is_not_polished(asked):
    with pytest.raises(ConfigError, match="is asked for neither"):
        polish_run.goal_of(replace(TOLERANCE, pressure=Penalty(penalty=0.1)), 9)


# What the loss may be, and where there is no end


@pytest.mark.parametrize("polished", [False, True])
def test_a_loss_that_falls_below_that_of_the_full_model_is_refused(asked, polished):
    pruning = replace(QUICK, loss=replace(QUICK.loss, loss="disagreement"))
    with pytest.raises(ConfigError, match="Expected a loss that is 0 at the full model"):
        if polished:
            replace(asked, pruning=pruning, polish=True)
        else:
            with_settings(TOLERANCE, {"loss": "disagreement"})


def test_a_loss_that_rounding_puts_below_0_is_none(subject, monkeypatch):
    """Or an edge would go and come back for ever."""
    loss = loss_of(subject)
    monkeypatch.setattr(loss._objective, "per_input", lambda outputs, batch: 0 * outputs.sum((-1, -2)) - 1e-7)
    run = Polish(loss, Goal(edges=loss.graph.total), edge_exists(loss.graph), CONFIG)
    for _ in range(100):
        if not run.ended:
            run.advance()
    assert run.ended and run.loss == 0


def test_a_circuit_whose_loss_is_no_number_is_polished_to_one_that_has_one(subject, monkeypatch):
    loss = loss_of(subject)
    per_input = loss._objective.per_input
    monkeypatch.setattr(
        loss._objective, "per_input", lambda outputs, batch: per_input(outputs, batch) / (outputs.shape[0] > 1)
    )
    run = Polish(loss, Goal(edges=20), edge_exists(loss.graph), CONFIG)
    assert run.loss == float("inf")
    polish(run)
    assert run.edges == 20 and 0 < run.loss < float("inf")


def test_a_tolerance_that_everything_is_within_ends_with_no_edge(asked, tmp_path):
    """Its price grows no further than numbers go; and a loss without bounds lowers it."""
    settings = {"tolerance": 50.0, "steps": 60, "batch_size": 4, "price_learning_rate": 30.0}
    found = prune(replace(asked, pruning=with_settings(TOLERANCE, settings)), tmp_path / "run")
    assert found.reached and not found.saved.circuit.edges
    state = TOLERANCE.pressure.start(9)
    masks = LearnedMask(found.saved.circuit.graph, HardConcrete(), initial=0.0, of="edges")
    draw = masks.draw(1, torch.Generator().manual_seed(0))
    for loss in (float("inf"), 0.0):
        by_masks, by_price = state.gradients(masks, draw, 0, loss)
        assert by_masks.isfinite().all() and float(by_price) == (1.0 if loss == 0 else -1.0)


def test_what_follows_learning_runs_in_parts_too_and_only_where_it_is_asked_for(asked, tmp_path, monkeypatch):
    rows, sources = [], Transformer.sources

    def counted(model, tokens):
        rows.append(tokens.shape[-2])
        return sources(model, tokens)

    monkeypatch.setattr(Transformer, "sources", counted)
    one = replace(asked.sizes, validation=1)
    prune(replace(asked, sizes=one, parts=4, polish=True, pruning=replace(QUICK, steps=2)), tmp_path / "run")
    assert max(rows) == 1
    rows.clear()
    prune(replace(asked, pruning=replace(QUICK, steps=2)), tmp_path / "plain")
    rows.clear()
    prune(replace(asked, pruning=replace(QUICK, steps=2)), tmp_path / "plain", resume=True)
    assert not rows


def test_of_all_removals_that_are_good_enough_the_largest_is_made():
    """Whatever is left, the loss is 0: all edges go in one move."""

    class Nothing(CircuitLoss):
        graph, masks_run = Graph.transformer(embeddings=("embed",), layers=1, heads=1), 0

        def __init__(self) -> None: ...

        def __call__(self, masks, *, limit=float("inf")):
            return torch.zeros(len(masks))

    kept = mask_of(Nothing.graph, map(Edge.parse, ("embed->m0", "m0->logits", "embed->logits"))) > 0
    run = Polish(Nothing(), Goal(tolerance=0.1), kept, CONFIG)
    run.step = Step.CERTIFY
    run.advance()
    assert (run.edges, run.step) == (0, Step.SHRINK)
