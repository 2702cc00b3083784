"""Runs of Edge Pruning in tests: a named configuration with some settings changed."""

from dataclasses import replace

from edgeprune.methods.edge_pruning import configurations
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.settings import with_settings


def minimax(**settings):
    """`edge-pruning-minimax` with settings changed; `checked=0` leaves out the final check."""
    config = configurations.MINIMAX
    if settings.get("checked") == 0:
        del settings["checked"]
        config = replace(config, final_check=None)
    return with_settings(config, settings)


def compiled_paper(**settings):
    """The paper's objective as compiled programs have it, with settings changed."""
    return with_settings(configurations.COMPILED, settings)


def prune_compiled(program, ablation, config, *, seed=0):
    """A run on a compiled program."""
    return prune_edges(program.model, program.dataset, ablation, seed=seed, config=config)
