"""The small GPT-2 that is trained here."""

import json
import shutil

import pytest
import torch

from edgeprune import toy
from edgeprune.errors import ConfigError, ModelError, RunError
from edgeprune.models.load import load_model
from edgeprune.store import UnwritableFile
from edgeprune.tasks import Encoder, Sizes, make_examples
from edgeprune.toy import ToyConfig, train_toy
from tracr_bridge.cli import main

FEW = ToyConfig(layers=1, heads=2, width=8, steps=3, batch_size=16)


def test_a_toy_is_a_model_that_can_be_loaded_and_knows_the_words_of_its_task(tmp_path):
    found = train_toy(tmp_path / "toy", FEW)
    assert 0 <= found.accuracy < 0.5 and found.loss > 0
    assert [each.name for each in tmp_path.iterdir()] == ["toy"]
    model, tokenizer = load_model(str(tmp_path / "toy"))
    assert len(model.graph.sources) == 1 + 2 + 1
    encoder = Encoder(tokenizer, context_length=model.context_length)
    for name in ("ioi", "ioi-t1"):
        examples = make_examples(name, encoder, Sizes(train=50, validation=1, test=1))["train"]
        encoded = encoder.encode(examples, "logit difference")
        real = torch.arange(encoded.tokens.shape[1]) < encoded.length[:, None]
        assert (encoded.tokens[real] != tokenizer.unk_token_id).all()


def test_the_seed_makes_the_model(tmp_path):
    def weights(name, seed):
        train_toy(tmp_path / name, FEW, seed=seed)
        return load_model(str(tmp_path / name))[0].weights.state_dict()

    one, again, other = weights("one", 0), weights("again", 0), weights("other", 1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_names_are_held_out_template_by_template(monkeypatch, tmp_path):
    seen = []
    draw = toy._draw

    def noted(tokenizer, names, count, random):
        seen.append(names)
        return draw(tokenizer, names, count, random)

    monkeypatch.setattr(toy, "_draw", noted)
    train_toy(tmp_path / "toy", FEW)
    *trained, tested = seen
    assert all(names == trained[0] for names in trained)
    for template, names in tested.items():
        assert len(names) >= 20 and not set(names) & set(trained[0][template])
    assert set().union(*trained[0].values()) == set(toy.NAMES)


def test_models_that_are_not_what_their_files_say_are_refused_in_one_line(tmp_path, capfd):
    train_toy(tmp_path / "toy", FEW)
    config = json.loads((tmp_path / "toy" / "config.json").read_text())
    changes = {
        "fewer": {"n_layer": 0},
        "more": {"n_layer": 2},
        "wider": {"n_embd": 16},
        "other": {"model_type": "bert"},
    }
    capfd.readouterr()
    for name, change in changes.items():
        shutil.copytree(tmp_path / "toy", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError):
            load_model(str(tmp_path / name))
    (tmp_path / "fewer" / "config.json").write_text("{")
    weights = (tmp_path / "toy" / "model.safetensors").read_bytes()
    (tmp_path / "more" / "model.safetensors").write_bytes(weights[:100])
    for name in ("fewer", "more"):
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(str(tmp_path / name))
    assert capfd.readouterr().err == ""


def test_what_cannot_be_trained_is_refused(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="Expected a folder that is not there yet"):
        train_toy(tmp_path / "there", FEW)
    with pytest.raises(UnwritableFile, match="writable folder"):
        (tmp_path / "file").write_text("")
        train_toy(tmp_path / "file" / "toy", FEW)
    with pytest.raises(ConfigError, match="a width that is a multiple of 4 heads, got 30"):
        ToyConfig(width=30)
    with pytest.raises(ConfigError, match="layers >= 1, got 0"):
        ToyConfig(layers=0)


def test_the_command_says_whether_the_task_was_learned(capsys, tmp_path):
    small = ["--layers", "1", "--heads", "1", "--width", "4", "--steps", "2"]
    assert main(["train-toy", "ioi", "--out", str(tmp_path / "toy"), "--json", *small]) == 1
    assert json.loads(capsys.readouterr().out).keys() == {"model", "accuracy", "loss", "seconds"}


@pytest.mark.sweep  # trains for minutes
def test_the_toy_learns_its_task(tmp_path):
    assert train_toy(tmp_path / "toy").accuracy >= 0.99
