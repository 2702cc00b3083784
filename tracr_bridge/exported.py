"""A checkpoint with a known circuit, as `export` wrote it: the model, its domain and its true circuits."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram, GraphError, ModelError
from edgeprune.graph import ABLATIONS, Ablation, Circuit, Edge, Graph
from edgeprune.models.load import load_model
from edgeprune.models.transformer import Transformer
from edgeprune.store import CircuitFileError, load_json
from tracr_bridge.judge import Judge
from tracr_bridge.truth import Certificate, Gap, Truth

FORMAT: Final = "edgeprune export 1"

BATCH: Final = 1024
"""Inputs run at a time."""


@dataclass(frozen=True)
class Exported:
    """What lies in a folder."""

    folder: Path
    family: str
    model: Transformer
    """As the adapter gives it."""

    dataset: Dataset
    """The program's domain, with the model's own outputs."""

    certificates: Mapping[Ablation, Certificate]
    """Of the true circuits under each ablation; none where nothing could fail under it."""

    structural: frozenset[Edge]
    """Edges whose source writes where their destination reads."""

    content: Mapping[str, Any]
    """`circuit.json`."""

    @property
    def name(self) -> str:
        """The program's, and the family's."""
        return f"{self.content['program']['name']}-{self.family}"

    @property
    def doc(self) -> str:
        """What the program computes."""
        return self.content["program"]["doc"]

    @property
    def circuits(self) -> Mapping[Ablation, tuple[Circuit, ...]]:
        """The true circuits under each ablation, smallest first; none where nothing could fail under it."""
        return {a: self.certificates[a].circuits if a in self.certificates else () for a in ABLATIONS}

    def truth(self, ablation: Ablation) -> Truth:
        """The truth under an ablation, as it was certified; `recover.assess` compares circuits with it.

        Raises:
            DegenerateProgram: nothing could fail under it.
        """
        if ablation not in self.certificates:
            raise DegenerateProgram(self.content["circuits"][ablation]["refused"])
        certificate = self.certificates[ablation]
        judge = Judge(self.model, self.dataset, ablation, atol=certificate.atol)
        # Whatever is written, norms are taken over.
        return Truth(certificate.circuits[0], self.structural, certificate, judge, others_matter=True)


def load_exported(folder: Path, *, device: str = "cpu") -> Exported:
    """What `export` wrote; nothing is compiled.

    Args:
        folder: with `circuit.json`.
        device: where the model runs; all was proved on the CPU.

    Raises:
        CircuitFileError: there is no such file, or it is none.
        ModelError: the model cannot be loaded, or is not the one that its circuit is of.
    """
    path = folder / "circuit.json"
    content = load_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        if digest_of(folder) != content["weights"]:
            raise ModelError(f"Expected the weights that {str(path)!r} is of; those beside it are others")
        model, tokenizer = load_model(str(folder), device=device)
        if graph_json(model.graph) != content["graph"]:
            raise ModelError(f"Expected the model that {str(path)!r} is of; its graph is another")
        dataset = dataset_of(model, tokenizer, content)
        entries: Mapping[Ablation, Any] = {ablation: content["circuits"][ablation] for ablation in ABLATIONS}
        certificates: dict[Ablation, Certificate] = {
            ablation: _certificate(entry["certificate"], model.graph, ablation)
            for ablation, entry in entries.items()
            if "refused" not in entry
        }
        structural = frozenset(map(Edge.parse, content["structural"]))
        return Exported(folder, content["family"], model, dataset, certificates, structural, content)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OSError, GraphError) as error:
        raise CircuitFileError(f"Expected what `edgeprune export` writes in {str(path)!r}; {error!r:.200}") from error


def _certificate(entry: Any, graph: Graph, ablation: Ablation) -> Certificate:
    """What `certificate_json` made of it."""
    candidate, *circuits = (
        Circuit(graph, ablation, frozenset(map(Edge.parse, edges)))
        for edges in (entry["candidate"], *entry["circuits"])
    )
    told = {name: entry[name] for name in ("status", "inputs", "pairs", "exhaustive", "atol", "enumerated", "orders")}
    return Certificate(**told, gap=Gap(**entry["gap"]), candidate=candidate, circuits=tuple(circuits))


def digest_of(folder: Path) -> str:
    """SHA-256 of the weights' file."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def graph_json(graph: Graph) -> dict[str, list[str]]:
    """All that a graph has, by name."""
    return {
        "sources": [str(node) for node in graph.sources],
        "destinations": [str(node) for node in graph.destinations],
        "edges": [str(edge) for edge in graph.edges],
    }


def dataset_of(model: Transformer, tokenizer: Any, content: Mapping[str, Any]) -> Dataset:
    """The domain, as the tokenizer reads it and with the model's own outputs.

    Raises:
        ValueError: an input has a word that is none of the program's.
    """
    rows: list[list[int]] = [tokenizer(text)["input_ids"] for text in content["domain"]["inputs"]]
    if any(tokenizer.unk_token_id in row for row in rows):
        raise ValueError("an input has a word that the tokenizer does not know")
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), tokenizer.pad_token_id)
    scored = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, (row, output) in enumerate(zip(rows, content["domain"]["expected"], strict=True)):
        tokens[number, : len(row)] = torch.tensor(row)
        scored[number, 1 : len(row)] = torch.tensor([value is not None for value in output])
    with torch.no_grad():
        target = torch.cat([model(some) for some in tokens.split(BATCH)])
    return Dataset(
        tokens=tokens,
        scored=scored,
        target=target,
        group=torch.tensor(list(map(len, rows))).unique(return_inverse=True)[1],
        logits=content["outputs"]["kind"] == "categorical",
    )
