"""Models that are trained here, and whose true circuits are known: what is true of them, and what methods find."""

import json
import shutil
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from edgeprune.cli.main import main
from edgeprune.toys import LESSONS
from edgeprune.toys.train import TASK, train_toy

SORTING = {"embed->a0.h0.q", "embed->a0.h0.k", "embed->a0.h0.v", "a0.h0->logits"}
"""What the account of Bagiński and Kolly's model implies: its head's queries, keys and values, and what it writes."""


@pytest.fixture(scope="module")
def sorting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys") / "sort"
    torch.set_num_threads(1)
    found = train_toy(folder, "sort", replace(LESSONS["sort"].config, steps=400))
    assert found.accuracy >= 0.99
    return folder


def run(capsys, *arguments):
    """What a command prints as JSON."""
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("tolerance", [0.1, 1])
def test_the_model_that_sorts_has_the_edges_of_its_published_mechanism(sorting, capsys, tmp_path, ablation, tolerance):
    asked = ["truth", sorting, "--task", sorting / TASK, "--tolerance", tolerance, "--ablation", ablation]
    code, said = run(capsys, *asked, "--save", tmp_path / "truth")
    assert code == 0 and set(said["edges"]) == SORTING
    assert (said["structural"], said["total"]) == (5, 8)
    assert said["certificate"]["status"] == "unique" and said["certificate"]["inputs"] == 1024
    about = json.loads((tmp_path / "truth" / "truth.json").read_text())["about"]
    assert about["sha256"]["task"] == sha256((sorting / TASK).read_bytes()).hexdigest()


ASKED = {
    "edge-pruning-tolerance-polished": ["--tolerance", "0.1", "--polish"],
    "edge-pruning-tolerance": ["--tolerance", "0.1"],
    "edge-pruning-tolerance, loose": ["--tolerance", "1"],  # with masks that fall all together, and come back
    "edge-pruning-polished": ["--target-sparsity", "0.5", "--polish"],  # told the size
}


@pytest.mark.parametrize("method", ASKED)
def test_the_circuit_that_sorts_is_found(sorting, capsys, tmp_path, method):
    about = ["--model", sorting, "--task", sorting / TASK, "--train", 1024, "--steps", 300, "--judged", 1024]
    code, said = run(capsys, "prune", *about, *ASKED[method], "--out", tmp_path / "run")
    assert code == 0 and said["reached"] and said["method"] == method.split(",")[0]
    found = json.loads((tmp_path / "run" / "circuit.json").read_text())
    assert set(found["edges"]) == SORTING


def test_methods_of_the_registry_are_judged_by_it_too(sorting, capsys):
    """Ours for compiled programs lets no output change, and keeps an edge that a tolerance lets go."""
    asked = ["--task", sorting / TASK, "--tolerance", 0.1, "--ablation", "resample", "--method"]
    code, said = run(capsys, "recover", sorting, *asked, "edge-pruning-minimax")
    assert code == 1 and not said["exact"] and not said["missing"]
    assert set(said["extra"]) == {"embed->logits"}
    code, said = run(capsys, "recover", sorting, *asked, "greedy-elimination")
    assert code == 0 and said["exact"] and said["proof"] == "listed"


@pytest.fixture
def saved(sorting, tmp_path, capsys):
    """A model, its task and its truth, in folders of their own."""
    model, truth = tmp_path / "model", tmp_path / "truth"
    shutil.copytree(sorting, model)
    asked = ["truth", model, "--task", model / TASK, "--tolerance", 0.1, "--ablation", "resample", "--save", truth]
    assert run(capsys, *asked)[0] == 0
    return model, truth


