"""What a notebook needs, in one place: `import edgeprune as ep` has everything in here."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from edgeprune.ablation import group_means
from edgeprune.data import Dataset, check_counterparts
from edgeprune.errors import ConfigError
from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.evaluation.evaluate import evaluate as measure
from edgeprune.graph import Ablation, Circuit, CircuitMismatch, parse_ablation
from edgeprune.masked_model import MaskedModel, OnlyMasked, Outputs, Positions, Sources, Tokens
from edgeprune.masks import circuit_mask
from edgeprune.methods import Discovery, Method, find_method
from edgeprune.methods.custom import adapt
from edgeprune.methods.edge_pruning.configurations import PAPER, TOLERANCE, foreign
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.settings import with_settings

if TYPE_CHECKING:
    from tracr_bridge.certify.truth import Truth
    from tracr_bridge.compile.program import Program

Corrupted = Int[Tensor, "others other_pos"]
"""Corrupted inputs: under mean, as many as one likes."""


def load_circuit(path: str | Path) -> Circuit:
    """The circuit of a file that we wrote, or of a run's folder; see `Circuit.load`."""
    return Circuit.load(path)


def load_task(
    task: str,
    model: Any,
    tokenizer: Any,
    *,
    train: int = 200,
    validation: int = 200,
    test: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Dataset]:
    """A task in a language model's tokens: a dataset for each of `train`, `validation` and `test`.

    Args:
        task: a name such as `ioi`, or a file of examples (docs/language-models.md).
        model: what `load_model` gave.
        tokenizer: the same.
        train: examples, at the most.
        validation: the same.
        test: the same.
        seed: of the examples.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        TaskError: there is no such task, or it does not fit the tokenizer.
    """
    from edgeprune.runs.config import encode_task
    from edgeprune.tasks import Sizes

    encoded = encode_task(task, model, tokenizer, Sizes(train=train, validation=validation, test=test), seed=seed)
    return {split: each.dataset(model, progress=progress) for split, each in encoded.items()}


@torch.no_grad()
def make_dataset(
    model: MaskedModel,
    tokens: Int[Tensor, "batch pos"],
    *,
    corrupted: Int[Tensor, "batch pos"] | None = None,
    scored: Bool[Tensor, "batch pos"] | None = None,
    logits: bool = True,
) -> Dataset:
    """Inputs of one length as a dataset that methods take.

    Args:
        model: the full model, whose outputs are the target.
        tokens: the clean inputs.
        corrupted: for each its corrupted one; where it is None, resample ablation takes any other of `tokens`.
        scored: the positions that count; all unless given.
        logits: whether outputs are logits, or values themselves.

    Raises:
        ConfigError: shapes do not match.
    """
    for name, other in (("corrupted", corrupted), ("scored", scored)):
        if other is not None and other.shape != tokens.shape:
            raise ConfigError(
                f"Expected {name} of the shape of tokens, {tuple(tokens.shape)}; got {tuple(other.shape)}"
            )
    return replace(
        _inputs(tokens),
        scored=torch.ones_like(tokens, dtype=torch.bool) if scored is None else scored,
        target=model(tokens),
        logits=logits,
        counterparts=corrupted,
    )


def _inputs(tokens: Int[Tensor, "batch pos"]) -> Dataset:
    """Inputs of one length, of which nothing is asked."""
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    return Dataset(tokens, nothing, torch.empty(*tokens.shape, 0), torch.zeros(len(tokens), dtype=torch.long))


def edge_pruning(*, target_sparsity: float | None = None, tolerance: float | None = None, **settings: Any) -> Method:
    """Edge Pruning with settings of one's own, as `discover` takes it.

    Args:
        target_sparsity: share of edges that the paper's objective removes.
        tolerance: in its place, the loss, nats, that the fewest edges are to stay within.
        settings: others by name, as `edgeprune prune --help` lists them, such as `steps=600`.

    Raises:
        ConfigError: neither or both of the two are given, or a setting is none of its options, or outside its range.
    """
    if (target_sparsity is None) == (tolerance is None):
        got = "neither" if tolerance is None else "both"
        raise ConfigError(f"Expected target_sparsity or tolerance; got {got}")
    goal = {"target_sparsity": target_sparsity} if tolerance is None else {"tolerance": tolerance}
    config = PAPER if tolerance is None else TOLERANCE
    if wrong := foreign(config, settings):
        raise ConfigError(f"Expected settings of {config.name}, which has no {', '.join(wrong)}")
    return partial(prune_edges, config=with_settings(config, goal | settings))


