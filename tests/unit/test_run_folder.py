"""A run's folder, file by file: what is written when, what is gone on with, and what is refused, in which words."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from linear import EXISTS, GRAPH, WEIGHTS, Linear, data

from edgeprune.errors import ConfigError, RunError
from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.files.folders import Busy, locked
from edgeprune.files.store import SavedCircuit, UnwritableFile, load_saved, save_circuit, versions
from edgeprune.graph import Circuit, Graph
from edgeprune.masks import circuit_mask
from edgeprune.methods.edge_pruning.configurations import MINIMAX, PAPER, TOLERANCE
from edgeprune.methods.edge_pruning.engine import Pruning, Stage, circuit_loss, problem_of
from edgeprune.methods.settings import with_settings
from edgeprune.parallel import ALONE
from edgeprune.runs import prune as pruning_run
from edgeprune.runs.config import RunConfig
from edgeprune.runs.prune import evaluate_run, evaluation_file, prune, read_config
from edgeprune.tasks import Sizes

STEPS = 6
QUICK = with_settings(
    PAPER,
    {"steps": STEPS, "batch_size": 3, "target_sparsity": 0.4, "initial_log_alpha": 0.5, "learning_rate": 2.0},
)
ASKED = RunConfig(model="some/model", task="ioi", sizes=Sizes(train=5, validation=2, test=3), seed=4, pruning=QUICK)


class Model(Linear):
    ranks, family = ALONE, "linear"


class Subject:
    """A model whose circuits are measured by their masks alone."""

    def __init__(self):
        self.model = Model(WEIGHTS)
        self.splits = {
            "train": data(self.model),
            "validation": data(self.model, (1, 3)),
            "test": data(self.model, (2, 9, 3)),
        }
        self.digests, self.measured = {"weights": "w" * 16, "task": "t" * 16}, []

    def evaluate(self, split, ablation, mask, *, progress=False):
        self.measured.append((split, ablation, mask.clone(), progress))
        return Evaluation(float(mask.sum()), 0.2, 0.3, 0.4, int(mask.sum()), 1 - float(mask.sum()) / 8)


@pytest.fixture
def subject(monkeypatch):
    found = Subject()

    def load(config, splits, **more):
        found.asked = (config, tuple(splits), more)
        return found

    monkeypatch.setattr(pruning_run, "load_model_on_task", load)
    return found


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def own_run(subject, config=ASKED):
    """The same, without a folder: where it stands after each step."""
    problem = problem_of(subject.model, subject.splits["train"], config.ablation, config.pruning, parts=config.parts)
    run, steps = Pruning(problem, config.pruning, seed=config.seed), []
    while not run.ended:
        step = run.advance()
        if step is not None:
            steps.append((step, run.kept().float()))
    return run, steps


@pytest.mark.fakes
def test_a_run_leaves_what_was_asked_for_a_line_a_step_and_what_was_found(subject, tmp_path):
    found = prune(ASKED, tmp_path / "run", device="cpu", check=False, save_every=4)
    assert subject.asked == (
        ASKED, ("train", "validation"), {"device": "cpu", "check": False, "progress": False}
    )  # fmt: skip
    out = tmp_path / "run"
    assert contents(out).keys() == {
        "run.json", "metrics.jsonl", "checkpoint.safetensors", "circuit.json", "outcome.json",
    }  # fmt: skip
    said = json.loads((out / "run.json").read_text())
    assert said == {
        "format": "edgeprune run 4",
        "config": json.loads(json.dumps(asdict(ASKED))),
        "about": subject.digests,
        "versions": dict(versions()),
    }
    run, steps = own_run(subject)
    lines = lines_of(out)
    for number, (line, (step, kept)) in enumerate(zip(lines, steps, strict=True)):
        expected = {"step": number, "loss": step.loss, "sparsity": step.sparsity, **step.figures}
        if number in (3, 5):
            edges = int(kept.sum())
            expected["validation"] = {
                "kl": edges, "metric": 0.2, "exact_match": 0.3, "accuracy": 0.4, "edges": edges,
                "sparsity": 1 - edges / 8,
            }  # fmt: skip
        assert line == expected
    for (split, ablation, mask, progress), number in zip(subject.measured, (3, 5), strict=True):
        assert (split, ablation, progress) == ("validation", "resample", False)
        assert mask.dtype == torch.float32 and torch.equal(mask, steps[number][1])
    saved = load_saved(out / "circuit.json")
    assert saved == replace(found.saved, method=json.loads(json.dumps(found.saved.method)))
    assert saved.circuit.graph == GRAPH and torch.equal(circuit_mask(saved.circuit) > 0, run.kept())
    assert saved.scores == {edge: float(run.mean()[GRAPH.position(edge)]) for edge in GRAPH.edges}
    assert (saved.model, saved.family, saved.versions) == ("some/model", "linear", versions())
    assert saved.method == {"name": "edge-pruning", "seed": 4, "config": json.loads(json.dumps(asdict(QUICK)))}
    assert json.loads((out / "outcome.json").read_text()) == found.as_json()
    assert found.loss is None and found.examples is None
    assert read_config(out) == ASKED


@pytest.mark.fakes
def test_a_run_within_a_tolerance_is_judged_by_its_loss(subject, tmp_path, monkeypatch):
    begun, begin = [], pruning_run.Pruning
    monkeypatch.setattr(pruning_run, "Pruning", lambda *given, **more: begun.append(given) or begin(*given, **more))
    config = replace(ASKED, pruning=with_settings(TOLERANCE, {"steps": STEPS, "batch_size": 3, "judged": 4}), parts=2)
    found = prune(config, tmp_path / "run")
    run, _ = own_run(subject, config)
    loss = circuit_loss(run.problem, config.pruning, config.seed)
    assert found.examples == 4 and found.loss == pytest.approx(float(loss(run.kept()[None].float())[0]), abs=1e-6)
    ((problem, _),) = begun
    assert run.problem.parts == problem.parts == 2 and subject.asked[2] == {
        "device": "auto",
        "check": True,
        "progress": False,
    }


@pytest.mark.fakes
def test_a_run_is_polished_where_it_is_asked_for(subject, tmp_path, monkeypatch):
    asked, polish_in = [], pruning_run.polish_in

    def noting(*given, **more):
        asked.append((given, more))
        return polish_in(*given, **more)

    monkeypatch.setattr(pruning_run, "polish_in", noting)
    config = replace(ASKED, polish=True)
    found = prune(config, tmp_path / "run", progress=True)
    run, _ = own_run(subject)
    (((out, loss, pruning, kept, how), more),) = asked
    assert out == tmp_path / "run" and pruning == QUICK and torch.equal(kept, run.kept())
    assert how == pruning_run.PolishConfig() and more == {"progress": True}
    assert loss.inputs == 5 and found.examples == 5 and found.loss == pytest.approx(
        float(loss(circuit_mask(found.saved.circuit)[None])[0]), abs=1e-9
    )  # fmt: skip
    assert found.saved.method["name"] == "edge-pruning-polished" and len(found.saved.circuit) <= 5
    assert found.reached
    monkeypatch.setattr("edgeprune.methods.polish._ROOM", 1)
    with pytest.raises(ConfigError, match="those of 5 edges take"):
        prune(config, tmp_path / "other")
    within = replace(config, pruning=with_settings(TOLERANCE, {"steps": 1, "batch_size": 3}))
    with pytest.raises(ConfigError, match="those of 8 edges take"):  # once it is known how many there are
        prune(within, tmp_path / "third")


# Going on


@pytest.mark.fakes
@pytest.mark.parametrize(
    "config", [ASKED, replace(ASKED, pruning=with_settings(MINIMAX, {"steps": 4, "batch_size": 3}))]
)
@pytest.mark.parametrize("stop", range(1, 9))
def test_a_run_that_is_stopped_goes_on_to_the_same_end(subject, tmp_path, monkeypatch, config, stop):
    """Wherever it was stopped, before a step or before what comes after them."""
    prune(config, tmp_path / "whole", save_every=2)
    advance, calls = Pruning.advance, []

    def stops(run):
        calls.append(run)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(Pruning, "advance", stops)
    try:
        prune(config, tmp_path / "run", save_every=2)
    except KeyboardInterrupt:
        assert len(lines_of(tmp_path / "run")) <= stop
    monkeypatch.undo()
    monkeypatch.setattr(pruning_run, "load_model_on_task", lambda *given, **more: subject)
    prune(config, tmp_path / "run", resume=True, save_every=2)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    prune(config, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


@pytest.mark.fakes
def test_lines_after_the_checkpoint_are_made_again_and_without_one_all_are(subject, tmp_path):
    prune(ASKED, tmp_path / "run")
    whole = contents(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write("half a li")
    prune(ASKED, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == whole
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    prune(ASKED, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == whole
    (tmp_path / "run" / "metrics.jsonl").unlink()
    prune(ASKED, tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"^Expected lines of metrics in '.*metrics.jsonl'; ."):
        prune(ASKED, tmp_path / "run", resume=True)
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(
        RunError, match=r"^Expected a checkpoint of this run in '.*checkpoint.safetensors'; it is damaged"
    ):
        prune(ASKED, tmp_path / "run", resume=True)


@pytest.mark.fakes
def test_what_was_asked_for_is_written_once(subject, tmp_path):
    """By whatever versions a run is gone on with, its folder has those that it began with."""
    prune(ASKED, tmp_path / "run")
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(said | {"versions": {"torch": "of old"}}))
    prune(ASKED, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["versions"] == {"torch": "of old"}


class Bar:
    """What would be shown."""

    made: ClassVar = []

    def __init__(self, **given):
        self.given, self.total, self.shown, self.updates = given, given["total"], [], 0
        Bar.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *given):
        pass

    def set_description(self, text):
        self.shown.append((text, self.total))

    def set_postfix_str(self, text, *, refresh):
        self.shown.append((text, refresh))

    def update(self):
        self.updates += 1


@pytest.mark.fakes
@pytest.mark.parametrize("progress", [True, False])
def test_what_a_run_does_is_shown(subject, tmp_path, monkeypatch, progress):
    monkeypatch.setattr(pruning_run, "tqdm", Bar)
    prune(ASKED, tmp_path / "run", progress=progress)
    bar = Bar.made[-1]
    assert bar.given == {"total": STEPS, "initial": 0, "desc": "pruning", "disable": None if progress else True}
    lines = lines_of(tmp_path / "run")
    assert bar.shown == [(f"loss {line['loss']:.3g}, sparsity {line['sparsity']:.3f}", False) for line in lines]
    assert bar.updates == STEPS and subject.asked[2]["progress"] == progress
    prune(ASKED, tmp_path / "run", resume=True, progress=progress)
    assert Bar.made[-1].given["initial"] == STEPS


@pytest.mark.fakes
def test_the_stages_after_learning_are_shown_and_learning_anew_has_as_many_steps(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning_run, "tqdm", Bar)
    plan = iter([Stage.CHECK, Stage.LEARN_ANEW, Stage.LEARN_ANEW, Stage.DONE])

    class Run:
        stage, done, ended = Stage.LEARN, 7, False

        def advance(self):
            self.stage = next(plan)
            self.ended = self.stage == Stage.DONE

        def state(self):
            return {"place": torch.tensor([1]), "none": torch.zeros(0)}

    shared = []
    monkeypatch.setattr(subject.model, "ranks", Ranks(shared=shared))
    pruning_run._run(Run(), subject, ASKED, tmp_path, save_every=9, progress=False)
    assert Bar.made[-1].shown == [("check", 6), ("learn anew", 7), ("learn anew", 13), ("done", 13)]
    assert Bar.made[-1].total == 7 and len(shared) == 4 and not (tmp_path / "metrics.jsonl").exists()
    assert (tmp_path / "checkpoint.safetensors").exists()


# Several processes


class Ranks:
    """Processes of which this one is told what the others say."""

    def __init__(self, *, first=True, agrees=True, shared=None):
        self.first, self.agrees, self.shared, self.waits, self.asked = first, agrees, shared, 0, []
        self.own, self.gather, self.alike = ALONE.own, ALONE.gather, ALONE.alike

    def agree(self, number):
        self.asked.append(number)
        return self.agrees

    def take_first(self, value):
        if self.shared is not None:
            self.shared.append(value)

    def wait(self):
        self.waits += 1


@pytest.mark.fakes
def test_a_process_that_is_not_the_first_writes_nothing(subject, tmp_path, monkeypatch):
    ranks = Ranks(first=False, shared=[])
    monkeypatch.setattr(pruning_run, "join", lambda: ranks)
    monkeypatch.setattr(subject.model, "ranks", ranks)
    prune(ASKED, tmp_path / "run", progress=True, save_every=5)
    assert contents(tmp_path / "run") == {} and ranks.waits == 1 and subject.asked[2]["progress"] is False
    run, _ = own_run(subject)
    values = [value for value in run.state().values() if value.numel()]
    assert len(ranks.shared) == 2 * len(values) and len(values) < len(run.state())
    assert all(torch.equal(one, other) for one, other in zip(ranks.shared[len(values) :], values, strict=True))


@pytest.mark.fakes
def test_processes_that_stand_elsewhere_are_refused(subject, tmp_path, monkeypatch):
    prune(ASKED, tmp_path / "run")
    ranks = Ranks(agrees=False)
    monkeypatch.setattr(pruning_run, "join", lambda: ranks)
    with pytest.raises(RunError) as error:
        prune(ASKED, tmp_path / "run", resume=True)
    assert str(error.value) == (
        f"Expected one folder that all processes see; {str(tmp_path / 'run')!r} is not the same for all of them"
    )
    assert ranks.asked == [STEPS * 6 + Stage.DONE]


# What is refused


@pytest.mark.fakes
def test_a_folder_that_holds_a_run_or_other_files_is_no_new_one(subject, tmp_path):
    prune(ASKED, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("precious")
    for name, said in (
        ("run", "holds one: go on with --resume"),
        ("other", "holds other files: name another one"),
    ):
        with pytest.raises(RunError) as error:
            prune(ASKED, tmp_path / name)
        assert str(error.value) == f"Expected an empty folder for a new run; {str(tmp_path / name)!r} {said}"
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFile, match="Expected a folder for the run; got"):
        prune(ASKED, tmp_path / "file" / "run")


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "gp"}, "task 'ioi', not 'gp'"),
        ({"seed": 1, "data_seed": 2}, "seed 4, not 1; data_seed 0, not 2"),
        ({"sizes": Sizes(train=9, validation=2, test=3)}, "train 5, not 9"),
        ({"pruning": with_settings(QUICK, {"target_sparsity": 0.9})}, "target_sparsity 0.4, not 0.9"),
        ({"polish": True}, "polish False, not True"),
    ],
)
def test_a_run_of_something_else_is_not_gone_on_with(subject, tmp_path, change, said):
    prune(ASKED, tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(RunError) as error:
        prune(replace(ASKED, **change), tmp_path / "run", resume=True)
    assert str(error.value) == (
        f"Expected the run that {str(tmp_path / 'run')!r} holds, with {said}: name another folder"
    )
    assert contents(tmp_path / "run") == before


@pytest.mark.fakes
def test_a_run_of_another_method_is_not_gone_on_with(subject, tmp_path):
    prune(ASKED, tmp_path / "run")
    with pytest.raises(RunError) as error:
        prune(replace(ASKED, pruning=TOLERANCE), tmp_path / "run", resume=True)
    assert str(error.value) == (
        f"Expected a folder for a run of edge-pruning-tolerance; {str(tmp_path / 'run')!r} holds one of edge-pruning: "
        "name another folder"
    )


@pytest.mark.fakes
@pytest.mark.parametrize("what", ["weights", "task"])
def test_a_model_and_a_task_are_those_that_a_run_began_with(subject, tmp_path, what):
    prune(ASKED, tmp_path / "run")
    subject.digests = subject.digests | {what: "another"}
    said = f"Expected the {what} that the run in {str(tmp_path / 'run')!r} began with; what is there now is another"
    for call in (lambda: prune(ASKED, tmp_path / "run", resume=True), lambda: evaluate_run(tmp_path / "run")):
        with pytest.raises(RunError) as error:
            call()
        assert str(error.value) == said
    if what == "task":
        evaluate_run(tmp_path / "run", task="gp")
    else:
        with pytest.raises(RunError, match="Expected the weights"):
            evaluate_run(tmp_path / "run", task="gp")


def test_a_full_disk_is_said_to_be_full():
    with pytest.raises(UnwritableFile, match=r"^Expected room for metrics in '/dev/full': No space left on device$"):
        pruning_run._append(Path("/dev/full"), {"step": 1})


def test_a_folder_that_holds_no_run_has_no_config(tmp_path):
    (tmp_path / "run.json").write_text('{"format": "edgeprune run 3"}')
    with pytest.raises(RunError, match="Expected a run of `edgeprune prune`"):
        read_config(tmp_path)


# Evaluations


@pytest.mark.fakes
@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_an_evaluation_is_of_the_circuit_and_of_the_full_model(subject, tmp_path, ablation):
    out = tmp_path / "run"
    config = replace(ASKED, ablation=ablation)
    circuit = prune(config, out).saved.circuit
    subject.measured.clear()
    asked, found = evaluate_run(out, "validation", device="cpu", check=False, progress=True)
    splits = ("validation", "train") if ablation == "mean" else ("validation",)
    assert asked == config and subject.asked == (config, splits, {"device": "cpu", "check": False, "progress": True})
    assert list(found) == ["circuit", "full model"]
    (one, other) = subject.measured
    assert one[:2] == other[:2] == ("validation", ablation) and one[3] and other[3]
    assert torch.equal(one[2], circuit_mask(circuit)) and torch.equal(other[2], EXISTS.float())
    said = json.loads((out / "evaluation-validation.json").read_text())
    expected = {"split": "validation", "inputs": 2, "metric": pruning_run.metric_of("ioi"), "task": "ioi"}
    expected |= {"found_at": str(out.resolve()), "circuit": asdict(found["circuit"])}
    expected |= {"full_model": asdict(found["full model"])} | pruning_run.noted(ablation)
    assert said == expected
    evaluate_run(out)
    assert subject.asked[1][0] == "test" and subject.asked[2] == {"device": "auto", "check": True, "progress": False}
    assert json.loads((out / "evaluation-test.json").read_text())["inputs"] == 3
    asked, _ = evaluate_run(out, task="gp")
    assert asked.task == "gp" == subject.asked[0].task
    said = json.loads(evaluation_file(out, "test", "gp").read_text())
    assert said["task"] == "gp" and said["metric"] == pruning_run.metric_of("gp")


@pytest.mark.fakes
def test_a_circuit_of_another_folder_is_measured_in_the_place_of_the_runs(subject, tmp_path):
    prune(ASKED, tmp_path / "run")
    none = SavedCircuit(Circuit(GRAPH, "resample", frozenset(GRAPH.edges[:2])), model="some/model")
    save_circuit(none, tmp_path / "own.json")
    _, found = evaluate_run(tmp_path / "run", circuit=tmp_path / "own.json")
    assert found["circuit"].edges == 2
    said = json.loads(evaluation_file(tmp_path / "run", "test", None, tmp_path / "own.json").read_text())
    assert said["found_at"] == str((tmp_path / "own.json").resolve()) and said["circuit"]["edges"] == 2
    save_circuit(replace(none, model=""), tmp_path / "own.json")
    evaluate_run(tmp_path / "run", circuit=tmp_path / "own.json")
    other = Graph.transformer(embeddings=("embed",), layers=1, heads=2)
    at = str((tmp_path / "own.json").resolve())
    for saved, said in (
        (replace(none, model="another"), f"Expected a circuit of 'some/model'; {at!r} holds one of 'another'"),
        (
            replace(none, circuit=Circuit(GRAPH, "zero", frozenset())),
            f"Expected a circuit of 'some/model' under resample ablation; {at!r} holds one of 8 edges' graph under "
            "zero, where the model has 8",
        ),
        (
            replace(none, circuit=Circuit(other, "resample", frozenset())),
            f"Expected a circuit of 'some/model' under resample ablation; {at!r} holds one of {other.total} edges' "
            "graph under resample, where the model has 8",
        ),
    ):
        save_circuit(saved, tmp_path / "own.json")
        with pytest.raises(RunError) as error:
            evaluate_run(tmp_path / "run", circuit=tmp_path / "own.json")
        assert str(error.value) == said


@pytest.mark.fakes
def test_an_evaluation_waits_for_nobody(subject, tmp_path):
    prune(ASKED, tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(Busy, match="another process has an evaluation in"):
        evaluate_run(tmp_path / "run")


@pytest.mark.fakes
def test_only_the_first_process_keeps_an_evaluation(subject, tmp_path, monkeypatch):
    prune(ASKED, tmp_path / "run")
    ranks = Ranks(first=False)
    monkeypatch.setattr(pruning_run, "join", lambda: ranks)
    evaluate_run(tmp_path / "run", progress=True)
    assert not (tmp_path / "run" / "evaluation-test.json").exists() and ranks.waits == 1
    assert subject.asked[2]["progress"] is False


def test_evaluations_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_text("")

    def short(text):
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    whole = str((tmp_path / "own.jsonl").resolve())
    folder = Path("run")
    for given, name in (
        ((), "evaluation-test"),
        (("gp",), f"evaluation-test-task-gp-{short('gp')}"),
        (("own.jsonl",), f"evaluation-test-task-own.jsonl-{short(whole)}"),
        (
            (None, Path("gone.json")),
            f"evaluation-test-circuit-gone.json-{short(str(tmp_path.resolve() / 'gone.json'))}",
        ),
        (
            ("gp", Path("own.jsonl")),
            f"evaluation-test-task-gp-{short('gp')}-circuit-own.jsonl-{short(whole)}",
        ),
    ):
        assert evaluation_file(folder, "test", *given) == folder / f"{name}.json"
