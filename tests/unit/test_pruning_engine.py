"""Edge Pruning from step to step and from stage to stage, on a model of which all can be written down."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from linear import EXISTS, GRAPH, WEIGHTS, Linear, data
from pruning import minimax

from edgeprune.errors import RunError
from edgeprune.graph import Circuit
from edgeprune.masks import LARGE, SampledMasks, live, mask_of
from edgeprune.methods.edge_pruning import engine
from edgeprune.methods.edge_pruning.configurations import MINIMAX, PAPER, TOLERANCE
from edgeprune.methods.edge_pruning.ending import Verdict
from edgeprune.methods.edge_pruning.engine import Pruning, Stage, circuit_loss, discover, problem_of, prune_edges
from edgeprune.methods.edge_pruning.gradient import Estimate, LikelihoodRatio
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.loss import draw_pairs
from edgeprune.methods.ranking import keep_most
from edgeprune.methods.settings import with_settings

MODEL = Linear(WEIGHTS)
DATA = data(MODEL)
STEPS = 6
QUICK = {"steps": STEPS, "batch_size": 3}
OURS = minimax(**QUICK, mask_samples=4, explored=0.5, penalty_warmup=2, counterexamples=2)
PAPERS = with_settings(PAPER, QUICK)
WITHIN = with_settings(TOLERANCE, QUICK)


def begin(config, *, seed=0, dataset=DATA):
    return Pruning(problem_of(MODEL, dataset, "resample", config), config, seed=seed)


def stages(run):
    """Every stage, once it has begun, and the steps that were taken in it."""
    found = []
    while not run.ended:
        before, step = run.stage, run.advance()
        assert (step is None) == (before not in (Stage.LEARN, Stage.LEARN_ANEW))
        if run.stage != before:
            found.append((run.stage, run.done))
    return found


# The start


def test_masks_start_where_they_are_told_to_and_noise_is_that_of_the_seed():
    run = begin(with_settings(PAPERS, {"initial_log_alpha": 3.0, "initial_spread": 0.5}), seed=4)
    noise = 0.5 * torch.randn(len(run.masks.log_alpha), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(run.masks.log_alpha.detach(), 3 + noise)
    assert (run.masks.of, run.masks.hard_concrete) == ("edges and nodes", PAPERS.masks.hard_concrete)
    assert (run.done, run.stage, run.ended, run._step) == (0, Stage.LEARN, False, 0)
    assert torch.equal(begin(with_settings(PAPERS, {"initial_spread": 0.5})).masks.log_alpha, begin(
        with_settings(PAPERS, {"initial_spread": 0.5}), seed=0).masks.log_alpha)  # fmt: skip
    still = begin(OURS, seed=4)
    assert set(still.masks.log_alpha.tolist()) == {2.0} and still.masks.of == "edges and groups"
    assert torch.equal(still.generator.get_state(), torch.Generator().manual_seed(4).get_state())


def test_a_seed_is_0_unless_given():
    plain = Pruning(problem_of(MODEL, DATA, "zero", PAPERS), PAPERS)
    assert torch.equal(plain.masks.log_alpha, begin(PAPERS, seed=0).masks.log_alpha)


def test_what_a_run_begins_with_is_what_its_configuration_says():
    run = begin(OURS)
    state = run.state()
    assert state["place"].tolist() == [0, 0, 0] and state["engine"] == 3
    assert state["first_circuit"].shape == (0,) and state["against"].shape == (2, 0)
    assert state["against"].dtype == torch.long and state["multipliers"].shape == (0,)
    assert state["ending/numbers"].tolist() == [0, 2, 1]  # the penalty grows for two steps
    assert state["within/log_alpha"].shape == (0,)
    assert begin(replace(OURS, loss=replace(OURS.loss, loss="squared"), final_check=None)).state()[
        "ending/numbers"
    ].tolist() == [0, 2, 0]
    assert (run._within._tolerance, begin(WITHIN)._within._tolerance) == (0.0, 0.01)
    assert run.counterexamples._size == 2 and run._optimizer._config is OURS.optimizer
    assert run.pressure.multiplier_learning_rate == 0.0 and begin(PAPERS).pressure._steps == STEPS
    assert run._ending._steps == STEPS and run._ending._config is OURS.ending


# A step


def estimate_of(run, gradient, loss=0.25, per_input=None):
    samples = torch.ones(1, len(run.masks.log_alpha))
    draw = SampledMasks(
        EXISTS.float()[None], torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1), samples, rounded=True
    )
    return Estimate(loss, torch.tensor(gradient), per_input, draw)


def test_a_step_goes_down_the_gradient_of_the_loss_and_of_the_pressure(monkeypatch):
    """Adam's second moment is that of one step, its epsilon 1: a step is the rate times g / (|g| + 1)."""
    settings = {"learning_rate": 0.3, "learning_rate_warmup": 0.5, "epsilon": 1.0, "masked": "edges", "penalty": 0.5}
    run = begin(with_settings(OURS, settings | {"learning_rate_decay": 0.0, "penalty_warmup": 4}), seed=3)
    run.counterexamples.remember(torch.tensor([[4], [1]]))
    noise, seen, gradient = torch.Generator().manual_seed(3), [], [0.1 * number for number in range(8)]
    per_input = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.9, 0.2, 0.0, 0.0]])

    def estimate(self, problem, masks, pairs, generator):
        seen.append((problem, masks, pairs, generator))
        return estimate_of(run, gradient, per_input=per_input)

    monkeypatch.setattr(LikelihoodRatio, "estimate", estimate)
    monkeypatch.setattr(Problem, "losses", None)  # nothing else is run
    before = None
    for number in range(3):
        state = noise.get_state()
        known, before = run.counterexamples.pairs, run.masks.log_alpha.detach().clone()
        noise.set_state(state)
        step = run.advance()
        expected_pairs = torch.cat([draw_pairs(DATA, 3, noise), known], dim=1)
        problem, masks, pairs, generator = seen[-1]
        assert problem is run.problem and masks is run.masks and generator is run.generator
        assert torch.equal(pairs, expected_pairs)
        kept = torch.sigmoid(before)
        assert step.figures == {"penalty": 0.5 * number / 4}
        assert (step.step, step.loss) == (number, 0.25)
        assert step.expected_edges == pytest.approx(kept.sum().item(), rel=1e-5)
        assert step.sparsity == pytest.approx(1 - kept.sum().item() / 8, rel=1e-5)
        assert (run.done, run._step) == (number + 1, number + 1)
        if number == 0:
            assert torch.equal(run.masks.log_alpha, before)  # the rate warms up from nothing
            assert known.shape == (2, 1) and torch.equal(run.counterexamples.pairs, pairs[:, [3, 0]])
        if number == 1:
            first = torch.tensor(gradient)
            second = first + 0.5 / 4 * kept * (1 - kept)
            mean = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
            square = (0.9 * 0.1 * first**2 + 0.1 * second**2) / (1 - 0.9**2)
            expected = before - 0.3 * (1 / 3) * mean / (square.sqrt() + 1)
            torch.testing.assert_close(run.masks.log_alpha.detach(), expected, rtol=1e-5, atol=1e-6)
        per_input = torch.zeros(2, 3 + run.counterexamples.pairs.shape[1])


