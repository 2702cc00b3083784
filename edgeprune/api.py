"""The Python API for notebooks and scripts: `import edgeprune as ep` offers its functions and classes."""

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
"""Corrupted inputs: under mean ablation, any number of them."""


def load_circuit(path: str | Path) -> Circuit:
    """Return the circuit in a file that edgeprune wrote, or in a run's folder; see `Circuit.load`."""
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
    """Return a task in a language model's tokens: one dataset each for `train`, `validation` and `test`.

    Args:
        task: a name such as `ioi`, or a file of examples (docs/language-models.md).
        model: the model that `load_model` returned.
        tokenizer: the tokenizer that `load_model` returned.
        train: largest number of training examples.
        validation: largest number of validation examples.
        test: largest number of test examples.
        seed: the same seed gives the same examples.
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
    """Return a dataset of inputs of one length, for use with any method.

    Args:
        model: the full model, whose outputs are the target.
        tokens: the clean inputs.
        corrupted: the corrupted input of each clean input; if None, resample ablation draws from all of `tokens`.
        scored: True at the positions that count; if None, all count.
        logits: True if outputs are logits, False if they are the values themselves.

    Raises:
        ConfigError: the shape of `corrupted` or `scored` is not that of `tokens`.
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
    """Return a dataset of inputs of one length, with no scored position and empty targets."""
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    return Dataset(tokens, nothing, torch.empty(*tokens.shape, 0), torch.zeros(len(tokens), dtype=torch.long))


def edge_pruning(*, target_sparsity: float | None = None, tolerance: float | None = None, **settings: Any) -> Method:
    """Return Edge Pruning with custom settings, as a method for `discover`.

    Exactly one of `target_sparsity` and `tolerance` must be given.

    Args:
        target_sparsity: share of all edges to remove, for the paper's objective.
        tolerance: largest allowed loss, in nats; the method looks for the fewest edges within it.
        settings: other settings by name, such as `steps=600`; `edgeprune prune --help` lists them.

    Raises:
        ConfigError: neither or both of the two are given, or a setting is unknown or outside its range.
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
    """Find a circuit. The method sees only the masked model and a copy of the inputs.

    Args:
        model: any `MaskedModel`.
        dataset: inputs, with the full model's outputs.
        method: a name (docs/methods.md), a method from `edge_pruning`, or a custom function. A function is called as
            `function(model, dataset, ablation, seed=seed)` and returns a `Circuit` or scores `[source, destination]`.
        ablation: what removed edges carry.
        seed: the same seed gives the same circuit.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        UnknownMethod: there is no method of that name.
        TaskError: under resample ablation, every corrupted input equals its clean input.
        MethodError: a custom function raised, or returned something else.
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
    """Return the true circuits, and the certificate that says how far they are proved (docs/truth.md).

    Args:
        subject: a program, its name, or `path/to/file.py:name`; the folder of a checkpoint that `edgeprune export`
            wrote; or, with `task` and `tolerance`, the folder of a trained model with few edges.
        ablation: what removed edges carry.
        seed: seed of all sampling.
        task: for a trained model, the task that gives its examples.
        tolerance: for a trained model, the largest KL divergence of a faithful circuit, in nats.
        criterion: for a trained model, whether the tolerance bounds the mean over examples or every example.

    Raises:
        EdgePruneError: there is no such program or model, or no method could fail on it.
    """
    # tracr_bridge, which knows programs, registers its certifier as an entry point: edgeprune does not import it.
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
    """Return a circuit's KL, task metric, exact match and accuracy, averaged over predictions.

    Args:
        model: the full model.
        circuit: a circuit of the model's graph.
        dataset: a task's inputs, with answers.
        means_of: the inputs that mean ablation averages over; `dataset` if None.
        batch_size: inputs per forward pass.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        CircuitMismatch: the circuit belongs to another graph.
        ConfigError: the dataset has no answers.
    """
    _check_graph(model, circuit)
    if dataset.answers is None:
        raise ConfigError("Expected a dataset with answers, as load_task gives one; this one has none")
    mask = circuit_mask(circuit)
    return measure(model, dataset, circuit.ablation, mask, means_of=means_of, batch_size=batch_size, progress=progress)


class CircuitModel(nn.Module):
    """A model that runs only a circuit: every other edge is ablated, with the circuit's ablation.

    Args:
        model: the full model.
        circuit: a circuit of the model's graph.

    Raises:
        CircuitMismatch: the circuit belongs to another graph.
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
        """Return the circuit's outputs.

        Args:
            tokens: clean inputs `[batch, pos]`.
            corrupted: under resample ablation, one corrupted input per clean input; under mean ablation, inputs of the
                same length, averaged per position; under zero ablation, None.
            positions: the positions of each input at which outputs are computed; None means all.

        Raises:
            ConfigError: corrupted inputs are missing, are given under zero ablation, or have the wrong shape.
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
    """Return the outputs `[batch, pos, vocab]` of a circuit, without gradients; see `CircuitModel`."""
    return CircuitModel(model, circuit)(tokens, corrupted, positions)


@contextmanager
def ablated(model: MaskedModel, circuit: Circuit, corrupted: Corrupted | None = None) -> Generator[MaskedModel]:
    """Make `model(tokens)` run the circuit inside the context; calls with a mask, and `sources`, do not change.

    Args:
        model: the full model; it is modified inside the context.
        circuit: a circuit of the model's graph.
        corrupted: the corrupted inputs of all calls, as for `CircuitModel.forward`.

    Raises:
        CircuitMismatch: the circuit belongs to another graph.
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

    # Python looks `__call__` up on the class, so the class is replaced, as torch's own parametrizations do.
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
