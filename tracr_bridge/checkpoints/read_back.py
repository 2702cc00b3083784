"""A checkpoint with a known circuit, as `export` wrote it: the model, its domain and its true circuits."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram, ModelError
from edgeprune.files.schemas import checked
from edgeprune.files.store import CircuitFileError, load_json, open_plain
from edgeprune.graph import ABLATIONS, Ablation, Circuit, Edge, Graph
from edgeprune.models.load import load_model
from edgeprune.models.transformer import Transformer
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.truth import Certificate, Gap, Truth, is_true
from tracr_bridge.checkpoints.schemas import ExportContent

FORMAT: Final = "edgeprune export 3"

LARGEST: Final = 2**30
"""Bytes of a file of a checkpoint, at the most; the largest one that is written has a fiftieth."""

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

        Its circuits are run again: where numbers are rounded otherwise, one might not be true.

        Raises:
            DegenerateProgram: nothing could fail under it.
            ModelError: a circuit is not true here.
        """
        if ablation not in self.certificates:
            raise DegenerateProgram(self.content["circuits"][ablation]["refused"])
        certificate = self.certificates[ablation]
        judge = Judge(self.model, self.dataset, ablation, atol=certificate.atol, seed=self.content["seed"])
        if any(is_true(judge, circuit.edges) is False for circuit in certificate.circuits):
            raise ModelError(
                f"Expected circuits of {str(self.folder)!r} that are true on this machine too; one is not under "
                f"{ablation} ablation"
            )
        # Norms read all that is written, structural or not.
        return Truth(certificate.circuits[0], self.structural, certificate, judge, others_matter=True)


def load_exported(folder: Path, *, device: str = "cpu") -> Exported:
    """What `export` wrote; nothing is compiled.

    Args:
        folder: with `circuit.json`.
        device: where the model runs; all was proved on the CPU.

    Raises:
        CircuitFileError: there is no such file, it is none, or it was changed.
        GraphError: it has edges that the model has not.
        ModelError: the model cannot be loaded, or a file of it was changed.
    """
    content = read_content(folder)
    model, tokenizer = load_model(str(folder), device=device)
    for part in (model.weights.config, *model.weights.modules()):
        if hasattr(part, "name_or_path"):
            part.name_or_path = ""  # a method that sees the model need not know where its circuit lies
    if graph_json(model.graph) != content["graph"]:
        raise CircuitFileError(f"Expected the graph of the model in {str(folder)!r}; its circuit.json has another")
    certificates: dict[Ablation, Certificate] = {
        ablation: _certificate(content["circuits"][ablation]["certificate"], model.graph, ablation)
        for ablation in ABLATIONS
        if "refused" not in content["circuits"][ablation]
    }
    structural = frozenset(map(Edge.parse, content["structural"]))
    for edge in structural:
        model.graph.position(edge)
    dataset = dataset_of(model, tokenizer, content)
    return Exported(folder, content["family"], model, dataset, certificates, structural, content)


def read_content(folder: Path) -> dict[str, Any]:
    """What `circuit.json` in a folder says, which is as `export` wrote it, and so are the files that it is about.

    Raises:
        CircuitFileError: there is no such file, it is none, or it was changed.
        ModelError: a file of the model was changed.
    """
    path = folder / "circuit.json"
    if not path.is_file() and any(folder.glob("*/circuit.json")):
        raise CircuitFileError(f"Expected a checkpoint's folder; got {str(folder)!r}, which holds several: {folder}/*")
    content = load_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
        raise CircuitFileError(
            f"Expected a file of format {FORMAT!r}, which `edgeprune export` writes; got {str(path)!r}"
        )
    if digest_of(content) != content.get("digest"):
        raise CircuitFileError(
            f"Expected {str(path)!r} as `edgeprune export` wrote it; it was changed: export it again"
        )
    try:
        checked(ExportContent, content)
    except ValueError as error:
        raise CircuitFileError(f"Expected {str(path)!r} as `edgeprune export` writes it; it is not: {error}") from error
    try:
        changed = [name for name, digest in content["files"].items() if digest_of_file(folder / name) != digest]
    except OSError as error:
        raise ModelError(f"Expected the files that {str(path)!r} is about beside it; {error}") from error
    if changed:
        raise ModelError(f"Expected the files that {str(path)!r} is about; {', '.join(changed)} beside it is another")
    return content


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of all that `circuit.json` says but this."""
    said = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a plain file of a folder.

    Raises:
        OSError: it cannot be read, is no plain file of that folder, or is larger than any that `export` writes.
    """
    if path.resolve().parent != path.parent.resolve():
        raise OSError(f"{path.name!r} lies elsewhere")
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(f"{path.name!r} has more than {LARGEST:,} bytes")
        return hashlib.file_digest(file, "sha256").hexdigest()


def graph_json(graph: Graph) -> dict[str, list[str]]:
    """All that a graph has, by name."""
    return {
        "sources": [str(node) for node in graph.sources],
        "destinations": [str(node) for node in graph.destinations],
        "edges": [str(edge) for edge in graph.edges],
    }


def _certificate(entry: Any, graph: Graph, ablation: Ablation) -> Certificate:
    """What `certificate_json` made of it."""
    circuits = tuple(Circuit(graph, ablation, frozenset(map(Edge.parse, edges))) for edges in entry["circuits"])
    told = {name: entry[name] for name in ("status", "inputs", "pairs", "exhaustive", "atol", "margin", "choices")}
    kept = entry["gap"]["kept"]
    gap = Gap(math.inf if kept is None else kept, entry["gap"]["dropped"])
    return Certificate(**told, gap=gap, circuits=circuits)


def dataset_of(model: Transformer, tokenizer: Any, content: Mapping[str, Any]) -> Dataset:
    """The domain, as the tokenizer reads it and with the model's own outputs.

    Raises:
        ModelError: an input has a word that the tokenizer does not know.
    """
    rows: list[list[int]] = [tokenizer(text)["input_ids"] for text in content["domain"]["inputs"]]
    if list(map(len, rows)) != [1 + len(output) for output in content["domain"]["expected"]]:
        raise ModelError("Expected a token for each word of an input, after the first; the tokenizer has others")
    if any(tokenizer.unk_token_id in row for row in rows):
        raise ModelError("Expected inputs of words that the tokenizer knows; it does not know one")
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
