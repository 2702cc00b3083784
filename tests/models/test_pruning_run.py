"""Runs in folders: stopped at any moment and gone on with, refused, damaged, and looked at."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import FAMILIES, Family
from tokenizing import byte_pairs, sentence_pieces

from edgeprune.ablation import Ablator
from edgeprune.cli.main import main
from edgeprune.errors import ConfigError, RunError, TaskError
from edgeprune.evaluation.evaluate import evaluate
from edgeprune.files.folders import Busy, locked
from edgeprune.files.store import UnwritableFile, load_saved, save_circuit
from edgeprune.graph import Circuit, Graph
from edgeprune.masks import circuit_mask, edge_exists
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.methods.edge_pruning.configurations import PAPER
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.settings import with_settings
from edgeprune.runs import config as subjects
from edgeprune.runs import prune as pruning_run
from edgeprune.runs.config import RunConfig, load_model_on_task
from edgeprune.runs.prune import evaluate_run, prune, read_config
from edgeprune.runs.sweep import sweep
from edgeprune.streams import by_source
from edgeprune.tasks import Sizes
from edgeprune.tasks.words import NAMES

STEPS = 30
QUICK = with_settings(
    PAPER,
    {
        "target_sparsity": 0.5,
        "steps": STEPS,
        "batch_size": 4,
        "initial_log_alpha": 1.0,
        "learning_rate": 0.4,
        "sparsity_warmup": 0.1,
    },
)


def save_model(folder: Path, seed: int = 0, *, family: Family = FAMILIES[0]) -> str:
    tokenizer = {"gpt2": byte_pairs, "llama": sentence_pieces}[family.name]()
    config = family.config(vocab_size=len(tokenizer), max_position_embeddings=32)
    family.make(config, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    model = save_model(tmp_path_factory.mktemp("model"))
    return RunConfig(model=model, task="gp", sizes=Sizes(train=8, validation=4, test=6), pruning=QUICK)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    prune(config, out, save_every=7)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_run_leaves_what_was_asked_for_how_it_went_and_what_was_found(config, whole):
    assert contents(whole).keys() == {
        *("run.json", "metrics.jsonl", "checkpoint.safetensors", "circuit.json", "outcome.json")
    }
    assert read_config(whole) == config
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert [line["step"] for line in lines if "validation" in line] == [6, 13, 20, 27, 29]
    assert lines[0]["target"] == 0 and lines[-1]["target"] == 0.5
    saved = load_saved(whole / "circuit.json")
    assert saved.model == config.model and saved.method["config"]["pressure"]["target_sparsity"] == 0.5
    assert len(saved.scores) == saved.circuit.graph.total > len(saved.circuit)
    assert lines[-1]["validation"]["edges"] == len(saved.circuit)


def test_the_same_again_is_the_same_and_another_seed_is_not(config, whole, tmp_path):
    prune(config, tmp_path / "again", save_every=100)
    assert (tmp_path / "again" / "circuit.json").read_bytes() == (whole / "circuit.json").read_bytes()
    other = prune(replace(config, seed=1), tmp_path / "other")
    assert other.saved.scores != load_saved(whole / "circuit.json").scores


@pytest.mark.parametrize("stop", [3, 7, 8, 20, STEPS])
def test_a_run_that_is_stopped_goes_on_to_the_same_end(config, whole, tmp_path, monkeypatch, stop):
    """At checkpoints, between them, before the first, and after the last step."""
    calls, append = [], pruning_run._append

    def stops(path, measured):
        calls.append(path)
        append(path, measured)
        if len(calls) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(pruning_run, "_append", stops)
    with pytest.raises(KeyboardInterrupt):
        prune(config, tmp_path / "run", save_every=7)
    monkeypatch.undo()
    prune(config, tmp_path / "run", resume=True, save_every=7)
    assert contents(tmp_path / "run") == contents(whole)


@pytest.mark.sweep  # starts processes, which load everything anew
@pytest.mark.parametrize("lines", [1, 11, 18])
def test_a_run_that_is_killed_goes_on_to_the_same_end(config, whole, tmp_path, lines):
    run = (
        "import torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from test_pruning_run import QUICK; from edgeprune.tasks import Sizes\n"
        "from edgeprune.runs.prune import prune; from edgeprune.runs.config import RunConfig\n"
        "sizes = Sizes(train=8, validation=4, test=6)\n"
        f"config = RunConfig(model={config.model!r}, task='gp', sizes=sizes, pruning=QUICK)\n"
        f"prune(config, Path({str(tmp_path / 'run')!r}), save_every=7)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", run], env=environment)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    prune(config, tmp_path / "run", resume=True, save_every=7)
    assert contents(tmp_path / "run") == contents(whole)


def test_going_on_with_a_run_that_has_ended_changes_nothing(config, whole):
    before = contents(whole)
    prune(config, whole, resume=True)
    assert contents(whole) == before


def test_a_llama_is_pruned_stopped_gone_on_with_and_evaluated_alike(config, tmp_path, monkeypatch):
    ours = replace(config, model=save_model(tmp_path / "model", family=FAMILIES[1]), task="ioi")
    saved = prune(ours, tmp_path / "whole", save_every=7).saved
    assert saved.circuit.graph.total > len(saved.circuit) > 0
    assert {str(edge.destination) for edge in saved.circuit.graph.edges} >= {"a1.h3.q", "a1.h1.k", "a1.h1.v"}
    monkeypatch.setattr(pruning_run, "write_state", fails_after(2, pruning_run.write_state))
    with pytest.raises(KeyboardInterrupt):
        prune(ours, tmp_path / "run", save_every=7)
    monkeypatch.undo()
    prune(ours, tmp_path / "run", resume=True, save_every=7)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    _, found = evaluate_run(tmp_path / "run")
    assert found["full model"].kl == pytest.approx(0, abs=1e-6) and found["circuit"].edges == len(saved.circuit)


def fails_after(calls: int, function):
    made = []

    def counted(*given):
        made.append(given)
        if len(made) > calls:
            raise KeyboardInterrupt
        return function(*given)

    return counted


def test_a_batch_may_run_in_parts(config, tmp_path):
    prune(replace(config, parts=2), tmp_path / "parts")
    assert len((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()) == STEPS
    with pytest.raises(ConfigError, match="parts from 1 to batch_size, 4; got 5"):
        replace(config, parts=5)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_other_ablations_run_too(config, tmp_path, ablation):
    sizes = Sizes(train=40, validation=4, test=6)  # of every length
    found = prune(
        replace(config, ablation=ablation, sizes=sizes, pruning=replace(QUICK, steps=4)), tmp_path / ablation
    ).saved
    assert found.circuit.ablation == ablation


# What is refused, and leaves everything as it was


def test_a_folder_with_a_run_is_left_alone_unless_it_is_gone_on_with(config, whole):
    before = contents(whole)
    with pytest.raises(RunError, match="holds one: go on with --resume"):
        prune(config, whole)
    assert contents(whole) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "ioi"}, "with task 'gp', not 'ioi'"),
        ({"seed": 3}, "with seed 0, not 3"),
        ({"data_seed": 3}, "with data_seed 0, not 3"),
        ({"pruning": with_settings(QUICK, {"target_sparsity": 0.9})}, "with target_sparsity 0.5, not 0.9"),
        ({"sizes": Sizes(train=9, validation=4, test=6)}, "with train 8, not 9"),
    ],
)
def test_a_run_that_asks_for_something_else_is_not_gone_on_with(config, whole, change, message):
    before = contents(whole)
    with pytest.raises(RunError, match=message):
        prune(replace(config, **change), whole, resume=True)
    assert contents(whole) == before


def test_a_model_whose_weights_have_changed_is_another_one(config, tmp_path):
    ours = replace(config, model=save_model(tmp_path / "model"), pruning=replace(QUICK, steps=2))
    prune(ours, tmp_path / "run")
    save_model(tmp_path / "model", seed=1)
    with pytest.raises(RunError, match=r"Expected the weights that the run in .* began with"):
        prune(ours, tmp_path / "run", resume=True)


def test_folders_that_hold_no_run_are_refused(config, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        prune(config, tmp_path / "full")
    for text in ("nonsense", "[]", '{"format": "edgeprune run 1"}', '{"format": "edgeprune run 1", "config": {}}'):
        (tmp_path / "full" / "run.json").write_text(text)
        with pytest.raises(RunError, match=r"Expected a run of `edgeprune prune`"):
            read_config(tmp_path / "full")
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFile, match="Expected a folder for the run"):
        prune(config, tmp_path / "file" / "run")


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_refused_and_kept(config, tmp_path, damage):
    out, short = tmp_path / "run", replace(config, pruning=replace(QUICK, steps=5))
    prune(short, out)
    checkpoint = out / "checkpoint.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-9] if damage == "cut" else (Path(config.model) / "model.safetensors").read_bytes())
    before = contents(out)
    with pytest.raises(RunError, match=r"Expected a checkpoint of this run in .*; it is damaged"):
        prune(short, out, resume=True)
    assert contents(out) == before


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_its_checkpoint(config, tmp_path, monkeypatch):
    calls, losses = [], Problem.losses

    def breaks(self, masks, batch):
        calls.append(losses(self, masks, batch))
        return calls[-1] * float("nan") if len(calls) == 10 else calls[-1]

    monkeypatch.setattr(Problem, "losses", breaks)
    with pytest.raises(RunError, match="Expected a finite loss and finite masks; got a loss of nan at step 9"):
        prune(config, tmp_path / "run", save_every=7)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 9
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "run" / "circuit.json").exists()


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(config, whole, tmp_path, monkeypatch):
    """Linux's device that is always full takes the place of the metrics from the tenth step on."""
    append, steps = pruning_run._append, []

    def fills_up(path, measured):
        steps.append(measured["step"])
        append(path if len(steps) < 10 else Path("/dev/full"), measured)

    monkeypatch.setattr(pruning_run, "_append", fills_up)
    with pytest.raises(UnwritableFile, match=r"Expected room for metrics in .*No space left on device"):
        prune(config, tmp_path / "run", save_every=7)
    monkeypatch.undo()
    prune(config, tmp_path / "run", resume=True, save_every=7)
    assert contents(tmp_path / "run") == contents(whole)


