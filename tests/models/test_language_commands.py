"""`edgeprune prune`, `evaluate` and `draw` on a run's folder, in process."""

import json
import os

import pytest
import torch
from test_pruning_run import save_model

from edgeprune.cli.main import main
from edgeprune.files.other_tools import ANY_FAMILY, NO_ABLATION, NO_GRAPH, NO_ORIGIN, NO_SCORES
from edgeprune.files.store import load_circuit, save_circuit
from edgeprune.graph import Circuit, Graph
from edgeprune.methods.edge_pruning.configurations import FIXED, MINIMAX, PAPER
from edgeprune.methods.settings import settings
from edgeprune.metrics.conventions import ZERO
from edgeprune.runs.prune import read_config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def options(model, out, /, **settings):
    """A run of a few steps on a few examples."""
    asked = {"model": model, "task": "gp", "out": out, "target_sparsity": 0.6, "steps": 6, "batch_size": 4}
    asked |= {"train": 8, "validation": 4, "test": 6, "initial_log_alpha": 0.5} | settings
    return [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", value)]


def test_prune_evaluate_and_draw(capsys, model, tmp_path):
    status, out, missed = run(capsys, "prune", *options(model, tmp_path / "run"))
    assert status == 1 and missed.startswith("edgeprune: asked for a sparsity of 0.6, reached 0.")
    assert "try more --steps, or --polish" in missed and missed.count("\n") == 1
    assert "edges kept" in out and f"edgeprune evaluate {tmp_path / 'run'}" in out
    status, out, _ = run(capsys, "evaluate", tmp_path / "run")
    assert status == 0 and "logit difference" in out and "full model" in out.replace("\n", " ")
    status, out, _ = run(capsys, "evaluate", tmp_path / "run", "--split", "validation", "--json")
    measured = json.loads(out)
    assert (status, measured["inputs"], measured["split"]) == (0, 4, "validation")
    assert measured["full_model"]["kl"] == pytest.approx(0, abs=1e-6) and measured["full_model"]["sparsity"] == 0
    assert json.loads((tmp_path / "run" / "evaluation-validation.json").read_text()) == measured
    status, out, _ = run(capsys, "draw", tmp_path / "run", "-o", tmp_path / "circuit.svg")
    assert status == 0 and "<svg" in (tmp_path / "circuit.svg").read_text()


def test_figures_under_zero_say_what_others_define_otherwise(capsys, model, tmp_path):
    """And the circuit goes to other tools and back: the paper's GPT-2 has two embeddings."""
    for ablation in ("zero", "resample"):
        folder = tmp_path / ablation
        run(capsys, "prune", *options(model, folder, ablation=ablation))
        _, said, _ = run(capsys, "evaluate", folder)
        assert ("note: zero ablation of an embedding takes token and position" in said) == (ablation == "zero")
        assert "sparsity, the share of all edges that are removed" in " ".join(said.split())
        status, said, _ = run(capsys, "evaluate", folder, "--json")
        assert status == 0 and json.loads(said).get("note") == (ZERO if ablation == "zero" else None)
        saved, edges, back = folder / "circuit.json", tmp_path / "edges.json", tmp_path / "back.json"
        assert json.loads(saved.read_text())["family"] == "gpt2"
        status, said, _ = run(capsys, "convert", saved, edges, "--to", "edge-pruning", "--json")
        losses = [NO_ABLATION, NO_SCORES, NO_GRAPH, NO_ORIGIN]
        assert (status, json.loads(said)["losses"]) == (0, losses)
        assert json.loads(said).get("note") == (ZERO if ablation == "zero" else None)
        writers = {writer for writer, _ in json.loads(edges.read_text())}
        assert {"tok_embeds", "pos_embeds"} <= writers and "embeds" not in writers
        assert run(capsys, "convert", edges, back, "--from", "edge-pruning", "--like", saved)[0] == 0
        assert load_circuit(back) == load_circuit(saved)
    assert run(capsys, "convert", saved, edges, "--to", "edge-pruning", "--family", "llama")[0] == 0
    assert "embeds" in {writer for writer, _ in json.loads(edges.read_text())}
    save_circuit(load_circuit(saved), saved)  # which does not say what it is of
    assert ANY_FAMILY in run(capsys, "convert", saved, edges, "--to", "edge-pruning", "--json")[1]


def test_a_circuit_is_taken_into_another_task_and_joined_with_its_own(capsys, model, tmp_path):
    """As table 2 of arXiv:2406.16778: found in one setting, measured in the other, and what both have."""
    for task in ("gp", "ioi"):
        assert run(capsys, "prune", *options(model, tmp_path / task, task=task, seed=len(task)))[0] == 1
    status, out, _ = run(capsys, "evaluate", tmp_path / "gp", "--task", "ioi", "--json")
    there = json.loads(out)
    assert status == 0 and there["task"] == "ioi" and [*(tmp_path / "gp").glob("evaluation-test-task-ioi-*.json")]
    status, out, _ = run(capsys, "evaluate", tmp_path / "ioi", "--circuit", tmp_path / "gp" / "circuit.json", "--json")
    assert json.loads(out)["circuit"] == there["circuit"]
    status, out, _ = run(capsys, "evaluate", tmp_path / "ioi", "--json")
    assert json.loads(out)["circuit"] != there["circuit"]
    edges = [load_circuit(tmp_path / task / "circuit.json").edges for task in ("gp", "ioi")]
    for operation, expected in (("intersect", edges[0] & edges[1]), ("union", edges[0] | edges[1])):
        file = tmp_path / f"{operation}.json"
        status, out, _ = run(capsys, "circuits", operation, tmp_path / "gp", tmp_path / "ioi", "-o", file, "--json")
        assert status == 0 and load_circuit(file).edges == expected
        assert json.loads(out)["of"] == [len(each) for each in edges]
        assert json.loads(out)["iou"] == [len(edges[0] & edges[1]) / len(edges[0] | edges[1])]
        status, out, _ = run(capsys, "evaluate", tmp_path / "gp", "--circuit", file, "--json")
        assert json.loads(out)["circuit"]["edges"] == len(expected)
    assert "result" in run(capsys, "circuits", "union", tmp_path / "gp", tmp_path / "ioi")[1]


def test_what_is_measured_of_two_circuits_of_one_name_is_kept_apart(capsys, model, tmp_path):
    for name in ("a", "b", "c"):
        run(capsys, "prune", *options(model, tmp_path / name, seed=ord(name)))
    found = [
        json.loads(run(capsys, "evaluate", tmp_path / "a", "--circuit", tmp_path / name / "circuit.json", "--json")[1])
        for name in ("b", "c")
    ]
    assert found[0] != found[1]
    kept = [json.loads(file.read_text()) for file in (tmp_path / "a").glob("evaluation-test-circuit-*.json")]
    assert sorted(map(str, kept)) == sorted(map(str, found))


def test_a_device_without_memory_is_one_line(capsys, model, tmp_path, monkeypatch):
    def fills_up(*_given, **_settings):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr("edgeprune.runs.prune.prune", fills_up)
    status, _, error = run(capsys, "prune", *options(model, tmp_path / "run"))
    assert (status, error.count("\n")) == (2, 1) and "out of memory on the device" in error


def test_circuits_that_do_not_belong_together_are_one_line(capsys, model, tmp_path):
    run(capsys, "prune", *options(model, tmp_path / "gp"))
    another = save_model(tmp_path / "model", seed=1)
    run(capsys, "prune", *options(another, tmp_path / "another"))
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=1)
    save_circuit(Circuit(graph, "resample", frozenset(graph.edges)), tmp_path / "other.json")
    ours = load_circuit(tmp_path / "gp" / "circuit.json")
    save_circuit(Circuit(ours.graph, "zero", ours.edges), tmp_path / "zero.json")
    for arguments, message in (
        (["circuits", "union", tmp_path / "gp", tmp_path / "other.json"], "Expected circuits of one model"),
        (["circuits", "union", tmp_path / "gp", tmp_path / "zero.json"], "Expected circuits of one model"),
        (["circuits", "intersect", tmp_path / "gp"], "Expected two circuits or more; got 1"),
        (["circuits", "intersect", tmp_path / "gp", tmp_path / "another"], "Expected circuits of one model; got those"),
        (["evaluate", tmp_path / "gp", "--circuit", tmp_path / "another"], "holds one of"),
        (["evaluate", tmp_path / "gp", "--circuit", tmp_path / "other.json"], "Expected a circuit of"),
        (["evaluate", tmp_path / "gp", "--circuit", tmp_path / "zero.json"], "under resample ablation"),
        (["evaluate", tmp_path / "gp", "--circuit", tmp_path / "none.json"], "Expected a circuit's file"),
        (["evaluate", tmp_path / "gp", "--task", "magic"], "Expected a task among"),
    ):
        status, _, error = run(capsys, *arguments)
        assert (status, error.count("\n")) == (2, 1) and message in error


