"""One model on several processes: what they find is what one finds, and one that is killed ends them all."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import on_ranks
import pytest
import torch
from safetensors.torch import load_file
from test_pruning_run import contents, save_model
from tiny import FAMILIES

from edgeprune import parallel
from edgeprune.errors import ModelError, RunError
from edgeprune.files.store import load_saved
from edgeprune.models import load as loading
from edgeprune.models.load import load_model
from edgeprune.parallel import ALONE, Ranks, join
from edgeprune.runs.prune import prune
from edgeprune.runs.step_cost import step_cost

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
HERE = Path(__file__).parent

pytestmark = pytest.mark.filterwarnings("ignore:No device id is provided:UserWarning")


def start(processes: int, *command: str, **options) -> subprocess.Popen[str]:
    paths = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parents[1])))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    whole = [*TORCHRUN, f"--nproc-per-node={processes}", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(whole, env=environment, **pipes, **options)


GPT2, LLAMA = FAMILIES
CASES = (
    pytest.param((GPT2, 2), id="gpt2-2", marks=pytest.mark.sweep),
    pytest.param((LLAMA, 2), id="llama-2"),
    pytest.param((GPT2, 4), id="gpt2-4", marks=pytest.mark.sweep),
    pytest.param((LLAMA, 4), id="llama-4", marks=pytest.mark.sweep),
)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A kind of model, and how many processes."""
    return request.param


@pytest.fixture(scope="module")
def model(case, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), family=case[0])


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """The folder of one process, and what it finds."""
    out = tmp_path_factory.mktemp("alone")
    return out, on_ranks.run_everything(model, out)


@pytest.fixture(scope="module")
def together(case, model, tmp_path_factory):
    """The folder of several, and what each finds."""
    out = tmp_path_factory.mktemp("together")
    process = start(case[1], str(HERE / "on_ranks.py"), model, str(out))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out, [load_file(out / f"rank-{rank}.safetensors") for rank in range(case[1])]


def test_outputs_gradients_and_methods_are_those_of_one_process(alone, together):
    _, found = alone
    for ranks in together[1]:
        for name, value in found.items():
            torch.testing.assert_close(ranks[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_all_processes_find_the_very_same(together):
    first, *others = together[1]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first if name not in ("held", "peak", "whole"))


def test_layers_are_sharded_and_taken_apart_after_a_step(alone, together, model):
    parts = [int(ranks["held"]) for ranks in together[1]]
    assert sum(parts) == int(on_ranks.held(model)["held"]) and max(parts) < 0.7 * sum(parts)
    assert not any(bool(ranks["whole"].any()) for ranks in together[1])


def test_memory_of_each_process_is_what_is_planned(case, together):
    """Of two: what gloo allocates for itself grows with processes, and differs between them."""
    count = case[1]
    inputs, tokens = on_ranks.BATCH
    cost = step_cost(on_ranks.DEEP, inputs // count, tokens, precision="float32", device="cpu")
    always = cost.weights - sum(cost.layers) + sum(cost.layers) // count
    planned = cost.memory + cost.weights_on(count) - always
    for ranks in together[1]:
        assert int(ranks["peak"]) >= 0.85 * planned
        assert count > 2 or int(ranks["peak"]) <= 1.15 * planned


@pytest.mark.parametrize("name", ["run", "parts"])
def test_masks_are_those_of_one_process(alone, together, name):
    one, several = (load_file(out / name / "checkpoint.safetensors")["log_alpha"] for out in (alone[0], together[0]))
    assert one.std() > 0.5  # of 20 steps
    torch.testing.assert_close(several, one, atol=5e-5, rtol=0)


def test_every_file_is_written_once_and_whole(alone, together):
    files = [
        {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()} for out in (alone[0], together[0])
    ]
    assert {name for name in files[1] if not name.startswith("rank-")} == files[0]
    lines = [json.loads(line) for line in (together[0] / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20))


# A process that is killed


def asked(model: str, out: Path) -> list[str]:
    run, sizes = on_ranks.config(model), on_ranks.config(model).sizes
    settings = {"initial-log-alpha": 1, "sparsity-warmup": 0.1, "batch-size": 5, "target-sparsity": 0.5, "steps": 20}
    settings |= {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}
    settings |= {"device": "cpu"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    return ["-m", "edgeprune", "prune", f"--model={model}", f"--task={run.task}", f"--out={out}", *options]


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of those that torchrun started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by Linux's /proc")
@pytest.mark.sweep
def test_all_end_when_one_is_killed_and_any_number_goes_on(tmp_path):
    model, out = save_model(tmp_path / "model"), tmp_path / "run"
    prune(on_ranks.config(model), tmp_path / "alone", device="cpu")
    process = start(4, *asked(model, out), "--save-every=4")
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 200
    while not metrics.exists() or metrics.read_text().count("\n") < 6:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.002)
    ranks = ranks_of(process)
    assert len(ranks) == 4
    os.kill(ranks[2], signal.SIGKILL)
    output, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and output == ""
    assert not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]
    assert "Traceback" not in re.sub(r"Traceback[^\n]*\n(  .*\n)*torch\.distributed\.elastic.*", "", errors)
    assert not (out / "circuit.json").exists()
    before = len(metrics.read_text().splitlines())
    process = start(2, *asked(model, out), "--resume", "--json")
    output, errors = process.communicate(timeout=200)
    found = json.loads(output)
    assert process.returncode == (0 if found["reached"] else 1), errors
    assert found["edges"] == len(load_saved(out / "circuit.json").circuit)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20)) and before < 20
    one = load_file(tmp_path / "alone" / "checkpoint.safetensors")["log_alpha"]
    torch.testing.assert_close(load_file(out / "checkpoint.safetensors")["log_alpha"], one, atol=1e-5, rtol=0)
    process = start(2, "-m", "edgeprune", "evaluate", str(out), "--split=validation", "--device=cpu", "--json")
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    measured = json.loads((out / "evaluation-validation.json").read_text())
    assert json.loads(output)["circuit"] == measured["circuit"]
    (out / "evaluation-validation.json").unlink()
    # One process finds nothing left to do.
    kept = contents(out)
    prune(on_ranks.config(model), out, resume=True, device="cpu")
    assert contents(out) == kept


