"""Registry of discovery methods, by name. Every method has the signature of `Method`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from edgeprune.data import Dataset
from edgeprune.errors import UnknownMethod
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel, OnlyMasked
from edgeprune.methods.acdc import AcdcConfig, remove_greedily
from edgeprune.methods.baselines import SingleEdgeConfig, ablate_each, draw_scores
from edgeprune.methods.custom import load_method
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import PATHS, integrate_gradients
from edgeprune.methods.edge_pruning.configurations import COMPILED, MINIMAX, UNCHECKED
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.greedy_elimination import GreedyConfig, eliminate
from edgeprune.methods.hisp import HispConfig, score_nodes
from edgeprune.methods.method import Discovery as Discovery
from edgeprune.methods.method import Method as Method
from edgeprune.methods.subnetwork_probing import EDGES, NODES, probe_nodes

METHODS: Final[Mapping[str, Method]] = {
    MINIMAX.name: partial(prune_edges, config=MINIMAX),
    UNCHECKED.name: partial(prune_edges, config=UNCHECKED),
    COMPILED.name: partial(prune_edges, config=COMPILED),
    "acdc": partial(remove_greedily, config=AcdcConfig()),
    "acdc-earliest-first": partial(remove_greedily, config=AcdcConfig(order="earliest first")),
    "greedy-elimination": partial(eliminate, config=GreedyConfig()),
    "eap": partial(attribution_patching, config=EapConfig()),
    **{name: partial(integrate_gradients, config=config) for name, config in PATHS.items()},
    EDGES.name: partial(prune_edges, config=EDGES),
    NODES.name: partial(probe_nodes, config=NODES),
    "hisp": partial(score_nodes, config=HispConfig()),
    "single-edge": partial(ablate_each, config=SingleEdgeConfig()),
    "random": draw_scores,
}
"""Every method by name. Each has one configuration, for every model and program."""


def configuration(name: str) -> dict[str, Any]:
    """Return a method's settings as JSON values; empty for `random` and for methods outside the registry."""
    method = METHODS.get(name)
    return json.loads(json.dumps(asdict(method.keywords["config"]))) if isinstance(method, partial) else {}


def find_method(name: str, more: Mapping[str, Method] | None = None) -> Method:
    """Return the method `name`: one of the registry, one of `more`, or your own as `package.module:function`.

    The method receives a `MaskedModel` and a copy of the inputs. Its changes to them do not reach the judge.

    Args:
        name: name of the method.
        more: methods to accept in addition to the registry.

    Raises:
        UnknownMethod: no method has that name.
    """
    known = {**METHODS, **(more or {})}
    if ":" not in name and name not in known:
        raise UnknownMethod(f"Expected a method among {', '.join(known)}, or package.module:function; got {name!r}")
    method = load_method(name) if ":" in name else known[name]

    def discover(
        model: MaskedModel, dataset: Dataset, ablation: Ablation, *, seed: int = 0, progress: bool = False
    ) -> Discovery:
        return method(OnlyMasked(model), dataset.copy(), ablation, seed=seed, progress=progress)

    return discover
