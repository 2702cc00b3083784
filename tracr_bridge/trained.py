"""A trained model whose true circuits are known, because it is so small that all subsets of its edges can be run.

The domain is all that a task's file has, and a circuit is faithful where its KL divergence from the full model is
within a tolerance: in the mean over examples, or on each of them. As LayerNorm reads all that is written, every edge
counts but those out of or into an MLP whose weights are 0. All is run in double precision.
"""

import json
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor

from edgeprune.data import Dataset
from edgeprune.errors import ConfigError, DegenerateProgram, ModelError, TaskError
from edgeprune.graph import Ablation, Circuit, Edge
from edgeprune.masks import edge_exists, edges_of
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.loss import Over
from edgeprune.methods.settings import out_of_range, refuse
from edgeprune.model import Positions
from edgeprune.models.load import load_model
from edgeprune.models.transformer import Transformer
from edgeprune.store import SavedCircuit, UnwritableFile, check_writable, save_circuit, versions, write_text
from edgeprune.tasks import TASKS, Encoder, metric_of
from edgeprune.tasks.jsonl import read_examples
from tracr_bridge.subsets import LossJudge, true_circuits
from tracr_bridge.truth import Certificate, Criterion, Gap, Truth, without_one

_BATCH: Final = 8
"""Examples on which all subsets are run first; most show there that they are not faithful."""

_CRITERIA: Final[dict[Over, Criterion]] = {"mean": "mean KL", "worst": "largest KL"}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is asked for.

    Raises:
        ConfigError: the tolerance is none.
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

    def __post_init__(self) -> None:
        refuse(out_of_range(self, positive=("tolerance",)))
        if self.criterion not in _CRITERIA:
            raise ConfigError(f"Expected a criterion among {', '.join(_CRITERIA)}; got {self.criterion!r}")
        if self.task in TASKS:
            raise TaskError(
                f"Expected a file of examples, all of which are run; got {self.task!r}, which is drawn and has no end"
            )

    @property
    def name(self) -> str:
        """Of the model's folder."""
        return Path(self.model).resolve().name if Path(self.model).exists() else self.model

    @property
    def doc(self) -> str:
        """What is faithful."""
        return f"{_CRITERIA[self.criterion]} of at most {self.tolerance:g} nats on {Path(self.task).name}"


@dataclass(frozen=True)
class Loaded:
    """A model, and all examples of its task."""

    asked: Trained
    model: Transformer
    dataset: Dataset

    def truth(self, ablation: Ablation, *, progress: bool = False) -> Truth:
        """All true circuits, as all subsets of edges are run.

        Raises:
            ModelError: there are too many subsets, or outputs that are no numbers.
            DegenerateProgram: the circuit without any edge is faithful.
        """
        asked, graph = self.asked, self.model.graph
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
        edges = self._structural()
        found = true_circuits(loss, sorted(edges), asked.tolerance, progress=progress)
        if not found.circuits:
            raise ModelError(f"Expected a model whose outputs are numbers; those of {asked.name} are not")
        if frozenset() in found.circuits:
            raise DegenerateProgram(
                f"Expected a tolerance that no circuit without edges is within; {asked.name} is within "
                f"{asked.tolerance:g} nats with every edge ablated, so that nothing could fail: choose a smaller one"
            )
        smallest_first = sorted(found.circuits, key=lambda kept: (len(kept), sorted(kept)))
        circuits = tuple(Circuit(graph, ablation, kept) for kept in smallest_first)
        judge = LossJudge(loss, asked.tolerance)
        without = judge.differences_of([circuits[0].edges, *without_one(circuits[0].edges)])
        certificate = Certificate(
            status="unique" if len(circuits) == 1 else "ambiguous",
            inputs=len(self.dataset),
            pairs=len(self.dataset),
            exhaustive=True,
            atol=asked.tolerance,
            gap=Gap(kept=min(without[1:]), dropped=without[0]),
            margin=found.margin,
            choices=found.run,
            circuits=circuits,
            criterion=_CRITERIA[asked.criterion],
        )
        return Truth(circuits[0], edges, certificate, judge)

    def _structural(self) -> frozenset[Edge]:
        """Edges that can carry something, to a node that can write something."""
        silent, graph = self.model.silent, self.model.graph
        edges = edges_of(graph, edge_exists(graph))
        return frozenset(edge for edge in edges if not {edge.source, edge.destination} & silent)


def _at(data: Dataset, rows: Int[Tensor, " row"]) -> Positions | None:
    return None if data.positions is None else data.positions[rows]


def load_trained(asked: Trained) -> Loaded:
    """The model, and its task in its tokens.

    Raises:
        ModelError: the model cannot be loaded.
        TaskError: the file cannot be read, or does not fit the model's tokenizer.
    """
    examples = [example for example, _ in read_examples(Path(asked.task))]
    model, tokenizer = load_model(asked.model, device="cpu")
    encoder = Encoder(tokenizer, context_length=model.context_length, vocabulary_size=model.vocabulary_size)
    return Loaded(asked, model, encoder.encode(examples, metric_of(asked.task)).dataset(model))


def save_truth(truth: Truth, asked: Trained, said: dict[str, Any], folder: Path) -> None:
    """Write a truth as a folder: what `edgeprune truth --json` says, and the smallest circuit to draw.

    Raises:
        UnwritableFile: there is something already, or it cannot be written.
    """
    if folder.exists():
        raise UnwritableFile(f"Expected a folder that does not exist yet; got {str(folder)!r}")
    check_writable(folder)
    unfinished = folder.with_name(f".{uuid.uuid4().hex}")
    try:
        unfinished.mkdir()
        save_circuit(SavedCircuit(truth.circuit, model=asked.model, versions=versions()), unfinished / "circuit.json")
        write_text(unfinished / "truth.json", json.dumps(said, indent=1, allow_nan=False) + "\n")
        os.replace(unfinished, folder)
    except OSError as error:
        raise UnwritableFile(f"Expected a folder that can be written; got {str(folder)!r}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
