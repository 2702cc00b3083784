"""Edge Pruning of a language model as a folder: what was asked for, how it went, and where it stands.

`run.json` says what was asked for, `metrics.jsonl` has a line a step, `checkpoint.safetensors` all that the run needs
to go on as if it had never stopped, and `circuit.json` what was found once it has ended. Each is written whole or not
at all, lines of metrics apart: those after the checkpoint are made again.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Batch, Dataset
from edgeprune.errors import ConfigError, RunError
from edgeprune.evaluate import Evaluation, evaluate
from edgeprune.graph import Ablation, Circuit
from edgeprune.masks import circuit_mask, edge_exists, edges_of
from edgeprune.methods.edge_pruning_target import Progress, TargetConfig, TargetPruning
from edgeprune.methods.objective import Objective
from edgeprune.model import Mask
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.models.load import Precision, load_model
from edgeprune.store import (
    SavedCircuit,
    UnwritableFile,
    load_circuit,
    save_circuit,
    versions,
    write_atomically,
    write_text,
)
from edgeprune.tasks import Encoder, Sizes, make_examples, metric_of

PAPER: Final = TargetConfig(
    target_sparsity=0.95,
    steps=3000,
    mask_samples=1,
    learning_rate=0.8,
    lagrangian_learning_rate=0.8,
    logit_scale=1.0,
)
"""As the paper prunes GPT-2 (arXiv:2406.16778, appendix); the target is for whoever runs it to choose."""

FORMAT: Final = "edgeprune run 1"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What is asked for; the same again gives the same circuit."""

    model: str
    """A name on the Hugging Face hub, or a folder."""

    task: str
    """A name of `tasks.TASKS`, or a file of examples."""

    ablation: Ablation = "resample"
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    precision: Precision = "float32"
    parts: int = 1
    """Parts that a batch is run in, each with masks of its own: memory for a part, gradients of the whole."""

    pruning: TargetConfig = PAPER

    def __post_init__(self) -> None:
        if not 1 <= self.parts <= self.pruning.batch_size:
            raise ConfigError(f"Expected parts from 1 to batch_size, {self.pruning.batch_size}; got {self.parts}")


@dataclass(frozen=True)
class Subject:
    """A model, and a task in its tokens."""

    model: Gpt2Model
    splits: dict[str, Dataset]
    digest: str
    """Of the model's weights."""


def load_subject(config: RunConfig, splits: Sequence[str], *, device: str = "auto", progress: bool = False) -> Subject:
    """The model that a run is about, and splits of its task with the model's logits.

    Raises:
        ModelError: the model cannot be loaded.
        TaskError: the task cannot be had, or does not fit the model's tokenizer.
    """
    model, tokenizer = load_model(config.model, precision=config.precision, device=device)
    encoder = Encoder(tokenizer, context_length=model.context_length)
    examples = make_examples(config.task, encoder, config.sizes, seed=config.seed)
    encoded = {split: encoder.encode(examples[split], metric_of(config.task)) for split in splits}
    datasets = {split: each.dataset(model, progress=progress) for split, each in encoded.items()}
    return Subject(model, datasets, _digest(model))


def prune(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    save_every: int = 250,
    progress: bool = False,
) -> SavedCircuit:
    """Run Edge Pruning in a folder, or go on with the run that is there.

    Args:
        config: what is asked for.
        out: the folder; is made where there is none.
        resume: go on where a run that was stopped had its last checkpoint.
        device: where the model runs.
        save_every: steps between checkpoints, at which the circuit is run on the validation split too.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        RunError: the folder holds another run, or one and `resume` is false; its checkpoint is damaged; or the loss is
            no number any more.
        ModelError, TaskError: the model or the task cannot be had.
        UnwritableFile: the folder cannot be written to, or is full; all that was saved before stands.
    """
    _check_folder(out, config, resume=resume)
    subject = load_subject(config, ("train", "validation"), device=device, progress=progress)
    run = TargetPruning(subject.model.graph, config.pruning, seed=config.seed)
    asked = {"format": FORMAT, "config": asdict(config), "weights": subject.digest, "versions": dict(versions())}
    if (out / "run.json").exists():
        if _read_json(out / "run.json").get("weights") != subject.digest:
            raise RunError(f"Expected the weights that the run in {str(out)!r} began with; {config.model!r} has others")
        _restore(run, out)
    else:
        write_text(out / "run.json", json.dumps(asked, indent=1) + "\n")
    _train(run, subject, config, out, save_every=save_every, progress=progress)
    circuit = Circuit(subject.model.graph, config.ablation, edges_of(subject.model.graph, run.kept()))
    mean = run.mean()
    scores = {edge: float(mean[circuit.graph.position(edge)]) for edge in circuit.graph.edges}
    method = {"name": "edge-pruning-target", "seed": config.seed, "config": asdict(config.pruning)}
    saved = SavedCircuit(circuit, scores, config.model, method, versions())
    save_circuit(saved, out / "circuit.json")
    return saved


def evaluate_run(
    folder: Path, split: str = "test", *, device: str = "auto", progress: bool = False
) -> tuple[RunConfig, dict[str, Evaluation]]:
    """Measure the circuit of a run that has ended, and the full model, on a split; `evaluation-SPLIT.json` keeps it.

    Raises:
        RunError: the folder holds no run.
        CircuitFileError: the run has not ended.
        ModelError, TaskError: the model or the task cannot be had.
        UnwritableFile: the folder cannot be written to.
    """
    config, circuit = read_config(folder), load_circuit(folder / "circuit.json")
    subject = load_subject(config, [split], device=device, progress=progress)
    masks = {"circuit": circuit_mask(circuit), "full model": edge_exists(circuit.graph).float()}
    found = {
        name: evaluate(subject.model, subject.splits[split], config.ablation, mask, progress=progress)
        for name, mask in masks.items()
    }
    content = {"split": split, "inputs": len(subject.splits[split]), "metric": metric_of(config.task)}
    content |= {name.replace(" ", "_"): asdict(each) for name, each in found.items()}
    write_text(folder / f"evaluation-{split}.json", json.dumps(content, indent=1) + "\n")
    return config, found


