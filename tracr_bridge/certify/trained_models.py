"""A trained model whose true circuits are known, because it is so small that all subsets of its edges can be run.

The domain is all that a task's file has, and a circuit is faithful where its KL divergence from the full model is
within a tolerance: in the mean over examples, or on each of them. As LayerNorm reads all that is written, every edge
counts but those out of or into an MLP whose weights are 0. All is run in double precision, but for
the rotations of a Llama. An example's divergence is the mean over its positions that count.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram, ModelError, RunError, TaskError
from edgeprune.files.folders import new_folder
from edgeprune.files.schemas import checked
from edgeprune.files.store import SavedCircuit, load_json, save_circuit, versions, write_json
from edgeprune.files.true_circuits import TRUTH
from edgeprune.graph import Ablation, Circuit, Edge, Graph, Node
from edgeprune.masked_model import Positions
from edgeprune.masks import edge_exists, edges_of
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.loss import Over
from edgeprune.methods.settings import out_of_range, refuse
from edgeprune.models.load import load_model
from edgeprune.models.transformer import Transformer
from edgeprune.runs.config import digest_of_tensors
from edgeprune.runs.step_cost import load_config
from edgeprune.tasks import TASKS, Encoder, metric_of
from edgeprune.tasks.jsonl import read_examples
from tracr_bridge.certify.subsets import LossJudge, live_subsets, true_circuits
from tracr_bridge.certify.truth import Certificate, Criterion, Truth, gap_of

_BATCH: Final = 8
"""Examples on which all subsets are run first; most show there that they are not faithful."""

_CRITERIA: Final[dict[Over, Criterion]] = {"mean": "mean KL", "worst": "largest KL"}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is asked for.

    Raises:
        ConfigError: the tolerance is not above 0.
        TaskError: the task's examples cannot be listed.
    """

    model: str
    """A folder, or a name on the Hugging Face hub."""

    task: str
    """A file of examples, all of which are run, whichever split they ask for."""

    tolerance: float
    """The largest divergence of a faithful circuit, nats."""

    criterion: Over = "mean"
    """Whether the mean over examples has to be within it, or each of them."""

    check: bool = True
    """Whether the model is what its files ask for, as `load_model`'s."""

    sha256: Mapping[str, str] | None = None
    """Of the weights and the task that a saved truth is of; None where nothing was saved."""

    def __post_init__(self) -> None:
        refuse(out_of_range(self, positive=("tolerance",)))
        if self.task in TASKS:
            raise TaskError(
                f"Expected a file of examples, all of which are run; got {self.task!r}, which is drawn and has no end"
            )

    @property
    def name(self) -> str:
        """Name of the model's folder, or on the hub."""
        return Path(self.model).resolve().name if Path(self.model).exists() else self.model

    @property
    def doc(self) -> str:
        """The criterion in words."""
        return f"{_CRITERIA[self.criterion]} of at most {self.tolerance:g} nats on {Path(self.task).name}"


@dataclass(frozen=True)
class Loaded:
    """A model, and all examples of its task."""

    asked: Trained
    model: Transformer
    dataset: Dataset
    sha256: Mapping[str, str]
    """Of the weights, and of the task's file as it was read."""

    def truth(self, ablation: Ablation, *, progress: bool = False) -> Truth:
        """All true circuits, as all subsets of edges are run.

        Raises:
            ModelError: there are too many subsets, or outputs that are no numbers.
            DegenerateProgram: the circuit without any edge is faithful.
        """
        asked, graph, edges = self.asked, self.model.graph, self.structural
        model, data = self.model.in_double, self.dataset
        with torch.no_grad():
            target = torch.cat(
                [model(data.tokens[r], positions=_at(data, r)) for r in torch.arange(len(data)).split(64)]
            )
        loss = CircuitLoss(
            model,
            replace(data, target=target),
            ablation,
            over=asked.criterion,
            inputs=len(data),
            batch_size=_BATCH,
            seed=0,
        )
        judge = LossJudge(loss, asked.tolerance)
        (whole,) = judge.differences_of([edges])
        if not whole <= asked.tolerance / 2:
            raise ModelError(
                f"Expected a tolerance well above rounding, and outputs that are numbers; all edges of {asked.name} "
                f"together are off by {whole:.3g} nats, and {asked.tolerance:g} are allowed"
            )
        found = true_circuits(loss, sorted(edges), asked.tolerance, progress=progress)
        if frozenset() in found.circuits:
            raise DegenerateProgram(
                f"Expected a tolerance that no circuit without edges is within; {asked.name} is within "
                f"{asked.tolerance:g} nats with every edge ablated, so that nothing could fail: choose a smaller one"
            )
        smallest_first = sorted(found.circuits, key=lambda kept: (len(kept), sorted(kept)))
        circuits = tuple(Circuit(graph, ablation, kept) for kept in smallest_first)
        certificate = Certificate(
            status="unique" if len(circuits) == 1 else "ambiguous",
            inputs=loss.inputs,
            pairs=loss.inputs,
            exhaustive=False,
            atol=asked.tolerance,
            gap=gap_of(judge, circuits[0]),
            margin=found.margin,
            choices=found.runs,
            circuits=circuits,
            criterion=_CRITERIA[asked.criterion],
        )
        return Truth(circuits[0], edges, certificate, judge)

    @cached_property
    def structural(self) -> frozenset[Edge]:
        """Edges that can carry something, to a node that can write something."""
        return _structural(self.model.graph, self.model.silent)