def test_a_task_whose_file_has_changed_is_another_one(config, tmp_path):
    file = tmp_path / "own.jsonl"

    def write(names):
        rows = [{"clean": f"{name} gave<predict> John</predict>", "corrupted": "Mark gave"} for name in names]
        file.write_text("\n".join(map(json.dumps, rows)))

    write(NAMES[:8])
    ours = replace(config, task=str(file), pruning=replace(QUICK, steps=2))
    prune(ours, tmp_path / "run")
    write(NAMES[8:16])
    with pytest.raises(RunError, match=r"Expected the task that the run in .* began with"):
        prune(ours, tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=r"Expected the task that the run in .* began with"):
        evaluate_run(tmp_path / "run")


def test_a_circuit_of_another_model_is_not_evaluated(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    other = Graph.transformer(embeddings=("embed",), layers=1, heads=1)
    save_circuit(Circuit(other, "resample", frozenset()), tmp_path / "run" / "circuit.json")
    with pytest.raises(RunError, match="holds one of 8 edges' graph"):
        evaluate_run(tmp_path / "run")


def test_a_run_that_was_killed_before_it_began_is_begun(config, whole, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".{32 * 'a'}").write_text("half of a file")
    prune(config, tmp_path / "run", resume=True, save_every=7)
    assert contents(tmp_path / "run") == contents(whole)


def test_a_batch_in_parts_is_the_same_step(config, tmp_path):
    """Five inputs in parts of two, two and one: the same masks, losses and gradients."""
    losses, scores = {}, {}
    for parts in (1, 3):
        out = tmp_path / str(parts)
        saved = prune(replace(config, parts=parts, pruning=replace(QUICK, steps=3, batch_size=5)), out).saved
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[parts] = [(line["loss"], line["sparsity"]) for line in lines]
        scores[parts] = {str(edge): score for edge, score in saved.scores.items()}
    assert losses[1][0][0] > 1e-4
    assert sum(losses[1], ()) == pytest.approx(sum(losses[3], ()), rel=1e-4)
    assert scores[1] == pytest.approx(scores[3], abs=1e-4)


def test_a_part_is_gone_before_the_next_one_runs(config, tmp_path, monkeypatch):
    """The stacks of all others are freed by then, whether Edge Pruning or attribution runs them."""
    alive, most = weakref.WeakSet(), []

    class Counted(by_source._Stacks):
        def __init__(self, held):
            super().__init__(held)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(by_source, "_Stacks", Counted)
    gc.disable()
    try:
        prune(replace(config, parts=3, pruning=replace(QUICK, steps=2)), tmp_path / "run")
        subject = load_model_on_task(config, ["train"])
        for method, settings in ((attribution_patching, EapConfig), (integrate_gradients, EapIgConfig)):
            method(subject.model, subject.splits["train"], "resample", config=settings(batch_size=2))
    finally:
        gc.enable()
    assert len(most) > 20 and max(most) == 1


def test_the_worst_of_parts_is_not_the_worst_of_a_batch(config):
    with pytest.raises(ConfigError, match="Expected a loss that is a mean over inputs, as a batch runs in parts"):
        replace(config, parts=2, pruning=with_settings(QUICK, {"loss": "worst"}))


# Means


def test_means_are_those_of_the_training_split(config):
    subject = load_model_on_task(
        replace(config, ablation="mean", sizes=Sizes(train=40, validation=4, test=6)), ["train", "test"]
    )
    train, test = subject.splits["train"], subject.splits["test"]
    mask = (
        torch.rand(edge_exists(subject.model.graph).shape, generator=torch.Generator().manual_seed(0)) > 0.4
    ).float()
    rows, kl = torch.arange(len(test)), []
    for row in rows:
        same = train.group == test.group[row]
        mean = subject.model.sources(train.tokens[same]).mean(1, keepdim=True)
        logits = subject.model(test.tokens[row : row + 1], mask, mean, test.positions[row : row + 1])[0, 0].double()
        p = test.target[row, 0].double().softmax(-1)
        kl.append(float((p * (p.log() - logits.log_softmax(-1))).sum()))
    assert subject.evaluate("test", "mean", mask).kl == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert evaluate(subject.model, test, "mean", mask).kl != pytest.approx(sum(kl) / len(kl), rel=1e-3)


def test_a_length_without_training_examples_has_no_mean(config):
    few = replace(config, task="ioi", ablation="mean", sizes=Sizes(train=1, validation=1, test=40))
    with pytest.raises(
        TaskError, match=r"Expected training examples of every length.*the test split has one of \d+ tok"
    ):
        load_model_on_task(few, ["train"])


def test_examples_have_a_seed_of_their_own(config):
    ours, other, again = (
        load_model_on_task(replace(config, **seed), ["test"]) for seed in ({}, {"seed": 1}, {"data_seed": 1})
    )
    assert ours.digests == other.digests != again.digests


# Other writers, and files that are not as they were written


def test_a_folder_that_another_run_writes_to_is_refused(config, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(Busy, match=r"another process has the run in .*name another folder"):
        prune(config, tmp_path / "run")
    with locked(tmp_path / "sweep"), pytest.raises(Busy, match="another process has a sweep in"):
        sweep(config, [0.5], 1, tmp_path / "sweep")
    assert not any((tmp_path / "run").iterdir()) and not any((tmp_path / "sweep").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": 3}, "in config/task: Input should be a valid string"),
        ({"seed": 1.5}, "in config/seed: Input should be a valid integer"),
        ({"seed": True}, "in config/seed: Input should be a valid integer"),
        ({"ablation": "none"}, "in config/ablation: Input should be 'zero', 'mean' or 'resample'"),
        ({"parts": 0}, "Expected parts from 1 to batch_size, 4; got 0"),
        (
            {"sizes": {"train": 8, "validation": 4, "test": "6"}},
            "in config/sizes/test: Input should be a valid integer",
        ),
        ({"sizes": {"train": 8, "validation": 4}}, "config/sizes/test"),
        ({"more": 1}, "config/more"),
        ({"pruning": 3}, "in config/pruning: Input should be an object"),
    ],
)
def test_a_run_that_asks_for_what_cannot_be_is_none(config, whole, tmp_path, change, message):
    content = json.loads((whole / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(content | {"config": content["config"] | change}))
    with pytest.raises(RunError, match=rf"Expected a run of `edgeprune prune` in .*; it is none: .*{message}") as error:
        evaluate_run(tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_that_was_stopped_says_where_it_stands_and_how_to_go_on(config, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning_run, "_append", fails_after(5, pruning_run._append))
    with pytest.raises(KeyboardInterrupt):
        prune(config, tmp_path / "run", save_every=3)
    monkeypatch.undo()
    with pytest.raises(
        RunError, match=f"stands at step 5 of {STEPS}: go on with .*--resume, from its checkpoint at step 3"
    ):
        evaluate_run(tmp_path / "run")


# Evaluation


def test_the_full_model_is_its_own_equal_and_a_circuit_is_measured_as_a_loop_does(config):
    subject = load_model_on_task(config, ["test"])
    model, dataset = subject.model, subject.splits["test"]
    full = evaluate(model, dataset, "resample", edge_exists(model.graph).float(), batch_size=4)
    assert full.kl == pytest.approx(0, abs=1e-6)
    assert (full.exact_match, full.edges, full.sparsity) == (1, model.graph.total, 0)
    mask = (torch.rand(edge_exists(model.graph).shape, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    found = evaluate(model, dataset, "resample", mask, batch_size=4)
    kl, metric, same, right = [], [], [], []
    for row in range(len(dataset)):
        batch = dataset.take(torch.tensor([row]), torch.tensor([row]))
        logits = model(batch.clean, mask, model.sources(batch.corrupted), batch.positions)[0, 0].double()
        p = dataset.target[row, 0].double().softmax(-1)
        kl.append(float((p * (p.log() - logits.log_softmax(-1))).sum()))
        answer, other = int(dataset.answers.right[row, 0, 0]), int(dataset.answers.wrong[row, 0, 0])
        metric.append(float(logits[answer] - logits[other]))
        same.append(int(logits.argmax()) == int(p.argmax()))
        right.append(int(logits.argmax()) == answer)
    count = len(dataset)
    assert found.kl == pytest.approx(sum(kl) / count, rel=1e-4)
    assert found.metric == pytest.approx(sum(metric) / count, rel=1e-4)
    assert (found.exact_match, found.accuracy) == (sum(same) / count, sum(right) / count)
    assert found.edges == int(mask[edge_exists(model.graph)].sum())


def test_a_circuit_that_was_saved_is_the_one_that_was_validated(config, whole):
    subject = load_model_on_task(config, ["validation"])
    saved = load_saved(whole / "circuit.json").circuit
    found = evaluate(subject.model, subject.splits["validation"], "resample", circuit_mask(saved))
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    assert found.kl == pytest.approx(last["kl"], rel=1e-6)


def test_a_run_learns_on_the_training_split_and_is_watched_on_the_other(config, tmp_path, monkeypatch):
    subject = load_model_on_task(config, ["train", "validation"])
    rows = {split: {tuple(row) for row in data.tokens.tolist()} for split, data in subject.splits.items()}
    seen, losses = set(), Problem.losses

    def spy(self, masks, batch):
        seen.update(tuple(row) for row in batch.clean.tolist())
        return losses(self, masks, batch)

    monkeypatch.setattr(Problem, "losses", spy)
    prune(replace(config, pruning=replace(QUICK, steps=9)), tmp_path / "run")
    assert seen == rows["train"] and not seen & rows["validation"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_has_the_precision_that_was_asked_for(config, precision):
    subject = load_model_on_task(replace(config, precision=precision), ["train"])
    wanted = getattr(torch, precision)
    assert {weight.dtype for weight in subject.model.weights.parameters()} == {wanted}
    assert subject.model.sources(subject.splits["train"].tokens[:1]).dtype == wanted


def test_a_run_prunes_against_means_of_the_training_split(config, tmp_path, monkeypatch):
    asked = replace(config, ablation="mean", seed=4, pruning=replace(QUICK, steps=2))
    subject, seen, losses = load_model_on_task(asked, ["train", "validation"]), [], Problem.losses

    def spy(self, masks, batch):
        seen.append((self.ablator(batch), batch))
        return losses(self, masks, batch)

    monkeypatch.setattr(Problem, "losses", spy)
    prune(asked, tmp_path / "run")
    means = {split: Ablator(subject.model, data, "mean") for split, data in subject.splits.items()}
    for found, batch in seen:
        assert torch.equal(found, means["train"](batch)) and not torch.equal(found, means["validation"](batch))
    assert len(seen) == 2


def test_the_seed_is_that_of_the_run_and_the_data_seed_that_of_the_examples(config, tmp_path, monkeypatch):
    seen, make, begin = [], subjects.make_examples, pruning_run.Pruning

    def examples(*given, seed):
        seen.append(("examples", seed))
        return make(*given, seed=seed)

    def run(*given, seed):
        seen.append(("masks", seed))
        return begin(*given, seed=seed)

    monkeypatch.setattr(subjects, "make_examples", examples)
    monkeypatch.setattr(pruning_run, "Pruning", run)
    asked = ["--model", config.model, "--task", "gp", "--target-sparsity", "0.5", "--steps", "1", "--batch-size", "4"]
    sizes = ["--train", "8", "--validation", "4", "--test", "6", "--seed", "21", "--data-seed", "22"]
    main(["prune", *asked, *sizes, "--out", str(tmp_path / "run"), "--json"])
    assert seen == [("examples", 22), ("masks", 21)]
    seen.clear()
    main(["sweep", *asked, *sizes, "--seeds", "2", "--out", str(tmp_path / "sweep"), "--json"])
    assert [seed for what, seed in seen if what == "masks"] == [21, 22]
    assert {seed for what, seed in seen if what == "examples"} == {22}
