"""What Edge Pruning carries from step to step: moments, counterexamples, when it ends, the fewest edges so far."""

import math

import pytest
import torch

from edgeprune.files.checkpoint import Allowed
from edgeprune.methods.edge_pruning.counterexamples import CounterexampleConfig, Counterexamples
from edgeprune.methods.edge_pruning.ending import Converged, Ending, Verdict
from edgeprune.methods.edge_pruning.optimizer import Adam, AdamConfig
from edgeprune.methods.edge_pruning.within import FewestWithin

# The optimiser


@pytest.mark.parametrize(
    ("warmup", "decay", "factors"),
    [
        (0.0, 1.0, [1.0, 0.9, 0.5, 0.1]),
        (0.0, 0.5, [1.0, 1.0, 1.0, 0.2]),
        (0.0, 0.0, [1.0, 1.0, 1.0, 1.0]),
        (0.5, 0.0, [0.0, 0.2, 1.0, 1.0]),
        (0.5, 0.5, [0.0, 0.2, 1.0, 0.2]),
        (0.1, 0.0, [0.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rates_grow_and_fall_by_their_shares_of_the_steps(warmup, decay, factors):
    config = AdamConfig(learning_rate=7.0, learning_rate_warmup=warmup, learning_rate_decay=decay)
    assert [config.factor(step, 10) for step in (0, 1, 5, 9)] == pytest.approx(factors)


class Reference:
    """AdamW by its formulas, in double precision."""

    def __init__(self, value, sign):
        self.value, self.sign, self.first, self.second, self.count = value.double(), sign, 0.0, 0.0, 0

    def step(self, gradient, rate, *, beta1, beta2, epsilon, decay):
        self.count += 1
        self.first = beta1 * self.first + (1 - beta1) * gradient * self.sign
        self.second = beta2 * self.second + (1 - beta2) * gradient**2
        first, second = self.first / (1 - beta1**self.count), self.second / (1 - beta2**self.count)
        self.value = self.value * (1 - rate * decay) - rate * first / (second.sqrt() + epsilon)


@pytest.mark.parametrize("norm", [None, 1.5, 100.0])
def test_steps_are_those_of_adamw_down_for_masks_and_up_for_multipliers(norm):
    learned, multipliers = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, -0.4])
    config = AdamConfig(learning_rate=9.0, betas=(0.8, 0.6), epsilon=0.01, weight_decay=0.1, largest_gradient_norm=norm)
    references = [Reference(learned.clone(), 1), Reference(multipliers.clone(), -1)]
    adam, generator = Adam(config, learned, multipliers), torch.Generator().manual_seed(0)
    for number in range(6):
        if number == 4:
            adam.restart()
            references = [Reference(each.value, each.sign) for each in references]
        gradients = (2 * torch.randn(3, generator=generator), 2 * torch.randn(2, generator=generator))
        whole = math.sqrt(sum(float(each.square().sum()) for each in gradients))
        scale = 1.0 if norm is None else min(1.0, norm / (whole + 1e-6))
        adam.step(gradients, (0.2, 0.05))
        for reference, gradient, rate in zip(references, gradients, (0.2, 0.05), strict=True):
            reference.step(gradient.double() * scale, rate, beta1=0.8, beta2=0.6, epsilon=0.01, decay=0.1)
        for value, reference in zip((learned, multipliers), references, strict=True):
            torch.testing.assert_close(value.double(), reference.value, rtol=1e-5, atol=1e-6)
    state = adam.state()
    assert sorted(state) == sorted(
        f"{name}.{kind}" for name in ("log_alpha", "multipliers") for kind in ("first", "second", "count")
    )
    for name, reference in zip(("log_alpha", "multipliers"), references, strict=True):
        torch.testing.assert_close(state[f"{name}.first"].double(), reference.first, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state[f"{name}.second"].double(), reference.second, rtol=1e-5, atol=1e-6)
        assert state[f"{name}.count"] == 2
    adam.restart()
    assert all(not bool(value.any()) for value in adam.state().values())


def test_moments_are_given_back_and_bounded():
    adam = Adam(AdamConfig(learning_rate=1.0), torch.ones(2), torch.ones(1))
    adam.step((torch.tensor([1.0, -3.0]), torch.tensor([2.0])), (0.1, 0.1))
    state = {name: value.clone() for name, value in adam.state().items()}
    other = Adam(AdamConfig(learning_rate=1.0), torch.ones(2), torch.ones(1))
    other.restore(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state().items())
    allowed = adam.allowed(least=2, most=5)
    assert allowed.keys() == state.keys()
    for name, rule in allowed.items():
        assert rule.like.shape == state[name].shape
        bounds = {"first": (-math.inf, math.inf), "second": (0, math.inf), "count": (2, 5)}
        assert (rule.least, rule.most) == bounds[name.partition(".")[2]]


# Counterexamples


def remembering(size, decay=0.5):
    return Counterexamples(CounterexampleConfig(counterexamples=size, counterexample_decay=decay))


def test_merit_is_how_much_smaller_the_worst_loss_of_each_mask_were_without_a_pair():
    hard = remembering(3)
    assert hard.pairs.shape == (2, 0) and hard.pairs.dtype == torch.long and hard.state()["merit"].shape == (0,)
    fresh = torch.arange(8).view(2, 4)
    hard.update(fresh, torch.tensor([[0.1, 0.7, 0.2, 0.0], [0.0, 0.5, 0.3, 0.1], [0.9, 0.0, 0.0, 0.4]]))
    assert hard.pairs.tolist() == [[1, 0], [5, 4]]
    assert hard.state()["merit"].tolist() == pytest.approx([0.5 + 0.2, 0.5])
    # What is left of merits, and what one mask adds to the second pair remembered, and another to a fresh one.
    losses = torch.tensor([[0.0, 0.0, 0.0, 0.1, 0.0, 0.4], [0.0, 0.0, 0.2, 0.0, 0.1, 0.0]])
    hard.update(torch.cat([fresh, hard.pairs], dim=1), losses)
    assert hard.pairs.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert hard.state()["merit"].tolist() == pytest.approx([0.25 + 0.3, 0.35, 0.1])


@pytest.mark.parametrize(("gain", "kept"), [(0.0099, 0), (0.01, 0), (0.0101, 1)])
def test_a_pair_of_no_more_than_a_hundredth_of_merit_is_forgotten(gain, kept):
    hard = remembering(3)
    hard.update(torch.arange(4).view(2, 2), torch.tensor([[gain, 0.0]]))
    assert hard.pairs.shape == (2, kept) and hard.state()["merit"].shape == (kept,)


def test_one_pair_shows_nothing_alone_and_of_two_one_does():
    hard = remembering(2)
    hard.update(torch.tensor([[3], [4]]), torch.tensor([[1.0]]))
    assert hard.pairs.shape == (2, 0)
    hard.update(torch.tensor([[3, 5], [4, 6]]), torch.tensor([[1.0, 0.0]]))
    assert hard.pairs.tolist() == [[3], [4]]


def test_pairs_that_are_remembered_at_once_have_a_merit_of_one_and_take_the_places_of_others():
    hard = remembering(2)
    hard.update(torch.arange(4).view(2, 2), torch.tensor([[1.0, 0.0]]))
    hard.remember(torch.tensor([[7, 8, 9], [1, 2, 3]]))
    assert hard.pairs.tolist() == [[7, 8], [1, 2]] and hard.state()["merit"].tolist() == [1.0, 1.0]
    other = remembering(2)
    other.restore(hard.state())
    assert torch.equal(other.pairs, hard.pairs) and torch.equal(other.state()["merit"], hard.state()["merit"])
    hard.remember(torch.zeros(2, 0, dtype=torch.long))
    assert other.pairs.shape == (2, 2)


def test_what_a_memory_of_pairs_may_be():
    allowed = remembering(3).allowed(9)
    pairs, merit = allowed["pairs"], allowed["merit"]
    assert allowed.keys() == {"pairs", "merit"}
    assert (pairs.least, pairs.most, pairs.columns, pairs.like.dtype) == (0, 8, 3, torch.long)
    assert pairs.like.shape == (2, 0) and merit.like.shape == (0,) and merit.like.dtype == torch.float32
    assert (merit.least, merit.most, merit.columns) == (0, math.inf, 3)


# Endings


class Standing:
    """Masks that are what a test says they are."""

    def __init__(self):
        self.circuit, self.certainty = torch.tensor([1.0, 0.0]), 0.0

    def rounded(self):
        return self.circuit

    def least_certain(self):
        return self.certainty


def ending(steps=100, *, uncertain_until=0, may_start_over=True, **settings):
    masks = Standing()
    config = Converged(**{"patience": 5, "certain_for": 3, "certain_at": 4.0, **settings})
    return masks, Ending(config, steps, masks, uncertain_until=uncertain_until, may_start_over=may_start_over)


def until(end, *, rounded=True, wrong=False, first=0, most=100):
    """The first step that is followed by more than the next step, and what follows it."""
    for step in range(first, first + most):
        verdict = end.after(step, rounded=rounded, wrong=wrong)
        if verdict != Verdict.GO_ON:
            return step, verdict
    return None


@pytest.mark.fakes
def test_without_a_rule_learning_ends_with_the_last_step():
    end = Ending(None, 4, Standing(), uncertain_until=0, may_start_over=True)
    assert until(end) == (3, Verdict.END)
    assert end.state()["standing"].shape == end.state()["doubted"].shape == (0,)
    assert end.state()["numbers"].tolist() == [0, 0, 0]


@pytest.mark.fakes
def test_a_circuit_that_stays_is_doubted_and_then_the_end():
    _, end = ending()
    assert until(end) == (5, Verdict.DOUBT)
    assert until(end, first=6) == (10, Verdict.END)


@pytest.mark.fakes
def test_a_circuit_that_has_changed_has_to_stay_again_and_another_than_was_doubted_is_doubted():
    masks, end = ending()
    assert until(end) == (5, Verdict.DOUBT)
    masks.circuit = torch.tensor([0.0, 0.0])
    assert until(end, first=6) == (11, Verdict.DOUBT)
    assert until(end, first=12) == (16, Verdict.END)


@pytest.mark.fakes
def test_the_last_step_is_the_end_whatever_else_would_follow():
    _, end = ending(steps=6)
    assert until(end) == (5, Verdict.END)
    _, end = ending(steps=5)
    assert until(end) == (4, Verdict.END)


@pytest.mark.fakes
def test_without_a_second_look_the_first_that_stays_is_the_end():
    _, end = ending(second_look=False)
    assert until(end) == (5, Verdict.END)


@pytest.mark.fakes
@pytest.mark.parametrize(("certainty", "rounded", "step"), [(4.0, True, 3), (3.9, True, 5), (4.0, False, 5)])
def test_certain_rounded_masks_end_sooner(certainty, rounded, step):
    masks, end = ending(second_look=False)
    masks.certainty = certainty
    assert until(end, rounded=rounded) == (step, Verdict.END)


@pytest.mark.fakes
@pytest.mark.parametrize(("until_step", "step"), [(2, 5), (1, 4), (0, 3)])
def test_certainty_counts_from_the_step_at_which_the_pressure_is_full(until_step, step):
    masks, end = ending(second_look=False, uncertain_until=until_step, patience=90)
    masks.certainty = 9.0
    assert until(end) == (step, Verdict.END)


@pytest.mark.fakes
def test_certainty_counts_from_the_last_step_that_was_not_certain():
    masks, end = ending(second_look=False, patience=90)
    masks.certainty = 9.0
    assert [end.after(step, rounded=True, wrong=False) for step in range(2)] == [Verdict.GO_ON] * 2
    masks.certainty = 1.0
    assert end.after(2, rounded=True, wrong=False) == Verdict.GO_ON
    masks.certainty = 9.0
    assert until(end, first=3) == (5, Verdict.END)


@pytest.mark.fakes
def test_an_uncertain_step_before_the_pressure_is_full_changes_nothing():
    masks, end = ending(second_look=False, patience=90, uncertain_until=6)
    masks.certainty = 1.0
    end.after(0, rounded=True, wrong=False)
    masks.certainty = 9.0
    assert until(end, first=1) == (9, Verdict.END)


@pytest.mark.fakes
def test_a_doubted_circuit_that_is_certain_has_to_be_so_again():
    masks, end = ending(patience=90)
    masks.certainty = 9.0
    assert until(end) == (3, Verdict.DOUBT)
    assert until(end, first=4) == (6, Verdict.END)


@pytest.mark.fakes
def test_a_wrong_circuit_starts_over_once_and_what_was_doubted_before_does_not_count():
    _, end = ending()
    assert until(end) == (5, Verdict.DOUBT)
    assert until(end, first=6, wrong=True) == (10, Verdict.START_OVER)
    assert end.state()["doubted"].shape == (0,) and end.state()["numbers"].tolist() == [10, 10, 0]
    assert until(end, first=11, wrong=True) == (15, Verdict.DOUBT)
    assert until(end, first=16, wrong=True) == (20, Verdict.END)


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("steps", "verdict"), [(10, Verdict.DOUBT), (11, Verdict.START_OVER), (14, Verdict.START_OVER)]
)
def test_a_wrong_circuit_starts_over_before_half_of_the_steps_alone(steps, verdict):
    _, end = ending(steps=steps)
    assert until(end, wrong=True) == (5, verdict)


@pytest.mark.fakes
@pytest.mark.parametrize(("may", "asked"), [(False, True), (True, False)])
def test_nothing_starts_over_where_it_may_not(may, asked):
    _, end = ending(may_start_over=may, start_over=asked)
    assert until(end, wrong=True) == (5, Verdict.DOUBT)
    assert end.state()["numbers"].tolist() == [5, 5, 0]


@pytest.mark.fakes
def test_an_ending_holds_what_it_needs_to_go_on_and_nothing_that_it_could_not_have():
    masks, end = ending(uncertain_until=7)
    assert torch.equal(end.state()["standing"], masks.circuit)
    until(end, most=3)
    state = end.state()
    assert state.keys() == {"standing", "doubted", "numbers"}
    assert state["numbers"].tolist() == [0, 7, 1] and state["doubted"].shape == (0,)
    assert torch.equal(state["standing"], masks.circuit)
    assert until(end, first=3) == (5, Verdict.DOUBT)
    state = {name: value.clone() for name, value in end.state().items()}
    assert torch.equal(state["doubted"], masks.circuit) and state["numbers"].tolist() == [5, 7, 1]
    _, other = ending(uncertain_until=7)
    other.restore(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state().items())
    assert until(other, first=6) == until(end, first=6) == (10, Verdict.END)
    restored = dict(state) | {"numbers": torch.tensor([1, 2, 0])}
    other.restore(restored)
    assert other.state()["numbers"].tolist() == [1, 2, 0] and other._may_start_over is False
    allowed = end.allowed()
    assert allowed.keys() == state.keys()
    standing = Allowed(like=masks.circuit, least=0, most=1)
    for name, empty in (("standing", False), ("doubted", True)):
        rule = allowed[name]
        assert (rule.least, rule.most, rule.or_empty) == (standing.least, standing.most, empty)
        assert torch.equal(rule.like, masks.circuit)
    assert (allowed["numbers"].least, allowed["numbers"].most) == (0, 100)
    assert allowed["numbers"].like.shape == (3,)
    assert ending(steps=3, uncertain_until=7)[1].allowed()["numbers"].most == 7


# The fewest edges within a tolerance


def test_masks_within_the_tolerance_of_the_fewest_edges_are_remembered_and_of_equals_the_last():
    within = FewestWithin(0.5)
    assert within.state()["log_alpha"].shape == (0,) and within.state()["edges"] == 0
    for loss, edges, value, remembered in (
        (0.51, 1, 1.0, None),
        (0.5, 9, 2.0, 2.0),
        (0.1, 10, 3.0, 2.0),
        (0.1, 9, 4.0, 4.0),
        (0.6, 3, 5.0, 4.0),
        (0.2, 8, 6.0, 6.0),
        (0.2, 9, 7.0, 6.0),
        (math.nan, 1, 8.0, 6.0),
    ):
        log_alpha = torch.full((2,), value, requires_grad=True)
        within.note(loss, edges, log_alpha)
        log_alpha.data.fill_(-1.0)  # goes on to change
        assert within.log_alpha.tolist() == ([] if remembered is None else [remembered] * 2)
    assert not within.log_alpha.requires_grad and within.state()["edges"] == 8
    other = FewestWithin(0.5)
    other.restore(within.state())
    assert other.log_alpha.tolist() == [6.0, 6.0] and other.state()["edges"] == 8
    within.log_alpha.fill_(0.0)
    assert other.log_alpha.tolist() == [6.0, 6.0]


def test_what_the_fewest_may_be():
    allowed = FewestWithin.allowed(Allowed(like=torch.zeros(4), least=-2, most=2), 7)
    learned, count = allowed["log_alpha"], allowed["edges"]
    assert allowed.keys() == {"log_alpha", "edges"}
    assert (learned.like.shape, learned.or_empty, learned.least, learned.most) == ((4,), True, -2, 2)
    assert (count.like.shape, count.like.dtype, count.least, count.most) == ((), torch.long, 0, 7)
