"""The small GPT-2s that are trained here: what teaches them, what tests them, and their tasks."""

import json
import shutil
from dataclasses import replace
from random import Random

import pytest
import torch

from edgeprune.cli.main import main
from edgeprune.errors import ConfigError, ModelError, RunError
from edgeprune.files.store import UnwritableFile
from edgeprune.graph import Node
from edgeprune.models.load import load_model
from edgeprune.tasks import Encoder, Sizes, make_examples
from edgeprune.tasks.example import Example
from edgeprune.tasks.ioi import TEMPLATES
from edgeprune.tasks.words import NAMES, PLACES
from edgeprune.toys import LESSONS, ToyConfig
from edgeprune.toys.train import TASK, train_toy

FEW = ToyConfig(layers=1, heads=2, width=8, steps=3, batch_size=16)


def test_a_toy_is_a_model_that_can_be_loaded_and_knows_the_words_of_its_task(tmp_path):
    found = train_toy(tmp_path / "toy", config=FEW)
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
        train_toy(tmp_path / name, config=FEW, seed=seed)
        return load_model(str(tmp_path / name))[0].weights.state_dict()

    one, again, other = weights("one", 0), weights("again", 0), weights("other", 1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_names_are_held_out_template_by_template():
    course = LESSONS["ioi"].course(random := Random(0))

    def pairs(draw):
        """Names with the templates in which they come, by their first words."""
        return {
            (" ".join(word for word in example.clean.split() if word.strip(".,") not in (*NAMES, *PLACES))[:20], name)
            for example in draw(random, 6000)
            for name in NAMES
            if name in example.clean.replace(",", "").replace(".", "").split()
        }

    taught, tested = pairs(course.teach), pairs(course.test)
    assert not taught & tested and len({template for template, _ in tested}) == len(TEMPLATES)
    assert {name for _, name in taught} == set(NAMES)
    assert len(tested) >= 0.15 * len(taught)


@pytest.mark.parametrize("task", [task for task in LESSONS if task != "ioi"])
def test_what_tests_a_lesson_does_not_teach_it_and_both_answer_right(task):
    lesson = LESSONS[task]
    course = lesson.course(random := Random(0))
    taught, tested = course.teach(random, 3000), course.test(random, 500)
    assert not {example.clean for example in taught} & {example.clean for example in tested}
    examples = [Example.marked(line["clean"], line["corrupted"]) for line in course.task]
    for example in [*taught, *tested, *examples]:
        assert [each.right for each in example.predictions] == [(f" {word}",) for word in right(task, example.clean)]
        words = (example.clean + "".join(each.right[0] for each in example.predictions)).split()
        assert set(words) <= set(lesson.words)
    assert all(example.clean.split("=")[0] != example.corrupted.split("=")[0] for example in examples)
    assert len(examples) >= 512 and {line["split"] for line in course.task} == {"every"}
    if task == "modular-addition":
        assert len({example.clean for example in examples}) == 23**2
    if task != "sort":
        assert all(example.predictions[0].wrong for example in examples)  # the corrupted version has another answer


def right(task, text):
    """The answers, worked out in another way."""
    asked = text.split(" =")[0].split()
    if task == "sort":
        return sorted(asked, key=int)
    if task == "modular-addition":
        return [str((int(asked[0]) + int(asked[1])) % 23)]
    left = "".join(asked)
    while "()" in left:
        left = left.replace("()", "")
    return ["unbalanced" if left else "balanced"]


def test_half_of_all_parentheses_are_balanced():
    course = LESSONS["parentheses"].course(random := Random(0))
    answers = [example.predictions[0].right[0] for example in course.teach(random, 2000)]
    assert 900 < answers.count(" balanced") < 1100


def test_a_toy_without_mlp_writes_nothing_there_and_has_its_task_with_it(tmp_path):
    few = replace(LESSONS["sort"].config, width=8, steps=3)
    train_toy(tmp_path / "toy", "sort", few)
    model, tokenizer = load_model(str(tmp_path / "toy"))
    assert model.silent == {Node("m", 0)} and tokenizer.unk_token == "<unk>"
    lines = [json.loads(line) for line in (tmp_path / "toy" / TASK).read_text().splitlines()]
    assert len(lines) == 1024
    encoder = Encoder(tokenizer, context_length=model.context_length)
    examples = make_examples(str(tmp_path / "toy" / TASK), encoder, Sizes(train=2000, validation=1, test=1))["train"]
    encoded = encoder.encode(examples, "logit difference")
    assert len(examples) == 1024 and encoded.positions.shape == (1024, 5)


def test_a_lesson_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Expected something to learn among ioi, sort, parentheses"):
        train_toy(tmp_path / "toy", "chess")
    for name in ("learning_rate", "weight_decay"):
        with pytest.raises(ConfigError, match=f"a finite {name} >= 0, got nan"):
            ToyConfig(**{name: float("nan")})


def test_models_that_are_not_what_their_files_say_are_refused_in_one_line(tmp_path, capfd):
    train_toy(tmp_path / "toy", config=FEW)
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
        train_toy(tmp_path / "there", config=FEW)
    with pytest.raises(UnwritableFile, match="writable folder"):
        (tmp_path / "file").write_text("")
        train_toy(tmp_path / "file" / "toy", config=FEW)
    with pytest.raises(ConfigError, match="a width that is a multiple of 4 heads, got 30"):
        ToyConfig(width=30)
    with pytest.raises(ConfigError, match="layers >= 1, got 0"):
        ToyConfig(layers=0)


def test_the_command_says_whether_the_task_was_learned(capsys, tmp_path):
    small = ["--layers", "1", "--heads", "1", "--width", "4", "--steps", "2"]
    assert main(["train-toy", "ioi", "--out", str(tmp_path / "toy"), "--json", *small]) == 1
    assert json.loads(capsys.readouterr().out).keys() == {"model", "accuracy", "loss", "seconds"}


@pytest.mark.parametrize("task", [pytest.param(task, marks=pytest.mark.sweep) for task in LESSONS if task != "sort"])
def test_a_toy_learns_its_task(tmp_path, task):
    """Those of `sort` are in `tests/recovery/test_trained_models.py`."""
    assert train_toy(tmp_path / "toy", task).accuracy >= 0.99
