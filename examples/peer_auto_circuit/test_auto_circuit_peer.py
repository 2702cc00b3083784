# ruff: noqa: D103  # a test's name is its docstring
"""What the adapter carries over: the model's outputs, and those of every circuit in it."""

import pytest
import torch
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode
from auto_circuit_peer import METHODS, cells, prepare

from edgeprune.masks import edge_exists
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.compile.compile import compile_program


@pytest.mark.parametrize("ablation", ["zero", "resample"])
@pytest.mark.parametrize("program", ["reverse", "xproportion", "twin_heads", "induction"])
def test_a_circuit_run_by_auto_circuit_answers_as_one_run_by_the_toolkit(program, ablation):
    compiled = compile_program(load_program(program))
    run = prepare(compiled.model, compiled.dataset, ablation, seed=0)
    scale = 1 if run.logits else 1 / float(compiled.dataset.target[compiled.dataset.scored].std())
    batch = next(iter(run.batches))
    exists = edge_exists(run.graph)
    for seed in range(5):
        mask = (torch.rand(exists.shape, generator=torch.Generator().manual_seed(seed)) < 0.8) & exists
        for edge in run.model.edges:
            (cell,) = cells(run.graph, edge)
            edge.patch_mask(run.model).data[edge.patch_idx] = 1 - float(mask[cell])
        with patch_mode(run.model, src_ablations(run.model, batch.corrupt)), torch.no_grad():
            theirs = run.model(batch.clean)
        ablated = None if ablation == "zero" else compiled.model.sources(batch.corrupt[:, :-1])
        outputs = compiled.model(batch.clean[:, :-1], mask.float(), ablated)
        ours = outputs[torch.arange(len(outputs)), batch.clean[:, -1]]
        assert torch.allclose(theirs / scale, ours, atol=1e-3)


def test_every_edge_of_ours_is_one_of_theirs():
    compiled = compile_program(load_program("reverse"))
    run = prepare(compiled.model, compiled.dataset, "zero", seed=0)
    found = sorted(cell for edge in run.model.edges for cell in cells(run.graph, edge))
    assert found == sorted(run.graph.position(edge) for edge in run.graph.edges)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_scores(method):
    compiled = compile_program(load_program("xproportion"))
    first, second = (method(compiled.model, compiled.dataset, "resample", seed=1) for _ in range(2))
    assert torch.equal(first.scores, second.scores)
    assert first.circuit == second.circuit
