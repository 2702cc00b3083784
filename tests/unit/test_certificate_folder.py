"""What a certificate's folder says, entry by entry."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgeprune.errors import UnsupportedProgram
from edgeprune.files.store import load_circuit, versions
from edgeprune.graph import edge_names
from tracr_bridge.certify import certificate_folder
from tracr_bridge.certify.certificate_folder import save_certificate
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.recovery.known_models import certify


def said(folder) -> dict[str, Any]:
    return json.loads((folder / "certificate.json").read_text())


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_a_folder_says_what_it_is_of_and_what_is_claimed(compiled, truth, tmp_path, ablation):
    of, found = compiled("hist"), truth("hist", ablation)
    save_certificate(found, of, tmp_path / "saved")
    content = said(tmp_path / "saved")
    graph, certificate, weights = found.circuit.graph, found.certificate, of.model.weights
    heads = weights.layers[0].heads
    assert {name: content[name] for name in content if name not in ("files", "digest")} == {
        "format": "edgeprune certificate 1",
        "subject": "hist",
        "doc": of.program.doc,
        "family": "tracr",
        "ablation": ablation,
        "criterion": {
            "distance": "largest absolute difference",
            "over": "scored positions of all inputs or pairs",
            "tolerance": 0.01,
        },
        "model": {
            "layers": len(weights.layers),
            "heads": len(heads),
            "head_dim": heads[0].query.shape[1],
            "activation": "relu",
            "causal": False,
            "bos": int(of.dataset.tokens[0, 0]),
            "pad": weights.pad_id,
        },
        "graph": {"sources": list(map(str, graph.sources)), "destinations": list(map(str, graph.destinations))},
        "structural": edge_names(graph, found.structural),
        "domain": {
            "vocabulary": of.encode(of.program.vocab)[1:],
            "lengths": [1, of.program.max_seq_len],
            "restricted": False,
            "exhaustive": True,
            "inputs": len(of.dataset),
            "pairs": found.judge.pairs,
            "all_pairs": True,
        },
        "claims": {
            "status": certificate.status,
            "circuits": [circuit.names() for circuit in certificate.circuits],
            "gap": {"kept": certificate.gap.kept, "dropped": certificate.gap.dropped},
            "margin": certificate.margin,
        },
        "versions": dict(versions()),
    }
    assert load_circuit(tmp_path / "saved" / "circuit.json") == found.circuit
    assert list(content["files"]) == ["circuit.json", "domain.npz", "weights.npz"]
    with np.load(tmp_path / "saved" / "domain.npz") as domain:
        for name, array in (("tokens", of.dataset.tokens), ("scored", of.dataset.scored), ("group", of.dataset.group)):
            np.testing.assert_array_equal(domain[name], array.numpy())
        np.testing.assert_array_equal(domain["outputs"], of.dataset.target[torch.arange(len(of.dataset))].numpy())
        assert ("pairs" in domain) == (ablation == "resample")
        if "pairs" in domain:
            np.testing.assert_array_equal(domain["pairs"], found.judge.rows_of_pairs.numpy())


def test_weights_of_a_layer_stand_side_by_side(compiled, truth, tmp_path):
    of = compiled("twin_heads")
    save_certificate(truth("twin_heads", "zero"), of, tmp_path / "saved")
    weights = of.model.weights
    with np.load(tmp_path / "saved" / "weights.npz") as arrays:
        for name in ("token", "position", "unembed"):
            np.testing.assert_array_equal(arrays[f"{name}.weight"], getattr(weights, name))
        for number, layer in enumerate(weights.layers):
            size = layer.heads[0].query.shape[1]
            for head, own in enumerate(layer.heads):
                columns = slice(head * size, (head + 1) * size)
                for port in ("query", "key", "value"):
                    np.testing.assert_array_equal(arrays[f"a{number}.{port}.weight"][:, columns], getattr(own, port))
                np.testing.assert_array_equal(arrays[f"a{number}.output.weight"][columns], own.output)
            np.testing.assert_array_equal(arrays[f"m{number}.hidden.weight"], layer.hidden)
            np.testing.assert_array_equal(arrays[f"m{number}.output.weight"], layer.output)
        assert len(arrays) == 3 + 6 * len(weights.layers)


def test_a_sample_and_a_restricted_domain_are_said_to_be_such(tmp_path):
    sampled = compile_program(catalogue()["hist"], budget=20)
    save_certificate(certify(sampled, "zero"), sampled, tmp_path / "sampled")
    domain = said(tmp_path / "sampled")["domain"]
    assert (domain["exhaustive"], domain["restricted"], domain["inputs"]) == (False, False, 20)
    program = replace(catalogue()["hist"], valid=lambda tokens: tokens[0] == "a", min_seq_len=2, max_seq_len=3)
    narrowed = compile_program(program)
    save_certificate(certify(narrowed, "zero"), narrowed, tmp_path / "narrowed")
    domain = said(tmp_path / "narrowed")["domain"]
    assert (domain["exhaustive"], domain["restricted"], domain["lengths"]) == (True, True, [2, 3])


def test_a_gap_that_is_no_number_cannot_be_stated(compiled, truth, tmp_path):
    found = truth("hist", "zero")
    gap = replace(found.certificate.gap, kept=float("inf"))
    odd = replace(found, certificate=replace(found.certificate, gap=gap))
    with pytest.raises(UnsupportedProgram) as caught:
        save_certificate(odd, compiled("hist"), tmp_path / "saved")
    assert str(caught.value) == (
        "Expected outputs that are numbers without some edge of the circuit, so that the smallest effect can be "
        "stated; without any of its edges they are none: use --save FILE.json, which needs no number"
    )
    assert not (tmp_path / "saved").exists()


def exported(family: str, **config: Any) -> Any:
    state = {"one.weight": torch.tensor([[1.5]]).half(), "two.bias": torch.tensor([2.0])}
    of = SimpleNamespace(config=SimpleNamespace(bos_token_id=7, pad_token_id=8, **config), state_dict=lambda: state)
    return SimpleNamespace(family=family, model=SimpleNamespace(weights=of))


def test_a_checkpoint_is_described_in_the_words_of_its_configuration():
    common = {"causal": True, "bos": 7, "pad": 8}
    gpt2 = exported("gpt2", n_head=3, n_layer=2, n_embd=12, layer_norm_epsilon=1e-3, activation_function="relu")
    model, weights = certificate_folder._exported(gpt2)
    shape = {"layers": 2, "heads": 3, "head_dim": 4, "epsilon": 1e-3, "activation": "relu"}
    assert model == common | shape
    assert {name: (array.dtype, array.tolist()) for name, array in weights.items()} == {
        "one.weight": (np.float32, [[1.5]]),
        "two.bias": (np.float32, [2.0]),
    }
    llama = exported(
        "llama", num_attention_heads=6, num_hidden_layers=5, head_dim=9, rms_norm_eps=1e-2, hidden_act="silu",
        num_key_value_heads=2, rope_parameters={"rope_theta": 100.0},
    )  # fmt: skip
    shape = {"layers": 5, "heads": 6, "head_dim": 9, "epsilon": 1e-2, "activation": "silu"}
    assert certificate_folder._exported(llama)[0] == common | shape | {"kv_heads": 2, "rope_theta": 100.0}


@pytest.mark.parametrize(
    ("rows", "vocabulary", "lengths", "restricted"),
    [
        ([[7, 1, 8], [7, 2, 8], [7, 1, 1], [7, 1, 2], [7, 2, 1], [7, 2, 2]], [1, 2], [1, 2], False),
        ([[7, 1, 8], [7, 2, 8], [7, 1, 1], [7, 1, 2], [7, 2, 1]], [1, 2], [1, 2], True),
        ([[7, 1, 1], [7, 1, 3], [7, 3, 1], [7, 3, 3]], [1, 3], [2, 2], False),
    ],
)
@pytest.mark.parametrize("exhaustive", [True, False])
def test_the_domain_of_a_checkpoint_is_what_occurs_in_it(rows, vocabulary, lengths, restricted, exhaustive):
    of: Any = SimpleNamespace(
        dataset=SimpleNamespace(tokens=torch.tensor(rows)), content={"domain": {"exhaustive": exhaustive}}
    )
    assert certificate_folder._exported_domain(of, {"bos": 7, "pad": 8}) == {
        "vocabulary": vocabulary,
        "lengths": lengths,
        "restricted": restricted,
        "exhaustive": exhaustive,
    }
