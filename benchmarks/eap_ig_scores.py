"""How far our edge scores are from those of EAP-IG's own code, on every edge of a GPT-2.

    python benchmarks/eap_ig_scores.py DIR

DIR has `model` (config.json and safetensors), `pairs.json` (`clean`, `corrupted`: ids; `right`, `wrong`: the answers at
the last position) and `scores.json` (signed scores by edge, as `input->a0.h0<q>`, under `EAP` and under
`EAP-IG-inputs, N steps`). All use resample ablation and minus the logit difference as the loss. A `graph.json`
of `to_json`, if any, is read and written again. Prints the largest difference for each set of scores, for EAP-IG with
points at the ends and in the middles of steps. Exits 1 if scores that should agree differ by more than 0.00001.
"""

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from transformers import GPT2LMHeadModel

from edgeprune.data import Dataset
from edgeprune.files.other_tools import read_eap_ig, scores_by_edge, write_eap_ig
from edgeprune.methods.eap import attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.methods.method import Discovery
from edgeprune.metrics.answers import Answers
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.tasks import Encoded

ATOL: Final = 1e-5
"""Largest difference, in logits, at which scores count as equal."""


def main(folder: Path) -> bool:
    """Print the differences, and return whether all scores that should agree do."""
    model = Gpt2Model(GPT2LMHeadModel.from_pretrained(folder / "model"))
    dataset, agree = _pairs(folder / "pairs.json").dataset(model), list[bool]()
    for what, theirs in json.loads((folder / "scores.json").read_text(encoding="utf-8")).items():
        if what == "EAP":
            found = {"": attribution_patching(model, dataset, "resample")}
        else:
            steps = int(re.findall(r"\d+", what)[-1])
            found = {
                f", {points}": _integrated(model, dataset, EapIgConfig(steps=steps, points=points, loss="disagreement"))
                for points in ("ends", "middles")
            }
        for how, discovery in found.items():
            apart = _apart(discovery, theirs)
            print(f"{what}{how}: {apart:.2g} apart, of scores up to {max(map(abs, theirs.values())):.2g}")
            agree += [apart <= ATOL] if how != ", middles" else []
    if (graph := folder / "graph.json").is_file():
        agree.append(_same_graph(graph))
    return all(agree)


def _pairs(path: Path) -> Encoded:
    pairs = {name: torch.tensor(rows) for name, rows in json.loads(path.read_text(encoding="utf-8")).items()}
    count, length = pairs["clean"].shape
    return Encoded(
        tokens=pairs["clean"],
        counterparts=pairs["corrupted"],
        length=torch.full((count,), length),
        positions=torch.full((count, 1), length - 1),
        scored=torch.ones(count, 1, dtype=torch.bool),
        answers=Answers(pairs["right"][:, None, None], pairs["wrong"][:, None, None]),
    )


def _integrated(model: Gpt2Model, dataset: Dataset, config: EapIgConfig) -> Discovery:
    return integrate_gradients(model, dataset, "resample", config=config)


def _apart(found: Discovery, theirs: Mapping[str, float]) -> float:
    """Return the largest difference of scores over all edges.

    Raises:
        ValueError: the scores are of other edges.
    """
    ours = {str(edge): score for edge, score in scores_by_edge(found.scores, found.circuit.graph).items()}
    named = {re.sub(r"<(.)>$", r".\1", name.replace("input->", "embed->")): score for name, score in theirs.items()}
    if ours.keys() != named.keys():
        raise ValueError(f"Expected scores of {len(ours)} edges of the model; got {len(named)}, or others")
    return max(abs(ours[edge] - named[edge]) for edge in ours)


def _same_graph(path: Path) -> bool:
    """Whether a graph keeps its edges, in or out of the circuit, and its signed scores when read and written again."""
    read = read_eap_ig(path, "resample")
    scores = scores_by_edge(read.scores, read.circuit.graph)
    with tempfile.TemporaryDirectory() as folder:
        write_eap_ig(read.circuit, again := Path(folder) / "graph.json", scores=scores)
        one, other = (json.loads(file.read_text(encoding="utf-8"))["edges"] for file in (path, again))
    apart = max(abs(one[name]["score"] - other[name]["score"]) for name in one)
    same = one.keys() == other.keys() and all(one[name]["in_graph"] == other[name]["in_graph"] for name in one)
    print(f"graph.json, read and written: {'the same edges' if same else 'other edges'}, scores {apart:.2g} apart")
    return same and apart <= ATOL


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1])))
