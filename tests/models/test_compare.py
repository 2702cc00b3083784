"""Methods side by side on a language model: sizes that are matched, what is measured, and going on."""

import importlib
import json
import math
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from test_pruning_run import QUICK, save_model

from edgeprune.cli.main import main
from edgeprune.errors import ConfigError, EdgePruneError, ModelError, RunError, TaskError, UnknownMethod
from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.files.store import UnwritableFile, load_circuit, load_saved
from edgeprune.graph import Circuit, Graph
from edgeprune.masks import circuit_mask, edge_exists, live_circuit
from edgeprune.methods import METHODS as REGISTRY
from edgeprune.methods import Discovery
from edgeprune.methods.settings import with_settings
from edgeprune.metrics.conventions import SPARSITY, ZERO
from edgeprune.runs import compare as comparing
from edgeprune.runs.compare import COMPARED_METHODS, CompareConfig, compare
from edgeprune.runs.compare_table import MINIMAX, ComparedRow, cells, draw
from edgeprune.runs.config import RunConfig, load_model_on_task
from edgeprune.tasks import Sizes
from edgeprune.tasks.words import NAMES

OWN = """
def find(model, dataset, ablation, seed=0):
    import torch
    assert len(dataset) in (6, 8)
    count = len(model.graph.sources) * len(model.graph.destinations)
    return torch.arange(count).float().view(len(model.graph.sources), -1)
"""


