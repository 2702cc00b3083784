"""Edge Pruning at several sparsities and seeds: the KL of each, the knee of the curve, and how far seeds agree."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from edgeprune.errors import ConfigError, RunError
from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.files.folders import is_unused
from edgeprune.files.store import save_circuit, write_json
from edgeprune.graph import Circuit
from edgeprune.methods.settings import with_settings
from edgeprune.metrics.conventions import noted
from edgeprune.metrics.overlap import overlap
from edgeprune.parallel import join, sole_writer
from edgeprune.pictures.draw import save_figure
from edgeprune.runs.config import RunConfig
from edgeprune.runs.prune import evaluate_run, prune, read_config

_LEAST_KL: Final = 1e-6
"""KL, nats, below which a circuit counts as the full model; it keeps logarithms finite."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    target: float
    """Target sparsity."""

    seed: int
    circuit: Circuit
    evaluation: Evaluation
    """Measurements on the test split."""

    reached: bool
    """Whether the run reached its target sparsity."""


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep, and their summary."""

    points: tuple[Point, ...]
    curve: dict[float, float]
    """Mean KL over seeds, nats, by target sparsity."""

    knee: float | None
    """Target sparsity beyond which KL grows fastest; None if `knee_of` finds none."""

    agreement: dict[float, tuple[float, ...]]
    """IoU of the edges of each pair of seeds, by target sparsity."""

    common: dict[float, Circuit]
    """Edges that all seeds keep, by target sparsity."""


def sweep(
    config: RunConfig,
    targets: Sequence[float],
    seeds: int,
    out: Path,
    *,
    device: str = "auto",
    check: bool = True,
    save_every: int = 250,
    progress: bool = False,
) -> Sweep:
    """Run and evaluate every target at every seed, each in its own folder; a second call resumes.

    Args:
        config: settings of all runs; its seed is the first one, and `targets` replace its sparsity.
        targets: target sparsities.
        seeds: number of consecutive seeds.
        out: the folder; besides the runs' folders it gets `sweep.json`, `sweep.svg` and the common edges.
        device: where models run.
        check: whether to check the loaded model against its files, as `load_model` does.
        save_every: steps between checkpoints.
        progress: show progress bars on standard error, if that is a terminal.

    Raises:
        ConfigError: there is no target, or a repeated one.
        RunError, ModelError, TaskError, UnwritableFile: see `prune`.
    """
    if not targets or len(set(targets)) < len(targets):
        raise ConfigError(f"Expected different sparsities, at least one; got {', '.join(map(str, targets)) or 'none'}")
    with sole_writer(out, "a sweep"):
        _check_folder(out, config)
        about: dict[str, Any] = {"device": device, "check": check, "progress": progress}
        points = _run(config, targets, seeds, out, about, save_every=save_every)
        result = summarise(points)
        if join().first:
            _write(result, out, config.method)
        join().wait()
    return result


def _check_folder(out: Path, config: RunConfig) -> None:
    """Refuse a folder that holds anything but this sweep.

    Raises:
        RunError: it holds other files, or runs with another model, task or ablation.
    """
    begun = list(out.glob("sparsity-*"))
    if not begun and not is_unused(out):
        raise RunError(f"Expected an empty folder for a new sweep; {str(out)!r} holds other files: name another folder")
    for folder in (each for each in sorted(begun) if (each / "run.json").is_file()):
        other = read_config(folder)
        for name in ("model", "task", "ablation"):
            if getattr(other, name) != getattr(config, name):
                raise RunError(
                    f"Expected the {name} that the sweep in {str(out)!r} began with, {getattr(other, name)!r}; got "
                    f"{getattr(config, name)!r}: name another folder"
                )


def _run(
    config: RunConfig,
    targets: Sequence[float],
    seeds: int,
    out: Path,
    about: dict[str, Any],
    *,
    save_every: int,
) -> list[Point]:
    """Run and evaluate every target at every seed."""
    points = list[Point]()
    for target in sorted(targets):
        for seed in range(config.seed, config.seed + seeds):
            pruning = with_settings(config.pruning, {"target_sparsity": target})
            asked = replace(config, seed=seed, pruning=pruning)
            folder = out / f"sparsity-{target!r}-seed-{seed}"
            resume = (folder / "run.json").exists()
            run = prune(asked, folder, resume=resume, save_every=save_every, **about)
            _, found = evaluate_run(folder, **about)
            points.append(Point(target, seed, run.saved.circuit, found["circuit"], run.reached is not False))
    return points


def summarise(points: Sequence[Point]) -> Sweep:
    """Summarise runs: the mean KL, the knee, how far seeds agree, and the common edges."""
    by_target = {
        target: [p for p in points if p.target == target] for target in dict.fromkeys(p.target for p in points)
    }
    curve = {target: mean(p.evaluation.kl for p in same) for target, same in by_target.items()}
    agreement = {
        target: tuple(overlap(a.circuit.edges, b.circuit.edges).iou for a, b in combinations(same, 2))
        for target, same in by_target.items()
    }
    common = {
        target: replace(same[0].circuit, edges=reduce(frozenset.__and__, (p.circuit.edges for p in same)))
        for target, same in by_target.items()
    }
    return Sweep(tuple(points), curve, knee_of(curve), agreement, common)


def knee_of(curve: dict[float, float]) -> float | None:
    """Return the target at which log KL lies farthest below the straight line from the first to the last target.

    Return None for fewer than three targets, or if log KL is nowhere below the line. The method is Satopää et al.,
    "Finding a 'Kneedle' in a haystack", 2011, for a curve that grows and bends upwards.
    """
    if len(curve) < 3:
        return None
    x = np.array(sorted(curve))
    y = np.log(np.maximum([curve[target] for target in x.tolist()], _LEAST_KL))
    line = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    below = line - y
    return float(x[below.argmax()]) if below.max() > 0 else None


def _write(result: Sweep, out: Path, method: str) -> None:
    """Write the table as JSON, the plot, and the circuit that all seeds share at each target."""
    content = {
        "method": method,
        "points": [
            {"target": p.target, "seed": p.seed, "reached": p.reached, **asdict(p.evaluation)} for p in result.points
        ],
        "curve": [{"target": target, "kl": kl} for target, kl in result.curve.items()],
        "knee": result.knee,
        "agreement": [{"target": target, "iou": list(iou)} for target, iou in result.agreement.items()],
        "common": [{"target": target, "edges": len(circuit)} for target, circuit in result.common.items()],
    } | noted(*{p.circuit.ablation for p in result.points})
    write_json(out / "sweep.json", content)
    save_figure(draw_sweep(result), out / "sweep.svg")
    for target, circuit in result.common.items():
        save_circuit(circuit, out / f"common-{target!r}.json")


def draw_sweep(result: Sweep) -> Figure:
    """Plot KL against sparsity: a dot for each run, a line through the means over seeds, and the knee."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter(
        [p.evaluation.sparsity for p in result.points],
        [max(p.evaluation.kl, _LEAST_KL) for p in result.points],
        s=18,
        color="#23466e",
        label="runs",
    )
    places = {t: mean(p.evaluation.sparsity for p in result.points if p.target == t) for t in result.curve}
    kls = [max(kl, _LEAST_KL) for kl in result.curve.values()]
    axes.plot(list(places.values()), kls, color="#23466e", linewidth=1, label="mean over seeds")
    if result.knee is not None:
        axes.axvline(places[result.knee], color="#c77700", linestyle=":", label=f"knee: target {result.knee:g}")
    axes.set_yscale("log")
    axes.set_xlabel("sparsity: share of edges removed")
    axes.set_ylabel("KL(full model ‖ circuit), nats")
    axes.legend(frameon=False)
    return figure