def read_config(folder: Path) -> RunConfig:
    """What was asked for in a run's folder.

    Raises:
        RunError: it is none.
    """
    content = _read_json(folder / "run.json")
    try:
        asked = content["config"]
        concrete = TargetConfig().hard_concrete
        pruning = asked["pruning"] | {"hard_concrete": replace(concrete, **asked["pruning"]["hard_concrete"])}
        parts = {"sizes": Sizes(**asked["sizes"]), "pruning": TargetConfig(**pruning)}
        return RunConfig(**(asked | parts))
    except (KeyError, TypeError, ConfigError) as error:
        raise RunError(
            f"Expected a run of `edgeprune prune` in {str(folder)!r}; its run.json is none: {error}"
        ) from error


def _check_folder(out: Path, config: RunConfig, *, resume: bool) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableFile(f"Expected a folder for the run; got {str(out)!r}: {error.strerror}") from error
    if not (out / "run.json").exists():
        if resume:
            raise RunError(f"Expected a run to go on with in {str(out)!r}; there is none: leave out --resume")
        if any(out.iterdir()):
            raise RunError(f"Expected an empty folder for a new run; {str(out)!r} holds other files: name another one")
        return
    if not resume:
        raise RunError(f"Expected an empty folder for a new run; {str(out)!r} holds one: go on with --resume")
    asked, found = (json.loads(json.dumps(asdict(each))) for each in (config, read_config(out)))
    flat_asked, flat_found = ({**each, **each["pruning"], **each["sizes"]} for each in (asked, found))
    if differing := [
        f"{name} {flat_found[name]!r}, not {flat_asked[name]!r}"
        for name in flat_asked
        if name not in ("pruning", "sizes") and flat_found[name] != flat_asked[name]
    ]:
        raise RunError(f"Expected the run that {str(out)!r} holds, with {'; '.join(differing)}: name another folder")


def _train(
    run: TargetPruning, subject: Subject, config: RunConfig, out: Path, *, save_every: int, progress: bool
) -> None:
    """Steps until all are done, a line of metrics for each, and checkpoints in between."""
    train = subject.splits["train"]
    objective = Objective(train, config.pruning.loss, logit_scale=config.pruning.logit_scale)
    ablator = Ablator(subject.model, train, config.ablation)

    def loss_of(batch: Batch, mask: Mask) -> Float[Tensor, ""]:
        return objective(subject.model(batch.clean, mask, ablator(batch), batch.positions), batch).mean()

    bar = tqdm(total=config.pruning.steps, initial=run.done, desc="pruning", disable=None if progress else True)
    with bar:
        while run.done < config.pruning.steps:
            rows = torch.randperm(len(train), generator=run.generator)[: config.pruning.batch_size]
            batches = [train.take(part, part) for part in rows.chunk(config.parts)]
            step = run.step([lambda mask, batch=batch: loss_of(batch, mask) for batch in batches])
            if not math.isfinite(step.loss):
                raise RunError(
                    f"Expected a finite loss; got {step.loss} at step {step.step}. The last checkpoint stands: use "
                    "lower learning rates, or float32"
                )
            measured, last = _metrics(step), run.done == config.pruning.steps
            if last or run.done % save_every == 0:
                circuit = evaluate(subject.model, subject.splits["validation"], config.ablation, run.kept().float())
                measured["validation"] = asdict(circuit)
            _append(out / "metrics.jsonl", measured)
            if last or run.done % save_every == 0:
                state = {name: value.contiguous() for name, value in run.state().items()}
                write_atomically(out / "checkpoint.safetensors", lambda file, state=state: file.write(save(state)))
            bar.set_postfix_str(f"loss {step.loss:.3g}, sparsity {step.sparsity:.3f}", refresh=False)
            bar.update()


def _metrics(step: Progress) -> dict[str, Any]:
    return {
        "step": step.step,
        "loss": step.loss,
        "sparsity": step.sparsity,
        "target": step.target,
        "lambda_1": step.multipliers[0],
        "lambda_2": step.multipliers[1],
    }


def _append(path: Path, measured: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(measured) + "\n")
    except OSError as error:
        raise UnwritableFile(f"Expected room for metrics in {str(path)!r}: {error.strerror}") from error


def _restore(run: TargetPruning, out: Path) -> None:
    """Bring a run to its last checkpoint, or leave it at its beginning; metrics end there too."""
    checkpoint, metrics = out / "checkpoint.safetensors", out / "metrics.jsonl"
    if checkpoint.exists():
        try:
            run.restore(load_file(checkpoint))
        except (SafetensorError, KeyError, RuntimeError, ValueError, OSError) as error:
            raise RunError(
                f"Expected a checkpoint of this run in {str(checkpoint)!r}; it is damaged: {error!s:.200}. Put a copy "
                "in its place, or take it away to begin again"
            ) from error
    if metrics.exists():
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)[: run.done]
        write_text(metrics, "".join(lines))


def _read_json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"Expected a run of `edgeprune prune`; {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"Expected a run of `edgeprune prune`; {str(path)!r} is none")
    return content


def _digest(model: Gpt2Model) -> str:
    """A short name for weights."""
    found = hashlib.sha256()
    for name, value in sorted(model.weights.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
