"""Models whose true circuits are known: compiled programs, checkpoints that `export` wrote, and trained models that
are so small that all subsets of their edges can be run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeprune.data import Dataset
from edgeprune.errors import EdgePruneError
from edgeprune.files.true_circuits import TRUTH
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel
from tracr_bridge.certify.truth import Truth, derive_truth
from tracr_bridge.compile.catalogue import catalogue, load_program
from tracr_bridge.compile.compile import Compiled
from tracr_bridge.compile.constructs import constructs
from tracr_bridge.compile.program import Program
from tracr_bridge.compile.verify import compile_and_verify

if TYPE_CHECKING:
    from tracr_bridge.certify.trained_models import Loaded, Trained
    from tracr_bridge.checkpoints.read_back import Exported

    Asked = Program | Path | Trained
    """A program, the folder of a checkpoint, or a trained model with its task and tolerance."""


@dataclass(frozen=True)
class Known:
    """A model with its true circuits. Methods see only `model` and `dataset`."""

    name: str
    doc: str
    model: MaskedModel
    dataset: Dataset
    truth: Callable[[Ablation], Truth]
    """Returns the certified truth under an ablation; raises DegenerateProgram if no method could fail under it."""

    subject: "Compiled | Exported | Loaded"
    """The compiled program, the checkpoint or the trained model that the other fields come from."""

    constructs: tuple[str, ...] = ()
    """RASP constructs that the program uses; empty for a checkpoint or a trained model."""


def find(spec: str) -> "Asked":
    """Return what `spec` names: a program, as for `load_program`, or the folder of a checkpoint or of a saved truth.

    A name in the catalogue means the program, even if there is a folder of that name: `./name` means the folder.

    Raises:
        EdgePruneError: `spec` names neither.
    """
    folder = Path(spec)
    if not folder.is_dir() or spec in catalogue():
        return load_program(spec)
    if (folder / TRUTH).is_file():
        from tracr_bridge.certify.trained_models import read_asked  # imports transformers

        return read_asked(folder)
    return folder


def usual_ablation(subject: "Asked") -> Ablation:
    """Return the ablation where none is asked for: that of a saved truth, and zero of any other subject."""
    return "zero" if isinstance(subject, Program | Path) else subject.ablation or "zero"


def known(subject: "Asked", *, seed: int = 0, progress: bool = False) -> Known:
    """Compile a program, or load a checkpoint or a trained model.

    Args:
        subject: what `find` returned, or a `Trained`.
        seed: of the samples for compiling and certifying a program; a checkpoint brings its certificates, and nothing
            is sampled for a trained model.
        progress: show a progress bar on standard error, if that is a terminal, while subsets are run.

    Raises:
        EdgePruneError: the program or the trained model is unusable, or `export` did not write the folder.
    """
    if isinstance(subject, Program):
        compiled = compile_and_verify(subject, seed=seed)
        return Known(
            compiled.program.name,
            compiled.program.doc,
            compiled.model,
            compiled.dataset,
            partial(certify, compiled, seed=seed),
            compiled,
            tuple(sorted(constructs(compiled.program))),
        )
    if isinstance(subject, Path):
        return _exported(subject)
    from tracr_bridge.certify.trained_models import load_trained

    loaded = load_trained(subject)
    truth = partial(loaded.truth, progress=progress)
    return Known(subject.name, subject.doc, loaded.model, loaded.dataset, truth, loaded)


def _exported(folder: Path) -> Known:
    from tracr_bridge.checkpoints.read_back import load_exported  # imports transformers, which programs do not need

    exported = load_exported(folder)
    return Known(exported.name, exported.doc, exported.model, exported.dataset, exported.truth, exported)


def certify(compiled: Compiled, ablation: Ablation, *, seed: int = 0) -> Truth:
    """Return the certified true circuits of a compiled program."""
    model = compiled.model
    return derive_truth(
        model,
        compiled.dataset,
        model.structural,
        model.read,
        ablation,
        name=compiled.program.name,
        whole_domain=compiled.domain.exhaustive,
        seed=seed,
    )


def certify_subject(
    subject: str | Path | Program,
    ablation: Ablation,
    *,
    seed: int = 0,
    task: str | None = None,
    tolerance: float | None = None,
    criterion: Literal["mean", "worst"] = "mean",
) -> Truth:
    """Return the certified true circuits of a program or a model; `edgeprune.certify` calls this.

    Raises:
        EdgePruneError: there is no such program or model, no method could fail on it, or only one of task and tolerance
            is given.
    """
    if (task is None) != (tolerance is None):
        got = "task" if tolerance is None else "tolerance"
        raise EdgePruneError(f"Expected task and tolerance together, as of a trained model; got {got} alone")
    if task is not None and tolerance is not None:
        from tracr_bridge.certify.trained_models import Trained

        trained = Trained(model=str(subject), task=task, tolerance=tolerance, criterion=criterion)
        return known(trained, seed=seed).truth(ablation)
    return known(subject if isinstance(subject, Program) else find(str(subject)), seed=seed).truth(ablation)