def test_multipliers_learn_at_a_rate_of_their_own_times_the_same_factor():
    """Adam's first step is one rate long; the second step's factor is a half."""
    settings = {"learning_rate_warmup": 1 / 3, "learning_rate_decay": 0.0, "learning_rate": 5.0}
    plain = {"weight_decay": 0.0, "largest_gradient_norm": None, "initial_log_alpha": 0.0}
    run = begin(with_settings(PAPERS, settings | plain | {"multiplier_learning_rate": 0.4}))
    run.advance()
    assert run.pressure.multipliers.tolist() == [0.0, 0.0]
    before = run.masks.log_alpha.detach().clone()
    run.advance()
    assert 0.1 < float(run.pressure.multipliers.abs().max()) <= 0.21
    assert 1.0 < float((run.masks.log_alpha.detach() - before).abs().max()) <= 2.6


def test_a_tolerance_is_held_against_the_circuit_as_it_stands():
    run = begin(WITHIN)
    with torch.no_grad():
        run.masks.log_alpha[:4] = -1.0  # samples differ from the circuit, whose loss is far above the tolerance
    before = run.masks.log_alpha.detach().clone()
    run.advance()
    assert run._within.log_alpha.shape == (0,)
    run = begin(WITHIN)
    with torch.no_grad():
        run.masks.log_alpha[4] = -1.0  # the edge that carries nothing
    before = run.masks.log_alpha.detach().clone()
    first = run.advance()
    assert first.loss > 0.01 and run._within._edges == int(run.kept().sum()) == 7
    assert torch.equal(run._within.log_alpha, before)
    run.advance()
    assert float(run.pressure.multipliers) > 0


