"""Losses of circuits beside sums that are written out: of outputs, of samples, and of races between circuits."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_peers import build, random_weights

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.errors import BrokenPromise
from edgeprune.masks import edge_exists
from edgeprune.methods import circuit_loss
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.loss import Objective, draw_pairs
from edgeprune.metrics.answers import Answers

# Losses of outputs

TARGET = torch.tensor([[[0.0, 3.0], [9.0, 9.0]], [[1.0, 2.0], [5.0, -1.0]]])
SCORED = torch.tensor([[True, False], [True, True]])
DATA = Dataset(torch.zeros(2, 2).long(), SCORED, TARGET, torch.zeros(2).long())
BATCH = DATA.take(torch.tensor([0, 1]), torch.tensor([0, 1]))
OUTPUTS = TARGET + torch.tensor([[[0.5, 0.0], [7.0, 7.0]], [[0.0, 0.0], [1.0, -2.0]]])
COUNTED = torch.tensor([0.0, 3.0, 1.0, 2.0, 5.0, -1.0])
"""Outputs that count."""


def per_input(loss, *, data=DATA, batch=BATCH, **more):
    return Objective(data, loss, **more).per_input(OUTPUTS, batch).tolist()


def kl(target, outputs, scale):
    p, q = (scale * target).softmax(-1), (scale * outputs).softmax(-1)
    return float((p * (p / q).log()).sum())


def test_a_squared_error_is_in_units_of_the_variance_of_what_counts():
    variance = float(((COUNTED - COUNTED.mean()) ** 2).mean())
    assert per_input("squared") == pytest.approx([0.25 / variance, 5.0 / 2 / variance])
    values = replace(DATA, logits=False)
    assert per_input("divergence", data=values) == pytest.approx(per_input("squared"))


def test_the_worst_is_by_the_range_of_what_counts():
    expected = [math.log1p(size / 0.01) / math.log1p(6 / 0.01) for size in (0.5, 2.0)]
    assert per_input("worst") == pytest.approx(expected)
    assert Objective(DATA, "worst").per_input(TARGET + 1e6, BATCH).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_divergence_is_of_logits_times_their_scale(scale):
    found = per_input("divergence", logit_scale=scale)
    each = [[kl(TARGET[i, j], OUTPUTS[i, j], scale) for j in range(2)] for i in range(2)]
    assert found == pytest.approx([each[0][0], sum(each[1]) / 2], abs=1e-5)
    if scale == 1:
        assert per_input("divergence") == found


def test_a_disagreement_is_below_0_by_how_far_outputs_point_where_the_targets_do():
    assert per_input("disagreement") == pytest.approx([-(3.0 - 0.5), -((2.0 - 1.0) + (6.0 + 3.0)) / 2])
    values, square = replace(DATA, logits=False), float(COUNTED.square().mean())
    expected = [-9.0 / square, -((1.0 + 4.0) + (30.0 + 3.0)) / 2 / square]
    assert per_input("disagreement", data=values) == pytest.approx(expected)
    asked = replace(DATA, answers=Answers(torch.zeros(2, 2, 1).long(), torch.ones(2, 2, 1).long()))
    of_task = asked.take(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert per_input("disagreement", data=asked, batch=of_task) == pytest.approx([2.5, -(-1.0 + 9.0) / 2])
    assert per_input("squared", data=asked, batch=of_task) == per_input("squared")


def test_losses_of_inputs_become_one_by_their_mean_or_the_worst_of_them():
    losses = torch.tensor([[1.0, 2.0, 6.0], [0.0, 4.0, 2.0]])
    for loss, over, expected in (
        ("squared", "mean", [3.0, 2.0]),
        ("squared", "worst", [6.0, 4.0]),
        ("worst", "mean", [6.0, 4.0]),
    ):
        objective = Objective(DATA, loss, over=over)
        assert objective.reduce(losses).tolist() == expected
        assert objective.over == ("worst" if loss == "worst" else over)
    assert Objective(DATA, "squared").over == "mean"
    both = Objective(DATA, "squared")
    assert float(both(OUTPUTS, BATCH)) == pytest.approx(sum(per_input("squared")) / 2)


def test_a_change_is_input_by_input_and_for_the_worst_its_ends():
    losses, baseline = torch.tensor([[0.5, 0.2], [0.9, 0.8], [0.1, 0.0], [0.5, 0.9]]), torch.tensor([0.5, 0.4])
    found = Objective(DATA, "worst").change(losses, baseline)
    torch.testing.assert_close(found, torch.tensor([-0.2, 0.4, -0.4, 0.5]))
    found = Objective(DATA, "squared").change(losses, baseline)
    torch.testing.assert_close(found, torch.tensor([-0.1, 0.4, -0.4, 0.25]))
    for loss, expected in (("worst", 0.5), ("squared", 0.25)):  # of one mask, and of several dimensions of them
        assert float(Objective(DATA, loss).change(losses[3], baseline)) == pytest.approx(expected)
        assert Objective(DATA, loss).change(losses.view(2, 2, 2), baseline).shape == (2, 2)


@pytest.mark.parametrize(("room", "rows"), [(0, 1), (3, 1), (7, 1), (8, 2), (10**6, 2)])
def test_units_are_of_as_many_inputs_as_fit_and_of_one_at_least(monkeypatch, room, rows):
    monkeypatch.setattr("edgeprune.methods.loss._ROOM", room)
    counted = COUNTED[: 2 if rows == 1 else 6]
    variance = float(((counted - counted.mean()) ** 2).mean())
    assert per_input("squared") == pytest.approx([0.25 / variance, 5.0 / 2 / variance])


@pytest.mark.fakes
def test_pairs_are_drawn_by_the_generator_each_input_once():
    data = replace(DATA, tokens=torch.zeros(50, 1).long(), group=torch.arange(50) % 2)
    one, same, other = (draw_pairs(data, 20, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])
    assert one.shape == (2, 20) and len(one[0].unique()) == 20 and torch.equal(one[0] % 2, one[1] % 2)
    assert draw_pairs(data, 99, torch.Generator()).shape == (2, 50)


# Losses of circuits

MODEL, INPUTS = build(random_weights(3))
INPUTS = replace(INPUTS, scored=INPUTS.scored & (torch.arange(9) != 4)[:, None], group=torch.arange(9) % 2)
"""Nine inputs, of one of which no output counts."""
EXISTS = edge_exists(MODEL.graph).float()
MASKS = torch.rand(6, *EXISTS.shape, generator=torch.Generator().manual_seed(0)).round() * EXISTS
MASKS[0] = EXISTS


def loss_of(ablation="resample", **more):
    settings = {"loss": "squared", "inputs": 7, "batch_size": 3, "seed": 5} | more
    return CircuitLoss(MODEL, INPUTS, ablation, **settings)


def slow(masks, ablation="resample", *, loss="squared", over="mean", logit_scale=1.0, inputs=7, first=None):
    """The same at once: the loss of each mask on each of the sample's inputs, and what becomes of them."""
    among, generator = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8]), torch.Generator().manual_seed(5)
    (batch,) = INPUTS.sample_batches(inputs, 99, generator, among=among)
    ablated = Ablator(MODEL, INPUTS, ablation)(batch)
    objective = Objective(INPUTS, loss, over=over, logit_scale=logit_scale)
    each = objective.per_input(MODEL(batch.clean, masks, ablated), batch)[..., :first]
    return each, objective.reduce(each)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("more", [{}, {"over": "worst"}, {"loss": "divergence", "logit_scale": 2.0}, {"loss": "worst"}])
