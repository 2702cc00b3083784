"""Examples, files of them and their tokens: to the letter, at every boundary, and what is said of what is none."""

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from tokenizing import byte_pairs, like_gpt2, like_llama2, like_t5, like_words, whole_words

from edgeprune import tasks
from edgeprune.data import LazyTarget
from edgeprune.errors import ExampleError, TaskError
from edgeprune.metrics.answers import Answers
from edgeprune.tasks import Encoded, Encoder, Example, Sizes, divide, encode, is_file, metric_of
from edgeprune.tasks.encode import EncodedRow, encoded
from edgeprune.tasks.example import Place, Prediction
from edgeprune.tasks.jsonl import Line, read_examples, read_lines
from edgeprune.tasks.splitting import Splitter
from edgeprune.tasks.words import enough

GPT2, LLAMA2, T5, WORDS = like_gpt2(), like_llama2(), like_t5(), like_words()


def refused(call, *given, **more):
    """The message and the reason of what is refused."""
    with pytest.raises(ExampleError) as error:
        call(*given, **more)
    return str(error.value), error.value.reason


# Marks


def test_marks_are_taken_out_of_both_texts_and_say_where_what_is_to_come():
    found = Example.marked(
        "a <label>x</label>b\n\t<predict>c\nd</predict> e<label> y</label> f <predict> g </predict>h",
        "A<label>p</label>B <predict>c\nd</predict> E<label> q</label> F<predict> r</predict>H",
    )
    assert (found.clean, found.corrupted) == ("ab\n\tc\nd e f", "AB c\nd E F")
    assert found.predictions == (
        Prediction(1, (" x",), ("p",), label=True),
        Prediction(2, ("\n\tc\nd",), (" c\nd",)),
        Prediction(9, (" y",), (" q",), label=True),
        Prediction(11, ("  g ",), (" r",)),
    )
    assert (found.places, found.source) == ((), "")


def test_an_answer_that_both_texts_mark_has_no_wrong_one():
    found = Example.marked(
        "a<predict> b</predict> c<predict> d</predict>", "A<predict> b</predict> C<predict> e</predict>"
    )
    assert [each.wrong for each in found.predictions] == [(), (" e",)]


def test_an_example_that_ends_with_its_answer_has_it_after_all_of_it():
    found = Example.ending("clean", "corrupted", ["one", "two"], ["three"])
    assert found == Example("clean", "corrupted", (Prediction(5, ("one", "two"), ("three",)),))


OPEN = "a mark that is empty, nested or left open"
UNLIKE = "Expected as many marks in the corrupted text as in the clean one, {}, or none; got {} in {!r}"
ONE, TWO = "a<predict>b</predict>", "a<predict>b</predict><predict>c</predict>"


@pytest.mark.parametrize(
    ("clean", "corrupted", "message", "reason"),
    [
        (
            "x" * 300,
            "",
            f"Expected <predict>answer</predict> somewhere in the clean text; got '{'x' * 199}",
            "no mark in the clean text",
        ),
        (TWO, ONE, UNLIKE.format(2, 1, ONE), "unlike marks in the two texts"),
        (ONE, TWO, UNLIKE.format(1, 2, TWO), "unlike marks in the two texts"),
        (
            ONE,
            "<label>b</label>",
            UNLIKE.format(1, "1, of other kinds,", "<label>b</label>"),
            "unlike marks in the two texts",
        ),
        *(
            (text, "", f"Expected every <{kind}> closed by </{kind}>, with an answer between; got {text!r}", OPEN)
            for text, kind in (
                ("a<predict>b", "predict"),
                ("a</predict>b", "predict"),
                ("a<label>b", "label"),
                ("a<label> </label>b", "label"),
                ("<label>a</label><predict>\n</predict>", "predict"),
                ("<predict>a<label>b</label></predict>", "predict"),
                ("<predict>a</label>", "predict"),
            )
        ),
        (
            ONE,
            "b<predict>",
            "Expected every <predict> closed by </predict>, with an answer between; got 'b<predict>'",
            OPEN,
        ),
    ],
)
def test_marks_that_are_none_are_refused_to_the_letter(clean, corrupted, message, reason):
    assert refused(Example.marked, clean, corrupted) == (message, reason)


# Files


def lines_of(tmp_path, *lines):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines))
    return path


MARKED = {"clean": "a<predict> b</predict>", "corrupted": "c"}
PLACED = {"clean": "a", "corrupted": "c", "places": [[2, 1], [0, 0]], "split": "every"}


