"""Settings of runs as options: read off the dataclasses that they change, so that none is listed twice."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from edgeprune.cli.options import (
    CARRIED,
    Device,
    Model,
    NoCheck,
    Seed,
    Setting,
    Task,
    left_out,
    shown,
)
from edgeprune.errors import ConfigError
from edgeprune.files.folders import existing
from edgeprune.graph import parse_ablation
from edgeprune.methods.edge_pruning.config import PruningConfig
from edgeprune.methods.edge_pruning.configurations import BY_NAME, FIXED, PAPER, TOLERANCE, foreign
from edgeprune.methods.settings import with_settings
from edgeprune.models.load import Precision
from edgeprune.runs.config import RunConfig
from edgeprune.tasks import Sizes
from edgeprune.toys import LESSONS, ToyConfig

_OWN_OPTIONS: Final = frozenset(
    {
        *("target_sparsity", "tolerance", "name", "kept", "betas", "temperature", "low", "high"),
        *("ending", "final_check"),
    }
)
"""Settings of pruning that are options of another form, or none."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every run is asked for."""

    model: Model
    task: Task
    out: Path
    """The folder of the run: run.json, metrics.jsonl, checkpoints, circuit.json; of several runs their circuits, a
    table and a picture. A run that was stopped goes on there."""

    ablation: Annotated[str, Parameter(help=CARRIED)] = "resample"
    precision: Precision = "float32"
    """Of the model."""

    data_seed: Seed = 0
    """Of the task's examples."""

    device: Device = "auto"
    no_check: NoCheck = False


def _leaves(config: Any) -> Iterator[tuple[type, str, Any]]:
    """Yield the settings of all parts of a configuration: whose, its name and its value."""
    for setting in fields(config):
        value = getattr(config, setting.name)
        if is_dataclass(value):
            yield from _leaves(value)
        else:
            yield type(config), setting.name, value


def _settings_of(configs: Sequence[PruningConfig]) -> list[Setting]:
    """Return the settings of some configurations that may be changed, with the default of each."""
    found = dict[str, list[tuple[str, type, Any]]]()
    for config in configs:
        for owner, name, value in _leaves(config):
            if name not in _OWN_OPTIONS and name not in FIXED[config.name]:
                found.setdefault(name, []).append((config.name.replace("edge-pruning-", ""), owner, value))
    settings = list[Setting]()
    for name, places in found.items():
        # The paper's default stands alone; another method's has its name, and "alone" if the paper has no such setting.
        said = [shown(value) if method == PAPER.name else f"{method}: {shown(value)}" for method, _, value in places]
        default = ", ".join(said) + (" alone" if places[0][0] != PAPER.name else "")
        owner = next((owner for _, owner, value in places if value is not None), places[0][1])
        settings.append(Setting(owner, name, inspect.get_annotations(owner, eval_str=True)[name], default))
    return settings


def _toy_settings() -> list[Setting]:
    """Return the shape and training of toys, with each lesson's values."""
    settings = list[Setting]()
    for each in fields(ToyConfig):
        values = {task: getattr(lesson.config, each.name) for task, lesson in LESSONS.items()}
        others = {task: value for task, value in values.items() if value != values["ioi"]}
        default = ", ".join([shown(values["ioi"]), *(f"{task}: {shown(value)}" for task, value in others.items())])
        settings.append(
            Setting(ToyConfig, each.name, inspect.get_annotations(ToyConfig, eval_str=True)[each.name], default)
        )
    return settings


if TYPE_CHECKING:
    AllSettings = PaperSettings = ToySettings = Any
else:  # read off the dataclasses that they change
    AllSettings = left_out("AllSettings", _settings_of(list(BY_NAME.values())), "Settings of pruning")
    PaperSettings = left_out("PaperSettings", _settings_of([PAPER]), "Settings of edge-pruning alone")
    ToySettings = left_out("ToySettings", _toy_settings(), "Shape and training")


def given(settings: Any) -> dict[str, Any]:
    """Return the settings that were given."""
    return {} if settings is None else {name: value for name, value in asdict(settings).items() if value is not None}


def run_config(
    run: RunOptions, seed: int, pruning: PruningConfig, sizes: Sizes, *, parts: int = 1, polish: bool = False
) -> RunConfig:
    """Return the configuration of a run."""
    return RunConfig(
        model=existing(run.model),
        task=existing(run.task),
        ablation=parse_ablation(run.ablation),
        sizes=sizes,
        seed=seed,
        data_seed=run.data_seed,
        precision=run.precision,
        parts=parts,
        pruning=pruning,
        polish=polish,
    )


def pruning_config(
    method: str, settings: dict[str, Any], target: float | None, tolerance: float | None
) -> PruningConfig:
    """Return the configuration of that name, with the settings that were given.

    Raises:
        ConfigError: both or neither of target and tolerance are given, or settings of another method.
    """
    config = BY_NAME[method]
    if config == PAPER and (tolerance is None) == (target is None):
        got = "neither" if target is None else "both"
        raise ConfigError(
            "Expected --target-sparsity, the share of edges that edge-pruning removes, or --tolerance, the loss that "
            f"the fewest edges are to stay within; got {got}"
        )
    if config == PAPER and tolerance is not None:
        config = TOLERANCE
    changed = settings | ({} if target is None else {"target_sparsity": target})
    changed |= {} if tolerance is None else {"tolerance": tolerance}
    if wrong := foreign(config, changed):
        options_of = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise ConfigError(f"Expected settings of {config.name}, which has no {options_of}")
    return with_settings(config, changed)