def test_the_loss_of_circuits_is_that_of_the_sample_of_the_seed_whatever_runs_at_once(ablation, more):
    expected = slow(MASKS, ablation, **more)[1]
    for batch_size in (1, 3, 7, 99):
        loss = loss_of(ablation, batch_size=batch_size, **more)
        torch.testing.assert_close(loss(MASKS), expected, atol=1e-5, rtol=1e-4)
        assert (loss.inputs, loss.masks_run) == (7, 6) and loss.graph is MODEL.graph
    torch.testing.assert_close(loss_of(Ablator(MODEL, INPUTS, ablation), **more)(MASKS), expected, atol=1e-5, rtol=1e-4)


def test_unless_it_is_said_a_loss_is_a_mean_divergence_of_logits_as_they_are():
    loss = CircuitLoss(MODEL, INPUTS, "zero", inputs=7, batch_size=3, seed=5)
    torch.testing.assert_close(loss(MASKS), slow(MASKS, "zero", loss="divergence")[1], atol=1e-5, rtol=1e-4)


def test_an_input_of_which_nothing_counts_is_in_no_sample():
    assert loss_of(inputs=99).inputs == 8
    everywhere = torch.cat([batch.clean for batch in loss_of(inputs=99)._batches])
    assert not (everywhere == INPUTS.tokens[4]).all(-1).any() and len(everywhere) == 8