def test_lines_are_numbered_with_blank_ones_and_faulty_ones_are_kept_with_their_fault(tmp_path):
    path = lines_of(tmp_path, "", MARKED | {"split": "test"}, "  ", "[]", PLACED)
    first, fault, last = read_lines(path)
    assert first == Line(2, Example("a", "c", (Prediction(1, (" b",)),)), "test")
    assert first.example.source == f"{path}, line 2" and last.example.source == f"{path}, line 5"
    assert (fault.number, fault.example, fault.split) == (4, None, None)
    assert (
        str(fault.fault).endswith(f"got '[]' ({path}, line 4)") and fault.fault.reason == "fields that are no example's"
    )
    assert last == Line(5, Example("a", "c", (), (Place(2, 1), Place(0, 0))), "every")
    with pytest.raises(ExampleError, match=r"own\.jsonl, line 4\)$"):
        read_examples(path)
    path = lines_of(tmp_path, MARKED, PLACED)
    assert read_examples(path) == [(line.example, line.split) for line in read_lines(path)]
    assert read_examples(path)[0][1] is None


FIELDS = (
    'Expected {"clean": text, "corrupted": text}, and perhaps "split": text and "places": [[position, id], …]; got '
)


@pytest.mark.parametrize(
    ("line", "message", "reason"),
    [
        ("{", "Expected a JSON object; Expecting property name", "no JSON object"),
        ("3", f"{FIELDS}'3'", "fields that are no example's"),
        ({"clean": "x"}, f'{FIELDS}\'{{"clean": "x"}}\'', "fields that are no example's"),
        (MARKED | {"more": 1}, FIELDS, "fields that are no example's"),
        (MARKED | {"split": None}, FIELDS, "fields that are no example's"),
        (MARKED | {"corrupted": ["c"]}, FIELDS, "fields that are no example's"),
        (
            MARKED | {"split": "dev"},
            "Expected a split among train, validation, test and every; got 'dev'",
            "a split that is none",
        ),
        (
            PLACED | {"clean": "<predict>"},
            "Expected either marks in the text or places; got both in '{",
            "marks and places",
        ),
        (
            PLACED | {"corrupted": "<label>"},
            "Expected either marks in the text or places; got both in '{",
            "marks and places",
        ),
        *(
            (
                PLACED | {"places": bad},
                f"Expected places, [[position, id], …], whole numbers from 0; got {bad!r:.200} (",
                "places that are none",
            )
            for bad in ("x" * 300, {}, [3], [[0]], [[0, 1, 2]], [[0, -1]], [[True, 1]], [[0.0, 1]], [[0, 1], None])
        ),
        (
            PLACED | {"places": [[1, 2], [1, 3]]},
            "Expected places at different positions; got [[1, 2], [1, 3]] (",
            "two places at one position",
        ),
        ({"clean": "x", "corrupted": "y"}, "Expected <predict>answer</predict> somewhere", "no mark in the clean text"),
    ],
)
def test_a_line_that_is_no_example_is_said_with_its_reason_and_place(tmp_path, line, message, reason):
    path = lines_of(tmp_path, line)
    said, why = refused(read_examples, path)
    assert said.startswith(message) and said.endswith(f" ({path}, line 1)") and why == reason
    assert len(said) < len(message) + len(str(path)) + 250


def test_a_place_may_be_the_first_and_there_may_be_none(tmp_path):
    for places in ([], [[0, 0]], [[5, 0], [0, 5]]):
        ((example, _),) = read_examples(lines_of(tmp_path, PLACED | {"places": places}))
        assert example.places == tuple(Place(*each) for each in places) and example.predictions == ()


def test_a_file_without_examples_or_that_is_none_is_named(tmp_path):
    path = lines_of(tmp_path, "", " ")
    with pytest.raises(TaskError) as error:
        read_lines(path)
    assert str(error.value) == f"Expected examples, one JSON object a line; {path} has none"
    with pytest.raises(TaskError, match=r"^Expected a file of examples, one JSON object a line; cannot read "):
        read_lines(tmp_path / "none")


# Splits


def example(number, corrupted="c"):
    return Example(f"text {number}", corrupted, (Prediction(1, ("b",)),))


def names(splits):
    return {split: [each.clean for each in found] for split, found in splits.items()}


