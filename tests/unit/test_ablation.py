from dataclasses import replace

import pytest
import torch

from edgeprune import ablation
from edgeprune.ablation import Ablator, group_means, rows_at_once
from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import Graph
from edgeprune.metrics.answers import Answers
from edgeprune.metrics.conventions import ZERO, noted
from edgeprune.parallel import Ranks


def test_the_mean_is_over_inputs_of_the_same_length_at_the_same_position(compiled, monkeypatch):
    program = compiled("sort_unique")
    dataset, model = program.dataset, program.model
    monkeypatch.setattr("edgeprune.ablation._ROOM", 7 * model.sources(dataset.tokens[:1]).numel())  # seven at a time
    means = group_means(model, dataset)
    for group in dataset.group.unique().tolist():
        members = dataset.tokens[dataset.group == group]
        expected = torch.stack([model.sources(tokens[None])[:, 0] for tokens in members]).mean(0)
        length = 2 + group
        torch.testing.assert_close(means[:, group, :length], expected[:, :length], atol=1e-5, rtol=1e-5)


def test_each_ablation_gives_its_own_sources(compiled):
    program = compiled("xproportion")
    dataset, model = program.dataset, program.model
    rows = torch.tensor([0, 5, 50, 119])
    batch = dataset.take(rows, dataset.partners(rows, torch.Generator().manual_seed(0)))
    assert Ablator(model, dataset, "zero")(batch) is None
    torch.testing.assert_close(Ablator(model, dataset, "resample")(batch), model.sources(batch.corrupted))
    torch.testing.assert_close(
        Ablator(model, dataset, "mean")(batch), group_means(model, dataset)[:, dataset.group[rows]]
    )


def test_means_of_some_inputs_stand_in_for_others_of_their_lengths(compiled):
    program = compiled("xproportion")
    dataset, model = program.dataset, program.model
    ours = dataset.group >= 2  # the longer ones, so that groups are not numbered from 0
    parts = {name: getattr(dataset, name)[ours] for name in ("tokens", "group", "scored", "target")}
    some = replace(dataset, **parts)
    rows = torch.nonzero(ours)[[3, 100, 1], 0]
    found = Ablator(model, some, "mean")(dataset.take(rows, rows))
    torch.testing.assert_close(found, group_means(model, dataset)[:, dataset.group[rows]])
    with pytest.raises(ConfigError, match="lengths that a mean was taken over; got one of length 1"):
        Ablator(model, some, "mean")(dataset.take(torch.tensor([5]), torch.tensor([5])))


def test_corrupted_inputs_are_drawn_evenly_from_the_clean_inputs_own_length(compiled):
    dataset = compiled("xproportion").dataset
    clean = torch.full((20_000,), 5)  # one of the nine inputs of two tokens
    partners = dataset.partners(clean, torch.Generator().manual_seed(0))
    assert (dataset.group[partners] == dataset.group[5]).all()
    counts = torch.bincount(partners)
    drawn = counts[counts > 0]
    assert len(drawn) == 9
    assert float(drawn.min()) / 20_000 == pytest.approx(1 / 9, abs=0.02)


def test_pairs_are_all_ordered_pairs_of_one_length(compiled):
    dataset = compiled("xproportion").dataset
    clean, corrupted = dataset.pairs()
    assert len(clean) == 3**2 + 9**2 + 27**2 + 81**2
    assert (dataset.group[clean] == dataset.group[corrupted]).all()
    assert len(set(zip(clean.tolist(), corrupted.tolist(), strict=True))) == len(clean)


class Tokens:
    """A model of one source, which writes its tokens."""

    graph = Graph.transformer(embeddings=("embed",), layers=0, heads=0)

    def __init__(self, dtype=torch.float32) -> None:
        self._dtype = dtype

    def __call__(self, tokens, mask=None, ablated=None, positions=None):
        raise NotImplementedError

    def sources(self, tokens):
        return tokens[None, ..., None].to(self._dtype)


def inputs(tokens, group) -> Dataset:
    tokens = torch.tensor(tokens)
    one = torch.ones(tokens.shape, dtype=torch.bool)
    return Dataset(tokens, one, torch.zeros(*tokens.shape, 1), torch.tensor(group))


