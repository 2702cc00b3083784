"""Conventions that differ between tools; they are printed beside figures."""

from typing import Final

ZERO: Final = (
    "zero ablation of an embedding takes token and position away, where EAP-IG keeps positions; the bias of "
    "attention's output stays, where Edge-Pruning's code ablates it with each head"
)
"""Note printed beside figures under zero ablation, which other tools define differently."""

SPARSITY: Final = "sparsity: the share of all edges that are removed"
"""Note printed beside figures that give a sparsity."""


def noted(*ablations: str) -> dict[str, str]:
    """Return a `note` for JSON with figures under these ablations, if other tools define one of them differently."""
    return {"note": ZERO} if "zero" in ablations else {}
