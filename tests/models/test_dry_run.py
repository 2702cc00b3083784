"""`edgeprune task`: beside the model of Hugging Face, which says what is answered."""

import json

import pytest
import torch
from tiny import gpt2, gpt2_config, llama, llama_config
from tokenizing import byte_pairs, like_gpt2, like_llama2
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeprune.cli.main import main
from edgeprune.models.load import without_bars


def saved(folder, make, config, tokenizer, **more):
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, **more}
    return saved_as(folder, make(config(**sizes)), tokenizer)


def saved_as(folder, model, tokenizer):
    with without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("gpt2"), gpt2, gpt2_config, like_gpt2())


@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("llama"), llama, llama_config, like_llama2(template="<s> $A </s>"))


def file(tmp_path, *lines, start=""):
    path = tmp_path / "own.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(start + text, encoding="utf-8", newline="")
    return path


def sums(first, second, **more):
    clean, corrupted = (f"{n} + {m} =<predict> {n + m}</predict>" for n, m in (first, second))
    return {"clean": clean, "corrupted": corrupted, **more}


def run(capsys, *arguments):
    status = main(["task", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def found(capsys, *arguments):
    status, out, error = run(capsys, *arguments, "--json")
    return status, json.loads(out), error


def best(folder, ids):
    """Hugging Face's most probable token after some ids, and its probability."""
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0, -1]
    return logits.argmax().item(), logits.softmax(-1).max().item()


@pytest.mark.parametrize("which", ["model", "llama2"])
def test_what_is_shown_is_what_the_model_sees_and_answers(capsys, tmp_path, request, which):
    folder = request.getfixturevalue(which)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = file(tmp_path, *(sums((n, 1), (n, 2)) for n in range(1, 7)))
    status, said, error = found(capsys, path, "--model", folder, "--examples", 2)
    assert (status, error, said["fault"], said["refused"]) == (0, "", None, [])
    assert (said["examples"], said["usable"], said["splits"]) == (6, 6, {"train": 4, "validation": 1, "test": 1})
    assert [each["name"] for each in said["shown"]] == ["line 1", "line 2"]
    answers = [a for each in said["shown"] for a in each["answers"]]
    for text, answer in zip(("1 + 1 = 2", "2 + 1 = 3"), answers, strict=True):
        ids = tokenizer(text)["input_ids"][: -2 if which == "llama2" else -1]
        top, probability = best(folder, ids)
        assert answer["position"] == len(ids) - 1
        assert answer["answer"].strip() == tokenizer.decode([top]).strip()
        assert answer["probability"] == pytest.approx(probability, rel=1e-4)
    first, answer = said["shown"][0], answers[0]
    assert len(first["clean"]) == len(first["corrupted"]) == len(ids)
    assert "".join(first["clean"]).replace("<s> ", "") == ("1 + 1 = " if which == "llama2" else "1 + 1 =")
    assert answer["token"] == first["clean"][-1]
    assert [answer["right"], answer["wrong"]] == ([["2"], ["3"]] if which == "llama2" else [[" 2"], [" 3"]])
    notes = " ".join(said["notes"])
    assert ("the tokenizer appends </s> to texts; it is left out" in notes) == (which == "llama2")


def test_the_share_of_right_answers_is_that_of_places_with_the_models_own(capsys, tmp_path, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = []
    for number, text in enumerate(("Mary gave", "John gave", "Anna is", "the book")):
        top, _ = best(model, tokenizer(text)["input_ids"])
        lines.append({"clean": text, "corrupted": "Mary is", "places": [[1, top + (number == 2)]], "split": "every"})
    lines.append({"clean": "Mary to", "corrupted": "Mary to", "places": [], "split": "every"})
    status, said, _ = found(capsys, file(tmp_path, *lines), "--model", model, "--examples", 9)
    assert (status, said["places"], said["measured"], said["right"]) == (0, 4, 5, 0.75)
    assert [a["is_right"] for each in said["shown"] for a in each["answers"]] == [True, True, False, True]
    assert 0.75 <= said["preferred"] <= 1
    assert any(note.startswith("1 of 5 corrupted texts are the clean ones") for note in said["notes"])


def test_tokens_are_in_quotes_and_measured_ones_in_brackets(capsys, tmp_path, model):
    """What a terminal would obey is escaped, and so are newlines."""
    clean, corrupted = "Mary<predict> John</predict>\x1b is =\n<predict>4</predict>", "Anna John\x1b is =\n"
    line = {"clean": clean, "corrupted": corrupted, "split": "every"}
    status, out, error = run(capsys, file(tmp_path, line), "--model", model)
    name, clean, corrupted, first, second, *_ = out.splitlines()
    assert (status, error, name) == (0, "", "line 1, every") and "\x1b" not in out
    assert clean == r"  clean      ['Mary'] ' John' '\x1b' ' is' ' =' ['\n']"
    assert corrupted == r"  corrupted  'Anna' ' John' '\x1b' ' is' ' =' '\n'"
    assert first.startswith("  at 0       after 'Mary', right ' John'; the model: '")
    assert second.startswith(r"  at 5       after '\n', right '4'; the model: '")
    assert all(each.endswith((", right", ", not right")) for each in (first, second))
    assert "examples  1: 1 usable, 0 refused" in out and "splits    train 1, validation 1, test 1" in out


def test_lines_that_are_refused_are_grouped_by_reason_and_the_first_is_named(capsys, tmp_path, model):
    path = file(
        tmp_path,
        *(sums((n, 1), (n, 2)) for n in range(1, 5)),
        "",
        sums((8, 8), (1, 1)),
        '{"clean": "a", "clean": "b", "corrupted": "c"}',
        sums((9, 9), (1, 1)),
        {"clean": 1, "corrupted": ""},
        {"clean": "a <predict>1</predict>", "corrupted": "a a a a"},
        {"clean": "1 " * 20 + "<predict>1</predict>", "corrupted": "2 " * 20},
        {"clean": "no mark", "corrupted": "a<predict> b</predict>"},
    )
    status, said, error = found(capsys, path, "--model", model)
    assert (status, error, said["examples"], said["usable"]) == (1, "", 11, 4)
    assert [(each["lines"], each["first"]) for each in said["refused"]] == [
        (2, 6),
        *((1, line) for line in (7, 9, 10, 11, 12)),
    ]
    assert "which is 2: ' 1', '6'" in said["refused"][0]["message"]
    assert "'clean' stands in it 2 times" in said["refused"][1]["message"]
    assert all(f"own.jsonl, line {each['first']})" in each["message"] for each in said["refused"])
    status, out, _ = run(capsys, path, "--model", model)
    assert status == 1 and "refused   2 lines, first line 6: answers that are not one token. Expected" in out
    assert "examples  11: 4 usable, 7 refused" in out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"clean": "a", "corrupted": ""}] * 2, "Expected examples that can be used; "),
        ([sums((1, 1), (1, 2))], "leaves none for validation, test"),
        ([{"clean": "a", "corrupted": "b", "places": []}] * 4, "leaves none|a place at which outputs count"),
        ([{"clean": "a", "corrupted": "b", "places": [], "split": "every"}], "a place at which outputs count"),
        ([""], "Expected examples, one JSON object a line"),
    ],
)
def test_a_task_that_is_unusable_is_one_line_and_status_2(capsys, tmp_path, model, lines, message):
    status, _, error = run(capsys, file(tmp_path, *lines), "--model", model)
    assert status == 2 and error.startswith("edgeprune: ") and error.count("\n") == 1
    assert any(each in error for each in message.split("|"))