def test_inputs_of_one_length_need_not_lie_together():
    data = inputs([[number] for number in range(12)], [2, 0, 0, 2, 1, 2, 0, 1, 2, 0, 0, 2])
    clean = torch.arange(12).repeat(400)
    partners = data.partners(clean, torch.Generator().manual_seed(0))
    assert torch.equal(data.group[partners], data.group[clean])
    for row in range(12):
        assert set(partners[clean == row].tolist()) == set(torch.nonzero(data.group == data.group[row])[:, 0].tolist())
    means = Ablator(Tokens(), data, "mean")(data.take(torch.arange(12), torch.arange(12)))
    expected = [float(data.tokens[data.group == group].float().mean()) for group in data.group]
    torch.testing.assert_close(means[0, :, 0, 0], torch.tensor(expected))


def test_a_mean_is_position_by_position():
    data = inputs([[1, 10], [3, 30], [7, 70]], [0, 0, 1])
    means = Ablator(Tokens(), data, "mean")(data.take(torch.tensor([2, 0]), torch.tensor([2, 0])))
    assert means[0, ..., 0].tolist() == [[7.0, 70.0], [2.0, 20.0]]


def test_lengths_that_are_not_numbered_from_0_on_have_their_own_means():
    data = inputs([[1], [3], [10], [30]], [5, 5, 9, 9])
    means = Ablator(Tokens(), data, "mean")(data.take(torch.tensor([3, 0]), torch.tensor([2, 1])))
    assert means.flatten().tolist() == [20.0, 2.0]
    for unknown in (4, 7, 12):  # below all, between two, above all
        with pytest.raises(ConfigError, match=f"got one of length {unknown}$"):
            Ablator(Tokens(), data, "mean")(inputs([[1]], [unknown]).take(torch.tensor([0]), torch.tensor([0])))


def test_means_of_half_precision_are_not_added_up_in_it():
    """Beyond 256, bfloat16 has every other number: added up in it, a thousand ones would be 256."""
    data = inputs([[1]] * 1000, [0] * 1000)
    means = group_means(Tokens(torch.bfloat16), data)
    assert means.dtype == torch.bfloat16 and float(means) == 1.0


@pytest.mark.parametrize("counterparts", [False, True])
def test_every_way_to_a_batch_pairs_an_input_with_one_of_its_length_or_with_its_own(counterparts):
    group = [2, 0, 0, 2, 1, 2, 0, 1, 2, 0, 0, 2]
    data = inputs([[number] for number in range(12)], group)
    data = replace(data, counterparts=data.tokens + 100) if counterparts else data
    rng = torch.Generator().manual_seed(0)
    batches = [
        *data.batches(5, rng),
        data.sample(7, rng),
        *data.sample_batches(9, 4, rng),
        *data.sample_batches(9, 4, rng, among=torch.tensor([1, 2, 4, 7])),
        data.take(*data.pairs()),
    ]
    assert [len(batch.clean) for batch in batches] == [5, 5, 2, 7, 4, 4, 1, 4, 12 if counterparts else 54]
    assert {*batches[7].clean[:, 0].tolist()} == {1, 2, 4, 7}
    for batch in batches:
        clean, corrupted = batch.clean[:, 0], batch.corrupted[:, 0]
        if counterparts:
            assert torch.equal(corrupted, clean + 100)
        else:
            assert torch.equal(data.group[corrupted], data.group[clean])
        assert torch.equal(batch.group, data.group[clean])


def test_resampling_runs_the_corrupted_input_of_each_row():
    data = replace(inputs([[1], [2], [3]], [0, 0, 0]), counterparts=torch.tensor([[10], [20], [30]]))
    batch = data.take(torch.tensor([2, 0]), torch.tensor([2, 0]))
    assert Ablator(Tokens(), data, "resample")(batch).flatten().tolist() == [30.0, 10.0]


