"""EAP and EAP-IG on a GPT-2: the scores of a golden table, which a slow way that masks nothing wrote."""

import json
import sys
from pathlib import Path

import pytest
import torch
from naive_attribution import VARIANTS, golden_model, golden_pairs, naive_scores

from edgeprune.files.other_tools import write_eap_ig
from edgeprune.graph import Circuit, Edge
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.metrics.answers import Answers
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.tasks import Encoded

TESTS = Path(__file__).parent.parent
GOLDEN = json.loads((TESTS / "golden" / "eap_ig.json").read_text())


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


def test_a_folder_of_another_tools_scores_is_compared(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path, str(TESTS.parent / "benchmarks")])
    import eap_ig_scores

    golden_model().save_pretrained(tmp_path / "model")
    pairs = golden_pairs()[::2]  # of one length
    columns = [
        [part.tolist() if isinstance(part, torch.Tensor) else part for part in column]
        for column in zip(*pairs, strict=True)
    ]
    named = dict(zip(("clean", "corrupted", "right", "wrong"), columns, strict=True))
    (tmp_path / "pairs.json").write_text(json.dumps(named))
    names = list(map(str, model.graph.edges))
    found = {
        "EAP": naive_scores(golden_model(), pairs, names),
        "EAP-IG-inputs, 2 steps": naive_scores(golden_model(), pairs, names, over="inputs", steps=2),
    }
    theirs = {what: {_theirs(name): score for name, score in scores.items()} for what, scores in found.items()}
    (tmp_path / "scores.json").write_text(json.dumps(theirs))
    scores = {Edge.parse(name): score for name, score in found["EAP"].items()}
    kept = frozenset(edge for edge, score in scores.items() if abs(score) > 0.01)
    write_eap_ig(Circuit(model.graph, "resample", kept), tmp_path / "graph.json", scores=scores)
    assert eap_ig_scores.main(tmp_path)
    said = capsys.readouterr().out
    assert "EAP-IG-inputs, 2 steps, middles: " in said and "graph.json, read and written: the same edges" in said
    theirs["EAP"]["input->m0"] += 2e-5
    (tmp_path / "scores.json").write_text(json.dumps(theirs))
    assert not eap_ig_scores.main(tmp_path)


def _theirs(name):
    source, destination = name.replace("embed->", "input->").split("->")
    return f"{source}->" + (f"{destination[:-2]}<{destination[-1]}>" if "." in destination else destination)
