"""Every method of the registry runs on language models as it does on a compiled program."""

from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from tiny import FAMILIES, families, tokens

from edgeprune.ablation import Ablator
from edgeprune.graph import ABLATIONS
from edgeprune.masked_model import OnlyMasked
from edgeprune.masks import edge_exists
from edgeprune.methods import METHODS
from edgeprune.methods.acdc import AcdcConfig, remove_greedily
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.methods.method import Discovery
from edgeprune.metrics.answers import Answers
from edgeprune.tasks import Encoded

INPUTS, LENGTH = 6, 5


def encoded() -> Encoded:
    """Pairs of random prompts of two lengths, with a right and a wrong answer each."""
    length = torch.tensor([LENGTH, LENGTH - 1] * (INPUTS // 2))
    return Encoded(
        tokens=tokens(INPUTS, LENGTH),
        counterparts=tokens(INPUTS, LENGTH, seed=1),
        length=length,
        positions=length[:, None] - 1,
        scored=torch.ones(INPUTS, 1, dtype=torch.bool),
        answers=Answers(tokens(INPUTS, 1, 1, seed=2), tokens(INPUTS, 1, 1, seed=3)),
    )


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def model(request):
    return request.param.ours()


@pytest.fixture(scope="module")
def dataset(model):
    return encoded().dataset(model)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(model, dataset, name, ablation):
    method = METHODS[name]
    if isinstance(method, partial):
        config = method.keywords["config"]
        few = {"steps": 3} if any(field.name == "steps" for field in fields(config)) else {}
        method = partial(method.func, config=replace(config, **few))
    found = method(OnlyMasked(model), dataset, ablation)
    assert isinstance(found, Discovery)
    assert found.circuit.graph == model.graph and found.circuit.ablation == ablation
    assert found.scores.isfinite().all()
    assert torch.equal(found.scores, method(OnlyMasked(model), dataset, ablation).scores)


@families
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_eap_is_the_finite_difference_of_the_tasks_metric(family, ablation):
    """Against runs in double precision, one edge and one input at a time."""
    original = family.original(layers=1).double()
    model = family.adapter(original)
    dataset = encoded().dataset(model)
    scores = attribution_patching(model, dataset, ablation, config=EapConfig(batch_size=4)).scores
    rows = torch.arange(INPUTS)
    batch = dataset.take(rows, rows)
    ablated = Ablator(model, dataset, ablation)(batch)
    everything = edge_exists(model.graph).double()

    def metric(mask: torch.Tensor) -> float:
        total = 0.0
        for row in range(INPUTS):
            carried = torch.zeros(len(mask), 1, 1) if ablated is None else ablated[:, row].double()
            logits = family.naive(original, model.graph, batch.clean[row], mask, carried)[1]
            final = logits[int(dataset.group[row]) - 1]
            total += float(final[batch.answers.right[row, 0, 0]] - final[batch.answers.wrong[row, 0, 0]])
        return total / INPUTS

    for row, column in torch.nonzero(everything).tolist():
        step = torch.zeros_like(everything)
        step[row, column] = 1e-4
        expected = (metric(everything + step) - metric(everything - step)) / 2e-4
        assert float(scores[row, column]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_methods_do_not_depend_on_how_many_inputs_run_at_once(model, dataset):
    for run, config in (
        (attribution_patching, EapConfig),
        (integrate_gradients, partial(EapIgConfig, steps=3)),
        (integrate_gradients, partial(EapIgConfig, steps=3, over="activations")),
    ):
        whole, parts = (run(model, dataset, "resample", config=config(batch_size=n)).scores for n in (100, 4))
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)
    together, single = (
        remove_greedily(model, dataset, "resample", config=AcdcConfig(at_once=n)).circuit for n in (32, 1)
    )
    assert together == single