def test_a_loss_beyond_the_limit_is_infinite_and_one_at_it_is_not():
    losses = slow(MASKS)[1]
    limit = float(loss_of()(MASKS)[2])
    found = loss_of()(MASKS, limit=limit)
    within = losses <= limit * (1 + 1e-6)
    torch.testing.assert_close(found[within], losses[within], atol=1e-5, rtol=1e-4)
    assert bool((found[~within] == math.inf).all()) and 1 < int(within.sum()) < 6


@pytest.mark.parametrize(("over", "runs"), [("mean", [6, 3, 2]), ("worst", [6, 3, 1])])
def test_a_circuit_is_run_no_further_than_it_may_be_within_the_limit(monkeypatch, over, runs):
    """Sums of the losses so far, or the largest of them, say so: on the first inputs, the limit is that of two."""
    ran, model = [], type(MODEL).__call__
    each, _ = slow(MASKS)
    so_far = each[:, :3].amax(-1) if over == "worst" else each[:, :3].sum(-1) / 7
    then = each[:, :6].amax(-1) if over == "worst" else each[:, :6].sum(-1) / 7
    limit = float(so_far.sort().values[runs[1] - 1]) * 1.0001
    runs = [6, runs[1], int((then <= limit).sum())]
    loss = loss_of(over=over)
    monkeypatch.setattr(type(MODEL), "__call__", lambda *given: ran.append(len(given[2])) or model(*given))
    loss(MASKS, limit=limit)
    assert ran == runs and loss.masks_run == 6
    ran.clear()
    loss(MASKS)
    assert ran == [6, 6, 6] and loss.masks_run == 12


def test_a_glance_is_at_the_first_inputs_alone():
    loss = loss_of()
    torch.testing.assert_close(loss.glance(MASKS), slow(MASKS, first=3)[1], atol=1e-5, rtol=1e-4)
    assert loss.masks_run == 6
    worst = loss_of(over="worst")
    torch.testing.assert_close(worst.glance(MASKS), slow(MASKS, over="worst", first=3)[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("over", ["mean", "worst"])
@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [4, 0, 2]])
def test_the_best_of_some_circuits_is_the_one_of_least_loss_within_the_limit(over, order):
    masks, losses = MASKS[order], slow(MASKS[order], over=over)[1]
    loss = loss_of(over=over)
    number, least = loss.best(masks)
    assert number == int(losses.argmin()) and least == pytest.approx(float(losses.min()), rel=1e-4, abs=1e-6)
    assert loss.masks_run == len(order)
    if float(losses.min()) > 1e-3:
        assert loss_of(over=over).best(masks, limit=float(losses.min()) * 0.99)[1] == math.inf
        assert loss_of(over=over).best(masks, limit=float(losses.min()) * 1.01)[0] == number


class Stub:
    """A model whose losses are written down: `[mask, input]`, by the numbers of masks and the tokens of inputs."""

    graph = MODEL.graph

    def __init__(self, losses) -> None:
        self._losses, self.asked = torch.tensor(losses), []

    def sources(self, tokens):
        return torch.zeros(len(self.graph.sources), *tokens.shape, 1)

    def __call__(self, tokens, mask=None, ablated=None, positions=None):
        number = mask[:, 0, 0].long()
        self.asked.append(number.tolist())
        return self._losses[number][:, tokens[:, 0]].sqrt()[..., None, None]


def written(losses, *, loss="squared", batch_size=1):
    """Circuits of these losses, one mask each; inputs come in an order of the seed's."""
    count = len(losses[0])
    target = torch.tensor([[1.0, -1.0][number % 2] for number in range(count)])[:, None, None]  # of variance 1
    data = Dataset(
        torch.arange(count)[:, None], torch.ones(count, 1, dtype=torch.bool), target, torch.zeros(count).long()
    )
    stub = Stub(losses)
    found = CircuitLoss(stub, data, "zero", loss=loss, inputs=count, batch_size=batch_size, seed=0)
    for batch in found._batches:
        batch.target.zero_()
    stub.order = torch.cat([batch.clean for batch in found._batches])[:, 0].tolist()
    return found, stub, torch.arange(float(len(losses)))[:, None, None] * torch.ones(1, *EXISTS.shape)


def test_who_leads_on_the_first_inputs_is_run_to_the_end_first_and_others_while_they_may_be_better():
    """In the order of the sample: the first circuit leads, the second wins, and the third falls behind at once."""
    by_place = [[1.0, 6.0, 6.0, 6.0], [2.0, 2.0, 2.0, 2.0], [50.0, 0.0, 0.0, 0.0], [4.0, 4.0, 99.0, 0.0]]
    _, stub, _ = written(by_place)
    places = torch.tensor(stub.order).argsort().tolist()
    losses = [[row[place] for place in places] for row in by_place]
    found, stub, masks = written(losses)
    assert found.best(masks) == (1, pytest.approx(2.0))
    assert stub.asked == [[0, 1, 2, 3], *[[0]] * 3, [0, 1, 3], [0, 1, 3], [0, 1]]
    assert found.best(masks, limit=1.9) == (0, math.inf)
    assert found.best(masks, limit=2.0)[0] == 1


