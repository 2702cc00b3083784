"""Models whose true circuits are known: a program's, which is compiled, a checkpoint that `export` wrote, and a trained
model that is so small that all subsets of its edges can be run."""

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
    """A model with its true circuits. Methods see `model` and `dataset`, and nothing else of it."""

    name: str
    doc: str
    model: MaskedModel
    dataset: Dataset
    truth: Callable[[Ablation], Truth]
    """The certified truth under an ablation; raises DegenerateProgram where nothing could fail."""

    subject: "Compiled | Exported | Loaded"
    """What all this is of."""

    constructs: tuple[str, ...] = ()
    """Of RASP, that the program uses, where it is at hand."""


def find(spec: str) -> "Asked":
    """What `spec` names: a program, as for `load_program`, or the folder of a checkpoint or of a saved truth.

    A name of the catalogue is that program's, even where there is such a folder: `./name` is the folder.

    Raises:
        EdgePruneError: there is neither.
    """
    folder = Path(spec)
    if not folder.is_dir() or spec in catalogue():
        return load_program(spec)
    if (folder / TRUTH).is_file():
        from tracr_bridge.certify.trained_models import read_asked  # and with it transformers

        return read_asked(folder)
    return folder


def known(subject: "Asked", *, seed: int = 0, progress: bool = False) -> Known:
    """Compile a program, or load a checkpoint or a trained model.

    Args:
        subject: what `find` found, or what `trained.Trained` asks for.
        seed: of what is sampled to compile and to certify a program; a checkpoint has its certificates with it, and
            nothing of a trained model is sampled.
        progress: show a progress bar on standard error, if that is a terminal, while subsets are run.

    Raises:
        EdgePruneError: the program is unusable, or the folder is none that `export` wrote.
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
    from tracr_bridge.checkpoints.read_back import load_exported  # and with it transformers, which programs do without

    exported = load_exported(folder)
    return Known(exported.name, exported.doc, exported.model, exported.dataset, exported.truth, exported)


def certify(compiled: Compiled, ablation: Ablation, *, seed: int = 0) -> Truth:
    """The certified true circuits of a compiled program."""
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
    """What `edgeprune.certify` does.

    Raises:
        EdgePruneError: there is no such program or model, nothing could fail on it, or a task is given without a
            tolerance or the other way round.
    """
    if (task is None) != (tolerance is None):
        got = "task" if tolerance is None else "tolerance"
        raise EdgePruneError(f"Expected task and tolerance together, as of a trained model; got {got} alone")
    if task is not None and tolerance is not None:
        from tracr_bridge.certify.trained_models import Trained

        trained = Trained(model=str(subject), task=task, tolerance=tolerance, criterion=criterion)
        return known(trained, seed=seed).truth(ablation)
    return known(subject if isinstance(subject, Program) else find(str(subject)), seed=seed).truth(ablation)