def test_each_process_has_the_ablated_sources_of_its_own_rows():
    data = replace(inputs([[1, 2], [3, 4], [5, 6]], [0, 1, 1]), counterparts=torch.tensor([[7, 8], [9, 10], [11, 12]]))
    batch = data.take(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    alone = Ablator(Tokens(), data, "resample")
    assert torch.equal(alone.own(batch), alone(batch)) and Ablator(Tokens(), data, "zero").own(batch) is None
    model = Tokens()
    model.ranks = Ranks(number=1, count=2)
    own = Ablator(model, data, "resample").own(batch)
    assert own[0, ..., 0].tolist() == [[11.0, 12.0], [11.0, 12.0]]  # the last one again, as rows run out
    means = Ablator(Tokens(), data, "mean")
    means._ranks = model.ranks
    assert means.own(batch)[0, ..., 0].tolist() == [[4.0, 5.0], [4.0, 5.0]]
    # Several runs at once have the batch beside the positions, too.
    runs = data.take(torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.tensor([[0, 1, 2], [2, 1, 0]]))
    assert means.own(runs)[0, ..., 0].tolist() == [[[4.0, 5.0]] * 2, [[1.0, 2.0]] * 2]
    found = Ablator(model, data, "resample").own(runs)
    assert found[0, ..., 0].tolist() == [[[11.0, 12.0]] * 2, [[7.0, 8.0]] * 2]


def test_as_many_rows_are_run_at_once_as_fit_one_at_least_and_a_thousand_at_most(monkeypatch):
    data = inputs([[1, 2, 3, 4]] * 3, [0, 0, 0])
    for room, rows in ((0, 1), (3, 1), (7, 1), (8, 2), (4 * 1024 - 1, 1023), (4 * 1024, 1024), (10**9, 1024)):
        monkeypatch.setattr(ablation, "_ROOM", room)
        assert rows_at_once(Tokens(), data) == rows


def test_figures_under_zero_ablation_are_noted_and_others_are_not():
    assert noted("resample", "zero") == noted("zero") == {"note": ZERO}
    assert noted("mean", "resample") == noted() == {}


def rows_drawn(data, seed):
    """The clean and corrupted tokens of every way to a batch."""
    rng = torch.Generator().manual_seed(seed)
    among = torch.arange(0, len(data), 2)
    batches = [*data.batches(50, rng), data.sample(80, rng), *data.sample_batches(80, 30, rng, among=among)]
    return [torch.cat([batch.clean, batch.corrupted], dim=-1) for batch in batches]


def test_the_same_seed_draws_the_same_and_no_other_generator_is_drawn_from():
    data = inputs([[number] for number in range(100)], [number % 3 for number in range(100)])
    before = torch.get_rng_state()
    for one, same, other in zip(rows_drawn(data, 3), rows_drawn(data, 3), rows_drawn(data, 4), strict=True):
        assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_a_draw_that_is_rounded_up_is_the_last_of_its_group(monkeypatch):
    data = inputs([[number] for number in range(6)], [1, 0, 1, 2, 1, 0])
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.ones(shape))
    assert data.partners(torch.arange(6), torch.Generator()).tolist() == [4, 5, 4, 3, 4, 5]


def test_a_batch_has_of_every_field_the_rows_that_were_taken():
    count = 5
    numbers = torch.arange(count)[:, None]
    data = Dataset(
        tokens=numbers,
        scored=numbers % 2 == 0,
        target=numbers[..., None] + 0.5,
        group=numbers[:, 0] + 10,
        positions=numbers + 20,
        counterparts=numbers + 30,
        answers=Answers(numbers[..., None] + 40, numbers[..., None] + 50),
    )
    assert len(data) == count
    batch = data.take(torch.tensor([[3, 1]]), torch.tensor([[0, 4]]))
    assert batch.clean.tolist() == [[[3], [1]]] and batch.corrupted.tolist() == [[[30], [34]]]
    assert batch.scored.tolist() == [[[False], [False]]] and batch.target.tolist() == [[[[3.5]], [[1.5]]]]
    assert batch.group.tolist() == [[13, 11]] and batch.positions.tolist() == [[[23], [21]]]
    assert batch.answers.right.tolist() == [[[[43]], [[41]]]] and batch.answers.wrong.tolist() == [[[[53]], [[51]]]]
    bare = replace(data, positions=None, counterparts=None, answers=None)
    batch = bare.take(torch.tensor([2]), torch.tensor([4]))
    assert (batch.positions, batch.answers, batch.corrupted.tolist()) == (None, None, [[4]])
    assert data.pairs()[1].tolist() == [0, 1, 2, 3, 4]
    copied = bare.copy()
    assert (copied.positions, copied.counterparts, copied.answers) == (None, None, None)
