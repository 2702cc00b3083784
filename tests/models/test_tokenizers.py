"""Examples in the tokens of every kind of tokenizer: what is measured, and what is right there.

The reference is the tokenizer itself on the text with its answer: it is to be the prompt and one token more.
"""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizing import KINDS, like_llama2, like_t5, like_words, whole_words
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgeprune.errors import ExampleError, TaskError
from edgeprune.tasks import Encoder, Example
from edgeprune.tasks.example import Prediction

MADE = {name: make() for name, make in KINDS.items()}
kinds = pytest.mark.parametrize("tokenizer", MADE.values(), ids=MADE.keys())


def whole(tokenizer, text):
    """What a model reads of a text, without what is put after it."""
    return [token for token in tokenizer(text)["input_ids"] if tokenizer.decode(token) != "</s>"]


def encode(tokenizer, clean, corrupted, **more):
    encoder = Encoder(tokenizer, context_length=64, vocabulary_size=len(tokenizer), **more)
    return encoder.encode([Example.marked(clean, corrupted)], "logit difference")


def said(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def ends(found):
    """The prompt with the right answer, and the corrupted one with the wrong one."""
    assert int(found.positions[0, -1]) == found.tokens.shape[1] - 1
    right, wrong = found.answers.right[0, -1, 0], found.answers.wrong[0, -1, 0]
    return [*found.tokens[0].tolist(), int(right)], [*found.counterparts[0].tolist(), int(wrong)]


@kinds
@pytest.mark.parametrize(
    ("before", "other", "right", "wrong"),
    [
        ("2 + 2 =", "2 + 3 =", " 4", " 5"),
        ("2 + 2 = ", "2 + 3 = ", "4", "5"),
        ("2 + 2 =\n", "2 + 3 =\n", "4", "5"),
        ("2 + 2 =\n\n", "2 + 3 =\n\n", "4", "5"),
        ("Mary gave John the", "Anna gave Mary the", " book", " noun"),
        ("John is café 😀 😀 the", "Mary is café 😀 😀 the", " book", " verb"),
        (" Mary gave", " Anna gave", " John", " Mary"),
        ("a | a =", "b | a =", " 1", " 2"),
        ("Mary", "Anna", " gave", " is"),
    ],
)
def test_the_prompt_and_its_answer_are_the_tokens_of_the_text(tokenizer, before, other, right, wrong):
    found = encode(tokenizer, f"{before}<predict>{right}</predict>", f"{other}<predict>{wrong}</predict>, too")
    assert ends(found) == (whole(tokenizer, before + right), whole(tokenizer, other + wrong))
    assert said(tokenizer, found.answers.right[0, 0, 0]).strip() == right.strip()
    # Without marks, the corrupted text ends where the clean one's answer begins, with the space before it or without.
    for text in (other, other.rstrip(" ")):
        bare = encode(tokenizer, f"{before}<predict>{right}</predict>", text)
        assert torch.equal(bare.counterparts, found.counterparts) and (bare.answers.wrong == -1).all()


@kinds
def test_each_answer_of_a_text_is_measured_at_the_token_before_it(tokenizer):
    text = "Mary<predict> John</predict><predict> Anna</predict> is 1<predict> 2</predict>\n<predict>3</predict>, to"
    found = encode(tokenizer, text, "John Mary Anna is 2 3\n")
    ids = whole(tokenizer, "Mary John Anna is 1 2\n3")
    assert found.tokens[0].tolist() == ids[:-1]
    for place, answer in enumerate(("John", "Anna", "2", "3")):
        position = int(found.positions[0, place])
        assert ids[position + 1] == int(found.answers.right[0, place, 0])
        assert said(tokenizer, ids[position + 1]).strip() == answer
        assert answer not in said(tokenizer, ids[position])


@kinds
@pytest.mark.parametrize(("right", "wrong"), [("Mary", "Anna"), ("4", "5")])
@pytest.mark.parametrize("after", ["", " is<predict> John</predict>"])
def test_an_answer_at_the_beginning_is_measured_at_what_comes_before_the_text(tokenizer, right, wrong, after):
    """BOS, or the space that Llama 2 puts before a text, where it is a token."""
    texts = [f"<predict>{answer}</predict>{after}" for answer in (right, wrong)]
    ids = whole(tokenizer, right)
    if len(ids) == 1:
        with pytest.raises(ExampleError, match=r"(got 0: the tokenizer puts nothing|puts none) before a text"):
            encode(tokenizer, *texts)
        return
    found = encode(tokenizer, *texts)
    assert int(found.positions[0, 0]) == len(ids) - 2
    assert [*found.tokens[0, : len(ids) - 1].tolist(), int(found.answers.right[0, 0, 0])] == ids
    assert found.answers.wrong[0, 0].tolist() == whole(tokenizer, wrong)[-1:]


@kinds
def test_where_answers_are_several_tokens_they_are_named(tokenizer):
    for answer in (" Mary gave", " 1 2"):
        with pytest.raises(ExampleError, match=r"answers of one token .* which is [2-4]: '.*; mark one of them"):
            encode(tokenizer, f"2 ={'<predict>'}{answer}</predict>", "3 =")
    with pytest.raises(ExampleError, match=r"answers of one token|whole tokens of their text"):
        encode(tokenizer, "the bo<predict>ok</predict>", "the bo")
    with pytest.raises(ExampleError, match=r"answers of one token|whole tokens of their text|words that the tokenizer"):
        encode(tokenizer, "the<predict> bo</predict>ok the<predict> noun</predict>", "the book the")


def test_wrong_answers_come_after_the_same_tokens_as_right_ones():
    """A number has its space as a token of its own, and a word has not."""
    with pytest.raises(ExampleError, match=r"got ' Mary', which comes after other tokens than the text has there"):
        encode(MADE["llama2"], "2 =<predict> 4</predict>", "3 =<predict> Mary</predict>")
    encode(MADE["gpt2"], "2 =<predict> 4</predict>", "3 =<predict> Mary</predict>")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_text_an_example_is_refused_or_is_that_text(data):
    name = data.draw(st.sampled_from(list(MADE)))
    tokenizer = MADE[name]
    part = st.sampled_from(["Mary", " John", " gave", "é", "😀", " 1", "23", " ", "\n", ".", "  ", "=", " café", "the"])
    before, after = ("".join(data.draw(st.lists(part, max_size=5))) for _ in range(2))
    answer = data.draw(part)
    try:
        found = encode(tokenizer, f"{before}<predict>{answer}</predict>{after}", before)
    except TaskError:
        return
    space = before[len(before.rstrip()) :]
    right = int(found.answers.right[0, 0, 0])
    assert [*found.tokens[0].tolist(), right] == whole(tokenizer, before + answer)
    assert said(tokenizer, right).strip() == answer.strip()
    assert said(tokenizer, right).count(" ") <= len(space) + answer.count(" ") + (name == "gpt2-prefix")


# What tokenizers add


@pytest.mark.parametrize("name", ["llama2", "llama2-eos", "llama3", "words"])
@pytest.mark.parametrize("space", ["", " "])
def test_a_text_that_begins_with_bos_has_one(name, space):
    tokenizer = MADE[name]
    bos = tokenizer.bos_token
    if name == "words":  # to which a mark is three words
        tokenizer = like_words()
        tokenizer.add_special_tokens({"bos_token": bos})
    found = encode(
        tokenizer,
        f"{bos}{space}Mary gave<predict> John</predict> the<predict> book</predict>",
        f"{bos}{space}Anna gave<predict> Mary</predict> the<predict> noun</predict>",
    )
    for ids in (found.tokens[0], found.counterparts[0]):
        assert ids.tolist().count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert found.tokens[0].tolist() == whole(tokenizer, f"{bos}{space}Mary gave John the")[1:]
    plain = encode(tokenizer, "Mary gave<predict> John</predict>", "Anna gave<predict> Mary</predict>")
    assert torch.equal(plain.answers.right[0, 0], found.answers.right[0, 0])
    for twice in (f"{bos}{bos}", f"{bos} {bos}"):
        with pytest.raises(ExampleError, match=r"Expected one .* at the beginning of a text; got two"):
            encode(tokenizer, f"{twice} Mary<predict> gave</predict>", "Anna")


def test_what_gpt2_puts_between_texts_may_begin_one_and_stand_in_it():
    end = "<|endoftext|>"
    found = encode(MADE["gpt2"], f"{end}Mary{end}Anna<predict> is</predict>", f"{end}Anna{end}Mary")
    assert found.tokens[0].tolist() == MADE["gpt2"](f"{end}Mary{end}Anna")["input_ids"]
    found = encode(MADE["gpt2"], f"Mary is<predict>{end}</predict>", "Anna is")
    assert int(found.answers.right[0, 0, 0]) == MADE["gpt2"].eos_token_id


@pytest.mark.parametrize(
    ("appends", "plain"),
    [(MADE["llama2-eos"], MADE["llama2"]), (MADE["t5"], like_t5(template="$A"))],
    ids=["llama2", "t5"],
)
def test_a_token_that_is_put_after_texts_is_not_put_after_prompts(appends, plain):
    for clean, corrupted in (
        ("Mary gave<predict> John</predict>", "Anna gave<predict> Mary</predict>"),
        ("2 =<predict> 2</predict> 3 =<predict> 3</predict>", "4 = 4 3 ="),
    ):
        found, expected = encode(appends, clean, corrupted), encode(plain, clean, corrupted)
        for name in ("tokens", "counterparts", "positions"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert torch.equal(found.answers.right, expected.answers.right)
    assert MADE["llama2-eos"].eos_token_id not in found.tokens
    assert encode(appends, "Mary<predict></s></predict>", "Anna").answers.right.item() == appends.eos_token_id


@kinds
def test_what_is_padded_or_cut_off_elsewhere_is_not_here(tmp_path, tokenizer):
    """Settings of a tokenizer that are about batches, or about what is decoded."""
    clean, corrupted = "Mary gave John the<predict> book</predict>", "Anna gave Mary the<predict> noun</predict>"
    expected = encode(tokenizer, clean, corrupted)
    folder = tmp_path / "tokenizer"
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 40},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": tokenizer.convert_ids_to_tokens(0),
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for change in (
        {"padding_side": "left", "truncation_side": "left", "model_max_length": 4},
        {"padding_side": "right", "clean_up_tokenization_spaces": True, "pad_token": None},
    ):
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | change
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        found = encode(AutoTokenizer.from_pretrained(folder), clean, corrupted)
        for name in ("tokens", "counterparts", "positions", "length"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert torch.equal(found.answers.right, expected.answers.right)


@pytest.mark.parametrize("change", [{"add_bos_token": False}, {"add_eos_token": True}, {"legacy": True}])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_a_tokenizer_says_itself_what_it_adds(tmp_path, kind, change):
    like_llama2().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **change, "tokenizer_class": kind}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = encode(tokenizer, "2 + 2 =<predict> 4</predict>", "2 + 3 =<predict> 5</predict>")
    assert ends(found) == (whole(tokenizer, "2 + 2 = 4"), whole(tokenizer, "2 + 3 = 5"))


# Labels


@kinds
def test_a_label_is_no_part_of_the_text(tokenizer):
    found = encode(
        tokenizer,
        "the<label> noun</label> book is<label> verb</label> to<label> noun</label>, Mary",
        "Anna<label> verb</label> gave to<label> noun</label> John<label> noun</label>",
    )
    assert found.tokens[0].tolist() == whole(tokenizer, "the book is to")
    assert found.counterparts[0].tolist() == whole(tokenizer, "Anna gave to John")
    for place, (word, right, wrong) in enumerate((("the", "noun", "verb"), ("is", "verb", "noun"), ("to", "noun", ""))):
        assert said(tokenizer, found.tokens[0, found.positions[0, place]]).strip() == word
        assert said(tokenizer, found.answers.right[0, place, 0]).strip() == right
        ids = found.answers.wrong[0, place]
        assert said(tokenizer, ids).strip() == wrong if wrong else int(ids) == -1


def test_labels_and_answers_may_stand_in_one_text():
    found = encode(MADE["gpt2"], "Mary<label> noun</label> gave<predict> John</predict>", "Anna gave")
    assert found.tokens[0].tolist() == MADE["gpt2"]("Mary gave")["input_ids"] and found.positions.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("clean", "corrupted", "message"),
    [
        (
            "Mary<predict> noun</predict> gave<predict> verb</predict> to<predict> noun</predict>",
            "Anna gave to",
            r"equally many tokens; got 5 and 3; answers stay in the text, all but the last, .* mark what is no part of "
            "the text <label>",
        ),
        (
            "ca<label> noun</label>fé gave<label> verb</label>",
            "café gave",
            "ends where a label stands; it stands inside",
        ),
        ("Mary<label> 1 2</label>", "Anna", "got ' 1 2', which is 2 there: ' 1', ' 2'"),
        ("a<label> noun</label> b<label>ook</label>", "Anna", "got 'ook', which comes after other tokens"),
        (
            "Mary<label> noun</label>",
            "Anna<predict> verb</predict>",
            "as many marks .*, 1, or none; got 1, of other kinds",
        ),
        ("Mary<label> </label>", "", "every <label> closed by </label>, with an answer between"),
        ("Mary<label> a", "", "every <label> closed"),
        ("Mary<predict> a<label> b</label></predict>", "", "every <predict> closed"),
        ("Mary<predict> a<predict> b</predict></predict>", "", "every <predict> closed"),
        ("Mary<predict> a</label>", "", "every <predict> closed"),
    ],
)
def test_labels_that_do_not_fit_are_refused(clean, corrupted, message):
    with pytest.raises(ExampleError, match=message):
        encode(MADE["gpt2"], clean, corrupted)


