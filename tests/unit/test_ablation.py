from dataclasses import replace

import pytest
import torch

from edgeprune.ablation import Ablator, group_means
from edgeprune.errors import ConfigError


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
