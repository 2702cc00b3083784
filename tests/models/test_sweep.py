"""Several sparsities and seeds: what is run, summarised and drawn."""

import json
from dataclasses import replace

import pytest
from test_pruning_run import QUICK, save_model

from edgeprune.cli.main import main
from edgeprune.errors import ConfigError, RunError
from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.files.store import load_circuit
from edgeprune.graph import Circuit, Graph
from edgeprune.runs import sweep as sweeping
from edgeprune.runs.config import RunConfig
from edgeprune.runs.sweep import Point, knee_of, summarise, sweep
from edgeprune.tasks import Sizes

GRAPH = Graph.transformer(embeddings=("embed",), layers=1, heads=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    model = save_model(tmp_path_factory.mktemp("model"))
    short = replace(QUICK, steps=8)
    return RunConfig(model=model, task="gp", sizes=Sizes(train=8, validation=4, test=6), pruning=short)


def point(target: float, seed: int, kl: float, edges: int) -> Point:
    circuit = Circuit(GRAPH, "resample", frozenset(GRAPH.edges[seed : seed + edges]))
    measured = Evaluation(kl, 1.0, 1.0, 1.0, edges, 1 - edges / GRAPH.total)
    return Point(target, seed, circuit, measured, reached=True)


def test_runs_are_summarised_target_by_target():
    found = summarise(
        [point(t, seed, kl + seed, edges) for t, kl, edges in ((0.2, 1.0, 6), (0.5, 3.0, 4)) for seed in (0, 1)]
    )
    assert found.curve == {0.2: 1.5, 0.5: 3.5}
    assert found.agreement == {0.2: (5 / 7,), 0.5: (3 / 5,)}
    assert {target: circuit.edges for target, circuit in found.common.items()} == {
        0.2: frozenset(GRAPH.edges[1:6]),
        0.5: frozenset(GRAPH.edges[1:4]),
    }
    assert found.knee is None


def test_the_knee_is_where_the_curve_turns_up():
    assert knee_of({0.5: 0.01, 0.8: 0.012, 0.9: 0.015, 0.95: 1.0, 0.99: 5.0}) == 0.9
    assert knee_of({0.5: 0.0, 0.8: 0.0, 0.9: 0.0, 0.99: 5.0}) == 0.9
    assert knee_of({0.5: 0.1, 0.9: 5.0}) is None
    assert knee_of({0.1: 1.0, 0.2: 2.0, 0.3: 2.1}) is None  # it bends the other way


def test_a_sweep_makes_a_folder_a_run_and_goes_on_where_it_was(config, tmp_path, monkeypatch):
    found = sweep(config, [0.6, 0.3], 2, tmp_path)
    names = [f"sparsity-{target}-seed-{seed}" for target in (0.3, 0.6) for seed in (0, 1)]
    assert [f"sparsity-{p.target}-seed-{p.seed}" for p in found.points] == names
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert [(p["target"], p["seed"]) for p in written["points"]] == [(0.3, 0), (0.3, 1), (0.6, 0), (0.6, 1)]
    for each, name in zip(found.points, names, strict=True):
        assert load_circuit(tmp_path / name / "circuit.json") == each.circuit
        measured = json.loads((tmp_path / name / "evaluation-test.json").read_text())["circuit"]
        assert measured["kl"] == each.evaluation.kl
    assert load_circuit(tmp_path / "common-0.6.json") == found.common[0.6]
    assert "<svg" in (tmp_path / "sweep.svg").read_text()

    def no_step(*_):
        raise AssertionError("nothing is left to run")

    monkeypatch.setattr("edgeprune.runs.prune.Pruning.advance", no_step)
    again = sweep(config, [0.3, 0.6], 2, tmp_path)
    assert again == found


@pytest.mark.parametrize("targets", [[], [0.5, 0.5]])
def test_targets_that_are_none_or_twice_the_same_are_refused(config, tmp_path, targets):
    with pytest.raises(ConfigError, match="Expected different sparsities, at least one"):
        sweep(config, targets, 1, tmp_path)


def test_the_command_prints_a_table_and_marks_the_knee(config, capsys, tmp_path, monkeypatch):
    knees = []
    monkeypatch.setattr(sweeping, "knee_of", lambda curve: knees.append(curve) or 0.6)
    sizes = ["--train", "8", "--validation", "4", "--test", "6", "--batch-size", "4", "--steps", "3", "--seeds", "2"]
    targets = ["--target-sparsity", "0.3", "--target-sparsity", "0.6"]
    asked = ["sweep", "--model", config.model, "--task", "gp", "--out", str(tmp_path), *targets, *sizes]
    assert main(asked) == 1
    shown, missed = capsys.readouterr()
    assert "4 of 4 circuits missed the sparsity" in missed and "0.3 (0.000, seed 1)" in missed
    assert "0.6 (knee)" in shown and "IoU" in shown and str(tmp_path / "sweep.svg") in shown.replace("\n", "")
    assert main([*asked, "--json"]) == 1
    points = json.loads(capsys.readouterr().out)["points"]
    assert len(points) == 4 and not any(point["reached"] for point in points)


def test_a_sweep_of_polished_circuits_misses_no_sparsity_and_says_what_it_ran(config, capsys, tmp_path):
    sizes = ["--train", "8", "--validation", "4", "--test", "6", "--batch-size", "4", "--steps", "3", "--seeds", "2"]
    asked = ["sweep", "--model", config.model, "--task", "gp", "--out", str(tmp_path), "--target-sparsity", "0.6"]
    assert main([*asked, *sizes, "--polish"]) == 0
    shown, missed = capsys.readouterr()
    assert shown.lstrip().startswith("edge-pruning-polished") and "missed" not in missed
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written["method"] == "edge-pruning-polished" and all(point["reached"] for point in written["points"])
    for seed in (0, 1):
        assert json.loads((tmp_path / f"sparsity-0.6-seed-{seed}" / "polish.json").read_text())["criterion"]["edges"]
    assert main([*asked, *sizes]) == 2  # the same runs, not polished, are others
    assert "name another folder" in capsys.readouterr().err


def test_a_sweep_keeps_to_a_folder_of_its_own(config, tmp_path):
    sweep(config, [0.3], 1, tmp_path / "here")
    before = (tmp_path / "here" / "sweep.json").read_bytes()
    for other, what in (({"ablation": "zero"}, "ablation"), ({"task": "gt"}, "task"), ({"model": "other"}, "model")):
        with pytest.raises(RunError, match=f"Expected the {what} that the sweep in .* began with"):
            sweep(replace(config, **other), [0.6], 1, tmp_path / "here")
    with pytest.raises(RunError, match=r"Expected an empty folder for a new sweep; .* holds other files"):
        sweep(config, [0.3], 1, tmp_path / "here" / "sparsity-0.3-seed-0")  # a run, and not a sweep
    assert (tmp_path / "here" / "sweep.json").read_bytes() == before
