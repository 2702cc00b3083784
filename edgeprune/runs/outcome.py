"""Whether a run reached what it was asked for, and what to change where it did not."""

from dataclasses import dataclass
from typing import Any, Final

from edgeprune.files.store import SavedCircuit
from edgeprune.methods.edge_pruning.pressure import LossTolerance, Penalty, SparsityTarget
from edgeprune.metrics.distances import not_negative

NEAR: Final = 0.02
"""By how much a sparsity may be off and still count as reached."""


@dataclass(frozen=True)
class Outcome:
    """What a run ended with."""

    saved: SavedCircuit
    loss: float | None
    """Of the circuit on training examples, by the loss and the criterion that it learned by; None where neither a
    tolerance nor polishing asked for it."""

    examples: int | None
    """How many training examples that is of."""

    reached: bool | None
    """Whether it is what was asked for; None where nothing was, as `edge-pruning-minimax` chooses its size."""

    missed: str
    """What was missed, by how much and what to change; empty where nothing was."""

    def as_json(self) -> dict[str, Any]:
        """What a run's folder and `--json` say of it, the circuit apart."""
        edges, total = len(self.saved.circuit), self.saved.circuit.graph.total
        said = {"edges": edges, "total": total, "sparsity": 1 - edges / total, "reached": self.reached}
        said |= {} if self.loss is None else {"loss": self.loss, "examples": self.examples}
        return said | ({"missed": self.missed} if self.missed else {})


def sparsity_reached(target: float, sparsity: float, total: float) -> bool:
    """Whether a circuit's sparsity is what was asked for, to within `NEAR` or one edge of so many."""
    return abs(sparsity - target) <= max(NEAR, 1 / total)


def outcome(
    saved: SavedCircuit,
    pressure: SparsityTarget | LossTolerance | Penalty,
    *,
    judged: tuple[float, int] | None,
    polished: bool,
) -> Outcome:
    """What a run ended with, beside what was asked for.

    Args:
        saved: its circuit.
        pressure: what was asked for.
        judged: its loss on training examples, where that was asked for, and on how many.
        polished: whether it was polished, which ends with as many edges as were asked for, or fewer that do as well.
    """
    edges, total = len(saved.circuit), saved.circuit.graph.total
    loss, examples = (None, None) if judged is None else (not_negative(judged[0]), judged[1])
    if isinstance(pressure, LossTolerance):
        assert loss is not None
        missed = ""
        if not loss <= pressure.tolerance:
            missed = (
                f"asked for a loss of {pressure.tolerance:g} nats at the most, reached {loss:.3g}: try more --steps"
            )
        return Outcome(saved, loss, examples, not missed, missed)
    if not isinstance(pressure, SparsityTarget):
        return Outcome(saved, loss, examples, None, "")
    target, missed = pressure.target_sparsity, ""
    if not (sparsity_reached(target, 1 - edges / total, float(total)) or (polished and 1 - edges / total >= target)):
        missed = (
            f"asked for a sparsity of {target:g}, reached {1 - edges / total:.3f} ({edges} of {total} edges): try more "
            "--steps, or --polish, which ends with as many edges as were asked for"
        )
    return Outcome(saved, loss, examples, not missed, missed)
