"""Exported checkpoints pruned as any language model is: the command, its task, run folder, checkpoints, resumption."""

import json
from dataclasses import replace

import pytest
import torch
from checkpoints import checkpoint, checkpoints
from safetensors.torch import load, save

from edgeprune.ablation import group_means
from edgeprune.cli.main import main
from edgeprune.data import Dataset
from edgeprune.errors import ConfigError
from edgeprune.files.store import load_circuit
from edgeprune.methods.edge_pruning.configurations import MINIMAX, UNCHECKED
from edgeprune.methods.edge_pruning.engine import ENGINE, Pruning, Stage
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.settings import with_settings
from edgeprune.runs.config import RunConfig, load_model_on_task
from edgeprune.tasks import Sizes
from tracr_bridge.checkpoints.task_file import MOST, task_text
from tracr_bridge.recovery import recover

WHOLE = {"--train": str(MOST), "--validation": "8", "--test": str(MOST)}
CASES = checkpoints(quick=("induction",))


def prune(folder, ablation, out, *more):
    """The command's exit status, by minimax on all inputs unless `more` says otherwise."""
    about = ("--model", str(folder), "--task", str(folder / "task.jsonl"), "--ablation", ablation, "--out", str(out))
    usual = {"--method": "edge-pruning-minimax", **WHOLE}
    left = [text for option, value in usual.items() if option not in more for text in (option, value)]
    return main(["prune", *about, *left, "--json", *more])


def stop_at(monkeypatch, stops):
    """Interrupt a run before a step, or a stage."""
    advance = Pruning.advance

    def interrupted(run):
        if stops(run):
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(Pruning, "advance", interrupted)


@pytest.mark.parametrize("ablation", [pytest.param("mean", marks=pytest.mark.sweep), "resample"])
@pytest.mark.parametrize("case", CASES)
def test_minimax_finds_a_true_circuit_by_the_command_stopped_in_the_middle(
    case, ablation, tmp_path, tmp_path_factory, monkeypatch
):
    exported = checkpoint(*case, tmp_path_factory)
    if ablation not in exported.certificates:
        pytest.skip("nothing can fail under it")
    with monkeypatch.context() as patch:
        stop_at(patch, lambda run: run.done == 130)
        assert prune(exported.folder, ablation, tmp_path / "run", "--save-every", "60") == 130
    assert prune(exported.folder, ablation, tmp_path / "run", "--save-every", "60", "--resume") == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(len(lines)))
    found = load_circuit(tmp_path / "run" / "circuit.json")
    assert recover.assess(exported.truth(ablation), found).comparison.exact, found.names()


@pytest.mark.sweep
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bytes(tmp_path, tmp_path_factory, monkeypatch):
    """In a step, and before what comes after the last one."""
    folder = checkpoint("induction", "gpt2", tmp_path_factory).folder
    assert prune(folder, "resample", tmp_path / "whole", "--save-every", "30") == 0
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    for number, stops in enumerate(
        (
            lambda run: run.done == 77,
            lambda run: run.stage == Stage.CHECK,
            lambda run: run.stage == Stage.REMOVE,
        )
    ):
        out = tmp_path / str(number)
        with monkeypatch.context() as patch:
            stop_at(patch, stops)
            assert prune(folder, "resample", out, "--save-every", "30") == 130
        assert prune(folder, "resample", out, "--save-every", "30", "--resume") == 0
        assert {file.name: file.read_bytes() for file in out.iterdir()} == whole


def test_a_run_restored_before_every_step_and_stage_is_the_same(compiled):
    """Learning anew and choosing between two circuits among them."""
    program = compiled("seldom_together")
    problem = Problem.of(program.model, program.dataset, "resample", "worst")
    hasty = {"steps": 40, "batch_size": 4, "mask_samples": 8, "checked": 200, "counterexamples": 4}
    hasty |= {"learning_rate": 1.5, "penalty": 2.0, "patience": 6, "certain_for": 3}
    config = with_settings(MINIMAX, hasty)

    def run(*, restored):
        now, stages = Pruning(problem, config, seed=1), list[Stage]()
        while not now.ended:
            if restored:
                before, now = save(_kept(now)), Pruning(problem, config, seed=1)
                now.restore(load(before))
            stages.append(now.stage)
            now.advance()
        return _kept(now), stages

    (whole, stages), (found, others) = run(restored=False), run(restored=True)
    assert {*stages} == {*Stage} - {Stage.DONE} and others == stages
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)


def _kept(run):
    return {name: value.clone().contiguous() for name, value in run.state().items()}