def discover(
    model: MaskedModel,
    dataset: Dataset,
    method: str | Callable[..., Any] = "edge-pruning-minimax",
    *,
    ablation: Ablation = "resample",
    seed: int = 0,
    progress: bool = False,
) -> Discovery:
    """Find a circuit. The method sees the masked model and a copy of the inputs, and nothing else.

    Args:
        model: any `MaskedModel`.
        dataset: inputs, with the full model's outputs.
        method: a name (docs/methods.md), what `edge_pruning` gives, or a function of one's own, which is called as
            `function(model, dataset, ablation, seed=seed)` and returns a `Circuit` or scores `[source, destination]`.
        ablation: what removed edges carry.
        seed: the same seed gives the same circuit.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        UnknownMethod: there is none of that name.
        TaskError: under resample, all corrupted inputs are the clean ones.
        MethodError: a function of one's own raised, or returned something else.
    """
    parse_ablation(ablation)
    if ablation == "resample" and dataset.counterparts is not None:
        check_counterparts(dataset.tokens, dataset.counterparts)
    if isinstance(method, str):
        find = find_method(method)
    elif isinstance(method, partial) and method.func is prune_edges:
        find = method
    else:
        find = adapt(method, getattr(method, "__qualname__", repr(method)))
    return find(OnlyMasked(model), dataset.copy(), ablation, seed=seed, progress=progress)


def certify(
    subject: "str | Path | Program",
    *,
    ablation: Ablation = "zero",
    seed: int = 0,
    task: str | None = None,
    tolerance: float | None = None,
    criterion: Literal["mean", "worst"] = "mean",
) -> "Truth":
    """The true circuits, and the certificate that says how far they are proved (docs/truth.md).

    Args:
        subject: a program, or its name or `path/to/file.py:name`; the folder of a checkpoint that `edgeprune export`
            wrote; or, with `task` and `tolerance`, that of a trained model whose edges are few.
        ablation: what removed edges carry.
        seed: of what is sampled.
        task: of a trained model, its examples.
        tolerance: of a trained model, the largest divergence of a faithful circuit, nats.
        criterion: of a trained model, whether in the mean over examples or on each.

    Raises:
        EdgePruneError: there is no such program or model, or nothing could fail on it.
    """
    # By the package that knows programs, which this one does not import.
    certifiers = [entry.load() for entry in entry_points(group="edgeprune.certify")]
    if len(certifiers) != 1:
        raise ConfigError(f"Expected one package that certifies, tracr_bridge; got {len(certifiers)}: install it again")
    return certifiers[0](
        subject, parse_ablation(ablation), seed=seed, task=task, tolerance=tolerance, criterion=criterion
    )