def test_lines_that_ask_for_no_split_are_dealt_half_and_a_quarter_and_a_quarter_by_the_seed():
    path, lines = Path("f"), [(example(number), None) for number in range(11)]
    found = divide(path, lines, Sizes(train=9, validation=9, test=9), seed=1)
    texts = [f"text {number}" for number in range(11)]
    Random(1).shuffle(texts)
    assert names(found) == {"train": texts[4:], "validation": texts[2:4], "test": texts[:2]}
    assert names(divide(path, lines, Sizes(train=1, validation=1, test=1))) != names(found)
    assert divide(path, lines, Sizes()) == divide(path, lines, Sizes(), seed=0)
    few = divide(path, lines, Sizes(train=3, validation=1, test=2), seed=1)
    assert names(few) == {"train": texts[4:7], "validation": texts[2:3], "test": texts[:2]}


def test_lines_that_ask_for_a_split_come_first_in_it_then_those_of_every_split():
    lines = [(example(0), "test"), (example(1), "every"), (example(2), "test"), (example(3), "train")]
    lines += [(example(4), "every"), (example(5, "d"), "test"), (example(6), "validation")]
    found = divide(Path("f"), lines, Sizes(train=9, validation=9, test=2))
    everywhere = ["text 1", "text 4"]
    assert names(found) == {
        "train": ["text 3", *everywhere], "validation": ["text 6", *everywhere], "test": ["text 0", "text 2"],
    }  # fmt: skip
    # Of a whole domain as many as fit are drawn, each split by itself; all of them in their order where they do.
    domain = [(example(number), "every") for number in range(6)]
    random = Random(3)
    texts = [f"text {number}" for number in range(6)]
    drawn = {"train": random.sample(texts, 5), "validation": texts, "test": random.sample(texts, 2)}
    assert names(divide(Path("f"), domain, Sizes(train=5, validation=6, test=2), seed=3)) == drawn


def test_a_text_in_two_splits_and_a_split_without_any_are_refused_by_name():
    lines = [(example(0), "test"), (example(1), "train"), (example(0, "d"), "test"), (example(1), "validation")]
    with pytest.raises(TaskError) as error:
        divide(Path("own.jsonl"), lines, Sizes())
    assert str(error.value) == "Expected every clean text in one split; own.jsonl has 'text 1' in more than one"
    for left, lacking in (
        (lines[:1], "train, validation"),
        ([lines[0], lines[3]], "train"),
        ([], "train, validation, test"),
    ):
        with pytest.raises(TaskError) as error:
            divide(Path("own.jsonl"), left, Sizes())
        assert str(error.value) == (
            f"Expected examples of every split; own.jsonl leaves none for {lacking}: "
            'name it in some lines ("split"), or give at least four that name none'
        )
    both = [(example(0), "every"), (example(0), "test"), (example(1), "train")]  # which is in all of them anyhow
    assert len(divide(Path("f"), both, Sizes())["test"]) == 2


def drawing(*texts):
    """Draws these clean and corrupted texts, one after the other."""
    given = iter(texts)
    return lambda random: Example(*next(given), ())


def test_drawn_examples_meet_in_no_two_splits():
    """The test's come first. What is corrupted there is clean nowhere else, and the other way round."""
    sizes = Sizes(train=2, validation=1, test=2)
    found = tasks._draw_apart(
        "it",
        drawing(
            ("a", "A"), ("a", "B"),  # the same clean text again
            ("b", "A"),  # a corrupted text of the same split again
            ("A", "C"), ("c", "b"),  # one that is corrupted there, and one that is clean there
            ("d", "A"),
            ("D", "d"), ("e", "E"), ("E", "e"),  # within a split they may meet
        ),
        sizes,
        Random(0),
    )  # fmt: skip
    assert names(found) == {"train": ["e", "E"], "validation": ["d"], "test": ["a", "b"]}
    assert list(found) == ["train", "validation", "test"]


@pytest.mark.parametrize(("tries", "fits"), [(2, True), (1, False)])
def test_so_many_draws_are_made_for_each_example(monkeypatch, tries, fits):
    monkeypatch.setattr(tasks, "_TRIES", tries)
    sizes = Sizes(train=1, validation=1, test=1)
    texts = [("a", "w"), ("a", "w"), ("b", "x"), ("b", "x"), ("b", "x"), ("c", "y")]
    if fits:
        assert names(tasks._draw_apart("it", drawing(*texts), sizes, Random(0)))["train"] == ["c"]
        return
    with pytest.raises(TaskError) as error:
        tasks._draw_apart("it", drawing(*texts), sizes, Random(0))
    assert str(error.value) == (
        "Expected 3 examples of 'it', train, validation and test together; it has about 2 with this tokenizer: ask for "
        "fewer"
    )


