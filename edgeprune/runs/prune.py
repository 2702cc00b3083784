"""Edge Pruning of a language model in a folder that can be resumed.

`run.json` holds the settings, `metrics.jsonl` one line per step, and `checkpoint.safetensors` all that the run needs
to resume as if it had never stopped. At the end, `circuit.json` holds the circuit, and `outcome.json` says whether it
reached the target. Polishing has its own files (`polish.py`). All files are written atomically except `metrics.jsonl`,
whose lines after the last checkpoint are written again on resuming.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from tqdm import tqdm

from edgeprune.errors import RunError
from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.files.checkpoint import restore_from, write_state
from edgeprune.files.folders import circuit_file, is_unused, locked
from edgeprune.files.schemas import load
from edgeprune.files.store import (
    SavedCircuit,
    UnwritableFile,
    load_saved,
    read_bytes,
    save_circuit,
    versions,
    write_atomically,
    write_json,
)
from edgeprune.masks import circuit_mask, edge_exists, live_circuit
from edgeprune.methods.edge_pruning.engine import Progress, Pruning, Stage, circuit_loss, problem_of
from edgeprune.methods.edge_pruning.pressure import LossTolerance
from edgeprune.methods.polish import PolishConfig, check_room
from edgeprune.methods.settings import settings
from edgeprune.metrics.conventions import noted
from edgeprune.parallel import Ranks, join, sole_writer
from edgeprune.runs.config import ModelOnTask, RunConfig, load_model_on_task
from edgeprune.runs.outcome import Outcome, outcome
from edgeprune.runs.polish import goal_of, polish_in
from edgeprune.tasks import metric_of

FORMAT: Final = "edgeprune run 4"


def prune(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    check: bool = True,
    save_every: int = 250,
    progress: bool = False,
) -> Outcome:
    """Run Edge Pruning in a folder, or resume the run that it holds.

    If `torchrun` started several processes, each calls this, and the first writes. Any number of them may resume a run.

    Args:
        config: settings of the run.
        out: the folder, visible to all processes; created if missing.
        resume: resume a stopped run from its last checkpoint; without a checkpoint, begin anew.
        device: where the model runs.
        check: whether to check the loaded model against its files, as `load_model` does.
        save_every: steps between checkpoints; at each, the circuit is also measured on the validation split.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        RunError: the folder holds other files or another run, or a run while `resume` is false; its checkpoint is
            damaged; the loss is no longer finite; or another process has stopped.
        ConfigError: the circuit would be too large to polish.
        ModelError, TaskError: the model or the task cannot be loaded.
        UnwritableFile: the folder cannot be written to, or the disk is full; earlier saves stay intact.
    """
    progress = progress and join().first
    with sole_writer(out, "the run"):
        _check_folder(out, config, resume=resume)
        return _prune(config, out, device=device, save_every=save_every, check=check, progress=progress)


def _prune(config: RunConfig, out: Path, *, device: str, save_every: int, check: bool, progress: bool) -> Outcome:
    """Do the work of `prune` in the locked folder."""
    ranks = join()
    subject = load_model_on_task(config, ("train", "validation"), device=device, check=check, progress=progress)
    if config.polish:
        check_room(subject.model.graph, goal_of(config.pruning, subject.model.graph.total).edges or 0)
    problem = problem_of(subject.model, subject.splits["train"], config.ablation, config.pruning, parts=config.parts)
    run = Pruning(problem, config.pruning, seed=config.seed)
    asked = asdict(_Asked(FORMAT, config, subject.digests, dict(versions())))
    if os.path.lexists(out / "run.json"):
        _check_subject(out, subject)
        _restore(run, out)
    if not ranks.agree(run.done * len(Stage) + run.stage):
        raise RunError(f"Expected one folder that all processes see; {str(out)!r} is not the same for all of them")
    if ranks.first and not (out / "run.json").exists():
        write_json(out / "run.json", asked)
    _run(run, subject, config, out, save_every=save_every, progress=progress)
    kept, pressure = run.kept(), config.pruning.pressure
    judges = config.polish or isinstance(pressure, LossTolerance)
    loss = circuit_loss(run.problem, config.pruning, config.seed) if judges else None
    if config.polish:
        assert loss is not None
        kept = polish_in(out, loss, config.pruning, kept, PolishConfig(), progress=progress).kept
    circuit = live_circuit(subject.model.graph, config.ablation, kept)
    mean = run.mean()
    scores = {edge: float(mean[circuit.graph.position(edge)]) for edge in circuit.graph.edges}
    method = {"name": config.method, "seed": config.seed, "config": asdict(config.pruning)}
    saved = SavedCircuit(circuit, scores, config.model, method, versions(), subject.model.family)
    judged = None if loss is None else (float(loss(circuit_mask(circuit)[None])[0]), loss.inputs)
    found = outcome(saved, pressure, judged=judged, polished=config.polish)
    if ranks.first:
        write_json(out / "outcome.json", found.as_json())
        save_circuit(saved, out / "circuit.json")
    ranks.wait()
    return found


def evaluate_run(
    folder: Path,
    split: str = "test",
    *,
    task: str | None = None,
    circuit: Path | None = None,
    device: str = "auto",
    check: bool = True,
    progress: bool = False,
) -> tuple[RunConfig, dict[str, Evaluation]]:
    """Measure the circuit of a finished run, and the full model, on a split; save the result in the folder.

    Args:
        folder: the run's folder, which names the model and the ablation.
        split: the split of the task.
        task: another task than the run's, to see whether the circuit is faithful there too.
        circuit: a circuit's file, or another run's folder, to measure instead of this run's circuit.
        device: where the model runs.
        check: whether to check the loaded model against its files, as `load_model` does.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        RunError: the folder holds no run, the run has not ended, or the circuit has another model or ablation.
        CircuitFileError: there is no such circuit, or its file is damaged.
        ModelError, TaskError: the model or the task cannot be loaded.
        UnwritableFile: the folder cannot be written to.
    """
    ranks, progress = join(), progress and join().first
    config = read_config(folder)
    config, own_task = replace(config, task=config.task if task is None else task), task is None
    found_at = (folder if circuit is None else circuit).resolve()
    saved = load_saved(circuit_file(found_at))
    kept = saved.circuit
    splits = [split, *(["train"] if config.ablation == "mean" else [])]
    subject = load_model_on_task(config, splits, device=device, check=check, progress=progress)
    _check_subject(folder, subject, ("weights", "task") if own_task else ("weights",))
    if saved.model not in ("", config.model):
        raise RunError(f"Expected a circuit of {config.model!r}; {str(found_at)!r} holds one of {saved.model!r}")
    if kept.graph != subject.model.graph or kept.ablation != config.ablation:
        raise RunError(
            f"Expected a circuit of {config.model!r} under {config.ablation} ablation; {str(found_at)!r} holds one of "
            f"{kept.graph.total} edges' graph under {kept.ablation}, where the model has {subject.model.graph.total}"
        )
    masks = {"circuit": circuit_mask(kept), "full model": edge_exists(kept.graph).float()}
    found = {name: subject.evaluate(split, config.ablation, mask, progress=progress) for name, mask in masks.items()}
    content = {"split": split, "inputs": len(subject.splits[split]), "metric": metric_of(config.task)}
    content |= {"task": config.task, "found_at": str(found_at)}
    content |= {name.replace(" ", "_"): asdict(each) for name, each in found.items()} | noted(config.ablation)
    if ranks.first:
        with locked(folder, "an evaluation"):
            write_json(evaluation_file(folder, split, task, circuit), content)
    ranks.wait()
    return config, found


def evaluation_file(folder: Path, split: str, task: str | None = None, circuit: Path | None = None) -> Path:
    """Return the file in which `evaluate_run` saves its result."""
    name = f"evaluation-{split}"
    for what, where in (("task", task), ("circuit", circuit)):
        if where is not None:  # a digest tells equal names in different folders apart
            whole = str(Path(where).resolve()) if what == "circuit" or Path(where).exists() else str(where)
            name += f"-{what}-{Path(where).name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return folder / f"{name}.json"


def read_config(folder: Path) -> RunConfig:
    """Return the settings of the run in a folder.

    Raises:
        RunError: the folder holds no run.
    """
    return _read(folder).config


@dataclass(frozen=True)
class _Asked:
    """Content of `run.json`."""

    format: Literal["edgeprune run 4"]
    config: RunConfig
    about: dict[str, str]
    """Digests of the weights and of the task in the model's tokens."""

    versions: dict[str, str]