def evaluate(
    model: MaskedModel,
    circuit: Circuit,
    dataset: Dataset,
    *,
    means_of: Dataset | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Evaluation:
    """KL, the task's metric, exact match and accuracy of a circuit, in the mean over predictions.

    Args:
        model: the full model.
        circuit: of its graph.
        dataset: of a task, which has answers.
        means_of: what mean ablation averages over; `dataset` unless given.
        batch_size: inputs a forward.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        CircuitMismatch: the circuit is of another model.
        ConfigError: the dataset has no answers.
    """
    _check_graph(model, circuit)
    if dataset.answers is None:
        raise ConfigError("Expected a dataset with answers, as load_task gives one; this one has none")
    mask = circuit_mask(circuit)
    return measure(model, dataset, circuit.ablation, mask, means_of=means_of, batch_size=batch_size, progress=progress)


class CircuitModel(nn.Module):
    """A model of which a circuit is left: all other edges are ablated as the circuit says.

    Args:
        model: the full model.
        circuit: of its graph.

    Raises:
        CircuitMismatch: the circuit is of another model.
    """

    mask: Tensor

    def __init__(self, model: MaskedModel, circuit: Circuit) -> None:
        super().__init__()
        _check_graph(model, circuit)
        self.model, self.circuit = model, circuit
        self.register_buffer("mask", circuit_mask(circuit))

    def forward(
        self, tokens: Tokens, corrupted: Corrupted | None = None, positions: Positions | None = None
    ) -> Outputs:
        """Outputs of the circuit.

        Args:
            tokens: clean inputs `[batch, pos]`.
            corrupted: under resample, a corrupted input for each; under mean, inputs of the same length, over which
                means are taken position by position; none under zero.
            positions: those of each input at which outputs are wanted; all where it is None.

        Raises:
            ConfigError: corrupted inputs are missing, not wanted, or of another shape.
        """
        return self.model(tokens, self.mask, self._ablated(tokens, corrupted), positions)

    @torch.no_grad()
    def _ablated(self, tokens: Tensor, corrupted: Tensor | None) -> Sources | None:
        ablation = self.circuit.ablation
        if (corrupted is None) != (ablation == "zero"):
            wanted = "no corrupted inputs" if corrupted is not None else "corrupted inputs"
            raise ConfigError(f"Expected {wanted}, as the circuit is one under {ablation} ablation")
        if corrupted is None:
            return None
        if corrupted.shape[-1] != tokens.shape[-1] or (ablation == "resample" and corrupted.shape != tokens.shape):
            raise ConfigError(
                f"Expected corrupted inputs of the shape of tokens, {tuple(tokens.shape)}"
                f"{', or more or fewer of them' if ablation == 'mean' else ''}; got {tuple(corrupted.shape)}"
            )
        if ablation == "resample":
            return self.model.sources(corrupted)
        return group_means(self.model, _inputs(corrupted)).expand(-1, len(tokens), -1, -1)


@torch.no_grad()
def run_with(
    model: MaskedModel,
    circuit: Circuit,
    tokens: Tokens,
    corrupted: Corrupted | None = None,
    *,
    positions: Positions | None = None,
) -> Outputs:
    """Outputs `[batch, pos, vocab]` of a model of which a circuit is left, without gradients; see `CircuitModel`."""
    return CircuitModel(model, circuit)(tokens, corrupted, positions)


@contextmanager
def ablated(model: MaskedModel, circuit: Circuit, corrupted: Corrupted | None = None) -> Generator[MaskedModel]:
    """Inside, `model(tokens)` runs the circuit; a call with a mask of its own, and `sources`, are as they were.

    Args:
        model: the full model, which is changed for as long.
        circuit: of its graph.
        corrupted: as `CircuitModel.forward` takes them, for all calls.

    Raises:
        CircuitMismatch: the circuit is of another model.
    """
    left, kind, plain = CircuitModel(model, circuit), type(model), False

    def call(
        self: Any, tokens: Tokens, mask: Any = None, ablated: Any = None, positions: Positions | None = None
    ) -> Outputs:
        if plain or mask is not None:
            return kind.__call__(self, tokens, mask, ablated, positions)
        return left(tokens, corrupted, positions)

    def sources(self: Any, tokens: Tokens) -> Sources:
        nonlocal plain
        before, plain = plain, True
        try:
            return kind.sources(self, tokens)
        finally:
            plain = before

    # As torch's own parametrizations do it: what `model()` runs is looked up on its class.
    object.__setattr__(model, "__class__", type(kind.__name__, (kind,), {"__call__": call, "sources": sources}))
    try:
        yield model
    finally:
        object.__setattr__(model, "__class__", kind)


def _check_graph(model: MaskedModel, circuit: Circuit) -> None:
    if circuit.graph != model.graph:
        raise CircuitMismatch(
            f"Expected a circuit of the model's graph, of {model.graph.total} edges; got one of a graph of "
            f"{circuit.graph.total}"
        )