def test_a_saved_truth_is_a_subject_of_every_command_that_recovers(saved, capsys, tmp_path):
    _, truth = saved
    methods = ["--method", "greedy-elimination", "--method", "edge-pruning-minimax"]
    code, said = run(capsys, "bench", truth, *methods, "--ablation", "resample", "--jobs", 1, "--out", tmp_path / "b")
    assert code == 1
    rows = [json.loads(line) for line in (tmp_path / "b" / "results.jsonl").read_text().splitlines()]
    by_method = {row["method"]: row for row in rows}
    assert by_method["greedy-elimination"]["outcome"] == "exact" and by_method["greedy-elimination"]["true"] == 4
    inexact = by_method["edge-pruning-minimax"]
    assert inexact["outcome"] == "inexact" and inexact["extra"] == ["embed->logits"]
    assert (inexact["edges"], inexact["structural"], inexact["status"]) == (8, 5, "unique")
    assert {row["program"] for row in rows} == {str(truth)}
    recovering = ["recover", truth, "--method"]  # under the ablation of the truth
    code, said = run(capsys, *recovering, "edge-pruning-tolerance-polished")  # told the tolerance of the truth
    assert code == 0 and set(said["found"]) == SORTING and said["ablation"] == "resample"
    assert run(capsys, "truth", truth)[1]["ablation"] == "resample"
    assert run(capsys, "truth", truth, "--ablation", "zero")[1]["ablation"] == "zero"


def swap(vocabulary):
    """Let two words have each other's number."""
    one, other, *_ = [word for word in vocabulary if word.isdecimal()]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def spoil(file, change):
    """Change a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: content.pop("about"), "Expected a truth of a trained model"),
        (lambda content: content["about"].update(tolerance="0.1"), "Expected a truth of a trained model"),
        (lambda content: content["about"].update(tolerance=-1.0), "Expected 0 < tolerance"),
        (lambda content: content["about"]["sha256"].pop("task"), "Expected a truth of a trained model"),
        (
            lambda content: content["about"]["sha256"].update(task="0"),
            "Expected the task that the saved truth of model",
        ),
        (lambda content: content["about"]["sha256"].update(weights="0"), "Expected the weights that the saved truth"),
    ],
)
def test_a_saved_truth_that_is_damaged_or_of_something_else_is_one_line(saved, capsys, change, says):
    _, truth = saved
    spoil(truth / "truth.json", change)
    assert main(["recover", str(truth)]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and says in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        ("config.json", lambda content: content.update(layer_norm_epsilon=0.5), "configuration"),
        ("config.json", lambda content: content.update(activation_function="relu"), "configuration"),
        ("tokenizer.json", lambda content: swap(content["model"]["vocab"]), "tokens"),
    ],
)
def test_a_saved_truth_is_of_its_model_as_it_was(saved, capsys, file, change, what):
    model, truth = saved
    spoil(model / file, change)
    assert main(["recover", str(truth)]) == 2
    assert f"Expected the {what} that the saved truth of model is of" in capsys.readouterr().err


def test_a_saved_truth_is_of_its_task_as_it_was(saved, capsys):
    model, truth = saved
    (model / TASK).write_text("".join((model / TASK).read_text().splitlines(keepends=True)[1:]))
    assert main(["recover", str(truth)]) == 2
    assert "Expected the task that the saved truth of model is of" in capsys.readouterr().err


ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "trained.json").read_text())
"""What `python benchmarks/trained.py --json` wrote."""


def test_polishing_and_minimax_are_exact_on_every_trained_model_of_the_table():
    exact = {method: [row["exact"] for row in GOLDEN if row["method"] == method] for method in ALWAYS}
    assert {method: (sum(each), len(each)) for method, each in exact.items()} == ALWAYS
    assert {(row["task"], row["seed"]) for row in GOLDEN} == {
        (task, seed) for task in LESSONS if task != "ioi" for seed in range(3)
    }


ALWAYS = {
    "edge-pruning-tolerance-polished": (27, 27),
    "edge-pruning-told-size-polished": (27, 27),
    "edge-pruning-minimax": (9, 9),
}


@pytest.mark.sweep  # minutes a model
@pytest.mark.parametrize("task", [task for task in LESSONS if task != "ioi"])
def test_what_is_found_on_trained_models_is_as_it_was_measured(task, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    import trained

    rows = [row for row in GOLDEN if row["task"] == task and row["seed"] == 0]
    found = trained.rows_of(task, 0)
    assert len(found) == len(rows) == 13
    for one, other in zip(found, rows, strict=True):
        said = ("tolerance", "status", "true", "method", "edges", "exact")
        assert {name: one[name] for name in said} == {name: other[name] for name in said}
