"""`import edgeprune as ep` on a language model: what a run in a folder finds and measures, a notebook does."""

from dataclasses import asdict, replace

import pytest
from checkpoints import checkpoint
from test_pruning_run import QUICK, config  # noqa: F401  (a fixture)

import edgeprune as ep
from edgeprune.runs.prune import evaluate_run, prune

SETTINGS = {"steps": 30, "batch_size": 4, "initial_log_alpha": 1.0, "learning_rate": 0.4, "sparsity_warmup": 0.1}


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_a_run_in_a_folder_and_a_notebook_find_and_measure_the_same(config, tmp_path, ablation):  # noqa: F811
    asked = replace(config, ablation=ablation, seed=3, data_seed=1)
    prune(asked, tmp_path / "run")
    model, tokenizer = ep.load_model(config.model)
    task = ep.load_task("gp", model, tokenizer, train=8, validation=4, test=6, seed=1)
    method = ep.edge_pruning(target_sparsity=0.5, **SETTINGS)
    found = ep.discover(model, task["train"], method, ablation=ablation, seed=3)
    assert found.circuit == ep.load_circuit(tmp_path / "run") and 0 < len(found.circuit) < model.graph.total
    measured = ep.evaluate(model, found.circuit, task["test"], means_of=task["train"])
    assert asdict(measured) == pytest.approx(asdict(evaluate_run(tmp_path / "run")[1]["circuit"]))
    assert method.keywords["config"] == QUICK


def test_an_exported_checkpoint_is_certified_by_its_folder(tmp_path_factory):
    exported = checkpoint("depth", "gpt2", tmp_path_factory)
    for ablation in ("zero", "resample"):
        expected = exported.truth(ablation).certificate
        assert ep.certify(exported.folder, ablation=ablation).certificate == expected
        assert ep.certify(str(exported.folder), ablation=ablation).certificate == expected