def test_a_run_that_is_gone_on_with_says_what_it_found(capsys, model, tmp_path):
    status, first, _ = run(capsys, "prune", *options(model, tmp_path / "run"), "--json")
    found = json.loads(first)
    assert found.keys() == {"circuit", "method", "edges", "total", "sparsity", "reached", "missed"}
    assert status == 1 and found["method"] == "edge-pruning" and not found["reached"]
    status, _, error = run(capsys, "prune", *options(model, tmp_path / "run"))
    assert status == 2 and "go on with --resume" in error
    status, again, _ = run(capsys, "prune", *options(model, tmp_path / "run"), "--json", "--resume")
    assert (status, json.loads(again)) == (1, found)


def test_every_setting_of_pruning_is_an_option_with_the_papers_value(capsys, model, tmp_path):
    changed = {"steps": 2, "mask_samples": 2, "masked": "edges", "learning_rate": 0.5, "ablation": "mean"}
    assert run(capsys, "prune", *options(model, tmp_path / "run", **changed))[0] == 1
    config = read_config(tmp_path / "run")
    assert config.ablation == "mean"
    given = {**changed, "target_sparsity": 0.6, "batch_size": 4, "initial_log_alpha": 0.5}
    assert settings(config.pruning) == settings(PAPER) | {name: given[name] for name in given if name != "ablation"}
    assert main(["prune", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    no_options = {"name", "kept", "betas", "temperature", "low", "high", "ending", "final_check"}
    named = [name for each in (PAPER, MINIMAX) for name in settings(each).keys() - FIXED[each.name]]
    for name in set(named) - no_options:
        assert f"--{name.replace('_', '-')}" in shown
    assert "[default: 0.8, tolerance: 0.1, minimax: 0.2]" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/no/such/folder"}, "Expected a model's name on the Hugging Face hub, or a folder"),
        ({"task": "magic"}, "Expected a task among ioi-t1, ioi, gt, gp"),
        ({"target_sparsity": 1.5}, "0 < target_sparsity <= 1, got 1.5"),
        ({"ablation": "noise"}, "Expected an ablation among"),
        ({"sparsity_warmup": 0}, "0 < sparsity_warmup <= 1, got 0"),
        ({"learning_rate_warmup": "nan"}, "0 <= learning_rate_warmup <= 1, got nan"),
        ({"learning_rate": "inf"}, "0 < learning_rate <= 1e+06, got inf"),
        ({"multiplier_learning_rate": "nan"}, "0 < multiplier_learning_rate <= 1e+06, got nan"),
        ({"weight_decay": -1}, "0 <= weight_decay <= 1e+06, got -1"),
        ({"largest_gradient_norm": -1}, "0 < largest_gradient_norm <= 1e+06, got -1"),
        ({"device": "meta"}, "Expected a device such as auto, cpu or cuda; got 'meta'"),
        ({"parts": 9}, "parts from 1 to batch_size"),
        ({"train": 0}, "Expected train >= 1, got 0"),
        ({"device": "abacus"}, "Expected a device such as auto, cpu or cuda; got 'abacus'"),
        ({"save_every": 0}, "Expected a whole number, 1 or more; got 0"),
    ],
)
def test_what_cannot_be_run_is_one_line(capsys, model, tmp_path, change, message):
    try:
        status = main([str(part) for part in ["prune", *options(model, tmp_path / "run", **change)]])
    except SystemExit as ended:  # of arguments alone
        status = ended.code
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("edgeprune: ") and error.count("\n") == 1
    assert message in error


def test_a_task_whose_name_no_file_could_hold_is_one_line_before_anything_is_run(capsys, model, tmp_path):
    task = tmp_path / os.fsdecode(b"task-\xff.jsonl")
    line = json.dumps({"clean": "he<predict> she</predict>", "corrupted": "he", "split": "every"})
    task.write_text(line + "\n")
    sizes = {"train": 1, "validation": 1, "test": 1}
    status, _, error = run(capsys, "prune", *options(model, tmp_path / "run", task=task, ablation="zero", **sizes))
    assert status == 2 and error.count("\n") == 1 and "Expected text in UTF-8" in error
    assert {file.name for file in (tmp_path / "run").iterdir()} <= {".lock"}


def test_a_folder_without_a_run_is_one_line(capsys, tmp_path):
    for arguments in (["evaluate", tmp_path], ["draw", tmp_path, "-o", tmp_path / "p.svg"]):
        status, _, error = run(capsys, *arguments)
        assert status == 2 and error.count("\n") == 1