def test_what_is_no_number_ends_a_run_and_masks_stay_in_range(monkeypatch):
    run = begin(with_settings(OURS, {"largest_log_alpha": 4.0, "masked": "edges", "learning_rate": 3.0}))
    with torch.no_grad():
        run.masks.log_alpha.copy_(torch.tensor([9.0, -9.0, 4.0, -4.0, 3.0, 0.0, 1.0, 2.0]))
    run._keep_in_range(0.0)
    assert run.masks.log_alpha.tolist() == [4.0, -4.0, 4.0, -4.0, 3.0, 0.0, 1.0, 2.0]
    run.done = 7
    for loss in (float("nan"), float("inf")):
        with pytest.raises(RunError) as error:
            run._keep_in_range(loss)
        assert str(error.value) == (
            f"Expected a finite loss and finite masks; got a loss of {loss} at step 7. What was saved before stands: "
            "run again elsewhere, with lower learning rates or float32"
        )
    run.masks.log_alpha.data[2] = float("nan")
    with pytest.raises(RunError, match=r"got a loss of 0.5 at step 7"):
        run._keep_in_range(0.5)
    nan = torch.full((2, 3), float("nan"))
    run = begin(OURS)
    none = [0.0] * len(run.masks.log_alpha)
    monkeypatch.setattr(LikelihoodRatio, "estimate", lambda self, *given: estimate_of(run, none, float("nan"), nan))
    with pytest.raises(RunError, match=r"got a loss of nan at step 0"):
        run.advance()


# What follows a step


class Says:
    """An ending that says one thing."""

    def __init__(self, verdict):
        self.verdict, self.asked = verdict, []

    def after(self, step, *, rounded, wrong):
        self.asked.append((step, rounded, wrong))
        return self.verdict


@pytest.mark.parametrize("verdict", list(Verdict))
def test_what_an_ending_says_is_done(verdict):
    run = begin(OURS)
    run._ending, moved = Says(verdict), torch.linspace(-3, 3, len(run.masks.log_alpha))
    run.masks.log_alpha.data.copy_(moved)
    run._optimizer.step((torch.ones_like(moved), torch.zeros(0)), (0.0, 0.0))
    pairs = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    losses = torch.tensor([[0.0, 0.5, 0.0, 0.1], [1.0, 1.0, 1.0, 1.0]])
    run._follow(3, estimate_of(run, [0.0], per_input=losses), pairs)
    assert run._ending.asked == [(3, True, True)]
    anew = verdict in (Verdict.START_OVER, Verdict.DOUBT)
    assert run._optimizer.state()["log_alpha.count"] == (0 if anew else 1)
    over = verdict == Verdict.START_OVER
    assert run.counterexamples.pairs.tolist() == ([[1, 3], [3, 1]] if over else [[], []])
    expected = {Verdict.START_OVER: torch.full_like(moved, 2.0), Verdict.DOUBT: moved.clamp(max=2.0)}
    assert torch.equal(run.masks.log_alpha, expected.get(verdict, moved))
    assert run.stage == (Stage.CHECK if verdict == Verdict.END else Stage.LEARN)


def test_a_circuit_that_no_input_shows_to_be_wrong_is_not_said_to_be():
    run = begin(OURS)
    run._ending = Says(Verdict.GO_ON)
    losses = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    run._follow(1, estimate_of(run, [0.0], per_input=losses), torch.zeros(2, 2, dtype=torch.long))
    run = begin(PAPERS)
    run._ending = Says(Verdict.GO_ON)
    run._follow(1, estimate_of(run, [0.0], per_input=1 + losses), torch.zeros(2, 2, dtype=torch.long))
    assert run._ending.asked == [(1, False, False)]
    run._ending = Says(Verdict.START_OVER)
    run._follow(1, estimate_of(run, [0.0], per_input=1 + losses), torch.zeros(2, 2, dtype=torch.long))
    assert run.counterexamples.pairs.shape == (2, 0)


# Stages