def _at(data: Dataset, rows: Int[Tensor, " row"]) -> Positions | None:
    return None if data.positions is None else data.positions[rows]


def _structural(graph: Graph, silent: Collection[Node]) -> frozenset[Edge]:
    edges = edges_of(graph, edge_exists(graph))
    return frozenset(edge for edge in edges if edge.source not in silent and edge.destination not in silent)


def _check_size(name: str) -> None:
    """Refuse, before any weight is loaded, a model that is too large even if no MLP writes anything."""
    config = load_config(name)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None)
    graph = Graph.transformer(embeddings=("embed",), layers=layers, heads=heads, kv_heads=kv_heads)
    least = _structural(graph, [Node("m", layer) for layer in range(layers)])
    live_subsets(graph, sorted(least), of=graph.total)


def load_trained(asked: Trained) -> Loaded:
    """The model, and its task in its tokens.

    Raises:
        ModelError: the model cannot be loaded, or is too large for all subsets of its edges to be run.
        TaskError: the file cannot be read, or does not fit the model's tokenizer.
        RunError: the weights or the task are no longer those that the saved truth is of.
    """
    examples = [example for example, _ in read_examples(Path(asked.task))]
    sha256 = {"task": hashlib.sha256(Path(asked.task).read_bytes()).hexdigest()}
    _check_size(asked.model)
    model, tokenizer = load_model(asked.model, device="cpu", check=asked.check)
    sha256["weights"] = digest_of_tensors(model.weights.state_dict())
    for what, digest in sha256.items():
        if asked.sha256 is not None and asked.sha256[what] != digest:
            raise RunError(
                f"Expected the {what} that the saved truth of {asked.name} is of; what is there now is another: run "
                "edgeprune truth again"
            )
    live_subsets(model.graph, sorted(_structural(model.graph, model.silent)))
    encoder = Encoder(tokenizer, context_length=model.context_length, vocabulary_size=model.vocabulary_size)
    return Loaded(asked, model, encoder.encode(examples, metric_of(asked.task)).dataset(model), sha256)


@dataclass(frozen=True)
class _Digests:
    """SHA-256 of what a truth is of."""

    task: str
    weights: str


@dataclass(frozen=True)
class _About:
    """What `truth.json` says a truth is of."""

    model: str
    task: str
    tolerance: float
    criterion: Over
    check: bool
    sha256: _Digests


@dataclass(frozen=True)
class _Saved:
    """What is read of `truth.json`; circuits are found again, and not taken from there."""

    about: _About


def read_asked(folder: Path) -> Trained:
    """Of which model, task and tolerance the truth in a folder is, as `save_truth` wrote it.

    Raises:
        RunError: the folder holds none.
    """
    what = "a truth of a trained model, as `edgeprune truth --save` writes it"
    content = load_json(folder / TRUTH, what, RunError)
    try:
        about = checked(_Saved, content).about
    except ValueError as fault:
        raise RunError(f"Expected {what}, in {str(folder)!r}; {fault}") from fault
    return Trained(
        model=about.model,
        task=about.task,
        tolerance=about.tolerance,
        criterion=about.criterion,
        check=about.check,
        sha256=asdict(about.sha256),
    )


def save_truth(truth: Truth, given: Loaded, said: Mapping[str, Any], folder: Path) -> None:
    """Write a truth as a folder: what `edgeprune truth --json` says and of what, and the smallest circuit to draw.

    Raises:
        UnwritableFile: there is something already, or it cannot be written.
    """
    asked = given.asked
    model = str(Path(asked.model).resolve()) if Path(asked.model).exists() else asked.model
    asked = replace(asked, model=model, task=str(Path(asked.task).resolve()), sha256=dict(given.sha256))
    with new_folder(folder) as unfinished:
        saved = SavedCircuit(truth.circuit, model=model, versions=versions(), family=given.model.family)
        save_circuit(saved, unfinished / "circuit.json")
        write_json(unfinished / TRUTH, {**said, "about": asdict(asked) | {"versions": versions()}})
