"""Discovery methods, by name. Every one of them has the signature of `Method`."""

from collections.abc import Mapping
from typing import Final

from edgeprune.data import Dataset
from edgeprune.errors import UnknownMethod
from edgeprune.graph import Ablation
from edgeprune.methods.custom import load_method
from edgeprune.methods.edge_pruning import prune_with_penalty
from edgeprune.methods.edge_pruning_target import prune_to_target
from edgeprune.methods.method import Discovery as Discovery
from edgeprune.methods.method import Method as Method
from edgeprune.model import MaskedModel, OnlyMasked

METHODS: Final[Mapping[str, Method]] = {
    "edge-pruning": prune_with_penalty,
    "edge-pruning-target": prune_to_target,
}
"""Each in its one configuration, for every model and program."""


def find_method(name: str) -> Method:
    """The method of that name, or one of your own, named `package.module:function`.

    It sees a `MaskedModel` and a copy of the inputs: what it does to them, the judge does not see.

    Raises:
        UnknownMethod: there is none.
    """
    if ":" not in name and name not in METHODS:
        raise UnknownMethod(f"Expected a method among {', '.join(METHODS)}, or package.module:function; got {name!r}")
    method = load_method(name) if ":" in name else METHODS[name]

    def discover(
        model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int = 0, progress: bool = False
    ) -> Discovery:
        return method(OnlyMasked(model), dataset.copy(), ablation, seed=seed, progress=progress)

    return discover
