"""What a run will take, against what runs took."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from allocating import most_allocated
from tiny import SCALED_ROTATIONS, gpt2_config, llama_config
from transformers import AutoModelForCausalLM

from edgeprune.cli.main import main
from edgeprune.errors import ConfigError, ModelError
from edgeprune.methods.edge_pruning.configurations import PAPER
from edgeprune.methods.edge_pruning.engine import Pruning
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.polish import PolishConfig, last_round
from edgeprune.metrics.answers import Answers
from edgeprune.models.load import KINDS
from edgeprune.runs import plan as planning
from edgeprune.runs.plan import Question, plan
from edgeprune.runs.step_cost import load_config, step_cost
from edgeprune.streams import by_source
from edgeprune.streams.by_source import mixing_as_on
from edgeprune.tasks import Encoded

SHAPES = {
    "gpt2": gpt2_config(n_layer=3, n_head=4, n_embd=48, vocab_size=1000, max_position_embeddings=64),
    "gpt2 of many heads": gpt2_config(n_layer=6, n_head=12, n_embd=96, vocab_size=500, max_position_embeddings=64),
    "llama": llama_config(
        num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8, hidden_size=64, intermediate_size=172,
        vocab_size=500, max_position_embeddings=64,
    ),
    "llama with shared keys": llama_config(
        num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, hidden_size=128, intermediate_size=344,
        vocab_size=2000, max_position_embeddings=64,
    ),
}  # fmt: skip


def measured(config, inputs: int, tokens: int, *, precision: str) -> int:
    """Bytes that a step of `edgeprune prune` adds at its most."""
    theirs = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision)).eval()
    model = KINDS[config.model_type].adapter(theirs)
    clean, corrupted = torch.randint(model.vocabulary_size, (2, inputs, tokens))
    ids = torch.zeros(inputs, 1, 1, dtype=torch.long)
    last, scored = torch.full((inputs, 1), tokens - 1), torch.ones(inputs, 1, dtype=torch.bool)
    dataset = Encoded(clean, corrupted, last[:, 0], last, scored, Answers(ids, ids)).dataset(model)
    run = Pruning(Problem.of(model, dataset, "resample", PAPER.loss.loss), replace(PAPER, batch_size=inputs))
    run.advance()
    return most_allocated(run.advance)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("inputs", "tokens"), [(1, 8), (4, 32), (8, 64)])
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_what_a_step_takes(shape, inputs, tokens, device):
    """Rows being mixed as here, and as many at a time as on a GPU."""
    cost = step_cost(SHAPES[shape], inputs, tokens, precision="float32", device=device)
    with mixing_as_on(device):
        assert cost.memory == pytest.approx(measured(SHAPES[shape], inputs, tokens, precision="float32"), rel=0.15)


@pytest.mark.parametrize("shape", ["llama", "llama with shared keys"])
def test_memory_is_what_a_step_takes_in_half_precision(shape):
    """Of Llamas: for some shapes of GPT-2 a CPU's products of half precision take memory inside."""
    cost = step_cost(SHAPES[shape], 8, 64, precision="bfloat16", device="cpu")
    assert cost.memory == pytest.approx(measured(SHAPES[shape], 8, 64, precision="bfloat16"), rel=0.15)