def test_a_task_is_a_name_or_a_file():
    assert [is_file(name) for name in ("ioi", "gt", "own.jsonl", "own.json")] == [False, False, True, True]
    assert [metric_of(name) for name in ("ioi", "gt", "own.jsonl")] == [
        "logit difference", "probability difference", "logit difference",
    ]  # fmt: skip
    with pytest.raises(TaskError) as error:
        is_file("own.txt")
    listed = "ioi-t1, ioi, gt, gp, boolean, boolean-few-shot"
    assert str(error.value) == f"Expected a task among {listed}, or a file of examples (.jsonl); got 'own.txt'"
    assert Sizes(train=1, validation=2, test=4).total == 7


def test_words_that_a_tokenizer_knows_are_enough_or_are_named():
    assert enough(["a", "bb", "c"], lambda word: len(word) == 1, 2, "letters") == ["a", "c"]
    for known, said in (("ac", "2: a, c"), ("x", "0: none")):
        with pytest.raises(TaskError) as error:
            enough(["a", "b", "c"], known.__contains__, 3, "letters")
        assert str(error.value) == (
            f"Expected a tokenizer that knows at least 3 of 3 letters as single tokens; it knows {said}"
        )


# Rows as tensors


def test_rows_are_padded_on_the_right_to_the_longest_of_each():
    rows = [
        EncodedRow([1, 2, 3], [4, 5, 6], [0, 2], [[7], [8, 9]], [[1], []]),
        EncodedRow([1], [2], [0], [[3]], [[4, 5, 6]]),
        EncodedRow([5, 6], [7, 8], [], [], []),
    ]
    found = encoded(rows, "probability difference")
    assert found.tokens.tolist() == [[1, 2, 3], [1, 0, 0], [5, 6, 0]]
    assert found.counterparts.tolist() == [[4, 5, 6], [2, 0, 0], [7, 8, 0]]
    assert found.length.tolist() == [3, 1, 2]
    assert found.positions.tolist() == [[0, 2], [0, 0], [0, 0]]
    assert found.scored.tolist() == [[True, True], [True, False], [False, False]]
    assert found.answers.right.tolist() == [[[7, -1], [8, 9]], [[3, -1], [-1, -1]], [[-1, -1], [-1, -1]]]
    assert found.answers.wrong.tolist() == [[[1, -1, -1], [-1] * 3], [[4, 5, 6], [-1] * 3], [[-1] * 3] * 2]
    assert found.answers.metric == "probability difference"
    bare = encoded([EncodedRow([1], [1], [0], [[2]], [[]])], "logit difference")
    assert bare.answers.wrong.tolist() == [[[-1]]]


def test_no_rows_and_rows_without_a_place_are_refused():
    with pytest.raises(TaskError, match=r"^Expected at least one example; got none$"):
        encoded([], "logit difference")
    message = r"^Expected an example with a place at which outputs count; none has one$"
    with pytest.raises(TaskError, match=message):
        encoded([EncodedRow([1], [1], [], [], [])], "logit difference")


def some(count=5) -> Encoded:
    numbers = torch.arange(count)[:, None]
    length = torch.arange(count) % 2 + 1
    answers = Answers(numbers[..., None] + 20, numbers[..., None] + 30, "probability difference")
    return Encoded(numbers.expand(-1, 2), numbers.expand(-1, 2) + 10, length, numbers % 2, numbers % 3 > 0, answers)


def test_some_of_the_examples_are_the_same_rows_of_all_that_they_have():
    whole, part = some(), some()[1:4]
    for name in ("tokens", "counterparts", "length", "positions", "scored"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1:4])
    assert torch.equal(part.answers.right, whole.answers.right[1:4])
    assert torch.equal(part.answers.wrong, whole.answers.wrong[1:4])
    assert part.answers.metric == "probability difference"
    assert torch.equal(some()[-2:].answers.right, whole.answers.right[3:])


class Model:
    """Logits that say which token, and at which position they are."""

    def __init__(self, pads=None):
        if pads is not None:
            self.pads = pads

    def __call__(self, tokens, mask=None, ablated=None, positions=None):
        return torch.stack([tokens.gather(1, positions), 100 + positions, positions * 0], dim=-1).float()