def _read(folder: Path) -> _Asked:
    return load(_Asked, folder / "run.json", "a run of `edgeprune prune`", RunError)


def _check_subject(folder: Path, subject: ModelOnTask, whats: Sequence[str] = ("weights", "task")) -> None:
    """Raise RunError unless the model and the task are those that the run began with."""
    about = _read(folder).about
    for what in whats:
        if about.get(what) != subject.digests[what]:
            raise RunError(
                f"Expected the {what} that the run in {str(folder)!r} began with; what is there now is another"
            )


def _check_folder(out: Path, config: RunConfig, *, resume: bool) -> None:
    """Raise RunError unless the folder is unused, or holds a run that may be resumed with `config`."""
    begun = os.path.lexists(out / "run.json")
    if not begun and not is_unused(out):
        raise RunError(f"Expected an empty folder for a new run; {str(out)!r} holds other files: name another one")
    if begun:
        _check_config(out, config, resume=resume)


def _check_config(out: Path, config: RunConfig, *, resume: bool) -> None:
    """Raise RunError unless `resume` is true and the run in the folder has the settings of `config`."""
    if not resume:
        raise RunError(f"Expected an empty folder for a new run; {str(out)!r} holds one: go on with --resume")
    found = read_config(out)
    if found.pruning.name != config.pruning.name:
        raise RunError(
            f"Expected a folder for a run of {config.pruning.name}; {str(out)!r} holds one of {found.pruning.name}: "
            "name another folder"
        )
    flat_asked, flat_found = (
        {**asdict(each), **asdict(each.sizes), **settings(each.pruning)} for each in (config, found)
    )
    if differing := [
        f"{name} {flat_found[name]!r}, not {flat_asked[name]!r}"
        for name in flat_asked
        if name not in ("pruning", "sizes") and flat_found[name] != flat_asked[name]
    ]:
        raise RunError(f"Expected the run that {str(out)!r} holds, with {'; '.join(differing)}: name another folder")


