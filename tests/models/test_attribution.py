"""EAP and EAP-IG on a GPT-2: the scores of a golden table, which a slow way that masks nothing wrote."""

import json
from pathlib import Path

import pytest
import torch
from naive_attribution import VARIANTS, golden_model, golden_pairs, naive_scores

from edgeprune.answers import Answers
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.tasks import Encoded

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "eap_ig.json").read_text())


@pytest.fixture(scope="module")
def model():
    return Gpt2Model(golden_model())


@pytest.fixture(scope="module")
def dataset(model):
    pairs = golden_pairs()
    length = torch.tensor([len(clean) for clean, *_ in pairs])
    padded = [torch.nn.utils.rnn.pad_sequence([pair[side] for pair in pairs], batch_first=True) for side in (0, 1)]
    right, wrong = (torch.tensor([pair[side] for pair in pairs])[:, None, None] for side in (2, 3))
    answers, scored = Answers(right, wrong), torch.ones(len(pairs), 1, dtype=torch.bool)
    return Encoded(*padded, length, length[:, None] - 1, scored, answers).dataset(model)


def ours(model, dataset, what):
    """The scores of a variant, by edge."""
    how = {"ablation": "resample"} | VARIANTS[what]
    ablation = how.pop("ablation")
    if "over" in how:
        found = integrate_gradients(model, dataset, ablation, config=EapIgConfig(**how, loss="disagreement"))
    else:
        found = attribution_patching(model, dataset, ablation, config=EapConfig(batch_size=3))
    return {str(edge): float(found.scores[model.graph.position(edge)]) for edge in model.graph.edges}


@pytest.mark.parametrize("what", VARIANTS)
def test_scores_are_those_of_the_table(model, dataset, what):
    assert ours(model, dataset, what) == pytest.approx(GOLDEN[what], abs=1e-5)
    assert min(GOLDEN[what].values()) < -1e-2 and max(GOLDEN[what].values()) > 1e-2


@pytest.mark.parametrize("what", ["EAP, mean", "EAP-IG, inputs, ends of 4 steps"])
def test_the_table_is_what_the_slow_way_gives(model, what):
    names = list(map(str, model.graph.edges))
    found = naive_scores(golden_model(), golden_pairs(), names, **VARIANTS[what])
    assert found == pytest.approx(GOLDEN[what], abs=1e-6)
    assert GOLDEN.keys() == VARIANTS.keys()


def test_a_golden_variant_is_another_than_the_next():
    """What the table tells apart: ablations, paths, and where steps have their points."""
    for one in GOLDEN:
        for other in GOLDEN.keys() - {one}:
            assert max(abs(GOLDEN[one][edge] - GOLDEN[other][edge]) for edge in GOLDEN[one]) > 1e-3
