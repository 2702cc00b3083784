"""Circuit discovery on transformers, with masks on the edges of the computation graph.

`import edgeprune as ep` offers every name in `__all__`; each is imported on first use (docs/python.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edgeprune.api import CircuitModel as CircuitModel
    from edgeprune.api import ablated as ablated
    from edgeprune.api import certify as certify
    from edgeprune.api import discover as discover
    from edgeprune.api import edge_pruning as edge_pruning
    from edgeprune.api import evaluate as evaluate
    from edgeprune.api import load_circuit as load_circuit
    from edgeprune.api import load_task as load_task
    from edgeprune.api import make_dataset as make_dataset
    from edgeprune.api import run_with as run_with
    from edgeprune.errors import EdgePruneError as EdgePruneError
    from edgeprune.graph import Circuit as Circuit
    from edgeprune.graph import Edge as Edge
    from edgeprune.graph import Graph as Graph
    from edgeprune.graph import Node as Node
    from edgeprune.graph import compare_circuits as compare_circuits
    from edgeprune.models.load import load_model as load_model

_WHERE: Final = {
    "edgeprune.api": (
        "CircuitModel",
        "ablated",
        "certify",
        "discover",
        "edge_pruning",
        "evaluate",
        "load_circuit",
        "load_task",
        "make_dataset",
        "run_with",
    ),
    "edgeprune.errors": ("EdgePruneError",),
    "edgeprune.graph": ("Circuit", "Edge", "Graph", "Node", "compare_circuits"),
    "edgeprune.models.load": ("load_model",),
}

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]  # as above, when they are asked for
    "Circuit",
    "CircuitModel",
    "Edge",
    "EdgePruneError",
    "Graph",
    "Node",
    "ablated",
    "certify",
    "compare_circuits",
    "discover",
    "edge_pruning",
    "evaluate",
    "load_circuit",
    "load_model",
    "load_task",
    "make_dataset",
    "run_with",
]


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__name__", "__path__"]
