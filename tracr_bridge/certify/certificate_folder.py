"""Saves a certificate as a folder. `check_certificate.py` checks the folder with NumPy alone, without this package."""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from edgeprune.errors import UnsupportedProgram
from edgeprune.files.folders import new_folder
from edgeprune.files.store import SavedCircuit, save_circuit, versions, write_atomically, write_json
from edgeprune.graph import edge_names
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.truth import Certificate, Truth
from tracr_bridge.compile.weights import Weights

if TYPE_CHECKING:
    from tracr_bridge.checkpoints.read_back import Exported
    from tracr_bridge.compile.compile import Compiled

FORMAT: Final = "edgeprune certificate 1"

Arrays = dict[str, np.ndarray]
"""Arrays by name."""


def save_certificate(truth: Truth, subject: "Compiled | Exported", folder: Path) -> None:
    """Write the certificate of a truth as a folder. The folder appears once it is complete.

    Args:
        truth: the truth of `subject` under one ablation.
        subject: a compiled program, or a checkpoint that `export` wrote.
        folder: the folder to make; its parent has to exist.

    Raises:
        UnwritableFile: a file or folder of that name exists, or the folder cannot be made.
        UnsupportedProgram: the gap is infinite: each edge, taken out of the circuit, makes some output infinite or NaN.
    """
    if not math.isfinite(truth.certificate.gap.kept):
        raise UnsupportedProgram(
            "Expected outputs that are numbers without some edge of the circuit, so that the smallest effect can be "
            "stated; without any of its edges they are none: use --save FILE.json, which needs no number"
        )
    with new_folder(folder) as unfinished:
        described, weights, domain = _describe(truth, subject)
        _save_arrays(weights, unfinished / "weights.npz")
        _save_arrays(domain, unfinished / "domain.npz")
        saved = SavedCircuit(truth.circuit, model=described["subject"], versions=versions())
        save_circuit(saved, unfinished / "circuit.json")
        files = {file.name: _digest(file.read_bytes()) for file in sorted(unfinished.iterdir())}
        content = described | {"files": files}
        content["digest"] = _digest(json.dumps(content, sort_keys=True).encode())
        write_json(unfinished / "certificate.json", content)


def _save_arrays(arrays: Arrays, path: Path) -> None:
    packed = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(packed, **named)
    write_atomically(path, lambda file: file.write(packed.getvalue()))