def test_runs_go_from_stage_to_stage():
    assert stages(begin(PAPERS)) == [(Stage.DONE, STEPS)]
    assert stages(begin(WITHIN)) == [(Stage.REMOVE, STEPS), (Stage.DONE, STEPS)]
    assert stages(begin(replace(OURS, final_check=None))) == [(Stage.DONE, STEPS)]
    assert stages(begin(replace(OURS, ending=None))) == [
        (Stage.CHECK, STEPS), (Stage.REMOVE, STEPS), (Stage.DONE, STEPS),
    ]  # fmt: skip


class Check:
    """A final check whose findings are those of a test: by how many pairs each mask is wrong, one after the other."""

    pairs_of, counts, left, seen = torch.tensor([[0, 1], [1, 2]]), [], frozenset(), []

    def __init__(self, problem, generator, count):
        self.about = (problem, generator, count)

    def pairs(self, known):
        Check.seen.append(("pairs", self.about, known))
        return self.pairs_of

    def counterexamples(self, mask, pairs):
        Check.seen.append(("counterexamples", mask, pairs))
        return torch.stack([torch.arange(1, Check.counts[0] + 1), torch.zeros(Check.counts.pop(0), dtype=torch.long)])

    def without_superfluous(self, mask, known):
        Check.seen.append(("without", mask, known))
        return Check.left


@pytest.fixture
def checked(monkeypatch):
    monkeypatch.setattr(engine, "FinalCheck", Check)
    Check.seen, Check.counts, Check.left = [], [], frozenset(GRAPH.edges[:3])
    return Check


CIRCUITS = {edges: [9.0] * edges + [-9.0] * (8 - edges) for edges in range(9)}


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("wrong", "edges", "second_stays"),
    [
        ((1, 2), (5, 4), True), ((2, 1), (4, 5), False), ((1, 1), (4, 5), True), ((1, 1), (5, 4), False),
        ((0, 0), (4, 4), True),
    ],
)  # fmt: skip
def test_of_two_circuits_the_one_counts_that_fewer_pairs_show_wrong(checked, wrong, edges, second_stays):
    """Given are how wrong the second is and the first, and how many edges each has."""
    run = begin(with_settings(replace(OURS, ending=None), {"masked": "edges", "checked": 77}))
    assert stages_until(run, Stage.CHECK) == STEPS
    run.counterexamples.remember(torch.tensor([[3], [3]]))
    run.masks.log_alpha.data.copy_(torch.tensor(CIRCUITS[edges[1]]))
    first, checked.counts = run.masks.log_alpha.detach().clone(), [3]
    assert run.advance() is None
    (_, (problem, generator, count), known), (_, mask, pairs) = checked.seen
    assert problem is run.problem and generator is run.generator and count == 77
    assert known.tolist() == [[3], [3]] and torch.equal(pairs, Check.pairs_of)
    assert int(mask.sum()) == edges[1]
    against = [[1, 2, 3], [0, 0, 0]]
    state = run.state()
    assert (run.stage, state["place"].tolist()) == (Stage.LEARN_ANEW, [STEPS, 0, Stage.LEARN_ANEW])
    assert torch.equal(state["first_circuit"], first) and state["against"].tolist() == against
    assert run.counterexamples.pairs.tolist() == [[1, 2], [0, 0]] and set(state["log_alpha"].tolist()) == {2.0}
    assert state["optimizer/log_alpha.count"] == 0
    assert stages_until(run, Stage.CHECK_ANEW) == 2 * STEPS
    learned = 0.5 * torch.tensor(CIRCUITS[edges[0]])
    run.masks.log_alpha.data.copy_(learned)
    checked.seen, checked.counts = [], list(wrong)
    assert run.advance() is None and run.stage == Stage.REMOVE
    _, (_, second, pairs), (_, other, same) = checked.seen
    assert (int(second.sum()), int(other.sum())) == edges
    assert pairs.tolist() == same.tolist() == [[0, 1, 1, 2, 3], [1, 0, 2, 0, 0]]
    assert torch.equal(run.masks.log_alpha, learned if second_stays else first)


def stages_until(run, stage):
    while run.stage != stage:
        run.advance()
    return run.done


@pytest.mark.fakes
def test_a_circuit_that_no_pair_shows_wrong_is_not_learned_anew(checked):
    run = begin(replace(OURS, ending=None))
    stages_until(run, Stage.CHECK)
    before, checked.counts = run.masks.log_alpha.detach().clone(), [0]
    run.advance()
    assert run.stage == Stage.REMOVE and run.state()["first_circuit"].shape == (0,)
    assert torch.equal(run.masks.log_alpha, before)