@pytest.mark.fakes
@pytest.mark.parametrize(("room", "held"), [(15, True), (14, False)])
@pytest.mark.parametrize("progress", [True, False])
def test_logits_are_held_where_there_is_room_for_them(monkeypatch, room, held, progress):
    bars = []

    def bar(over, *, desc, disable):
        bars.append(disable)
        return over

    monkeypatch.setattr(encode, "tqdm", bar)
    whole = some()
    data = whole.dataset(Model(), room=room, progress=progress)
    assert isinstance(data.target, torch.Tensor if held else LazyTarget)
    assert bars == ([None if progress else True] if held else [])
    expected = [[[float(row), 100.0 + row % 2, 0.0]] for row in range(5)]
    assert data.target[torch.arange(5)].tolist() == expected
    assert data.logits and torch.equal(data.group, whole.length)
    for name in ("tokens", "scored", "positions", "counterparts", "answers"):
        assert getattr(data, name) is getattr(whole, name)
    many = some(150).dataset(Model())
    assert many.target[:, 0, 0].tolist() == list(map(float, range(150))) and bars[-1] is True


@pytest.mark.fakes
def test_a_length_that_is_run_as_another_model_beside_longer_ones_is_refused():
    asked = []

    def same(length, width):
        asked.append((length, width))
        return length != 1

    with pytest.raises(TaskError) as error:
        some().dataset(Model(same))
    assert str(error.value) == (
        "Expected texts on one side of the length at which the model's rotations change, as all are padded to the "
        "longest, 2 tokens; there are some of 1: put those into a task of their own"
    )
    assert asked == [(1, 2), (2, 2)]
    assert len(some().dataset(Model(lambda length, width: True))) == 5


# Examples as tokens


def encoder_of(tokenizer=GPT2, *, context_length=64, vocabulary_size=None):
    return Encoder(tokenizer, context_length=context_length, vocabulary_size=vocabulary_size)


def row(clean, corrupted, tokenizer=GPT2, number=1, **more):
    return encoder_of(tokenizer, **more).row(Example.marked(clean, corrupted), number)


@pytest.mark.fakes
def test_a_slow_tokenizer_is_refused_by_its_name():
    with pytest.raises(TaskError) as error:
        Encoder(SimpleNamespace(is_fast=False), context_length=1)
    assert str(error.value) == "Expected a fast tokenizer, which has a tokenizer.json; got SimpleNamespace"


def test_a_continuation_is_one_token_more_and_is_looked_up_once(monkeypatch):
    encoder, asked = encoder_of(byte_pairs()), []
    ids = encoder._ids
    monkeypatch.setattr(encoder, "_ids", lambda text: asked.append(text) or ids(text))
    john = byte_pairs()(" John")["input_ids"]
    for text in ("So Mary", "Anna and Mary"):
        assert [encoder.continuation(text, " John")] == john
    assert asked == [" Mary", " Mary John"]  # what comes before the last word plays no part
    assert encoder.continuation("So Mary", " John John") is None
    assert encoder.continuation("So Ma", "ry") is None  # which is another token then
    assert encoder.continuation("So Mary", "") is None
    assert encoder.continuation("", "Mary") == byte_pairs()("Mary")["input_ids"][0]
    words = encoder_of(whole_words("to", "Mary"))
    assert (words.continuation("to", " Mary"), words.continuation("to", " Anna")) == (2, None)


def test_a_word_is_one_token_that_is_known_at_the_beginning_or_after_another():
    pieces = encoder_of(byte_pairs())
    assert pieces.word("Mary") == byte_pairs()("Mary")["input_ids"][0]
    assert pieces.word(" Mary") == byte_pairs()(" Mary")["input_ids"][0] != pieces.word("Mary")
    assert pieces.word("Mary John") is None and pieces.word(" Mary John") is None and pieces.word("") is None
    words = encoder_of(whole_words("a", "Mary"))
    assert (words.word("Mary"), words.word(" Mary"), words.word("Anna"), words.word(" Anna")) == (2, 2, None, None)


def ids(text, tokenizer=GPT2):
    return tokenizer(text)["input_ids"]


