"""The settings of a run, and loading what it is about: a language model, and a task in the model's tokens."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor

from edgeprune.data import Dataset, check_counterparts
from edgeprune.errors import ConfigError, ModelError, RunError, TaskError
from edgeprune.evaluation.evaluate import Evaluation, evaluate
from edgeprune.files.schemas import parse
from edgeprune.graph import Ablation
from edgeprune.masked_model import Mask
from edgeprune.methods.edge_pruning.config import PruningConfig
from edgeprune.methods.edge_pruning.configurations import BY_NAME, PAPER
from edgeprune.methods.edge_pruning.gradient import ThroughZ
from edgeprune.metrics.distances import ATOL
from edgeprune.models.load import Precision, load_model
from edgeprune.models.sharded import whole
from edgeprune.models.transformer import Transformer
from edgeprune.parallel import join
from edgeprune.runs.polish import goal_of
from edgeprune.tasks import Encoded, Encoder, Sizes, make_examples, metric_of

_MEASURED: Final = 32
"""Inputs per forward pass when a circuit is measured, if batches run in one part."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run; the same settings give the same circuit.

    Raises:
        ConfigError: a setting is outside its range, or settings do not go together.
    """

    model: str
    """Name on the Hugging Face hub, or a folder."""

    task: str
    """Name in `tasks.TASKS`, or a file of examples."""

    ablation: Ablation = "resample"
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    """Seed of the masks and of the order of examples."""

    data_seed: int = 0
    """Seed of the task's examples, apart from `seed`: runs with different seeds use the same examples."""

    precision: Precision = "float32"
    parts: int = 1
    """Parts that a batch is split into, run one after the other: memory of one part, gradients of the whole batch."""

    pruning: PruningConfig = PAPER

    polish: bool = False
    """Whether to polish the learned circuit: remove and exchange edges by trial (`methods/polish.py`)."""

    @property
    def method(self) -> str:
        """Name of the method that finds the circuit."""
        return f"{self.pruning.name}-polished" if self.polish else self.pruning.name

    def __post_init__(self) -> None:
        if not 1 <= self.parts <= self.pruning.batch_size:
            raise ConfigError(f"Expected parts from 1 to batch_size, {self.pruning.batch_size}; got {self.parts}")
        loss = self.pruning.loss
        if self.parts > 1 and "worst" in (loss.loss, loss.criterion) and isinstance(self.pruning.gradient, ThroughZ):
            raise ConfigError("Expected a loss that is a mean over inputs, as a batch runs in parts; got the worst")
        if self.precision == "bfloat16" and self.pruning.loss.loss == "worst":
            raise ConfigError(
                f"Expected float32 for {self.pruning.name}: bfloat16 rounds by more than outputs may differ, {ATOL:g}"
            )
        if self.polish:
            goal_of(self.pruning, 1)
        _check_readable(self.pruning)


def _check_readable(pruning: PruningConfig) -> None:
    """Raise ConfigError if a run's folder could not give `pruning` back, or if its parts do not match its name."""
    named = BY_NAME.get(pruning.name)
    try:
        written = json.loads(json.dumps(asdict(pruning)))
        readable = named is not None and _parts(named) == _parts(pruning) and parse(PruningConfig, written) == pruning
    except (TypeError, ValueError):  # a setting that JSON cannot hold, or of the wrong type
        readable = False
    if not readable:
        raise ConfigError(f"Expected settings of {' or '.join(BY_NAME)}, with all of its parts; got {pruning.name!r}")


def _parts(pruning: PruningConfig) -> dict[str, type]:
    own = {each.name: getattr(pruning, each.name) for each in fields(pruning)}
    return {name: type(value) for name, value in own.items() if is_dataclass(value)}


