"""What tools define differently, said beside figures."""

from typing import Final

ZERO: Final = (
    "zero ablation of an embedding takes token and position away, where EAP-IG keeps positions; the bias of "
    "attention's output stays, where Edge-Pruning's code ablates it with each head"
)
"""Said beside figures under zero ablation, which other tools define otherwise."""

SPARSITY: Final = "sparsity: the share of all edges that are removed"
"""Said beside figures."""


def noted(*ablations: str) -> dict[str, str]:
    """A `note` for JSON that has figures under these ablations, where other tools define one of them otherwise."""
    return {"note": ZERO} if "zero" in ablations else {}