@pytest.mark.parametrize("case", [case for case in CASES if not case.marks])
def test_what_the_task_file_makes_of_a_checkpoint_is_its_domain(case, tmp_path_factory):
    """Every pair of clean and corrupted inputs once, at the positions that are scored, with the model's own outputs."""
    exported = checkpoint(*case, tmp_path_factory)
    task = str(exported.folder / "task.jsonl")
    config = RunConfig(model=str(exported.folder), task=task, sizes=Sizes(train=MOST, validation=1, test=1))
    train = load_model_on_task(config, ("train",), device="cpu").splits["train"]
    domain = exported.dataset
    clean, corrupted = domain.pairs()
    within = torch.arange(train.tokens.shape[1]) < train.group[:, None]  # what pads a text is for nobody to see
    assert torch.equal(train.tokens[within], domain.tokens[clean][within])
    assert torch.equal(train.counterparts[within], domain.tokens[corrupted][within])
    rows, places = train.scored.nonzero(as_tuple=True)
    positions = train.positions[rows, places]
    assert torch.equal(torch.stack([rows, positions]), torch.stack(domain.scored[clean].nonzero(as_tuple=True)))
    wanted = domain.target[clean][rows, positions]
    torch.testing.assert_close(train.target[rows, places], wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(train.answers.right[rows, places, 0], wanted.argmax(-1))
    means, expected = (group_means(exported.model, each) for each in (train, domain))
    for group, length in enumerate(train.group.unique().tolist()):
        torch.testing.assert_close(means[:, group, :length], expected[:, group, :length])


def test_a_sample_has_every_clean_input_as_often_as_any_other():
    tokens = torch.arange(30)[:, None]
    group = torch.tensor([0] * 3 + [1] * 27)
    dataset = Dataset(tokens, torch.ones(30, 1, dtype=torch.bool), torch.eye(30)[:, None], group)
    content = {"domain": {"inputs": [str(number) for number in range(30)]}}
    lines = [json.loads(line) for line in task_text(dataset, content, most=300).splitlines()]
    cleans = torch.tensor([int(line["clean"]) for line in lines])
    assert cleans.bincount().tolist() == [10] * 30
    assert all((int(line["clean"]) < 3) == (int(line["corrupted"]) < 3) for line in lines)
    assert all(line["places"] == [[0, int(line["clean"])]] for line in lines)
    assert task_text(dataset, content, most=300) == task_text(dataset, content, most=300)
    assert task_text(dataset, content, most=300) != task_text(dataset, content, most=300, seed=1)
    assert len(task_text(dataset, content).splitlines()) == 3**2 + 27**2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--target-sparsity", "0.5"), "settings of edge-pruning-minimax, which has no --target-sparsity"),
        (("--sparsity-warmup", "0.5"), "settings of edge-pruning-minimax, which has no --sparsity-warmup"),
        (
            ("--method", "edge-pruning"),
            "Expected --target-sparsity, the share of edges",
        ),
        (("--method", "edge-pruning", "--target-sparsity", "0.5", "--penalty", "1"), "which has no --penalty"),
        (("--tolerance", "0.1"), "settings of edge-pruning-minimax, which has no --tolerance"),
        (("--polish",), "edge-pruning-minimax is asked for neither, and takes superfluous edges out itself"),
        (("--method", "edge-pruning", "--target-sparsity", "0.5", "--tolerance", "1"), "got both"),
        (("--method", "edge-pruning", "--tolerance", "0"), "0 < tolerance <= 1e+06, got 0"),
        (("--method", "edge-pruning", "--tolerance", "1", "--masked", "nodes"), "which has no --masked"),
        (("--joint-removals=maybe",), 'unable to convert "maybe" into bool'),
        (("--logit-scale", "2"), "settings of edge-pruning-minimax, which has no --logit-scale"),
        (("--precision", "bfloat16"), "Expected float32 for edge-pruning-minimax"),
        (("--certain-at", "13"), "certain_at <= largest_log_alpha, got 13.0 and 12.0"),
    ],
)
def test_what_a_method_cannot_take_is_one_line(tmp_path, tmp_path_factory, capsys, more, message):
    folder = checkpoint("induction", "gpt2", tmp_path_factory).folder
    try:
        status = prune(folder, "resample", tmp_path / "run", *more)
    except SystemExit as ended:  # of arguments alone
        status = ended.code
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_other_method_and_a_checkpoint_of_another_engine_are_refused(tmp_path, tmp_path_factory, capsys):
    folder, out = checkpoint("induction", "gpt2", tmp_path_factory).folder, tmp_path / "run"
    assert prune(folder, "resample", out, "--steps", "3", "--checked", "9") == 0
    capsys.readouterr()
    paper = ("--method", "edge-pruning", "--target-sparsity", "0.5", "--resume", "--steps", "3")
    assert prune(folder, "resample", out, *paper) == 2
    error = capsys.readouterr().err
    assert "Expected a folder for a run of edge-pruning; " in error and error.count("\n") == 1
    state = load((out / "checkpoint.safetensors").read_bytes())
    state["engine"] += 1
    (out / "checkpoint.safetensors").write_bytes(save(state))
    assert prune(folder, "resample", out, "--steps", "3", "--checked", "9", "--resume") == 2
    error = capsys.readouterr().err
    assert f"Expected a checkpoint of engine {ENGINE}; got one of engine {ENGINE + 1}" in error
    assert error.count("\n") == 1


def test_few_examples_are_enough_for_the_final_check(tmp_path, tmp_path_factory):
    folder = checkpoint("induction", "gpt2", tmp_path_factory).folder
    few = ("--train", "4", "--test", "4", "--steps", "3", "--checked", "9")
    assert prune(folder, "resample", tmp_path / "run", *few) == 0


def test_a_configuration_that_a_folder_could_not_give_back_is_refused_before_it_runs():
    without = replace(MINIMAX, final_check=None)
    for pruning in (UNCHECKED, without):
        with pytest.raises(ConfigError, match="Expected settings of edge-pruning or edge-pruning-tolerance or "):
            RunConfig(model="any", task="ioi", pruning=pruning)