@dataclass(frozen=True)
class ModelOnTask:
    """A model, and a task in its tokens; identical on every process."""

    model: Transformer
    splits: dict[str, Dataset]
    digests: dict[str, str]
    """Digests of the weights and of the task in the model's tokens, under `weights` and `task`."""

    parts: int = 1
    """Parts that a batch runs in; the batches of `evaluate` are that many times smaller."""

    def evaluate(self, split: str, ablation: Ablation, mask: Mask, *, progress: bool = False) -> Evaluation:
        """Measure a circuit on a split; mean ablation takes its means from the training split.

        Raises:
            RunError: a measurement is not finite.
        """
        means_of = self.splits["train"] if ablation == "mean" else None
        found = evaluate(
            self.model,
            self.splits[split],
            ablation,
            mask,
            means_of=means_of,
            batch_size=math.ceil(_MEASURED / self.parts),
            progress=progress,
        )
        if not all(map(math.isfinite, asdict(found).values())):
            raise RunError(f"Expected a circuit whose outputs can be measured; got {asdict(found)}: try float32")
        return found


def load_model_on_task(
    config: RunConfig, splits: Sequence[str], *, device: str = "auto", check: bool = True, progress: bool = False
) -> ModelOnTask:
    """Load a run's model, and splits of its task with the full model's logits.

    If `torchrun` started several processes, each calls this, and the model is sharded among them.

    Args:
        config: settings of the run.
        splits: names of the splits to load.
        device: where the model runs.
        check: whether to check the loaded model against its files, as `load_model` does.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        ModelError: the model cannot be loaded, or its logits are not finite.
        TaskError: the task cannot be loaded, or does not fit the model's tokenizer or the ablation.
        RunError: another process has stopped.
    """
    ranks = join()
    model, tokenizer = load_model(config.model, precision=config.precision, device=device, ranks=ranks, check=check)
    encoded = encode_task(config.task, model, tokenizer, config.sizes, seed=config.data_seed)
    _check_means(config, encoded)
    if config.ablation == "resample":
        check_counterparts(encoded["train"].tokens, encoded["train"].counterparts)
    digests = {"weights": digest_of_tensors(model.weights.state_dict()), "task": digest_of_tensors(_tensors(encoded))}
    datasets = {split: encoded[split].dataset(model, progress=progress and ranks.first) for split in splits}
    _check_numbers(config, datasets)
    return ModelOnTask(model, datasets, digests, config.parts)


def encode_task(task: str, model: Transformer, tokenizer: Any, sizes: Sizes, *, seed: int) -> dict[str, Encoded]:
    """Return the splits of a task in a model's tokens.

    Raises:
        TaskError: the task cannot be loaded, or does not fit the model's tokenizer.
    """
    encoder = Encoder(tokenizer, context_length=model.context_length, vocabulary_size=model.vocabulary_size)
    examples = make_examples(task, encoder, sizes, seed=seed)
    # All splits are padded to one length: means of one split replace values in another.
    together = encoder.encode([example for split in examples.values() for example in split], metric_of(task))
    ends = list(accumulate(len(split) for split in examples.values()))
    return {split: together[end - len(examples[split]) : end] for split, end in zip(examples, ends, strict=True)}


def _check_means(config: RunConfig, encoded: Mapping[str, Encoded]) -> None:
    """Raise TaskError if a split has a length that no training example has, so that mean ablation has no mean."""
    known = set(encoded["train"].length.tolist())
    for split, each in encoded.items():
        if config.ablation == "mean" and (more := sorted(set(each.length.tolist()) - known)):
            raise TaskError(
                f"Expected training examples of every length, which mean ablation averages over; the {split} split has "
                f"one of {more[0]} tokens, and the training split none: ask for more training examples"
            )


def _check_numbers(config: RunConfig, datasets: Mapping[str, Dataset]) -> None:
    """Raise ModelError if the full model's logits are not finite; unless unchecked, NaN weights are refused earlier."""
    for split, each in datasets.items():
        if isinstance(each.target, Tensor) and not bool(each.target.isfinite().all()):
            raise ModelError(
                f"Expected a model whose logits are numbers; {config.model!r} itself gives NaN or infinity on the "
                f"{split} split of {config.task!r}, with nothing pruned: its weights are damaged, or "
                f"{config.precision} is too narrow"
            )


def _tensors(encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
    """Return all tensors of the encoded examples, by split and field."""
    return {
        f"{split}.{name}": value
        for split, each in encoded.items()
        for name, value in {**vars(each), **vars(each.answers)}.items()
        if isinstance(value, Tensor)
    }


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of named tensors: the first 16 hexadecimal digits of a SHA-256."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(whole(value).detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
