"""A forward under masks, step by step: which runs there are, what each has, and how it is compared with theirs."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny import FAMILIES, families, tokens
from torch import nn

from edgeprune.errors import ModelError
from edgeprune.models import guard, transformer
from edgeprune.models.guard import TOLERANCE, Gap, Prompts, check_same, make_prompts
from edgeprune.models.transformer import frozen
from edgeprune.parallel import ALONE


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def both(request):
    """Hugging Face's in double precision, ours over it, and the naive loop."""
    original = request.param.original().double()
    return original, request.param.adapter(original), request.param.naive


def masks(ours, *lead, seed=0):
    shape = (len(ours.graph.sources), len(ours.graph.destinations))
    return torch.rand(*lead, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_of(both, ids, mask, ablated):
    """Logits of one run, an input at a time."""
    original, ours, naive = both
    rows = range(len(ids))
    return torch.stack([naive(original, ours.graph, ids[row], mask, ablated[:, row])[1] for row in rows]).detach()


CLOSE = {"rtol": 1e-4, "atol": 1e-5}


# Runs


@pytest.mark.fakes
@pytest.mark.parametrize("room", [1, 2**28])
def test_each_mask_is_a_run_of_its_own_inputs_or_of_shared_ones(both, monkeypatch, room):
    _, ours, _ = both
    monkeypatch.setattr(transformer, "_ROOM", room)
    ids, other = tokens(3, 2, 4), tokens(3, 2, 4, seed=1)
    mask = masks(ours, 3)
    ablated = ours.sources(other)
    expected = torch.stack([naive_of(both, ids[n], mask[n], ablated[:, n]) for n in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, mask, ablated), expected, **CLOSE)
        shared = torch.stack([naive_of(both, ids[0], mask[n], ablated[:, 0]) for n in range(3)])
        torch.testing.assert_close(ours(ids[0], mask, ablated[:, 0]), shared, **CLOSE)
        apart = torch.stack([naive_of(both, ids[0], mask[0], ablated[:, n]) for n in range(3)])
        torch.testing.assert_close(ours(ids[0], mask[0], ablated), apart, **CLOSE)
        zeros = torch.stack([naive_of(both, ids[0], mask[n], torch.zeros_like(ablated[:, 0])) for n in range(3)])
        torch.testing.assert_close(ours(ids[0], mask), zeros, **CLOSE)
    torch.testing.assert_close(ours(ids[0], mask, ablated[:, 0]).detach(), shared, **CLOSE)


@pytest.mark.fakes
def test_leading_dimensions_are_those_of_all_that_is_given(both):
    _, ours, _ = both
    ids, mask, ablated = tokens(2, 4), masks(ours, 3, 1), ours.sources(tokens(2, 2, 4, seed=1))
    at = torch.tensor([[0, 3], [1, 2]])
    with torch.no_grad():
        found = ours(ids, mask, ablated, at)
        assert found.shape == (3, 2, 2, 2, 23)
        for one in range(3):
            for two in range(2):
                whole = naive_of(both, ids, mask[one, 0], ablated[:, two])
                expected = torch.stack([whole[row, at[row]] for row in range(2)])
                torch.testing.assert_close(found[one, two], expected, **CLOSE)
        assert ours(tokens(3, 2, 4)).shape == (3, 2, 4, 23)
        # Without masks nothing is ablated, and what would be has no say in how many runs there are.
        assert ours(ids, None, ablated).shape == (2, 4, 23)
        torch.testing.assert_close(ours(ids, None, ablated), ours(ids))
        several = torch.stack([at, at.flip(-1)])
        torch.testing.assert_close(
            ours(ids, None, None, several), torch.stack([ours(ids, None, None, each) for each in several])
        )


def test_no_masks_give_no_outputs_of_the_shape_that_others_have(both):
    _, ours, _ = both
    found = ours(tokens(2, 4), masks(ours, 3, 0))
    assert found.shape == (3, 0, 2, 4, 23) and found.dtype == torch.float64
    found = ours(tokens(2, 4), masks(ours, 0), None, torch.tensor([[0], [1]]))
    assert found.shape == (0, 2, 1, 23)
    half = FAMILIES[0].adapter(FAMILIES[0].original().to(torch.bfloat16))
    assert half(tokens(2, 4), masks(half, 0)).dtype == half(tokens(2, 4)).dtype == torch.float32


@pytest.mark.fakes
@pytest.mark.parametrize(("room", "runs"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (5, [5])])
def test_as_many_masks_run_together_as_fit_unless_gradients_are_asked_for(both, monkeypatch, room, runs):
    """In units of the numbers in all sources of a run."""
    _, ours, _ = both
    ids, mask = tokens(2, 4), masks(ours, 5).requires_grad_()
    monkeypatch.setattr(transformer, "_ROOM", room * len(ours.graph.sources) * 2 * 4 * ours._unembed.shape[1])
    seen, run = [], ours._run
    monkeypatch.setattr(ours, "_run", lambda *given: seen.append((len(given[0]), len(given[2]))) or run(*given))
    with torch.no_grad():
        ours(ids, mask)
        assert seen == [(1, count) for count in runs]
        seen.clear()
        ours(ids.expand(5, 2, 4).clone(), mask, ours.sources(ids))
        assert seen == [(count, count) for count in runs]
        seen.clear()
        one = ours(ids, mask[0], ours.sources(ids))
        assert seen == [(1, 1)] and one.shape == (2, 4, 23)
    seen.clear()
    ours(ids, mask)
    assert seen == [(1, 5)]


def test_gradients_reach_masks_and_neither_ablated_values_nor_weights(both):
    _, ours, _ = both
    mask, ablated = masks(ours).requires_grad_(), ours.sources(tokens(2, 4, seed=1)).requires_grad_()
    ours(tokens(2, 4), mask, ablated).sum().backward()
    assert bool(mask.grad.any()) and ablated.grad is None


@pytest.mark.fakes
def test_every_process_runs_its_own_inputs_and_all_have_all_outputs(both):
    _, ours, _ = both
    calls, batch = [], 3

    class Ranks:
        """Of two, the second: the last input is its own."""

        several = True

        def own(self, value, dim):
            calls.append(("own", tuple(value.shape), dim))
            return value.narrow(dim, 2, 1)

        def alike(self, value):
            calls.append(("alike", tuple(value.shape)))
            return value * 1

        def gather(self, outputs, batch):
            calls.append(("gather", tuple(outputs.shape), batch))
            return outputs

    ids, mask, ablated = tokens(batch, 4), masks(ours, 2), ours.sources(tokens(batch, 4, seed=1))
    at = torch.tensor([[0], [1], [2]])
    expected = ours(ids, mask, ablated, at)
    whole, ours.ranks = ours.ranks, Ranks()
    try:
        torch.testing.assert_close(ours(ids, mask, ablated, at), expected[:, 2:])
        own = {call for call in calls if call[0] == "own"}
        assert own == {
            ("own", tuple(ablated.shape), -3), ("own", (3, 1), -2), ("own", (3, 4), -2),
        }  # fmt: skip
        assert ("alike", tuple(mask.shape)) in calls and ("gather", (2, 1, 1, 23), 3) in calls
        calls.clear()
        torch.testing.assert_close(ours(ids, mask, ablated[:, 2:], at), expected[:, 2:])  # those of its own alone
        assert ("own", tuple(ablated[:, 2:].shape), -3) not in calls
        ours(ids)
    finally:
        ours.ranks = whole
    assert ours.ranks is ALONE


def test_a_model_says_what_it_is(both):
    original, ours, _ = both
    assert ours.weights is original and ours.vocabulary_size == 23
    assert ours.context_length == original.config.max_position_embeddings == 12
    assert ours.family == original.config.model_type and ours.pads(3, 4) is True
    assert len(ours._blocks) == len(ours._written) == 2 and ours.silent == frozenset()


def test_an_activation_gets_no_gradient():
    activation = nn.PReLU()
    given = torch.tensor([-2.0, 3.0], requires_grad=True)
    frozen(activation)(given).sum().backward()
    assert activation.weight.grad is None and given.grad.tolist() == [0.25, 1.0]
    assert frozen(activation)(given).tolist() == [-0.5, 3.0]
    plain = nn.ReLU()
    assert frozen(plain) is plain


# How it is compared


def test_prompts_have_ids_from_all_over_the_vocabulary():
    short, long, padded = make_prompts(1000, 100)
    assert [each.ids.shape for each in (short, long, padded)] == [(1, 3), (1, 64), (3, 9)]
    assert [each.lengths.tolist() for each in (short, long, padded)] == [[3], [64], [1, 5, 9]]
    ids = torch.cat([each.ids.flatten() for each in (short, long, padded)])
    expected = [round(999 * number / 93) for number in range(94)]
    assert sorted(ids.tolist()) == pytest.approx(expected, abs=1) and ids.tolist() != sorted(ids.tolist())
    order = torch.randperm(94, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ids, torch.linspace(0, 999, 94, dtype=torch.float64).round().long()[order])
    many = torch.cat([each.ids.flatten() for each in make_prompts(10**8, 100)]).sort().values
    assert many.tolist() == [round((10**8 - 1) * number / 93) for number in range(94)]
    assert padded.real.tolist() == [[True] * n + [False] * (9 - n) for n in (1, 5, 9)]
    assert [each.lengths.tolist() for each in make_prompts(7, 2)] == [[2], [2], [1, 2]]
    assert [each.lengths.tolist() for each in make_prompts(7, 7)] == [[3], [7], [1, 5, 7]]
    assert [each.lengths.tolist() for each in make_prompts(7, 1)] == [[1], [1], [1]]


def test_a_gap_is_the_largest_difference_beside_how_far_logits_spread():
    wanted = torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    gap = guard._between(wanted + torch.tensor([[0.0, -0.5, 0.2], [0.1, 0.0, 0.0]]), wanted)
    assert (gap.apart, gap.spread) == (0.5, 3.0) and gap.share == pytest.approx(1 / 6)
    gap = guard._between(wanted[1:] + 1, wanted[1:] * 10)
    assert (gap.apart, gap.spread) == (26.0, 3.0)
    assert guard._between(wanted * math.nan, wanted).apart == math.inf
    assert str(Gap(0.1234, 5.678)) == "0.12 apart where they spread by 5.7"
    assert Gap(0.0, 0.0).share == 0 and Gap(1.0, 0.0).share == pytest.approx(1e30)
    assert Gap(0.25, 1.0).within(0.25) and not Gap(0.26, 1.0).within(0.25)
    assert guard._exact(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert guard._exact(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@families
@pytest.mark.parametrize("kept", [0, 1])
def test_first_layers_alone_are_compared(family, kept):
    ours, where = family.ours(), {"gpt2": "transformer.h", "llama": "model.layers"}[family.name]
    ids = tokens(2, 5)
    with torch.no_grad():
        gap = guard._shallow(ours, where, ids, kept)
    assert gap.apart < 1e-5 < gap.spread
    layers = ours.weights.get_submodule(where)
    assert len(layers) == 2
    with torch.no_grad():
        whole = ours.shallow(ids, kept)
        expected = guard._between(whole.flatten(0, 1), whole.flatten(0, 1))
    assert gap.spread == pytest.approx(expected.spread, rel=1e-4)


class Weights:
    """Weights of a type, which say so when they are copied to another."""

    def __init__(self, kind=torch.float32, numbers=100, broken=()):
        self.dtype, self.numbers, self.broken = kind, numbers, broken

    def to(self, kind):
        return Weights(kind, self.numbers)

    def parameters(self):
        return [torch.zeros(self.numbers // 2), torch.zeros(self.numbers - self.numbers // 2)]

    def named_parameters(self):
        return [(name, torch.tensor([1.0, value])) for name, value in self.broken]


class Ours:
    vocabulary_size, context_length = 50, 20

    def __init__(self, weights, *, several=False):
        self.weights, self.ranks = weights, SimpleNamespace(several=several)


@pytest.fixture
def compared(monkeypatch):
    """What is compared in which type; and the gap that each has."""
    seen = SimpleNamespace(kinds=[], gaps={}, expected=[])

    def logits(theirs, prompts):
        assert [each.ids.tolist() for each in prompts] == [each.ids.tolist() for each in make_prompts(50, 20)]
        return ("logits", theirs.dtype)

    def gap(ours, layers, prompts, expected):
        assert layers == "layers" and isinstance(prompts[0], Prompts) and isinstance(ours, Ours)
        seen.kinds.append(ours.weights.dtype)
        seen.expected.append(expected)
        return seen.gaps[ours.weights.dtype]

    monkeypatch.setattr(guard, "their_logits", logits)
    monkeypatch.setattr(guard, "_gap", gap)
    return seen


HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("kind", "gaps", "looked_at", "fine"),
    [
        (SINGLE, {SINGLE: 0.9e-4}, [SINGLE], True),
        (SINGLE, {SINGLE: 1.1e-4, DOUBLE: 0.9e-4}, [SINGLE, DOUBLE], True),
        (SINGLE, {SINGLE: 1.1e-4, DOUBLE: 1.1e-4}, [SINGLE, DOUBLE], False),
        (HALF, {HALF: 0.09}, [HALF], True),
        (HALF, {HALF: 0.11, SINGLE: 0.9e-4}, [HALF, SINGLE], True),
        (HALF, {HALF: 0.11, SINGLE: 0.02, DOUBLE: 1e-5}, [HALF, SINGLE, DOUBLE], True),
        (HALF, {HALF: 0.11, SINGLE: 0.02, DOUBLE: 0.02}, [HALF, SINGLE, DOUBLE], False),
        (torch.float16, {torch.float16: 0.019}, [torch.float16], True),
        (torch.float16, {torch.float16: 0.021, SINGLE: 0.0}, [torch.float16, SINGLE], True),
        (DOUBLE, {DOUBLE: 1.1e-4}, [DOUBLE], False),
    ],
)
def test_what_may_be_rounding_is_looked_at_in_finer_types(compared, kind, gaps, looked_at, fine):
    compared.gaps = {each: Gap(value, 1.0) for each, value in gaps.items()}
    if fine:
        check_same("name", Ours(Weights(kind)), "layers")
    else:
        with pytest.raises(ModelError) as error:
            check_same("name", Ours(Weights(kind)), "layers")
        last = looked_at[-1]
        assert str(error.value) == (
            f"Expected our forward over 'name' to give the logits that AutoModelForCausalLM gives, up to "
            f"{TOLERANCE[last]:g} of their spread; they are {compared.gaps[last]} in {str(last)[6:]}. Usually "
            "config.json asks for what is not supported, or this version of transformers does more than ours; "
            "--no-check goes on with ours"
        )
    assert compared.kinds == looked_at
    assert compared.expected == [("logits", each) for each in looked_at]


@pytest.mark.fakes
@pytest.mark.parametrize(("numbers", "several", "finer"), [(16, False, True), (17, False, False), (16, True, False)])
def test_a_finer_type_is_looked_at_where_it_fits_and_the_model_is_whole(compared, monkeypatch, numbers, several, finer):
    monkeypatch.setattr(guard, "_ROOM", 16 * 8)
    compared.gaps = {SINGLE: Gap(1.0, 1.0), DOUBLE: Gap(0.0, 1.0)}
    ours = Ours(Weights(SINGLE, numbers), several=several)
    if finer:
        return check_same("name", ours, "layers")
    with pytest.raises(ModelError, match="in float32"):
        check_same("name", ours, "layers")
    return None


@pytest.mark.fakes
def test_logits_from_before_a_change_are_not_asked_for_in_finer_types(compared):
    compared.gaps = {SINGLE: Gap(1.1e-4, 1.0)}
    with pytest.raises(ModelError, match="in float32"):
        check_same("name", Ours(Weights()), "layers", ["before"])
    assert compared.expected == [["before"]] and compared.kinds == [SINGLE]


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ([("a", math.nan), ("b", 1.0), ("c", math.inf)], "such weights are a, c"),
        ([("w" * 90, math.nan)] * 3, f"such weights are {'w' * 90}, {'w' * 90}, " + "w" * 16),
        ([("a", 1.0)], "all weights are numbers, so torch.float32 is too narrow"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("spread", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_the_models_own(compared, broken, why, spread):
    compared.gaps = {SINGLE: Gap(0.0, spread)}
    with pytest.raises(ModelError) as error:
        check_same("name", Ours(Weights(broken=broken)), "layers")
    assert str(error.value) == (
        f"Expected a model whose logits are numbers; 'name' itself gives NaN or infinity, with nothing pruned: {why}"
    )