def test_what_is_no_task_is_one_line_and_no_model_is_loaded(capsys, tmp_path):
    status, _, error = run(capsys, "magic", "--model", "/no/such/model")
    assert status == 2 and "Expected a task among ioi-t1" in error
    status, _, error = run(capsys, tmp_path / "none.jsonl", "--model", "/no/such/model")
    assert status == 2 and "cannot be loaded" in error


def test_a_byte_order_mark_and_windows_lines_are_read(capsys, tmp_path, model):
    lines = [json.dumps(sums((n, 1), (n, 2))) + "\r" for n in range(1, 5)]
    status, said, _ = found(capsys, file(tmp_path, *lines, "\r", "", start="\ufeff"), "--model", model)
    assert (status, said["usable"]) == (0, 4) and said["shown"][0]["clean"][0] == "1"


def test_a_task_by_name_is_drawn_by_its_seed_and_shown_with_its_splits(capsys, tmp_path_factory):
    folder = saved(tmp_path_factory.mktemp("words"), gpt2, gpt2_config, byte_pairs(), max_position_embeddings=32)
    one, again, other = (
        found(capsys, "gp", "--model", folder, "--examples", 1, "--seed", seed)[1] for seed in (0, 0, 1)
    )
    assert one == again and one["shown"] != other["shown"] and one["shown"][0]["name"] == "train 1"
    assert one["splits"] == {"train": 200, "validation": 200, "test": 1000} and one["measured"] == 200
    assert {*one["shown"][0]["answers"][0]["right"]} <= {" she", " he"}


def test_a_tokenizer_that_may_be_another_models_is_noted(capsys, tmp_path_factory, tmp_path):
    size = len(like_gpt2())
    lines = [sums((n, 1), (n, 2)) for n in range(1, 5)]
    for known, expected in ((size + size // 10, False), (size + size // 5, True)):
        folder = saved(tmp_path_factory.mktemp("other"), gpt2, gpt2_config, like_gpt2(), vocab_size=known)
        status, said, _ = found(capsys, file(tmp_path, *lines), "--model", folder)
        assert status == 0 and any("it may be another model's" in note for note in said["notes"]) == expected
    folder = saved(tmp_path_factory.mktemp("small"), gpt2, gpt2_config, like_gpt2(), vocab_size=100)
    status, _, error = run(capsys, file(tmp_path, *lines), "--model", folder)
    assert status == 2 and "ids below 100; got" in error and "the tokenizer is another model's" in error


def test_a_model_that_gives_no_numbers_is_one_line(capsys, tmp_path):
    folder = tmp_path / "model"
    broken = gpt2(gpt2_config(vocab_size=len(like_gpt2())))
    broken.transformer.wpe.weight.data[:] = float("nan")
    saved_as(folder, broken, like_gpt2())
    path = file(tmp_path, *(sums((n, 1), (n, 2)) for n in range(1, 5)))
    status, _, error = run(capsys, path, "--model", folder)
    assert status == 2 and "NaN" in error and error.count("\n") == 1


def test_corrupted_texts_that_are_all_the_clean_ones_are_refused_under_resample(capsys, tmp_path, model):
    same = [sums((n, 1), (n, 1)) for n in range(1, 5)]
    options = ["--model", str(model), "--task", str(file(tmp_path, *same)), "--target-sparsity", "0.5", "--steps", "2"]
    assert main(["prune", *options, "--out", str(tmp_path / "run")]) == 2
    assert "Expected corrupted texts that differ from clean ones" in capsys.readouterr().err
    assert main(["prune", *options, "--out", str(tmp_path / "zero"), "--ablation", "zero"]) in (0, 1)


def test_help_teaches_by_an_example(capsys):
    assert main(["task", "--help"]) == 0
    out = capsys.readouterr().out
    assert '{"clean": "2 + 2 =<predict> 4</predict>"' in out and "edgeprune task mine.jsonl --model gpt2" in out
    assert "1 some are refused" in out