GRAPH = Graph.transformer(embeddings=("embed",), layers=2, heads=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = save_model(tmp_path_factory.mktemp("model"))
    pruning = with_settings(QUICK, {"steps": 12, "initial_log_alpha": 0.5})
    return RunConfig(model=model, task="gp", sizes=Sizes(train=1, validation=4, test=6), pruning=pruning)


@pytest.fixture(scope="module")
def comparison(run):
    return CompareConfig(run=run, methods=COMPARED_METHODS, targets=(0.3, 0.6), examples=(6, 8))


@pytest.fixture(scope="module")
def whole(comparison, tmp_path_factory):
    """A comparison that was never stopped, and its rows."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, compare(comparison, out)


def test_circuits_have_as_many_live_edges_as_were_asked_for(comparison, whole):
    out, rows = whole
    assert {(row.examples, row.method, row.target) for row in rows} == {
        (examples, method, target)
        for examples in (6, 8)
        for method in COMPARED_METHODS
        for target in ((0.0,) if method == MINIMAX else (0.3, 0.6))
    }
    for row in rows:
        kept = load_circuit(out / "circuits" / row.file)
        assert live_circuit(kept.graph, kept.ablation, circuit_mask(kept) > 0) == kept
        if row.method in ("edge-pruning", MINIMAX):
            assert row.asked == row.evaluation.edges and row.runs == 1
        elif row.method == "acdc":
            assert 1 <= row.runs <= comparing._SEARCHES
        else:  # one edge more may bring several to life, and polishing leaves out what lowers no loss
            assert row.asked == round((1 - row.target) * 46) and row.evaluation.edges <= row.asked and row.runs == 1
        assert row.seconds > 0


def test_without_polishing_edge_pruning_sets_the_sizes(run, tmp_path):
    asked = CompareConfig(run=run, methods=("eap", "edge-pruning"), targets=(0.3, 0.6), examples=(6,))
    rows = {(row.method, row.target): row for row in compare(asked, tmp_path / "run")}
    assert len({rows["edge-pruning", target].evaluation.edges for target in asked.targets}) == 2
    for target in asked.targets:
        edges = rows["edge-pruning", target].evaluation.edges
        assert rows["eap", target].asked == edges >= rows["eap", target].evaluation.edges >= edges - 6


def test_a_row_is_what_its_circuit_does_on_the_test_split(run, comparison, whole):
    out, rows = whole
    subjects = {examples: load_model_on_task(comparison.of(examples), ["test"]) for examples in (6, 8)}
    for row in rows:
        saved = load_saved(out / "circuits" / row.file)
        assert len(saved.circuit) == row.evaluation.edges and saved.method["name"] == row.method
        found = subjects[row.examples].evaluate("test", "resample", circuit_mask(saved.circuit))
        assert asdict(found) == pytest.approx(asdict(row.evaluation), rel=1e-5)
    assert len({row.evaluation.kl for row in rows}) > len(COMPARED_METHODS)


def test_what_scores_highest_is_kept(whole):
    out, rows = whole
    for row in rows:
        if row.method.startswith("eap") or row.method == "random":
            saved = load_saved(out / "circuits" / row.file)
            scores, kept = torch.full(edge_exists(GRAPH).shape, -math.inf), saved.circuit.edges
            for edge, score in saved.scores.items():
                scores[GRAPH.position(edge)] = abs(score)
            least = min(abs(saved.scores[edge]) for edge in kept)
            assert live_circuit(GRAPH, "resample", scores >= least).edges == kept
            assert (min(saved.scores.values()) < 0) == (row.method != "random")  # attributions keep their sign
            assert saved.family == "gpt2"


def test_acdc_is_run_at_the_threshold_that_comes_nearest_and_never_twice_at_one(run, monkeypatch):
    """In place of ACDC, something that keeps an edge less the higher the threshold, in steps of three."""
    graph, ran = Graph.transformer(embeddings=("embed",), layers=2, heads=2), []

    def cuts(model, dataset, ablation, *, seed, progress, config):
        ran.append(config.threshold)
        kept = max(0, min(graph.total, 3 * round(-3 * math.log10(config.threshold / 100))))
        return Discovery(
            Circuit(graph, ablation, frozenset(graph.edges[:kept])), torch.zeros(edge_exists(graph).shape), ()
        )

    monkeypatch.setattr(comparing, "remove_greedily", cuts)
    bench = comparing._Bench(load_model_on_task(run, ["train"]), run, progress=False)
    sizes = (24, 40, 24, 7, graph.total)
    found = {edges: bench.of_size("acdc", edges) for edges in sizes}
    assert all(abs(len(each.circuit) - edges) <= 1 for edges, each in found.items())
    assert len(set(ran)) == len(ran) < 20
    # What was asked for before makes no difference.
    for edges, before in found.items():
        alone = comparing._Bench(load_model_on_task(run, ["train"]), run, progress=False).of_size("acdc", edges)
        assert (alone.circuit, alone.runs, alone.config) == (before.circuit, before.runs, before.config)


def _apart_from_time(row):
    return replace(row, seconds=0.0)


def test_methods_run_with_the_settings_and_the_seed_that_were_asked_for(run, monkeypatch):
    """On the training split alone; seconds are of all runs, by a clock that goes on by one whenever it is looked at."""
    subject = load_model_on_task(run, ["train"])
    seeded, seen = replace(run, seed=7), []
    clock = iter(map(float, range(1000)))
    monkeypatch.setattr(comparing.time, "perf_counter", lambda: next(clock))

    def spy(model, dataset, ablation, *, seed, progress, config=None):
        seen.append(config)
        assert dataset is subject.splits["train"] and (ablation, seed) == ("resample", 7)
        scores = torch.rand(edge_exists(model.graph).shape, generator=torch.Generator().manual_seed(0))
        return Discovery(Circuit(model.graph, ablation, frozenset()), scores, ())

    for name in ("prune_edges", "remove_greedily"):
        monkeypatch.setattr(comparing, name, spy)
    spied = {name: (spy, config) for name, (_, config) in comparing._SCORING.items()}
    monkeypatch.setattr(comparing, "_SCORING", spied)
    bench = comparing._Bench(subject, seeded, progress=False)
    assert bench.found("edge-pruning", 0.4, 9).seconds == 1
    assert seen == [with_settings(run.pruning, {"target_sparsity": 0.4})]
    found = bench.of_size("acdc", 9)
    assert found.seconds == found.runs == comparing._SEARCHES == len(seen) - 1
    assert {config.logit_scale for config in seen[1:]} == {1.0} and len({config.threshold for config in seen[1:]}) == 8
    seen.clear()
    for name in ("eap", "eap-ig-inputs", "eap-ig-activations"):
        assert bench.of_size(name, 9).config == bench.of_size(name, 5).config
    assert [type(config).__name__ for config in seen] == ["EapConfig", "EapIgConfig", "EapIgConfig"]
    assert [config.over for config in seen[1:]] == ["inputs", "activations"]


def test_every_scoring_method_is_the_registrys_with_settings_of_its_own():
    for name, (method, config) in comparing._SCORING.items():
        registered = REGISTRY[name]
        if config is None:
            assert registered is method
        else:
            assert registered.func is method and getattr(registered.keywords["config"], "over", 0) == getattr(
                config, "over", 0
            )


def test_a_comparison_goes_on_where_it_was_and_may_ask_for_more(comparison, whole, tmp_path, monkeypatch):
    _, rows = whole
    calls, add = [], comparing._Book.add

    def stops(book, row, saved):
        add(book, row, saved)
        calls.append(row)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(comparing._Book, "add", stops)
    fewer = replace(comparison, methods=COMPARED_METHODS[:3], examples=(6,))
    with pytest.raises(KeyboardInterrupt):
        compare(fewer, tmp_path / "run")
    compare(fewer, tmp_path / "run")
    assert len({row.key for row in calls}) == len(calls) == 5
    again = compare(comparison, tmp_path / "run")
    assert [_apart_from_time(row) for row in again] == [_apart_from_time(row) for row in rows]
    before = (tmp_path / "run" / "compare.json").read_bytes()
    assert compare(comparison, tmp_path / "run") == again
    assert (tmp_path / "run" / "compare.json").read_bytes() == before and len(calls) == 2 * (
        2 * (len(COMPARED_METHODS) - 1) + 1
    )


def test_the_table_and_the_picture_show_every_row(comparison, whole):
    out, rows = whole
    text = (out / "compare.md").read_text()
    assert text.count("\n") == 2 + len(rows) and "| logit difference |" in text
    assert "<svg" in (out / "compare.svg").read_text()
    lines = [line for axes in draw(rows).axes for line in axes.get_lines()]
    assert sorted(len(line.get_xdata()) for line in lines) == [1] * 2 + [2] * 2 * (len(COMPARED_METHODS) - 1)
    row = ComparedRow("eap", 2000, 0.9, 7, 1.25, 3, "cpu", Evaluation(0.5, 1.5, 0.25, 1.0, 7, 0.9))
    assert cells("gp", [row])[1] == (
        "2,000", "eap", "7", "90.0%", "0.5000", "1.500", "25.0%", "100.0%", "1.2 (3 runs)"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "asked", "edges", "sparsity", "says"),
    [
        ("acdc", 23, 25, 0.5, ("25, not 23", "50.0%")),
        ("acdc", 23, 23, 0.5, ("23", "50.0%")),
        ("eap", 46, 46, 0.0, ("46", "0.0%, not 50.0%")),  # Edge Pruning missed its sparsity, and set the size
        ("edge-pruning", 46, 46, 0.0, ("46", "0.0%, not 50.0%")),
        ("edge-pruning-polished", 23, 20, 0.56, ("20, not 23", "56.0%")),
        ("edge-pruning-minimax", 7, 7, 0.85, ("7", "85.0%")),
    ],
)
def test_a_size_that_is_another_than_the_one_asked_for_is_said_in_the_table(method, asked, edges, sparsity, says):
    target = 0.0 if method == "edge-pruning-minimax" else 0.5
    row = ComparedRow(method, 6, target, asked, 1.0, 1, "cpu", Evaluation(0.5, 1.5, 0.25, 1.0, edges, sparsity))
    assert cells("gp", [row])[1][2:4] == says


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ()}, "Expected different methods, at least one; got none"),
        ({"methods": ("eap", "eap")}, "Expected different methods, at least one; got eap, eap"),
        (
            {"methods": ("magic",)},
            "Expected a method among edge-pruning, .*; got 'magic'",
        ),
        ({"targets": (0.5, 1.5)}, "0 < target_sparsity <= 1, got 1.5"),
        ({"examples": (0,)}, "train >= 1, got 0"),
        ({"methods": ("no_such_module:find",)}, "no_such_module"),
    ],
)
def test_what_cannot_be_compared_is_refused(comparison, change, message):
    with pytest.raises((ConfigError, UnknownMethod), match=message):
        replace(comparison, **change)


def test_parts_of_a_batch_are_refused(run):
    with pytest.raises(ConfigError, match="Expected batches in one part, as methods run here; got 2 parts"):
        CompareConfig(run=replace(run, parts=2))


def test_more_examples_than_a_file_has_are_refused(run, tmp_path):
    rows = [{"clean": f"{name} gave<predict> John</predict>", "corrupted": "Mark gave"} for name in NAMES[:12]]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = CompareConfig(run=replace(run, task=str(file)), methods=("eap",), examples=(200,))
    with pytest.raises(TaskError, match=r"Expected 200 training examples of .*own.jsonl'; it has 6"):
        compare(asked, tmp_path / "run")
    compare(replace(asked, examples=(6,)), tmp_path / "run")
    file.write_text("\n".join(map(json.dumps, reversed(rows))))
    with pytest.raises(RunError, match=r"Expected the task that .*compare.json' began with"):
        compare(replace(asked, examples=(6,)), tmp_path / "run")


def test_a_comparison_that_was_killed_before_it_began_is_begun(comparison, tmp_path):
    (tmp_path / f".{32 * 'a'}").write_text("half of a file")
    compare(replace(comparison, methods=("eap",), targets=(0.6,), examples=(6,)), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"circuits", "compare.json", "compare.md", "compare.svg"}


def test_a_folder_with_other_files_is_left_alone(comparison, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match=r"Expected an empty folder for a new comparison; .* holds other files"):
        compare(comparison, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ("torch.ones(shape)", "gave at most two values, as of a circuit"),
        ("torch.full(shape, float('nan'))", "Expected finite scores from method ranks_nothing"),
    ],
)
def test_scores_that_rank_nothing_are_refused(run, tmp_path, monkeypatch, scores, message):
    text = "def find(model, dataset, ablation, seed=0):\n    import torch\n"
    text += f"    shape = len(model.graph.sources), len(model.graph.destinations)\n    return {scores}\n"
    name = f"ranks_nothing_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EdgePruneError, match=message):
        compare(CompareConfig(run=run, methods=(f"{name}:find",), examples=(6,)), tmp_path / "run")


def test_a_model_whose_logits_are_no_numbers_is_a_clear_error(run, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = Path(save_model(tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"] *= 1e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    asked = CompareConfig(run=replace(run, model=str(folder)), methods=("eap",), examples=(6,))
    for check in (True, False):
        with pytest.raises(ModelError, match="Expected a model whose logits are numbers"):
            compare(asked, tmp_path / f"{check}", check=check)


def test_rows_of_ones_own_method_are_found_anew(run, tmp_path, monkeypatch):
    (tmp_path / "changes.py").write_text(OWN.replace("torch.arange(count)", "torch.arange(count, 0, -1)"))
    monkeypatch.syspath_prepend(tmp_path)
    asked = CompareConfig(run=run, methods=("changes:find",), targets=(0.6,), examples=(6,))
    (row,) = compare(asked, tmp_path / "run")
    file = tmp_path / "run" / "circuits" / row.file
    before = load_circuit(file)
    (tmp_path / "changes.py").write_text(OWN)
    importlib.invalidate_caches()
    sys.modules.pop("changes")
    compare(asked, tmp_path / "run")
    assert before.edges != load_circuit(file).edges


def test_another_comparison_is_not_gone_on_with(run, comparison, whole, tmp_path):
    out, _ = whole
    before = (out / "compare.json").read_bytes()
    for change in ({"seed": 1}, {"task": "ioi"}, {"pruning": replace(run.pruning, steps=13)}):
        with pytest.raises(RunError, match="what is asked for is another comparison: name another folder"):
            compare(replace(comparison, run=replace(run, **change)), out)
    assert (out / "compare.json").read_bytes() == before
    text = before.decode()
    damaged = (
        text.replace('"kl"', '"lk"'),
        text.replace('"about"', '"abut"'),
        re.sub(r'"kl": [^,]*', '"kl": "x"', text),
    )
    for text in ("nonsense", "[]", '{"format": "x"}', *damaged):
        (tmp_path / "compare.json").write_text(text)
        with pytest.raises(RunError, match=r"Expected a comparison in .*; it is none|is another comparison"):
            compare(comparison, tmp_path)
        assert (tmp_path / "compare.json").read_text() == text
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFile, match="Expected a folder for the comparison"):
        compare(comparison, tmp_path / "file" / "run")


def test_a_model_whose_weights_have_changed_is_another_one(run, tmp_path):
    ours = CompareConfig(run=replace(run, model=save_model(tmp_path / "model")), methods=("eap",), examples=(6,))
    compare(ours, tmp_path / "run")
    save_model(tmp_path / "model", seed=1)
    with pytest.raises(RunError, match=r"Expected the weights that .*compare.json' began with"):
        compare(ours, tmp_path / "run")


# The command


def test_a_sparsity_that_is_missed_is_told(capsys, run, tmp_path):
    asked = ["compare", "--model", run.model, "--task", "gp", "--out", str(tmp_path / "out"), "--test", "6"]
    asked += ["--examples", "6", "--target-sparsity", "0.5", "--steps", "3"]
    asked += ["--method", "edge-pruning", "--method", "edge-pruning-polished", "--method", "eap"]
    assert main(asked) == 1
    shown, missed = capsys.readouterr()
    assert "1 of 3 circuits missed the sparsity" in missed and "edge-pruning 0.5 (0.000)" in missed
    table = (tmp_path / "out" / "compare.md").read_text()
    assert "0.0%, not 50.0%" in table and "edge-pruning" in shown and "0.0%, not" in shown.replace("\n", " ")
    assert main([*asked, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert {row["method"]: row["missed"] for row in said["rows"]} == {
        "edge-pruning": True, "edge-pruning-polished": False, "eap": False
    }  # fmt: skip
    assert "note" not in said and "note: zero" not in shown and SPARSITY in shown


def test_a_comparison_under_zero_says_what_others_define_otherwise(capsys, run, tmp_path):
    asked = ["compare", "--model", run.model, "--task", "gp", "--out", str(tmp_path / "out"), "--test", "6"]
    asked += ["--examples", "6", "--target-sparsity", "0.5", "--method", "eap", "--ablation", "zero"]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert f"note: {ZERO}" in shown and ZERO in (tmp_path / "out" / "compare.md").read_text()
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["note"] == ZERO


@pytest.mark.parametrize(("edges", "sparsity"), [(0, 1.0), (9, 0.8), (46, 0.0)])
def test_a_circuit_with_no_edge_has_missed_half_of_them(edges, sparsity):
    measured = Evaluation(0.5, 1.5, 0.25, 1.0, edges, sparsity)
    assert ComparedRow("edge-pruning", 6, 0.5, edges, 1.0, 1, "cpu", measured).missed
    assert not ComparedRow("edge-pruning", 6, sparsity or 0.02, edges, 1.0, 1, "cpu", measured).missed


def test_the_command_compares_methods_ones_own_among_them(capsys, run, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    asked = ["compare", "--model", run.model, "--task", "gp", "--out", str(tmp_path / "out"), "--test", "6"]
    for option, values in (("target-sparsity", ["0.5"]), ("examples", ["6", "8"]), ("method", ["eap", "mine:find"])):
        asked += [part for value in values for part in (f"--{option}", value)]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "mine:find" in shown and "logit difference" in shown and "compare.svg" in shown
    assert main([*asked, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["method"], row["examples"]) for row in rows] == [
        (method, examples) for examples in (6, 8) for method in ("eap", "mine:find")
    ]
    circuit = load_circuit(tmp_path / "out" / "circuits" / "mine.find-6-0.5-23.json")
    last = sorted(circuit.graph.edges, key=circuit.graph.position)[-round(0.5 * circuit.graph.total) :]
    assert circuit.edges == frozenset(last)
    assert main([*asked[:-2], "--method", "magic"]) == 2
    assert "Expected a method among edge-pruning" in capsys.readouterr().err


def test_of_all_circuits_of_acdc_the_one_of_the_nearest_size_is_taken_whenever_it_came(run, monkeypatch):
    """Twelve edges at the first threshold, and then fourteen or five, where ten were asked for."""
    sizes = iter([12] + [14, 5] * 4)
    scores = torch.zeros(edge_exists(GRAPH).shape)

    def found(self, method, config):
        return comparing._Found(Circuit(GRAPH, "zero", frozenset(GRAPH.edges[: next(sizes)])), scores, 2.0, {})

    monkeypatch.setattr(comparing._Bench, "run", found)
    bench = comparing._Bench(load_model_on_task(run, ["train"]), run, progress=False)
    best = bench.of_size("acdc", 10)
    assert (len(best.circuit), best.runs, best.seconds) == (12, comparing._SEARCHES, 2.0 * comparing._SEARCHES)
