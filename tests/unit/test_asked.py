"""What a command or a function is asked for is what it does: nothing falls back to a default on the way."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pruning import compiled_paper, minimax

from edgeprune.cli.main import main
from edgeprune.data import LazyTarget
from edgeprune.errors import EdgePruneError
from edgeprune.methods.edge_pruning.configurations import TOLERANCE
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.greedy_elimination import GreedyConfig, eliminate
from edgeprune.methods.settings import with_settings
from edgeprune.methods.subnetwork_probing import NODES, probe_nodes
from edgeprune.methods.within_tolerance import methods_within
from edgeprune.runs import prune as pruning_run
from edgeprune.runs.config import RunConfig
from edgeprune.tasks import Sizes
from tracr_bridge.bench import run as benching
from tracr_bridge.certify import check_certificate
from tracr_bridge.certify.summary import truth_json
from tracr_bridge.compile import verify as verifying
from tracr_bridge.compile.catalogue import catalogue, load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.verify import verify
from tracr_bridge.recovery import pytest_checks as suites
from tracr_bridge.recovery import recover as recovering
from tracr_bridge.recovery.pytest_checks import Suite

NAME = "first_token"


class Stopped(EdgePruneError):
    """Ends a command once it has said what it asks for."""


def asked_of(monkeypatch, module, name):
    """What a function is called with; nothing comes of it."""
    seen = []

    def spy(*given, **more):
        seen.append((given, more))
        raise Stopped("enough")

    monkeypatch.setattr(module, name, spy)
    return seen


def test_recover_asks_for_what_its_options_say(monkeypatch, capsys):
    seen = asked_of(monkeypatch, recovering, "recover_under")
    asked = ["--ablation", "mean", "--ablation", "resample", "--method", "acdc", "--seed", "5", "--timeout", "7"]
    assert main(["recover", NAME, *asked]) == 2
    ((subject, ablations), more) = seen[0]
    assert (subject.name, ablations) == (NAME, ["mean", "resample"])
    assert (more["method"], more["seed"], more["seconds"]) == ("acdc", 5, 7.0)


def test_bench_asks_for_what_its_options_say(monkeypatch, capsys, tmp_path):
    seen = asked_of(monkeypatch, benching, "run_all")
    asked = ["--ablation", "mean", "--method", "acdc", "--method", "eap", "--seeds", "2", "--timeout", "7"]
    assert main(["bench", NAME, "hist", *asked, "--jobs", "3", "--out", str(tmp_path)]) == 2
    ((subjects, runs, out), more) = seen[0]
    assert [subject.name for subject in subjects] == [NAME, "hist"] and out == tmp_path
    assert {(run.ablation, run.method, run.seed) for run in runs} == {
        ("mean", method, seed) for method in ("acdc", "eap") for seed in (0, 1)
    }
    assert len(runs) == 4 and (more["jobs"], more["seconds"]) == (3, 7.0)


def test_prune_asks_for_what_its_options_say(monkeypatch, capsys, tmp_path):
    seen = asked_of(monkeypatch, pruning_run, "prune")
    asked = ["--model", "m", "--task", "gt", "--ablation", "mean", "--precision", "bfloat16", "--parts", "2"]
    asked += ["--seed", "3", "--data-seed", "4", "--train", "5", "--validation", "6", "--test", "7", "--steps", "8"]
    asked += ["--save-every", "9", "--device", "cpu", "--polish", "--target-sparsity", "0.3"]
    assert main(["prune", *asked, "--out", str(tmp_path / "run"), "--resume"]) == 2
    ((config, out), more) = seen[0]
    pruning = with_settings(config.pruning, {})
    assert config == RunConfig(
        model="m", task="gt", ablation="mean", precision="bfloat16", parts=2, seed=3, data_seed=4, polish=True,
        sizes=Sizes(train=5, validation=6, test=7), pruning=pruning,
    )  # fmt: skip
    assert (pruning.name, pruning.steps, pruning.pressure.target_sparsity) == ("edge-pruning", 8, 0.3)
    assert (out, more["save_every"], more["device"], more["resume"]) == (tmp_path / "run", 9, "cpu", True)


def test_a_tolerance_and_its_criterion_are_those_that_methods_are_told():
    for criterion in ("mean", "worst"):
        for method in methods_within(0.125, criterion).values():
            config = method.keywords["config"]
            assert (config.pressure.tolerance, config.loss.criterion) == (0.125, criterion)


def test_a_suite_gives_a_method_as_long_as_it_is_told(monkeypatch):
    seen = []

    def limit(seconds, name):
        seen.append((seconds, name))
        raise Stopped("enough")

    for module, call in (
        (suites, lambda: Suite("random", seconds=3.5).discover(NAME, "zero")),
        (recovering, lambda: recovering.recover(load_program(NAME), "zero", method="random", seconds=3.5)),
    ):
        monkeypatch.setattr(module, "time_limit", limit)
        with pytest.raises(Stopped):
            call()
    assert seen == [(3.5, "random")] * 2


def test_programs_of_one_name_are_not_taken_for_each_other():
    suite, program = Suite(), load_program(NAME)
    shorter = replace(program, max_seq_len=program.max_seq_len - 1)
    assert len(suite.compiled(shorter).domain.inputs) < len(suite.compiled(program).domain.inputs)
    assert suite.truth(shorter, "zero").certificate.inputs < suite.truth(program, "zero").certificate.inputs
    assert suite.compiled(shorter) is suite.compiled(replace(shorter))


# Seeds of methods that learn


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (prune_edges, minimax(steps=1, checked=0)),
        (prune_edges, minimax(steps=1)),
        (prune_edges, compiled_paper(steps=1, mask_samples=1)),
        (prune_edges, with_settings(TOLERANCE, {"steps": 1, "tolerance": 0.1})),
        (probe_nodes, with_settings(NODES, {"steps": 1, "mask_samples": 1})),
        (eliminate, GreedyConfig(inputs=4)),
    ],
    ids=["minimax", "checked", "paper", "tolerance", "nodes", "greedy"],
)
def test_a_method_that_learns_draws_from_its_seed_alone(compiled, drawn_from, method, config):
    program = compiled(NAME)
    method(program.model, program.dataset, "resample", seed=17, config=config)
    assert drawn_from == {17}


# What is said of a sample


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_printed_of_a_sample_says_that_it_is_one(truth, whole):
    verification = verifying.Verification(equal=True, inputs=30, exhaustive=whole, max_abs_diff=0.0, mismatches=())
    assert verifying.verification_json(verification, "it")["exhaustive"] == whole
    found = truth(NAME, "zero")
    found = replace(found, certificate=replace(found.certificate, exhaustive=whole))
    assert truth_json(found, "it")["certificate"]["exhaustive"] == whole


@pytest.mark.parametrize("row", [6, 7])
def test_a_wrong_output_on_any_one_input_is_found_however_batches_are_cut(monkeypatch, row):
    monkeypatch.setattr(verifying, "_BATCH", 7)
    compiled = compile_program(replace(catalogue()["xproportion"], max_seq_len=3))
    target = compiled.dataset.target.clone()
    target[row, 1] += 0.5
    found = verify(replace(compiled, dataset=replace(compiled.dataset, target=target)))
    assert not found.equal and found.max_abs_diff == pytest.approx(0.5, abs=1e-3)
    given = " ".join(map(str, compiled.domain.inputs[row]))
    assert f"input [{given}] position 0" in found.mismatches[1]


# Rows of a target that is computed


def test_rows_of_a_target_that_is_computed_are_those_that_are_asked_for(compiled):
    program = compiled("hist")
    count = len(program.dataset)
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(count, program.dataset.tokens.shape[1], generator=generator).argsort(-1)[:, :2]
    target = LazyTarget(program.model, program.dataset.tokens, positions)
    for each in (target, target.copy()):
        for rows in (torch.randint(count, (150,), generator=generator), torch.tensor([[5, 2], [9, 5]])):
            expected = program.dataset.target[rows[..., None], positions[rows]]
            torch.testing.assert_close(each[rows], expected)


# The checker that shares no code with us


@pytest.mark.parametrize("pairs", [1, 2, 3, 64])
def test_the_checker_runs_every_pair_before_it_takes_a_set_for_faithful(pairs):
    """A set that is off on one pair alone."""
    for wrong in range(pairs):
        check = check_certificate.Check.__new__(check_certificate.Check)
        check.names, check.refused, check.unchecked, check.failed = ["an edge"], [], [], []
        check.order, check.most, check.rows = list(range(pairs)), 0.01, 0
        check.limit = SimpleNamespace(rows=10**9)

        def worst(codes, some, wrong=wrong):
            off = 1.0 if wrong in list(some) else 0.0
            return np.full(len(codes), off), np.full(len(codes), wrong)

        check.worst = worst
        assert not check.search("it is faithful", 1, lambda: np.array([0])), wrong
        assert check.refused == [] and check.failed == [wrong]


def test_the_checker_measures_every_pair_in_rooms_of_any_size():
    check = check_certificate.Check.__new__(check_certificate.Check)
    check.pairs, check.rows, check.ablated = np.stack([np.arange(10)] * 2), 0, {}
    check.tokens, check.scored, check.target = np.arange(10)[:, None], np.ones((10, 1), bool), np.zeros((10, 1, 1))
    for room in (1, 3, 4, 10, 99):
        check.room = room
        check.run = lambda codes, tokens, ablated: (tokens[None] == codes[:, None, None])[..., None].astype(float)
        found, where = check.worst(np.arange(11), range(10))
        assert found.tolist() == [1.0] * 10 + [0.0] and where[:10].tolist() == list(range(10))


def test_the_command_says_the_seed_that_it_used(capsys):
    assert main(["recover", NAME, "--method", "random", "--seed", "6", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["seed"] == 6
