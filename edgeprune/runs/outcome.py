"""Whether a run reached its target, and what to change if it did not."""

from dataclasses import dataclass
from typing import Any, Final

from edgeprune.files.store import SavedCircuit
from edgeprune.methods.edge_pruning.pressure import LossTolerance, Penalty, SparsityTarget
from edgeprune.metrics.distances import not_negative

NEAR: Final = 0.02
"""Largest difference between a sparsity and its target that still counts as reached."""


@dataclass(frozen=True)
class Outcome:
    """Result of a run."""

    saved: SavedCircuit
    loss: float | None
    """Loss of the circuit on training examples, by the run's own loss and criterion; None unless the run has a
    tolerance or was polished."""

    examples: int | None
    """Number of training examples behind `loss`."""

    reached: bool | None
    """Whether the target was reached; None if there was none, as `edge-pruning-minimax` chooses its size."""

    missed: str
    """What was missed, by how much, and what to change; empty if nothing was missed."""

    def as_json(self) -> dict[str, Any]:
        """Return the content of `outcome.json` and `--json`, without the circuit."""
        edges, total = len(self.saved.circuit), self.saved.circuit.graph.total
        said = {"edges": edges, "total": total, "sparsity": 1 - edges / total, "reached": self.reached}
        said |= {} if self.loss is None else {"loss": self.loss, "examples": self.examples}
        return said | ({"missed": self.missed} if self.missed else {})


def sparsity_reached(target: float, sparsity: float, total: float) -> bool:
    """Whether a circuit's sparsity is within `NEAR` of the target, or within one edge of `total`."""
    return abs(sparsity - target) <= max(NEAR, 1 / total)


def outcome(
    saved: SavedCircuit,
    pressure: SparsityTarget | LossTolerance | Penalty,
    *,
    judged: tuple[float, int] | None,
    polished: bool,
) -> Outcome:
    """Compare a run's circuit with the run's target.

    Args:
        saved: the run's circuit.
        pressure: the target: a sparsity, a tolerance, or a penalty, which sets none.
        judged: loss on training examples and their number; None if it was not measured.
        polished: whether the circuit was polished; polishing may end with fewer edges than requested.
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
            "--steps, or --polish, which ends with at most as many edges as were asked for"
        )
    return Outcome(saved, loss, examples, not missed, missed)