def _digest(data: bytes) -> str:
    """Return the SHA-256 digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _describe(truth: Truth, subject: "Compiled | Exported") -> tuple[dict[str, Any], Arrays, Arrays]:
    """Return the content of `certificate.json` without its digests, the weights, and the domain."""
    from tracr_bridge.compile.compile import Compiled

    graph, certificate, judge = truth.circuit.graph, truth.certificate, truth.judge
    assert isinstance(judge, Judge), "of a compiled program, or an export"
    if isinstance(subject, Compiled):
        name, doc, family = subject.program.name, subject.program.doc, "tracr"
        model, weights = _compiled(subject)
        claimed = _compiled_domain(subject)
    else:
        name, doc, family = subject.name, subject.doc, subject.family
        model, weights = _exported(subject)
        claimed = _exported_domain(subject, model)
    domain = {
        "tokens": subject.dataset.tokens.numpy(),
        "scored": subject.dataset.scored.numpy(),
        "group": subject.dataset.group.numpy(),
        "outputs": subject.dataset.target[torch.arange(len(subject.dataset))].numpy(),
    }
    if truth.circuit.ablation == "resample":
        domain["pairs"] = judge.rows_of_pairs.numpy()
    content = {
        "format": FORMAT,
        "subject": name,
        "doc": doc,
        "family": family,
        "ablation": truth.circuit.ablation,
        "criterion": {
            "distance": "largest absolute difference",
            "over": "scored positions of all inputs or pairs",
            "tolerance": certificate.atol,
        },
        "model": model,
        "graph": {"sources": list(map(str, graph.sources)), "destinations": list(map(str, graph.destinations))},
        "structural": edge_names(graph, truth.structural),
        "domain": claimed | {"inputs": len(subject.dataset), "pairs": judge.pairs, "all_pairs": judge.exhaustive},
        "claims": _claims(certificate),
        "versions": dict(versions()),
    }
    return content, weights, domain


def _claims(certificate: Certificate) -> dict[str, Any]:
    return {
        "status": certificate.status,
        "circuits": [circuit.names() for circuit in certificate.circuits],
        "gap": {"kept": certificate.gap.kept, "dropped": certificate.gap.dropped},
        "margin": certificate.margin,
    }


# Compiled programs


def _compiled(compiled: "Compiled") -> tuple[dict[str, Any], Arrays]:
    """Return the settings that the forward pass needs, and the weights with the heads of a layer side by side."""
    weights: Weights = compiled.model.weights
    layers = weights.layers
    arrays = {"token": weights.token, "position": weights.position, "unembed": weights.unembed}
    for number, layer in enumerate(layers):
        for port in ("query", "key", "value"):
            arrays[f"a{number}.{port}"] = np.concatenate([getattr(head, port) for head in layer.heads], axis=1)
        arrays[f"a{number}.output"] = np.concatenate([head.output for head in layer.heads])
        arrays |= {f"m{number}.hidden": layer.hidden, f"m{number}.output": layer.output}
    model = {
        "layers": len(layers),
        "heads": len(layers[0].heads),
        "head_dim": layers[0].heads[0].query.shape[1],
        "activation": "relu",
        "causal": weights.causal,
        "bos": compiled.encode(())[0],
        "pad": weights.pad_id,
    }
    return model, {f"{name}.weight": array for name, array in arrays.items()}


def _compiled_domain(compiled: "Compiled") -> dict[str, Any]:
    program = compiled.program
    return {
        "vocabulary": compiled.encode(program.vocab)[1:],
        "lengths": [program.min_seq_len, program.max_seq_len],
        "restricted": program.valid is not None,
        "exhaustive": compiled.domain.exhaustive,
    }


# Exported checkpoints


def _exported(exported: "Exported") -> tuple[dict[str, Any], Arrays]:
    """Return the settings that the forward pass needs, and the weights under Hugging Face's names."""
    theirs: Any = exported.model.weights
    config, gpt2 = theirs.config, exported.family == "gpt2"
    heads = config.n_head if gpt2 else config.num_attention_heads
    model = {
        "layers": config.n_layer if gpt2 else config.num_hidden_layers,
        "heads": heads,
        "head_dim": config.n_embd // heads if gpt2 else config.head_dim,
        "epsilon": config.layer_norm_epsilon if gpt2 else config.rms_norm_eps,
        "activation": config.activation_function if gpt2 else config.hidden_act,
        "causal": True,
        "bos": config.bos_token_id,
        "pad": config.pad_token_id,
    }
    if not gpt2:
        model |= {"kv_heads": config.num_key_value_heads, "rope_theta": config.rope_parameters["rope_theta"]}
    return model, {name: value.float().cpu().numpy() for name, value in theirs.state_dict().items()}


def _exported_domain(exported: "Exported", model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens and lengths that occur: `export` does not save the program's own limits."""
    tokens = exported.dataset.tokens
    lengths = (tokens != model["pad"]).sum(1) - 1
    vocabulary = sorted({*tokens.flatten().tolist()} - {model["bos"], model["pad"]})
    shortest, longest = int(lengths.min()), int(lengths.max())
    whole = sum(len(vocabulary) ** length for length in range(shortest, longest + 1))
    return {
        "vocabulary": vocabulary,
        "lengths": [shortest, longest],
        "restricted": len(tokens) != whole,
        "exhaustive": exported.content["domain"]["exhaustive"],
    }