def _run(run: Pruning, subject: ModelOnTask, config: RunConfig, out: Path, *, save_every: int, progress: bool) -> None:
    """Run to the end, with a line of metrics for each step, and checkpoints in between."""
    ranks = subject.model.ranks
    bar = tqdm(total=config.pruning.steps, initial=run.done, desc="pruning", disable=None if progress else True)
    with bar:
        while not run.ended:
            step = run.advance()
            if step is None:  # stages after learning have no metrics
                _share(run, ranks)
                _save(run, out, ranks)
                bar.set_description(run.stage.name.lower().replace("_", " "))
                bar.total = run.done + (config.pruning.steps if run.stage == Stage.LEARN_ANEW else 0)
                continue
            measured, saves = _metrics(step), run.ended or run.done % save_every == 0
            if saves:
                _share(run, ranks)
                circuit = subject.evaluate("validation", config.ablation, run.kept().float())
                measured["validation"] = asdict(circuit)
            if ranks.first:
                _append(out / "metrics.jsonl", measured)
            if saves:
                _save(run, out, ranks)
            bar.set_postfix_str(f"loss {step.loss:.3g}, sparsity {step.sparsity:.3f}", refresh=False)
            bar.update()


def _share(run: Pruning, ranks: Ranks) -> None:
    """Copy the first process's state to all processes."""
    for value in run.state().values():
        if value.numel():
            ranks.take_first(value)


def _save(run: Pruning, out: Path, ranks: Ranks) -> None:
    """Write a checkpoint, in the first process only."""
    if ranks.first:
        write_state(run.state(), out / "checkpoint.safetensors")


def _metrics(step: Progress) -> dict[str, Any]:
    return {"step": step.step, "loss": step.loss, "sparsity": step.sparsity, **step.figures}


def _append(path: Path, measured: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(measured) + "\n")
    except OSError as error:
        raise UnwritableFile(f"Expected room for metrics in {str(path)!r}: {error.strerror}") from error


def _restore(run: Pruning, out: Path) -> None:
    """Restore a run's last checkpoint, if there is one, and drop the metrics of later steps."""
    checkpoint, metrics = out / "checkpoint.safetensors", out / "metrics.jsonl"
    if os.path.lexists(checkpoint):
        restore_from(checkpoint, run.restore)
    if metrics.exists() and join().first:
        try:
            lines = read_bytes(metrics).splitlines(keepends=True)[: run.done]
        except OSError as error:
            raise RunError(f"Expected lines of metrics in {str(metrics)!r}; {error}") from error
        write_atomically(metrics, lambda file: file.write(b"".join(lines)))