def test_a_row_has_the_ids_of_both_texts_and_of_all_answers():
    found = row(
        "Mary gave<predict> John</predict> the<predict> book</predict>",
        "Anna gave<predict> Mary</predict> to<predict> noun</predict>",
    )
    assert found == EncodedRow(
        clean=ids("Mary gave John the"),
        corrupted=ids("Anna gave Mary to"),
        positions=[len(ids("Mary gave")) - 1, len(ids("Mary gave John the")) - 1],
        right=[ids(" John"), ids(" book")],
        wrong=[ids(" Mary"), ids(" noun")],
    )
    labelled = row("Mary<label> noun</label> gave<label> verb</label>", "Anna gave")
    assert (labelled.clean, labelled.corrupted) == (ids("Mary gave"), ids("Anna gave"))
    assert labelled.positions == [len(ids("Mary")) - 1, len(ids("Mary gave")) - 1]
    assert (labelled.right, labelled.wrong) == ([ids(" noun"), ids(" verb")], [[], []])


def test_several_right_answers_have_the_longest_that_the_text_goes_on_with_and_their_own_ids():
    example = Example.ending("the", "to", [" book", " noun", " verb"], [" John", " Mary"])
    found = encoder_of().row(example, 1)
    assert found.right == [[*ids(" book"), *ids(" noun"), *ids(" verb")]]
    assert found.wrong == [[*ids(" John"), *ids(" Mary")]] and found.positions == [len(ids("the")) - 1]


def test_all_examples_are_encoded_in_their_order_and_numbered_from_1():
    examples = [Example.marked(f"{name} gave<predict> John</predict>", "Anna gave") for name in ("Mary", "Anna")]
    found = encoder_of().encode(examples, "probability difference")
    assert (
        found.tokens.tolist() == [ids("Mary gave"), ids("Anna gave")]
        and found.answers.metric == "probability difference"
    )
    bad = Example.marked("Mary<predict> John gave</predict>", "Anna")
    with pytest.raises(ExampleError, match=r"\. Example 3: 'Mary'$"):
        encoder_of().encode([*examples, bad], "logit difference")


COUNTS = "Expected clean and corrupted texts with equally many tokens; got {} and {}"
STAY = (
    "; answers stay in the text, all but the last, and need tokens in their places in the corrupted one; mark what is "
    "no part of the text <label>…</label>"
)


def test_texts_of_unequally_many_tokens_are_shown_and_where_answers_stay_that_is_said():
    unequal = "clean and corrupted texts of unequally many tokens"
    mary, two = len(ids("Mary")), len(ids("Anna gave"))
    said = refused(row, "Mary<predict> John</predict>", "Anna gave", number=7)
    assert said == (f"{COUNTS.format(mary, two)}. Example 7: 'Mary' and 'Anna gave'", unequal)
    said = refused(row, "Mary<predict> John</predict><predict> gave</predict>", "Anna")
    assert said == (f"{COUNTS.format(len(ids('Mary John')), mary)}{STAY}. Example 1: 'Mary John' and 'Anna'", unequal)
    example = Example("the " * 99, "to " * 98, (Prediction(396, ("book",)),), source="own.jsonl, line 3")
    message, _ = refused(encoder_of(context_length=999).row, example, 2)
    assert message.endswith(f". Example 2: '{'the ' * 49}the and '{'to ' * 66}t (own.jsonl, line 3)")


def test_texts_are_as_long_as_the_model_takes_and_no_longer():
    count = len(ids("Mary gave John the"))
    clean = "Mary gave John the<predict> book</predict>"
    assert len(row(clean, "Anna gave John the", context_length=count).clean) == count
    assert refused(row, clean, "Anna gave John the", context_length=count - 1) == (
        f"Expected texts of 1 to {count - 1} tokens, as the model takes; got {count}. Example 1: 'Mary gave John the'",
        "texts that are too long, or have no token",
    )
    assert refused(row, "<predict>Mary</predict>", "") == (
        "Expected texts of 1 to 64 tokens, as the model takes; got 0: the tokenizer puts nothing before a text, and "
        "this one begins with its answer. Example 1: ''",
        "texts that are too long, or have no token",
    )


def test_ids_are_below_as_many_as_the_model_knows_wherever_they_stand():
    """In the clean text, the corrupted one, and right and wrong answers."""
    tokenizer = whole_words("a", "b", "c", "d")
    for clean, corrupted, right, wrong in ("abcd", "bacd"[::-1], "abdc", "dabc", "adbc"):
        example = Example(clean, corrupted, (Prediction(1, (f" {right}",), (f" {wrong}",)),))
        encoder_of(tokenizer, vocabulary_size=5).row(example, 1)
        assert refused(encoder_of(tokenizer, vocabulary_size=4).row, example, 1) == (
            "Expected tokens that the model knows, ids below 4; got 4: the tokenizer is another model's. "
            f"Example 1: {clean!r}",
            "tokens that the model does not know",
        )


