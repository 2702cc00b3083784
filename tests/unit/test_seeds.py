"""The seed that is asked for is the one that is used, whichever way it is asked for."""

import json
import sys
from pathlib import Path

import pytest
import torch

from edgeprune.cli.main import main
from edgeprune.graph import Circuit
from edgeprune.methods import METHODS, find_method
from edgeprune.methods.circuit_loss import CircuitLoss
from tracr_bridge.bench.run import Run, named_subject, run_all
from tracr_bridge.certify import elimination, truth
from tracr_bridge.certify import faithfulness as judge
from tracr_bridge.compile import verify
from tracr_bridge.compile.catalogue import catalogue, load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.recovery import known_models as known_module
from tracr_bridge.recovery.known_models import known
from tracr_bridge.recovery.pytest_checks import CheckFailed, Suite
from tracr_bridge.recovery.recover import recover, recover_under

NAME = "first_token"
RECORDER = "recorded_seeds:records"

RECORDS = """
from pathlib import Path

import torch

def records(model, dataset, ablation, *, seed):
    with Path(__file__).with_name("seeds.txt").open("a") as file:
        file.write(f"{seed}\\n")
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations))
"""
"""A method of one's own that writes down the seed that it got, and finds nothing."""


@pytest.fixture
def seeds(tmp_path, monkeypatch):
    """What the recording method has been called with since it was last asked."""
    (tmp_path / "recorded_seeds.py").write_text(RECORDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "recorded_seeds", raising=False)
    written = Path(tmp_path / "seeds.txt")

    def since() -> list[int]:
        found = [int(line) for line in written.read_text().split()] if written.exists() else []
        written.unlink(missing_ok=True)
        return found

    return since


def test_a_seed_reaches_a_method_by_name(compiled, seeds):
    program = compiled(NAME)
    for seed in (0, 5, 2**32 - 1):
        find_method(RECORDER)(program.model, program.dataset, "zero", seed=seed)
    assert seeds() == [0, 5, 2**32 - 1]


def test_a_seed_reaches_the_method_of_a_suite(seeds):
    suite, program = Suite(RECORDER), load_program(NAME)
    suite.discover(program, "zero", seed=3)
    suite.recover(program, "zero", seed=4)
    with pytest.raises(CheckFailed, match="seed 5"):
        suite.check_recovery(program, "zero", seed=5, spec=NAME)
    assert seeds() == [3, 4, 5]


def test_a_seed_reaches_a_method_through_recover(seeds):
    program = load_program(NAME)
    assert recover(program, "zero", method=RECORDER, seed=6).seed == 6
    recover_under(program, ["zero", "mean"], method=RECORDER, seed=7)
    assert seeds() == [6, 7, 7]


def test_every_seed_of_bench_reaches_the_method(seeds, tmp_path, capsys):
    rows = run_all([named_subject(NAME)], [Run("zero", RECORDER, seed) for seed in (2, 9)], tmp_path / "one", jobs=1)
    assert [row["seed"] for row in rows] == [2, 9] == seeds()
    asked = ["bench", NAME, "--method", RECORDER, "--ablation", "zero", "--seeds", "3", "--jobs", "1"]
    assert main([*asked, "--out", str(tmp_path / "two"), "--json"]) == 1
    capsys.readouterr()
    assert seeds() == [0, 1, 2]


def test_the_seed_of_the_command_reaches_the_method(seeds, capsys):
    assert main(["recover", NAME, "--ablation", "zero", "--method", RECORDER, "--seed", "8", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["seed"] == 8
    assert seeds() == [8]


@pytest.mark.parametrize("random", [["--random", "1"], []])
def test_the_seed_of_bench_is_that_of_programs_and_not_of_methods(seeds, tmp_path, capsys, monkeypatch, random):
    drawn = []

    def draw(count, *, seed, progress):
        drawn.append((count, seed))
        return []

    monkeypatch.setattr("tracr_bridge.random_programs.draw.draw_programs", draw)
    asked = ["bench", *(random or [NAME]), "--seed", "5", "--method", RECORDER, "--ablation", "zero", "--jobs", "1"]
    main([*asked, "--out", str(tmp_path / "out"), "--json"])
    capsys.readouterr()
    assert drawn == ([(1, 5)] if random else []) and seeds() == ([] if random else [0])


def test_a_random_method_of_ours_draws_by_its_seed(compiled):
    program = compiled(NAME)
    one, same, other = (find_method("random")(program.model, program.dataset, "zero", seed=s).scores for s in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


# Certificates


def noted(monkeypatch, module, name, seen, *, key="seed"):
    """Let a function go on as it does, and note the seed that it gets."""
    real = getattr(module, name)

    def spy(*given, **more):
        seen.append(more.get(key, 0))
        return real(*given, **more)

    monkeypatch.setattr(module, name, spy)


def test_a_program_is_sampled_and_certified_with_the_seed_that_is_asked_for(monkeypatch, capsys):
    sampled, judged = list[int](), list[int]()
    noted(monkeypatch, verify, "compile_program", sampled)
    noted(monkeypatch, known_module, "derive_truth", judged)
    assert main(["truth", NAME, "--ablation", "resample", "--seed", "11", "--json"]) == 0
    capsys.readouterr()
    assert (sampled, judged) == ([11], [11])
    known(load_program(NAME), seed=12).truth("zero")
    assert (sampled[1:], judged[1:]) == ([12], [12])


def test_pairs_come_in_an_order_of_the_seed_and_so_does_what_the_judge_of_a_truth_runs(compiled):
    program = compiled(NAME)
    order = {seed: known_module.certify(program, "resample", seed=seed).judge.rows_of_pairs.tolist() for seed in (0, 1)}
    assert order[0] != order[1] and sorted(zip(*order[0], strict=True)) == sorted(zip(*order[1], strict=True))
    assert order[1] == judge.Judge(program.model, program.dataset, "resample", atol=1e-2, seed=1).rows_of_pairs.tolist()


def test_elimination_goes_in_orders_of_the_seed(compiled, monkeypatch):
    seen = list[int]()
    noted(monkeypatch, truth, "eliminate", seen)
    monkeypatch.setattr(truth, "minimal_circuits", lambda judge, edges: None)
    monkeypatch.setattr(elimination, "ORDERS", 1)
    known_module.certify(compiled(NAME), "zero", seed=13)
    assert seen == [13]


def test_another_seed_is_another_sample_of_a_domain():
    program = catalogue()["hist"]
    one, same, other = (compile_program(program, budget=30, seed=seed).domain for seed in (1, 1, 2))
    assert one == same and one.inputs != other.inputs and len(one.inputs) == 30


# Samples that methods draw


def test_circuits_are_judged_on_a_sample_of_the_seed(compiled):
    program = compiled("hist")

    def loss(seed):
        mask = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))[None]
        drawn = CircuitLoss(
            program.model, program.dataset, "resample", loss="squared", inputs=7, batch_size=7, seed=seed
        )
        return float(drawn(mask)[0])

    assert loss(1) == loss(1) != loss(2)


@pytest.mark.parametrize("name", sorted(name for name in METHODS if "pruning" not in name and "probing" not in name))
def test_a_method_draws_from_its_seed_alone(compiled, drawn_from, name):
    program = compiled(NAME)
    found = find_method(name)(program.model, program.dataset, "resample", seed=17)
    assert isinstance(found.circuit, Circuit) and drawn_from == {17}