@pytest.mark.fakes
@pytest.mark.parametrize("joint", [True, False])
def test_what_a_final_check_leaves_is_the_circuit(checked, joint):
    run = begin(with_settings(replace(OURS, ending=None), {"joint_removals": joint, "masked": "edges"}))
    run.masks.log_alpha.data.copy_(torch.tensor(CIRCUITS[6]))
    run.counterexamples.remember(torch.tensor([[2], [4]]))
    run.stage = Stage.REMOVE
    assert run.advance() is None and run.ended
    if joint:
        ((_, mask, known),) = checked.seen
        assert int(mask.sum()) == 6 and known.tolist() == [[2], [4]]
        assert run.masks.log_alpha.tolist() == [9.0] * 3 + [-LARGE] * 5
    else:
        assert checked.seen == [] and run.masks.log_alpha.tolist() == CIRCUITS[6]


@pytest.mark.parametrize("remembered", [True, False])
def test_the_fewest_edges_within_the_tolerance_are_kept_by_the_better_of_two_rankings(remembered):
    """By the one, the edge without effect is the last; by the other it is the first, and all are needed."""
    run = begin(WITHIN)
    last, first = torch.tensor([3.0, 2, 1, 3, -1, 1, 3, 2]), torch.tensor([1.0, 1, 1, 1, 4, 1, -1, 1])
    run.masks.log_alpha.data.copy_(first)
    if remembered:
        run._within.note(0.0, 7, last)
    run.stage = Stage.REMOVE
    run.advance()
    expected = live(GRAPH, keep_most(GRAPH, mask_of(GRAPH, GRAPH.edges), 8))
    if remembered:
        expected[tuple(EXISTS.nonzero()[4])] = False
    assert torch.equal(run.kept(), expected)
    log_alpha = run.masks.log_alpha.tolist()
    assert log_alpha == pytest.approx([3, 2, 1, 3, -1, 1, 3, 2] if remembered else [1, 1, 1, 1, 4, 1, 0.01, 1])


# What is kept


def test_means_and_circuits_are_those_of_masks_as_they_stand():
    run = begin(PAPERS)
    run.masks.log_alpha.data.copy_(torch.linspace(-3, 3, len(run.masks.log_alpha)))
    assert torch.equal(run.mean(), run.masks.mean().detach()) and not run.mean().requires_grad
    assert torch.equal(run.kept(), live(GRAPH, run.masks.kept_at_mean_sparsity()))
    rounded = begin(replace(PAPERS, kept="rounded"))
    rounded.masks.log_alpha.data.copy_(run.masks.log_alpha.detach())
    assert torch.equal(rounded.kept(), live(GRAPH, run.masks.rounded() > 0))
    assert not torch.equal(rounded.kept(), run.kept())


@pytest.mark.parametrize("config", [PAPERS, WITHIN, OURS], ids=lambda config: config.name)
def test_a_state_holds_all_and_is_given_back(config):
    run, other = begin(config, seed=1), begin(config, seed=2)
    for _ in range(2):
        run.advance()
    state = {name: value.clone() for name, value in run.state().items()}
    assert {name.split("/")[0] for name in state} == {
        *("engine", "place", "noise", "log_alpha", "first_circuit", "against", "multipliers"),
        *("counterexamples", "optimizer", "ending", "within"),
    }
    assert state["place"].tolist() == [2, 2, 0] and not state["log_alpha"].requires_grad
    assert torch.equal(state["noise"], run.generator.get_state())
    other.restore(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state().items())
    assert stages(run) == stages(other) and torch.equal(run.masks.log_alpha, other.masks.log_alpha)


# What is asked for