def test_places_and_their_ids_are_below_as_many_as_there_are():
    text, count = "Mary gave John", len(ids("Mary gave John", LLAMA2))
    example = Example(text, "Anna gave Mary", (), (Place(count - 1, 9), Place(0, 0)))
    other = ids("Anna gave Mary", LLAMA2)
    found = encoder_of(LLAMA2).row(example, 1)
    assert found == EncodedRow(ids(text, LLAMA2), other, [count - 1, 0], [[9], [0]], [[], []])
    assert len(other) == count
    for position, right, known in ((count, 0, None), (0, 500, 500), (count, 500, 1000)):
        bad = Example(text, "Anna gave Mary", (), (Place(0, 0), Place(position, right)))
        assert refused(encoder_of(LLAMA2, vocabulary_size=known).row, bad, 4) == (
            f"Expected places below {count}, as there are tokens, and ids below {known}, as the model knows; got "
            f"{position} and {right}. Example 4: {text!r}",
            "places or ids beyond those that there are",
        )
    edge = Example(text, "Anna gave Mary", (), (Place(0, 499),))
    assert encoder_of(LLAMA2, vocabulary_size=500).row(edge, 1).right == [[499]]
    closing = like_llama2(template="<s> $A </s>")
    assert encoder_of(closing).row(example, 1).clean == ids(text, closing)  # with all that the tokenizer adds


def test_an_answer_before_which_there_is_nothing_is_refused_though_others_follow():
    message, reason = refused(row, "<predict>Mary</predict> gave<predict> John</predict>", "Anna gave")
    assert message == (
        "Expected a token before the first answer, as outputs are measured there; this tokenizer puts none before a "
        "text. Example 1: 'Mary gave'"
    )
    assert reason == "nothing before an answer"


NONE = "answers that are not one token"


def test_answers_that_are_not_one_token_say_why():
    said = "Expected answers of one token of the model's; got {!r}, which {}. Example 1: {!r}"
    many = len(ids(" John gave"))
    shown = ", ".join(repr(GPT2.decode(token)) for token in ids(" John gave"))
    why = f"is {many}: {shown}; mark one of them"
    assert refused(row, "Mary<predict> John gave</predict>", "Anna") == (said.format(" John gave", why, "Mary"), NONE)
    why = f"is {many} there: {shown}"
    assert refused(row, "Mary<predict> is</predict>", "Anna<predict> John gave</predict>") == (
        said.format(" John gave", why, "Mary"), NONE,
    )  # fmt: skip
    empty = Example("Mary", "Anna", (Prediction(4, (" is",), ("",)),))
    assert refused(encoder_of().row, empty, 1) == (said.format("", "is 0 there: nothing", "Mary"), NONE)
    changed = Example("Mary bo", "Anna bo", (Prediction(7, (" is",), ("ok",)),))
    why = "comes after other tokens than the text has there, or changes them"
    assert refused(encoder_of().row, changed, 1) == (said.format("ok", why, "Mary bo"), NONE)


def test_an_answer_that_the_text_does_not_have_there_is_refused():
    bad = Example("Mary is John", "Anna is John", (Prediction(4, (" gave",)), Prediction(12, (" the",))))
    assert refused(encoder_of().row, bad, 1) == (
        "Expected answers that are whole tokens of their text; ' gave' is not: mark what is no part of it "
        "<label>…</label>. Example 1: 'Mary is John'",
        "answers that are no whole tokens of their text",
    )


# Splitting


def test_a_text_has_its_ids_and_spans_and_what_is_added_is_told():
    split = Splitter(LLAMA2)
    found = split("Mary gave")
    assert found.text == "Mary gave" and found.ids == ids("Mary gave", LLAMA2) and found.ids[0] == LLAMA2.bos_token_id
    assert found.spans[0] == (0, 0) and found.spans[-1][1] == 9
    assert split.added.before == [LLAMA2.bos_token_id] and split.added.after == []
    both = Splitter(like_llama2(template="<s> $A </s>"))
    assert (both.added.before, both.added.after) == ([1], [2])
    assert both("Mary").ids == split("Mary").ids and both("Mary", closed=True).ids == [*split("Mary").ids, 2]
    assert len(both("Mary", closed=True).spans) == len(both("Mary", closed=True).ids)
    assert both("").ids == [1] and both("", closed=True).ids == [1, 2]
    assert (Splitter(GPT2).added.before, Splitter(GPT2)("").ids) == ([], [])
    after = Splitter(T5)
    assert (after.added.before, after.added.after) == ([], [1]) and after("").ids == []