def test_what_is_no_number_is_infinite_and_what_rounding_left_below_0_is_0(monkeypatch):
    found, _, masks = written([[1.0, math.nan], [1.0, 3.0], [math.inf, 1.0]])
    assert found(masks).tolist() == [math.inf, 2.0, math.inf]
    assert found.best(masks) == (1, 2.0)
    below, _, masks = written([[1.0, 3.0], [1.0, 1.0]])
    monkeypatch.setattr(Objective, "per_input", lambda *_: torch.tensor([[-1e-3], [2.0]]))
    assert below(masks).tolist() == [0.0, 2.0]
    signed, _, masks = written([[1.0, 3.0], [1.0, 1.0]], loss="disagreement")
    assert signed(masks).tolist() == pytest.approx([-1e-3, 2.0])


def test_a_limit_and_a_race_are_refused_to_a_loss_that_may_be_below_0():
    loss = loss_of(loss="disagreement")
    assert loss(MASKS[:1]).isfinite().all()
    with pytest.raises(BrokenPromise, match=r"^a limit asks for losses that are nowhere below 0$"):
        loss(MASKS, limit=1.0)
    with pytest.raises(BrokenPromise, match=r"^a race asks for losses that are nowhere below 0$"):
        loss.best(MASKS)


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_the_gradient_of_a_circuit_is_that_of_its_mean_loss(ablation):
    mask = MASKS[1].clone().requires_grad_()
    (expected,) = torch.autograd.grad(slow(mask, ablation)[1], mask)
    given = MASKS[1].clone()
    found = loss_of(ablation).gradient(given)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    assert not given.requires_grad and torch.equal(given, MASKS[1])
    # Each input counts once, whatever the losses of others: their sum over their number, also of the worst.
    torch.testing.assert_close(loss_of(ablation, over="worst").gradient(given), found)


def test_outputs_of_a_gradient_are_asked_for_where_the_inputs_say():
    places = {"scored": INPUTS.scored[:, [1]], "target": INPUTS.target[:, [1]]}
    last = replace(INPUTS, positions=torch.ones(9, 1).long(), **places)
    settings = {"loss": "squared", "inputs": 7, "batch_size": 3, "seed": 5}
    expected = loss_of().gradient(MASKS[1])
    torch.testing.assert_close(CircuitLoss(MODEL, last, "resample", **settings).gradient(MASKS[1]), expected)


class Together:
    """Several processes that say the same: what they have agreed on is noted."""

    def __init__(self):
        self.agreed = []

    def own(self, value, dim):
        return value

    def take_first(self, value):
        self.agreed.append(value)


@pytest.mark.fakes
def test_what_rounding_may_tell_apart_is_that_of_the_first_process():
    model = copy.copy(MODEL)
    model.ranks = Together()
    loss = CircuitLoss(model, INPUTS, "zero", loss="squared", inputs=7, batch_size=3, seed=5)
    found = loss(MASKS)
    assert [each.shape for each in model.ranks.agreed] == [(6, 3), (6, 3), (6, 1)]
    torch.testing.assert_close(torch.cat(model.ranks.agreed, -1).mean(-1), found)
    gradient = loss.gradient(MASKS[1])
    assert model.ranks.agreed[-1] is gradient and len(model.ranks.agreed) == 4


@pytest.mark.parametrize(("room", "calls"), [(10**9, 3), (8 * 3 * 2 * 5 * 3, 3), (8 * 3 * 2 * 5 * 3 - 1, 1 + 2 * 3)])
def test_ablated_sources_are_held_where_those_of_all_inputs_fit(monkeypatch, room, calls):
    """Of three batches, eight sources of three inputs of two positions, five columns wide."""
    monkeypatch.setattr(circuit_loss, "_ROOM", room)
    ablator, count = Ablator(MODEL, INPUTS, "resample"), []
    own = ablator.own
    monkeypatch.setattr(ablator, "own", lambda batch: count.append(1) or own(batch))
    loss = loss_of(ablator)
    for _ in range(2):
        torch.testing.assert_close(loss(MASKS), slow(MASKS)[1], atol=1e-5, rtol=1e-4)
    assert len(count) == calls