def test_a_problem_and_a_loss_are_those_of_a_configuration():
    config = with_settings(PAPERS, {"logit_scale": 2.0, "criterion": "worst", "judged": 4, "batch_size": 5})
    dataset = replace(DATA, logits=True)
    problem = problem_of(MODEL, dataset, "mean", config, parts=2)
    objective = problem.objective
    assert (problem.model, problem.dataset, problem.ablator.ablation, problem.parts) == (MODEL, dataset, "mean", 2)
    assert (objective._loss, objective._logit_scale, objective.over) == ("divergence", 2.0, "worst")
    assert problem_of(MODEL, dataset, "mean", config).parts == 1
    loss = circuit_loss(problem, config, 9)
    assert loss.graph == GRAPH and loss.inputs == 4 and [len(each.clean) for each in loss._batches] == [3, 1]
    assert (loss._objective._loss, loss._objective._logit_scale, loss._objective.over) == ("divergence", 2.0, "worst")
    for ablation in ("zero", "mean", "resample"):
        problem, without = problem_of(MODEL, DATA, ablation, config), torch.zeros(1, *EXISTS.shape)
        judged = circuit_loss(problem, config, 9)
        losses = torch.cat([problem.losses(without, each) for each in judged._batches], -1)
        torch.testing.assert_close(judged(without), problem.objective.reduce(losses))
        assert float(losses.max()) > 0
    assert circuit_loss(problem_of(MODEL, DATA, "zero", OURS), OURS, 0)._objective._loss == "worst"
    drawn = dataset.sample_batches(4, 3, torch.Generator().manual_seed(9), among=torch.arange(5))
    for batch, expected in zip(loss._batches, drawn, strict=True):
        assert torch.equal(batch.clean, expected.clean) and torch.equal(batch.corrupted, expected.corrupted)


class Bar:
    """What would be shown."""

    made: ClassVar = []

    def __init__(self, **given):
        self.given, self.updates, self.others = given, 0, []
        Bar.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *given):
        pass

    def update(self):
        self.updates += 1

    def reset(self, total):
        self.others.append(total)

    def set_description(self, text):
        self.others.append(text)


@pytest.mark.parametrize("progress", [True, False])
def test_a_discovery_is_what_a_run_finds_with_each_of_its_steps(monkeypatch, progress):
    monkeypatch.setattr(engine, "tqdm", Bar)
    config = with_settings(PAPERS, {"initial_log_alpha": 0.5, "learning_rate": 2.0})
    found = prune_edges(MODEL, DATA, "resample", seed=3, progress=progress, config=config)
    run, steps = begin(config, seed=3), []
    while not run.ended:
        steps.append(run.advance())
    assert [(each.step, each.loss, each.expected_edges) for each in found.history] == [
        (step.step, step.loss, step.expected_edges) for step in steps
    ]
    assert found.circuit == Circuit(GRAPH, "resample", found.circuit.edges)
    assert torch.equal(mask_of(GRAPH, found.circuit.edges) > 0, run.kept()) and torch.equal(found.scores, run.mean())
    assert [shot.step for shot in found.snapshots] == list(range(STEPS))
    bar = Bar.made[-1]
    assert bar.given == {"total": STEPS, "desc": "edge-pruning, resample", "disable": None if progress else True}
    assert (bar.updates, bar.others) == (STEPS, [])
    again = prune_edges(MODEL, DATA, "resample", config=config)
    assert Bar.made[-1].given["disable"] is True
    assert torch.equal(again.scores, prune_edges(MODEL, DATA, "resample", seed=0, config=config).scores)


@pytest.mark.fakes
def test_a_discovery_that_learns_anew_shows_so(monkeypatch, checked):
    monkeypatch.setattr(engine, "tqdm", Bar)
    checked.counts = [1, 0, 0]
    config = replace(OURS, ending=None)
    problem = problem_of(MODEL, DATA, "resample", config)
    found = discover(problem, config, seed=0, progress=False, name="ours")
    assert [record.step for record in found.history] == list(range(2 * STEPS))
    bar = Bar.made[-1]
    assert bar.given["desc"] == "ours, resample"
    assert (bar.updates, bar.others) == (2 * STEPS, [STEPS, "ours, resample, again"])
    checked.counts = [0]
    discover(problem, config, seed=0, progress=False, name="ours")
    assert (Bar.made[-1].updates, Bar.made[-1].others) == (STEPS, [])


def test_a_whole_run_of_ours_finds_the_edges_that_carry_something():
    model = Linear([1.0, 2.0, 4.0, 0.0, 8.0, 16.0, 32.0, 64.0])
    config = with_settings(MINIMAX, {"steps": 120, "batch_size": 5, "patience": 20, "certain_for": 20})
    found = prune_edges(model, data(model), "zero", config=config)
    assert torch.equal(mask_of(GRAPH, found.circuit.edges), (model.weights > 0).float())