@pytest.mark.parametrize(("held", "mixings"), [(0, 4), (2**30, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_operations_are_those_of_three_forwards_and_some_mixings(shape, held, mixings, monkeypatch):
    """Sources of corrupted inputs, the masked forward, and the way back to what each destination reads, once each; and
    mixing forth, for the gradients by masks and by sources, and again on the way back where it is not held."""
    monkeypatch.setattr(by_source, "_HELD", held)
    cost = step_cost(SHAPES[shape], 4, 32, precision="float32")
    mixing = 2 * cost.edges * cost.width * 4 * 32
    assert cost.operations == pytest.approx(3 * cost.plain_operations + mixings * mixing, rel=0.05)
    assert cost.masked_operations == pytest.approx(cost.plain_operations + mixing, rel=0.05)


def test_a_plan_has_as_many_inputs_at_a_time_as_fit():
    room = 20.0
    found = {share: planning._most(share, room, lambda inputs: 3 + 2 * inputs) for share in (1, 5, 8, 9, 100)}
    assert found == {1: 1, 5: 5, 8: 8, 9: 8, 100: 8}
    assert planning._most(100, room, lambda inputs: inputs**2) == 4  # no straight line
    assert planning._most(100, room, lambda inputs: 50 * inputs) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("config")
    SHAPES["llama"].save_pretrained(out)
    return out


def test_few_gpus_shard_more(folder):
    one = step_cost(load_config(str(folder)), 1, 32, precision="float32")
    enough = (one.weights + one.memory) / 0.95 / planning.GIGABYTE
    asked = Question(model=str(folder), batch=6, tokens=32, precision="float32", gpu_memory=enough * 1.001)
    found = plan(asked)
    assert found.fits and (found.gpus, found.inputs_at_a_time, found.parts) == (1, 1, 6)
    assert found.memory == one.weights + one.memory <= 0.95 * asked.gpu_memory * planning.GIGABYTE
    assert found.parameters == sum(
        parameter.numel() for parameter in AutoModelForCausalLM.from_config(SHAPES["llama"]).parameters()
    )
    wider = plan(replace(asked, gpu_memory=1.0))
    assert (wider.gpus, wider.inputs_at_a_time, wider.parts) == (1, 6, 1) and wider.step > found.step
    less = plan(replace(asked, gpu_memory=enough * 0.98))
    assert less.fits and less.gpus > 1 and less.memory < found.memory and less.inputs_at_a_time == 1
    assert less.parts * less.gpus * less.inputs_at_a_time >= asked.batch
    assert less.hours == pytest.approx(found.hours * less.parts / asked.batch)
    uneven = plan(replace(asked, batch=5, gpus=4, gpu_memory=1.0))
    assert (uneven.inputs_at_a_time, uneven.parts) == (2, 1)  # one GPU has two, and the others wait for it
    assert uneven.hours == pytest.approx(found.hours * 2 / 6)
    assert found.polished_edges == round(0.05 * found.edges) and found.polish_fits
    half = plan(replace(asked, sparsity=0.5, judged=512))
    assert half.polished_edges == round(0.5 * found.edges)
    assert half.polish_circuits == last_round(one.sources, one.destinations, half.polished_edges, PolishConfig())
    operations = half.polish_circuits * 512 * one.masked_operations
    assert half.polish_hours * 3600 * asked.tflops * 1e12 == pytest.approx(operations)
    never = plan(replace(asked, gpu_memory=0.0001))
    assert not never.fits and never.memory > 0.0001 * planning.GIGABYTE


def test_the_command_prints_it(capsys, folder):
    """From a folder, or its file; status 1 where it does not fit."""
    for name in (folder, folder / "config.json"):
        assert main(["plan", "--model", str(name), "--tokens", "16", "--gpu-memory", "1", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["fits"] and found["gpus"] == 1 and found["edges"] == KINDS["llama"].adapter(
            AutoModelForCausalLM.from_config(SHAPES["llama"])
        ).graph.total  # fmt: skip
    assert main(["plan", "--model", str(folder), "--tokens", "16", "--gpus", "2", "--gpu-memory", "0.0001"]) == 1
    assert "2, which is not enough" in capsys.readouterr().out
    assert main(["plan", "--model", str(folder), "--tokens", "16", "--sparsity", "0.9"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"--polish, {round(0.1 * found['edges'])} edges the last round is" in said


def test_of_a_model_with_few_places_no_more_tokens_are_planned_unless_asked_for(folder, tmp_path, capsys):
    assert plan(Question(model=str(folder))).tokens == 64  # it has 64 places
    config = SHAPES["llama"].to_dict() | {"max_position_embeddings": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert plan(Question(model=str(tmp_path))).tokens == 72
    with pytest.raises(ConfigError, match="predictions <= tokens, got 65 and 64"):
        plan(Question(model=str(folder), predictions=65))
    assert main(["plan", "--model", str(folder), "--steps", "1", "--batch", "1"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "64 tokens" in said and "1 step of 1 input " in said
    assert not {"0.00 h", "0.0 GB", "0.0 MB", "0.0 GFLOP"} & {" ".join(two) for two in pairwise(said.split())}


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.00034, "0.00034 s"),
        (59.4, "59 s"),
        (60, "1.00 min"),
        (3599, "59.98 min"),
        (3600, "1.00 h"),
        (36e5, "1,000.00 h"),
    ],
)
def test_a_time_is_never_printed_as_none(seconds, says):
    assert planning.duration(seconds / 3600) == says


def test_a_circuit_that_is_too_large_to_polish_is_told(folder, capsys, monkeypatch):
    monkeypatch.setattr("edgeprune.methods.polish._ROOM", 999)
    assert main(["plan", "--model", str(folder), "--tokens", "16"]) == 0
    assert "too many: a mask is held without each of them" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch > 0, got 0"),
        ({"gpu_memory": float("nan")}, "gpu_memory > 0, got nan"),
        ({"gpus": 0}, "gpus > 0, got 0"),
        ({"sparsity": 1.1}, "0 <= sparsity <= 1, got 1.1"),
        ({"judged": 0}, "judged > 0, got 0"),
        ({"predictions": 9, "tokens": 8}, "predictions <= tokens, got 9 and 8"),
    ],
)
def test_what_cannot_be_planned_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Question(model="any", **change)


def test_what_is_no_model_or_too_short_a_one_is_refused(folder, tmp_path, capsys):
    with pytest.raises(ConfigError, match="at most 64 tokens, as the model takes; got 65"):
        plan(Question(model=str(folder), tokens=65))
    with pytest.raises(ModelError, match=r"a folder with config\.json, or that file; .* cannot be loaded"):
        plan(Question(model=str(tmp_path)))
    for content, message in (
        ('{"model_type": "bert"}', "Expected a model of kind gpt2, llama"),
        ('{"model_type": "gpt2", "n_embd": 50, "n_head": 4}', "Expected a configuration of a model"),
        ('{"model_type": "llama", "hidden_act": "nonsense"}', "Expected a configuration of a model"),
        ('{"model_type": "gpt2", "n_layer": 0}', "it has no layers"),
    ):
        (tmp_path / "config.json").write_text(content)
        assert main(["plan", "--model", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_rotations_that_depend_on_values_change_no_size(tmp_path, scaling):
    config = llama_config(head_dim=4, rope_parameters={"rope_type": scaling, **SCALED_ROTATIONS[scaling]})
    config.save_pretrained(tmp_path)
    costs = [
        step_cost(each, 1, 8, precision="float32") for each in (load_config(str(tmp_path)), llama_config(head_dim=4))
    ]
    assert costs[0] == costs[1]