def test_what_begins_every_text_comes_once_and_not_three_times():
    split = Splitter(LLAMA2)
    assert split("<s>Mary").ids.count(1) == 1
    message, reason = refused(split, "<s><s>Mary")
    assert (message, reason) == ("Expected one <s> at the beginning of a text; got two", "two BOS")


def test_a_word_that_the_tokenizer_does_not_know_is_named_and_its_own_sign_is_not():
    split = Splitter(WORDS)
    message = f"Expected words that the tokenizer knows; got '{'x' * 199}"
    assert refused(split, f"Mary {'x' * 300} gave") == (message, "words that the tokenizer does not know")
    assert split("Mary gave").ids == ids("Mary gave", WORDS)


@pytest.mark.fakes
def test_a_text_that_cannot_be_split_is_refused():
    class Fails:
        def __call__(self, text, **_):
            raise RuntimeError("x" * 999)

    said = f"Expected a text that the tokenizer can split; {'x' * 200}"
    assert refused(Splitter(Fails()), "a") == (said, "no tokens for a text")
    added = Splitter(Fails()).added
    assert (added.before, added.after) == ([], [])


def test_tokens_are_shown_with_their_space_and_parts_of_characters_by_their_names():
    gpt2, llama = Splitter(GPT2), Splitter(LLAMA2)
    (mary,) = ids(" Mary")
    assert gpt2.shown(mary) == " Mary"
    assert llama.shown(LLAMA2.convert_tokens_to_ids("▁Mary")) == " Mary"
    assert llama.shown(LLAMA2.convert_tokens_to_ids("<0xF0>")) == "<0xF0>"
    assert gpt2.shown(10**6) == "<1000000>"
    part = ids("😀")[0]
    assert gpt2.shown(part) == GPT2.convert_ids_to_tokens(part)
    newline = ids("\n")[0]
    assert gpt2.blank(newline) and not gpt2.blank(mary) and gpt2.blank(newline)


class Letters:
    """A tokenizer whose tokens are written down, with the characters that each stands for."""

    unk_token_id = bos_token_id = None
    unk_token = bos_token = None

    def __init__(self, *tokens):
        self.tokens = tokens

    def __call__(self, text, **_):
        spans, at = [], 0
        for token in self.tokens:
            spans.append((at, at + len(token)))
            at += len(token)
        count = len(spans)
        return {"input_ids": list(range(count)), "offset_mapping": spans, "special_tokens_mask": [0] * count}

    def decode(self, found, **_):
        return self.tokens[found[0]]

    def convert_ids_to_tokens(self, token):
        return self.tokens[token]


@pytest.mark.fakes
def test_an_answer_is_the_one_token_that_is_not_space_between_two_places():
    split = Splitter(Letters("ab", " ", "cd", " ef", "g"))
    pieces = split("ab cd efg")
    assert split.answer_at(pieces, 2, 5) == 2 and split.answer_at(pieces, 3, 5) == 2
    assert split.answer_at(pieces, 5, 8) == 3 and split.answer_at(pieces, 0, 2) == 0
    not_one = "Expected answers of one token of the model's; got {!r}, which {}"
    for start, end, why in (
        (5, 9, "is 2: ' ef', 'g'; mark one of them"),
        (1, 2, "begins inside the token 'ab'"),
        (2, 3, "is none"),
        (6, 8, "begins inside the token ' ef'"),
    ):
        assert refused(split.answer_at, pieces, start, end) == (not_one.format(pieces.text[start:end], why), NONE)
    assert refused(split.answer_at, pieces, 2, 4) == (
        "Expected answers that are whole tokens of their text; ' c' is not: it ends inside 'cd'",
        "answers that are no whole tokens of their text",
    )


@pytest.mark.fakes
def test_a_label_stands_after_so_many_tokens_and_inside_none():
    split = Splitter(Letters("ab", " ", "cd", " ef"))
    pieces = split("ab cd ef")
    assert [split.end_at(pieces, start) for start in (0, 2, 3, 5, 8)] == [0, 1, 2, 3, 4]
    assert refused(split.end_at, pieces, 4) == (
        "Expected a token that ends where a label stands; it stands inside 'cd'", "labels inside a token",
    )  # fmt: skip