def test_bad_input_ends_all_of_them_with_one_line_each(tmp_path):
    process = start(2, *asked(str(tmp_path / "nothing"), tmp_path / "run"))
    output, errors = process.communicate(timeout=100)
    assert process.returncode != 0 and output == ""
    assert "edgeprune: Expected a model's name on the Hugging Face hub, or a folder" in errors
    assert not (tmp_path / "run" / "run.json").exists()


# Rows


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_every_row_is_run_and_all_run_as_many(batch, count):
    rows = [Ranks(number, count).rows(batch) for number in range(count)]
    assert len({len(each) for each in rows}) == 1
    assert torch.equal(torch.cat(rows)[:batch], torch.arange(batch))
    counted = torch.cat([Ranks(number, count).first_times(batch) for number in range(count)])
    assert torch.equal(torch.cat(rows)[counted], torch.arange(batch))


def test_one_process_is_alone(monkeypatch):
    assert join() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a scheduler that starts no processes of ours
    assert join() == ALONE
    value = torch.ones(3)
    assert ALONE.alike(value) is value and ALONE.summed(value) is value and ALONE.own(value, 0) is value


def test_what_fails_between_processes_says_what_to_do(monkeypatch):
    def broken(*_given):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "barrier", broken)
    with pytest.raises(RunError, match=r"Connection closed by peer\. If one of them has stopped.*--resume"):
        Ranks(0, 2).wait()


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for gpus, expected in ((0, []), (2, []), (4, [3])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        parallel._take_gpu()
        assert taken == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(loading, "find_device", torch.device)
    with pytest.raises(ModelError, match="as it has GPUs, 2; got more: set --nproc-per-node"):
        load_model(str(tmp_path), device="cuda", ranks=Ranks(3, 4))


def test_no_process_is_told_which_gpu_to_take(tmp_path):
    with pytest.raises(ModelError, match="each process takes its own, such as cuda; got 'cpu:0'"):
        load_model(str(tmp_path), device="cpu:0", ranks=Ranks(0, 2))


def test_folders_that_are_not_the_same_are_told_apart(monkeypatch):
    def gather(value, op):
        value.copy_(torch.tensor([8, 0]))  # the other is at step 0

    monkeypatch.setattr(torch.distributed, "all_reduce", gather)
    assert not Ranks(0, 2).agree(8) and ALONE.agree(8)
