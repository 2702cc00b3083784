"""Reads a checkpoint that `export` wrote: the model, its domain and its true circuits."""

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
"""Largest size in bytes of a file that is read; the largest file that `export` writes has a fiftieth of it."""

BATCH: Final = 1024
"""Inputs run at a time."""


@dataclass(frozen=True)
class Exported:
    """A checkpoint that `export` wrote, loaded from its folder."""

    folder: Path
    family: str
    model: Transformer
    """The adapter over Hugging Face's model."""

    dataset: Dataset
    """The program's domain, with the model's own outputs."""

    certificates: Mapping[Ablation, Certificate]
    """The certificate of the true circuits under each ablation; absent if no method could fail under it."""

    structural: frozenset[Edge]
    """Edges whose source writes where their destination reads."""

    content: Mapping[str, Any]
    """`circuit.json`."""

    @property
    def name(self) -> str:
        """Name of the program, a hyphen, and the family."""
        return f"{self.content['program']['name']}-{self.family}"

    @property
    def doc(self) -> str:
        """What the program computes."""
        return self.content["program"]["doc"]

    @property
    def circuits(self) -> Mapping[Ablation, tuple[Circuit, ...]]:
        """True circuits under each ablation, smallest first; empty if no method could fail under it."""
        return {a: self.certificates[a].circuits if a in self.certificates else () for a in ABLATIONS}

    def truth(self, ablation: Ablation) -> Truth:
        """Return the certified truth under an ablation; `recover.assess` compares circuits with it.

        Its circuits are run again, because another machine's rounding might make one untrue.

        Raises:
            DegenerateProgram: no method could fail under the ablation.
            ModelError: a circuit is not true on this machine.
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
        # Norms read every source, so edges that are not structural may matter.
        return Truth(certificate.circuits[0], self.structural, certificate, judge, others_matter=True)


def load_exported(folder: Path, *, device: str = "cpu") -> Exported:
    """Load a checkpoint that `export` wrote; nothing is compiled.

    Args:
        folder: the checkpoint's folder, with `circuit.json`.
        device: where the model runs; everything was proved on the CPU.

    Raises:
        CircuitFileError: `circuit.json` is missing, was not written by `export`, or was changed.
        GraphError: it has edges that the model does not have.
        ModelError: the model cannot be loaded, or one of its files was changed.
    """
    content = read_content(folder)
    model, tokenizer = load_model(str(folder), device=device)
    for part in (model.weights.config, *model.weights.modules()):
        if hasattr(part, "name_or_path"):
            part.name_or_path = ""  # a method must not learn from the model where its true circuit is stored
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
    """Return the content of a folder's `circuit.json`; check that it and the files it describes are unchanged.

    Raises:
        CircuitFileError: `circuit.json` is missing, was not written by `export`, or was changed.
        ModelError: a file of the model is missing or was changed.
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
    """Return the SHA-256 of the content of `circuit.json` without its entry `digest`."""
    said = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a plain file.

    Raises:
        OSError: it cannot be read, lies outside its folder, is not a plain file, or is larger than `LARGEST`.
    """
    if path.resolve().parent != path.parent.resolve():
        raise OSError(f"{path.name!r} lies elsewhere")
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(f"{path.name!r} has more than {LARGEST:,} bytes")
        return hashlib.file_digest(file, "sha256").hexdigest()


def graph_json(graph: Graph) -> dict[str, list[str]]:
    """Return the names of a graph's sources, destinations and edges."""
    return {
        "sources": [str(node) for node in graph.sources],
        "destinations": [str(node) for node in graph.destinations],
        "edges": [str(edge) for edge in graph.edges],
    }


def _certificate(entry: Any, graph: Graph, ablation: Ablation) -> Certificate:
    """Return the certificate that `certificate_json` wrote as `entry`."""
    circuits = tuple(Circuit(graph, ablation, frozenset(map(Edge.parse, edges))) for edges in entry["circuits"])
    told = {name: entry[name] for name in ("status", "inputs", "pairs", "exhaustive", "atol", "margin", "choices")}
    kept = entry["gap"]["kept"]
    gap = Gap(math.inf if kept is None else kept, entry["gap"]["dropped"])
    return Certificate(**told, gap=gap, circuits=circuits)


def dataset_of(model: Transformer, tokenizer: Any, content: Mapping[str, Any]) -> Dataset:
    """Return the domain as the tokenizer encodes it, with the model's own outputs as targets.

    Raises:
        ModelError: the tokenizer does not know a word of an input, or does not give one token for each word.
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