# Tokenizers and texts that do not belong together


@pytest.mark.parametrize("texts", [("Zoe gave", "Anna gave"), ("Anna gave", "Zoe gave")])
def test_a_word_that_the_tokenizer_does_not_know_is_refused(texts):
    with pytest.raises(ExampleError, match="Expected words that the tokenizer knows; got 'Zoe'"):
        encode(MADE["words"], f"{texts[0]}<predict> John</predict>", texts[1])
    plain = whole_words("Anna", "gave", "John").backend_tokenizer
    plain.model.unk_token = "none"
    with pytest.raises(ExampleError, match="Expected a text that the tokenizer can split; "):
        encode(PreTrainedTokenizerFast(tokenizer_object=plain), "Zoe<predict> John</predict>", "Anna")


def test_a_text_that_goes_on_otherwise_is_no_answer():
    example = Example("Mary gave Anna", "Anna gave Mary", (Prediction(9, (" John",)), Prediction(14, (" the",))))
    with pytest.raises(ExampleError, match=r"whole tokens of their text; ' John' is not: mark what is no part of it"):
        Encoder(MADE["gpt2"], context_length=64).encode([example], "logit difference")


def test_of_several_right_answers_the_text_may_go_on_with_any():
    right = (" Mary", " John", " Anna")
    example = Example("Mary gave John", "Anna gave Mary", (Prediction(9, right), Prediction(14, (" the",), (" to",))))
    found = Encoder(MADE["gpt2"], context_length=64).encode([example], "logit difference")
    expected = [MADE["gpt2"](answer)["input_ids"][0] for answer in right]
    assert found.answers.right[0, 0].tolist() == expected and found.positions.tolist() == [[1, 2]]
