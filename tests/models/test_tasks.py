"""Tasks of language models: what is drawn, and how it becomes tokens."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import gpt2, gpt2_config
from tokenizing import byte_pairs, sentence_pieces, whole_words

from edgeprune import tasks
from edgeprune.data import LazyTarget
from edgeprune.errors import ConfigError, TaskError
from edgeprune.metrics.answers import Answers
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.tasks import TASKS, Encoder, Example, Sizes, make_examples, metric_of
from edgeprune.tasks.words import MEN, NAMES, WOMEN

FEW = Sizes(train=6, validation=5, test=7)


@pytest.fixture(scope="module")
def encoder():
    return Encoder(byte_pairs(), context_length=256)


def every(splits):
    return [example for split in splits.values() for example in split]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_examples_that_were_asked_for_and_no_prompt_twice(encoder, name):
    splits = make_examples(name, encoder, FEW, seed=3)
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 6, "validation": 5, "test": 7}
    assert len({example.clean for example in every(splits)}) == 18
    assert make_examples(name, encoder, FEW, seed=3) == splits != make_examples(name, encoder, FEW, seed=4)


@pytest.mark.parametrize("name", TASKS)
def test_clean_and_corrupted_prompts_differ_and_have_equally_many_tokens(encoder, name):
    examples = every(make_examples(name, encoder, FEW))
    encoded = encoder.encode(examples, metric_of(name))
    assert all(example.clean != example.corrupted for example in examples)
    padding = torch.arange(encoded.tokens.shape[1]) >= encoded.length[:, None]
    assert not encoded.tokens[padding].any() and not encoded.counterparts[padding].any()
    assert (encoded.positions[:, 0] == encoded.length - 1).all() and encoded.scored.all()
    for example, tokens, length in zip(examples, encoded.tokens, encoded.length, strict=True):
        assert byte_pairs().decode(tokens[:length]) == example.clean


@pytest.mark.parametrize("name", ["ioi", "ioi-t1"])
def test_the_indirect_object_is_the_name_that_comes_once(encoder, name):
    for example in every(make_examples(name, encoder, FEW)):
        clean = [word.strip(".,") for word in example.clean.split()]
        (right,), (wrong,) = example.predictions[0].right, example.predictions[0].wrong
        assert clean.count(right.strip()) == 1 and clean.count(wrong.strip()) == 2
        names = [word.strip(".,") for word in example.corrupted.split() if word.strip(".,") in NAMES]
        assert len(set(names)) == 3 and not {right.strip(), wrong.strip()} & set(names)


def test_one_template_is_one_template_and_many_are_many(encoder):
    def shapes(name):
        examples = every(make_examples(name, encoder, Sizes(train=60, validation=1, test=1)))
        return {example.clean.split()[0] for example in examples} - set(NAMES)

    assert len(shapes("ioi-t1")) == 1 and len(shapes("ioi")) > 6


def test_later_years_are_right_and_the_others_wrong(encoder):
    for example in every(make_examples("gt", encoder, FEW)):
        right, wrong = example.predictions[0].right, example.predictions[0].wrong
        year = example.clean.split(" to the year ")[0][-2:]
        assert example.corrupted == example.clean.replace(f"{year} to", "01 to")
        century, years = example.clean[-3:], [f"{number:02}" for number in range(100)]
        assert max(wrong) == year < min(right)
        assert [*wrong, *right] == [each for each in years if encoder.continuation(century, each) is not None]


def test_pronouns_follow_names(encoder):
    for example in every(make_examples("gp", encoder, FEW)):
        name, other = ({*NAMES} & {*text.split()} for text in (example.clean, example.corrupted))
        assert name <= {*WOMEN} if example.predictions[0].right == (" she",) else name <= {*MEN}
        assert other <= {*MEN} if example.predictions[0].wrong == (" he",) else other <= {*WOMEN}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.sweep
def test_a_task_has_a_hundred_thousand_pairs(encoder, name):
    examples = every(make_examples(name, encoder, Sizes(train=98_000, validation=1_000, test=1_000)))
    assert len({example.clean for example in examples}) == 100_000


@pytest.mark.parametrize("name", TASKS)
def test_what_is_clean_in_a_split_is_nothing_in_another(encoder, name):
    """Of pronouns a third of all prompts, so that many of them would meet by chance."""
    splits = make_examples(name, encoder, Sizes(train=40_000 if name == "gp" else 2_000, validation=500, test=2_000))
    texts = {split: {e.clean for e in examples} for split, examples in splits.items()}
    for split, examples in splits.items():
        for other, clean in texts.items():
            if other != split:
                assert not clean & {text for example in examples for text in (example.clean, example.corrupted)}


@pytest.mark.parametrize(("name", "lines"), [("boolean", 2), ("boolean-few-shot", 4)])
def test_boolean_expressions_have_the_value_that_is_asked_for(encoder, name, lines):
    for example in every(make_examples(name, encoder, FEW)):
        (prediction,) = example.predictions
        texts = (text.replace("Expression: ", "").removesuffix(" is") for text in (example.clean, example.corrupted))
        clean, corrupted = (text.split("\n") for text in texts)
        assert len(clean) == len(corrupted) == lines and clean[:-1] == corrupted[:-1]
        values = [str(eval(expression, {})) for expression in (clean[-1], corrupted[-1])]
        assert [f" {value}" for value in values] == [*prediction.right, *prediction.wrong]
        if name == "boolean-few-shot":
            assert all(
                str(eval(solved, {})) == answer for solved, answer in (line.split(" is ") for line in clean[:-1])
            )
        # The same shape: brackets and negations stay where they are.
        kinds = {"True": "value", "False": "value", "and": "operator", "or": "operator"}
        assert len({" ".join(kinds.get(word, word) for word in each[-1].split()) for each in (clean, corrupted)}) == 1


@pytest.mark.parametrize("name", ["ioi-t1", "ioi", "gp", "boolean", "boolean-few-shot"])
def test_tasks_come_in_llamas_tokens_too(name):
    tokenizer = sentence_pieces()
    encoder = Encoder(tokenizer, context_length=256)
    examples = every(make_examples(name, encoder, FEW))
    encoded = encoder.encode(examples, metric_of(name))
    rows = torch.arange(len(examples))
    assert (encoded.tokens[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(encoded.positions[:, 0], encoded.length - 1)
    assert not (encoded.tokens == tokenizer.unk_token_id).sum() - (encoded.length.max() - encoded.length).sum()
    for row in rows.tolist():
        (prediction,) = examples[row].predictions
        ids = encoded.tokens[row, : encoded.length[row]].tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True) == examples[row].clean
        whole = tokenizer(examples[row].clean + prediction.right[0])["input_ids"]
        assert whole == [*ids, int(encoded.answers.right[row, 0, 0])]
    with pytest.raises(TaskError, match="Expected a tokenizer that splits years such as 1732 into 17 and 32"):
        make_examples("gt", encoder, FEW)


@pytest.mark.parametrize("name", TASKS)
def test_a_tokenizer_that_knows_too_few_words_is_refused(name):
    encoder = Encoder(whole_words("to", "Mary"), context_length=64)
    with pytest.raises(TaskError, match="Expected a tokenizer that"):
        make_examples(name, encoder, FEW)


def test_more_examples_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(tasks, "_TRIES", 2)
    encoder = Encoder(whole_words(*NAMES[:6]), context_length=64)
    with pytest.raises(TaskError, match="Expected 9000 examples of 'ioi-t1'"):
        make_examples("ioi-t1", encoder, Sizes(train=8_998, validation=1, test=1))


def test_an_unknown_task_lists_those_that_there_are(encoder):
    with pytest.raises(
        TaskError, match=r"Expected a task among ioi-t1, ioi, gt, gp, boolean, .*, or a file .*; got 'magic'"
    ):
        make_examples("magic", encoder, FEW)


def test_sizes_are_at_least_one():
    with pytest.raises(ConfigError, match="train >= 1, got 0; test >= 1, got -1"):
        Sizes(train=0, test=-1)


# Marks


def test_a_mark_ends_the_prompt_and_takes_the_space_before_it():
    for clean in ("It is <predict>four</predict> or so", "It is<predict> four</predict>"):
        example = Example.marked(clean, "It is <predict>five</predict>, perhaps")
        assert (example.clean, example.corrupted) == ("It is", "It is")
        (prediction,) = example.predictions
        assert (prediction.start, prediction.right, prediction.wrong) == (5, (" four",), (" five",))


def test_several_marks_are_several_predictions_and_earlier_answers_are_read():
    example = Example.marked("1<predict> 2</predict> 3<predict> 4</predict>", "5 6 7")
    assert (example.clean, example.corrupted) == ("1 2 3", "5 6 7")
    assert [(p.start, p.right, p.wrong) for p in example.predictions] == [(1, (" 2",), ()), (5, (" 4",), ())]


@pytest.mark.parametrize(
    ("clean", "corrupted", "message"),
    [
        ("no mark", "", "somewhere in the clean text; got 'no mark'"),
        ("a<predict>b", "", "every <predict> closed"),
        ("a<predict> </predict>", "", "with an answer between"),
        ("a<predict>b</predict>", "a<predict>b</predict><predict>c</predict>", "as many marks .*, 1, or none; got 2"),
    ],
)
def test_wrong_marks_are_refused(clean, corrupted, message):
    with pytest.raises(TaskError, match=message):
        Example.marked(clean, corrupted)


# Files


def written(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def line(number, **more):
    return {"clean": f"{number} is<predict> {number}</predict>", "corrupted": "2 is<predict> 2</predict>", **more}


def at(places, **more):
    return {"clean": "1 is", "corrupted": "2 is", "places": places, "split": "every", **more}


def test_places_are_where_outputs_count_and_what_is_in_every_split_is_in_all(tmp_path, encoder):
    """In any order; each with the id that is right there, whatever comes next in the text."""
    path = written(tmp_path / "own.jsonl", at([[1, 5], [0, 7]]), at([[1, 6]], clean="3 is"))
    splits = make_examples(path, encoder, Sizes())
    assert all([example.clean for example in found] == ["1 is", "3 is"] for found in splits.values())
    encoded = encoder.encode(splits["test"], "logit difference")
    assert encoded.positions.tolist() == [[1, 0], [1, 0]] and encoded.scored.tolist() == [[True, True], [True, False]]
    assert encoded.answers.right[..., 0].tolist() == [[5, 7], [6, -1]] and (encoded.answers.wrong == -1).all()
    assert torch.equal(encoded.counterparts[0], encoded.counterparts[1])


def test_examples_without_places_play_a_part_in_means_alone(tmp_path, encoder):
    lines = (at([]), at([[1, 6]], clean="3 is"))
    examples = make_examples(written(tmp_path / "own.jsonl", *lines), encoder, FEW)["test"]
    encoded = encoder.encode(examples, "logit difference")
    assert encoded.scored.tolist() == [[False], [True]]
    with pytest.raises(TaskError, match="Expected an example with a place at which outputs count"):
        encoder.encode(examples[:1], "logit difference")


def test_of_a_whole_domain_what_is_left_out_is_drawn(tmp_path, encoder):
    lines = [at([[1, 6]], clean=f"{number} is") for number in range(40)]
    path = written(tmp_path / "own.jsonl", *lines)
    one, again, other = (
        [e.clean for e in make_examples(path, encoder, Sizes(train=9), seed=seed)["train"]] for seed in (0, 0, 1)
    )
    assert one == again != other and len(set(one)) == 9
    assert one != [f"{number} is" for number in range(9)]


@pytest.mark.parametrize("place", [[9, 0], [0, 10**6]])
def test_places_beyond_the_text_or_the_vocabulary_are_refused_and_named(tmp_path, place):
    tokenizer = byte_pairs()
    checked = Encoder(tokenizer, context_length=64, vocabulary_size=len(tokenizer))
    examples = make_examples(written(tmp_path / "own.jsonl", at([place])), checked, FEW)
    with pytest.raises(TaskError, match=r"Expected places below .*; got .*Example 1: '1 is'"):
        checked.encode(examples["train"], "logit difference")


def test_a_file_is_split_as_its_lines_say_and_the_rest_dealt_out(tmp_path, encoder):
    lines = [line(n, split="test") for n in range(3)] + [line(n) for n in range(10, 18)]
    splits = make_examples(written(tmp_path / "own.jsonl", *lines, ""), encoder, Sizes(train=3))
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 3, "validation": 2, "test": 5}
    assert [example.clean for example in splits["test"][:3]] == ["0 is", "1 is", "2 is"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["not JSON"], r"Expected a JSON object; .*own.jsonl, line 1"),
        ([line(1), {"clean": "x"}], r'Expected \{"clean": text, .*own.jsonl, line 2'),
        ([{**line(1), "clean": 3}], r'Expected \{"clean": text'),
        ([{**line(1), "more": ""}], r'Expected \{"clean": text'),
        ([line(1, split="dev")], r"a split among train, validation, test and every; got 'dev'"),
        ([{**at([[0, 1]]), "clean": "a<predict> b</predict>"}], "either marks in the text or places; got both"),
        ([at([[0, 1], [0, 2]])], "Expected places at different positions"),
        *(([at(bad)], "Expected places, ") for bad in (3, {"0": 1}, [[0]], [[-1, 0]], [[0, 1.5]], [[True, 1]], [0, 1])),
        ([{"clean": "x", "corrupted": "y"}], r"somewhere in the clean text; got 'x' \(.*line 1"),
        ([""], "Expected examples, one JSON object a line; .* has none"),
        (["[" * 100_000], "Expected a JSON object; "),
        ([f'{{"clean": {"9" * 5000}}}'], "Expected a JSON object; "),
        (['{"clean": "a<predict> b</predict>", "corrupted": "c", "clean": "d"}'], "'clean' stands in it 2 times"),
        (['{"clean": "\\ud800<predict> a</predict>", "corrupted": "b"}'], "Expected a JSON object; .*surrogates"),
        ([line(n, split="test") for n in (1, 1)] + [line(1, split="train"), line(2), line(3)], "in more than one"),
        ([line(1)], "leaves none for validation, test"),
    ],
)
def test_a_file_that_is_none_is_refused_and_the_line_named(tmp_path, encoder, lines, message):
    with pytest.raises(TaskError, match=message):
        make_examples(written(tmp_path / "own.jsonl", *lines), encoder, FEW)


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n \n", "\n\n"])
def test_a_file_is_read_whatever_its_lines_end_with(tmp_path, encoder, start, end):
    """Blank lines count among lines, and are no examples."""
    path = tmp_path / "own.jsonl"
    text = start + end.join([json.dumps(line(number)) for number in range(4)] + ["[]"])
    path.write_bytes(text.encode())
    number = 1 + 4 * end.count("\n")
    with pytest.raises(TaskError, match=rf"Expected \{{\"clean\": text.*\(.*own.jsonl, line {number}\)"):
        make_examples(str(path), encoder, FEW)
    path.write_bytes(text.replace("[]", json.dumps(line(5))).encode())
    assert len({example.clean for example in every(make_examples(str(path), encoder, FEW))}) == 5


def test_an_example_of_a_file_that_does_not_fit_is_named_with_its_line(tmp_path, encoder):
    lines = ["", line(1, split="every"), {"clean": "a<predict> b</predict>", "corrupted": "a a a", "split": "train"}]
    examples = make_examples(written(tmp_path / "own.jsonl", *lines), encoder, FEW)["train"]
    with pytest.raises(TaskError, match=r"equally many tokens; .*Example .*own.jsonl, line 3\)"):
        encoder.encode(examples, "logit difference")


def test_what_is_no_plain_file_is_refused(tmp_path, encoder):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "large.jsonl").touch()
    os.truncate(tmp_path / "large.jsonl", 2**30 + 1)
    for name in ("pipe", "device", "folder", "large"):
        with pytest.raises(TaskError, match=r"cannot read .*: it (is no plain file|has more than)"):
            make_examples(str(tmp_path / f"{name}.jsonl"), encoder, FEW)


def test_a_file_is_cut_at_newlines_alone_and_equal_lines_stay_together(tmp_path, encoder):
    lines = [json.dumps(line(f"{n}\u2028"), ensure_ascii=False) for n in (1, 2, 3, 4, 1, 2, 3, 4)]
    splits = make_examples(written(tmp_path / "own.jsonl", *lines), encoder, Sizes())
    assert [len({example.clean for example in examples}) for examples in splits.values()] == [2, 1, 1]
    assert [len(examples) for examples in splits.values()] == [4, 2, 2]


def test_a_tokenizer_of_another_model_is_refused():
    example = Example.ending("Mary to", "to Mary", [" Mary"], [" to"])
    Encoder(whole_words("to", "Mary"), context_length=8, vocabulary_size=3).encode([example], "logit difference")
    small = Encoder(whole_words("to", "Mary"), context_length=8, vocabulary_size=2)
    with pytest.raises(TaskError, match=r"ids below 2; got 2: the tokenizer is another model's. Example 1"):
        small.encode([example], "logit difference")


def test_an_answer_that_is_a_part_of_a_token_of_its_text_is_refused(encoder):
    example = Example.marked("Mary gave<predict> b</predict>ook the<predict> ring</predict>", "Anna gave book the")
    with pytest.raises(TaskError, match="whole tokens of their text; ' b' is not"):
        encoder.encode([example], "logit difference")


def test_a_missing_file_is_refused(tmp_path, encoder):
    with pytest.raises(TaskError, match="cannot read"):
        make_examples(str(tmp_path / "none.jsonl"), encoder, FEW)


# Tokens


def test_each_prediction_is_made_at_the_token_before_it(encoder):
    rows = [
        Example.marked("Mary gave<predict> John</predict> the<predict> book</predict>", "Anna gave Mark the"),
        Example.marked("Mary<predict> John</predict>", "Anna<predict> Mark</predict>"),
    ]
    encoded = encoder.encode(rows, "logit difference")
    for row, number, before, right in [(0, 0, " gave", " John"), (0, 1, " the", " book"), (1, 0, "Mary", " John")]:
        seen = byte_pairs().decode(encoded.tokens[row, : encoded.positions[row, number] + 1])
        assert seen.endswith(before)
        assert byte_pairs().decode(encoded.answers.right[row, number]) == right
    assert encoded.scored.tolist() == [[True, True], [True, False]]
    assert encoded.answers.wrong.tolist()[0] == [[-1], [-1]]
    assert byte_pairs().decode(encoded.answers.wrong[1, 0]) == " Mark"


@pytest.mark.parametrize(
    ("clean", "corrupted", "message"),
    [
        (
            "Mary<predict> John</predict>",
            "Anna gave",
            "equally many tokens; got 1 and 2. Example 1: 'Mary' and 'Anna gave'",
        ),
        ("Mary<predict> qqqzzz</predict>", "Anna", "answers of one token .*; got ' qqqzzz'.* Example 1: 'Mary'"),
        ("Ma<predict>ry</predict>", "An", "answers of one token|equally many tokens"),
        ("<predict>Mary</predict>", "", "1 to 64 tokens"),
        ("Mary " * 65 + "<predict>Mary</predict>", "Mary " * 64 + "Mary", "1 to 64 tokens, .*; got 65. Example 1"),
    ],
)
def test_examples_that_do_not_fit_the_tokenizer_are_refused_and_named(clean, corrupted, message):
    with pytest.raises(TaskError, match=message):
        Encoder(byte_pairs(), context_length=64).encode([Example.marked(clean, corrupted)], "logit difference")


def test_no_examples_are_refused(encoder):
    with pytest.raises(TaskError, match="at least one example"):
        encoder.encode([], "logit difference")


def test_an_unknown_word_is_no_answer():
    encoder = Encoder(whole_words("to", "Mary"), context_length=8)
    assert encoder.continuation("to", " Mary") == 2
    assert encoder.continuation("to", " Anna") is None
    assert encoder.word("Anna") is None and encoder.word("Mary") == 2


@pytest.mark.parametrize(("room", "kind"), [(2**28, torch.Tensor), (100, LazyTarget)])
def test_a_dataset_has_the_full_models_logits_where_predictions_are_made(encoder, room, kind):
    model = Gpt2Model(gpt2(gpt2_config(vocab_size=len(byte_pairs()), max_position_embeddings=64)))
    encoded = encoder.encode(every(make_examples("ioi", encoder, FEW)), "logit difference")
    dataset = encoded.dataset(model, room=room)
    assert isinstance(dataset.target, kind)
    everywhere = model(encoded.tokens)
    rows = torch.arange(len(dataset))
    torch.testing.assert_close(dataset.target[rows][:, 0], everywhere[rows, encoded.length - 1].detach())
    assert dataset.copy().target[rows[:6].view(2, 3)].shape == (2, 3, 1, model.vocabulary_size)
    batch = dataset.take(torch.tensor([2, 0]), dataset.partners(torch.tensor([2, 0]), torch.Generator()))
    torch.testing.assert_close(batch.target, dataset.target[rows[:3]][[2, 0]])
    assert torch.equal(batch.corrupted, encoded.counterparts[[2, 0]])
    assert torch.equal(batch.answers.right, encoded.answers.right[[2, 0]])


# The metric


@given(st.integers(0, 2**31), st.sampled_from(["logit difference", "probability difference"]), st.booleans())
def test_the_metric_is_that_of_a_loop_over_answers(seed, metric, against_all):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 1, 7, generator=generator, dtype=torch.float64)
    right, wrong = [[1, 2], [3], [0, 5]], [[0], [4, 6], [2]]
    wrong = [[], [], []] if against_all else wrong
    answers = Answers(
        *(torch.tensor([[[*ids, *[-1] * (2 - len(ids))]] for ids in part]) for part in (right, wrong)), metric
    )
    ours = answers.preference(logits)
    for mask in range(2):
        for row in range(3):
            others = wrong[row] or [each for each in range(7) if each not in right[row]]
            if metric == "logit difference":
                values = logits[mask, row, 0]
                expected = values[right[row]].mean() - values[others].mean()
            else:
                values = logits[mask, row, 0].softmax(-1)
                expected = values[right[row]].sum() - values[others].sum()
            torch.testing.assert_close(ours[mask, row, 0], expected)
