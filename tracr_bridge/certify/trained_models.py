"""Certifies trained models that are so small that all subsets of their edges can be run.

The domain is every example of a task's file. A circuit is faithful if KL(full model || circuit) is within a tolerance,
in the mean over examples or on each of them. An example's divergence is the mean over its scored positions. Norms read
every source, so every edge is structural except those from or to an MLP that writes nothing (its output weights are 0).
Everything runs in double precision except the rotary embeddings of a Llama.
"""

import hashlib
import json
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
from edgeprune.files.folders import existing, new_folder
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
"""Examples per batch. Every subset is run on the first batch; most are shown there not to be faithful."""

_OF_THE_FILE: Final = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""Settings of a configuration that say where a model is from, and not what it computes."""

_CRITERIA: Final[dict[Over, Criterion]] = {"mean": "mean KL", "worst": "largest KL"}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model, the task that is its domain, and the criterion of a faithful circuit.

    Raises:
        ConfigError: the tolerance is not above 0.
        TaskError: the task draws its examples, so that they cannot be listed.
    """

    model: str
    """The model: a folder, or a name on the Hugging Face hub."""

    task: str
    """A file of examples. All of them are run, whatever split they belong to."""

    tolerance: float
    """The largest KL divergence of a faithful circuit, in nats; above 0."""

    criterion: Over = "mean"
    """What has to be within the tolerance: the mean over examples (`mean`), or every example (`worst`)."""

    check: bool = True
    """Whether `load_model` checks that the loaded model is the one that its files describe."""

    sha256: Mapping[str, str] | None = None
    """SHA-256 of what a saved truth is of, as in `Loaded`; None without a saved truth."""

    ablation: Ablation | None = None
    """The ablation that a saved truth is of; None without a saved truth."""

    def __post_init__(self) -> None:
        refuse(out_of_range(self, positive=("tolerance",)))
        if self.task in TASKS:
            raise TaskError(
                f"Expected a file of examples, all of which are run; got {self.task!r}, which is drawn and has no end"
            )

    @property
    def name(self) -> str:
        """The name of the model's folder, or its name on the hub."""
        return Path(self.model).resolve().name if Path(self.model).exists() else self.model

    @property
    def doc(self) -> str:
        """The criterion and the task in words."""
        return f"{_CRITERIA[self.criterion]} of at most {self.tolerance:g} nats on {Path(self.task).name}"


@dataclass(frozen=True)
class Loaded:
    """A loaded model, and all examples of its task."""

    asked: Trained
    model: Transformer
    dataset: Dataset
    sha256: Mapping[str, str]
    """SHA-256 of the `weights`, the `configuration`, the `task` file and its `tokens`, as they were read."""

    def truth(self, ablation: Ablation, *, progress: bool = False) -> Truth:
        """Find all true circuits by running all subsets of edges, and certify them.

        Raises:
            ModelError: there are too many subsets, or all edges together are off by more than half the tolerance.
            DegenerateProgram: the empty circuit is faithful.
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
        """Edges that can matter: neither from nor to a node that writes nothing."""
        return _structural(self.model.graph, self.model.silent)


def _at(data: Dataset, rows: Int[Tensor, " row"]) -> Positions | None:
    return None if data.positions is None else data.positions[rows]


def _structural(graph: Graph, silent: Collection[Node]) -> frozenset[Edge]:
    edges = edges_of(graph, edge_exists(graph))
    return frozenset(edge for edge in edges if edge.source not in silent and edge.destination not in silent)


def _check_size(name: str) -> None:
    """Raise ModelError, before weights are loaded, if a model is too large even if none of its MLPs writes anything."""
    config = load_config(name)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None)
    graph = Graph.transformer(embeddings=("embed",), layers=layers, heads=heads, kv_heads=kv_heads)
    least = _structural(graph, [Node("m", layer) for layer in range(layers)])
    live_subsets(graph, sorted(least), of=graph.total)


def load_trained(asked: Trained) -> Loaded:
    """Load a model, and its task as tokens of that model.

    Raises:
        ModelError: the model cannot be loaded, or is too large for all subsets of its edges to be run.
        TaskError: the file cannot be read, or does not fit the model's tokenizer.
        RunError: the weights or the task have changed since the truth was saved.
    """
    examples = [example for example, _ in read_examples(Path(asked.task))]
    sha256 = {"task": hashlib.sha256(Path(asked.task).read_bytes()).hexdigest()}
    _check_size(asked.model)
    model, tokenizer = load_model(asked.model, device="cpu", check=asked.check)
    sha256["weights"] = digest_of_tensors(model.weights.state_dict())
    live_subsets(model.graph, sorted(_structural(model.graph, model.silent)))
    encoder = Encoder(tokenizer, context_length=model.context_length, vocabulary_size=model.vocabulary_size)
    dataset = encoder.encode(examples, metric_of(asked.task)).dataset(model)
    sha256["configuration"] = hashlib.sha256(_settings(model).encode()).hexdigest()
    sha256["tokens"] = hashlib.sha256(dataset.tokens.numpy().tobytes()).hexdigest()
    for what, digest in sha256.items():
        if asked.sha256 is not None and asked.sha256[what] != digest:
            raise RunError(
                f"Expected the {what} that the saved truth of {asked.name} is of; what is there now is another: run "
                "edgeprune truth again"
            )
    return Loaded(asked, model, dataset, sha256)


def _settings(model: Transformer) -> str:
    """Return what a model's configuration says of what it computes."""
    config = model.weights.config.to_dict()
    config = {name: value for name, value in config.items() if name not in _OF_THE_FILE}
    return json.dumps(config, sort_keys=True, default=str)


@dataclass(frozen=True)
class _Digests:
    """SHA-256 of the task file and of the weights that a saved truth is about."""

    task: str
    weights: str
    configuration: str
    tokens: str


@dataclass(frozen=True)
class _About:
    """The entry `about` of `truth.json`: the model, task and criterion that the truth is about."""

    model: str
    task: str
    tolerance: float
    criterion: Over
    check: bool
    sha256: _Digests
    ablation: Ablation


@dataclass(frozen=True)
class _Saved:
    """The part of `truth.json` that is read. Circuits are not read: they are found again."""

    about: _About


def read_asked(folder: Path) -> Trained:
    """Return the model, task and criterion of the truth that `save_truth` wrote to a folder.

    Raises:
        RunError: the folder holds no such truth.
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
        ablation=about.ablation,
    )


def save_truth(truth: Truth, given: Loaded, said: Mapping[str, Any], folder: Path) -> None:
    """Write a truth as a folder.

    `truth.json` holds `said`, which `edgeprune truth --json` prints, and the model, task and criterion it is about.
    `circuit.json` holds the smallest circuit, to draw.

    Raises:
        UnwritableFile: something exists at `folder`, or it cannot be written.
    """
    asked = given.asked
    model, task = existing(asked.model), existing(asked.task)
    asked = replace(asked, model=model, task=task, sha256=dict(given.sha256), ablation=truth.circuit.ablation)
    with new_folder(folder) as unfinished:
        saved = SavedCircuit(truth.circuit, model=model, versions=versions(), family=given.model.family)
        save_circuit(saved, unfinished / "circuit.json")
        write_json(unfinished / TRUTH, {**said, "about": asdict(asked) | {"versions": versions()}})
