"""Tokenizers of every kind, made here: large ones that know the words of the tasks, and small ones of each kind."""

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from edgeprune.tasks import boolean_expressions, gendered_pronoun, greater_than, ioi, words


@cache
def byte_pairs(*, size: int = 4000) -> PreTrainedTokenizerFast:
    """Byte pairs, as in GPT-2, learned from the words of the tasks: all of them are one token, and years are two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def sentence_pieces(*, size: int = 4000) -> PreTrainedTokenizerFast:
    """As in Llama 2: a token that begins every text, a space put before its first word, each digit by itself."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    between = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([between, pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_text(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _text() -> list[str]:
    """The words of all tasks, often enough to be learned."""
    text = [f" {word}" for word in (*words.NAMES, *words.PLACES, *words.OBJECTS)] * 50
    text += [f"{word}" for word in words.NAMES] * 50
    text += [f"{template}" for template in (*ioi.TEMPLATES, *gendered_pronoun.TEMPLATES)] * 3
    text += [" she", " he"] * 50 + [f" {word}" for word in (*words.EVENTS, *words.ADJECTIVES, *words.PEOPLE)] * 3
    text += [f"{number:02}" for number in range(100)] * 20 + [f" {number}" for number in greater_than.CENTURIES] * 20
    text += [f" {word}" for word in ("True", "False", "and", "or", "not", "is", "(", ")")] * 200
    text += ["True is", "False is", "not True", boolean_expressions.FORM, boolean_expressions.INSTRUCTION] * 20
    return text


def whole_words(*known: str) -> PreTrainedTokenizerFast:
    """One token for each of the words and marks that are known, and one for all others."""
    vocabulary = {word: number for number, word in enumerate(("<unk>", *known))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


# Small ones, which know the words of `WORDS`, each digit, some marks, and whatever else their kind splits into bytes


WORDS = ("Mary", "John", "Anna", "gave", "the", "book", "to", "is", "verb", "noun", "café", "naïve")

_LINES = [f" {word}" for word in WORDS] * 4 + [*WORDS, "a b", "12", "123", " = + . , |", "\n", "\n\n", "  "] * 2
_LINES += [" ".join("0123456789")] * 2

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def like_gpt2(*, prefix: bool = False, trimmed: bool = True) -> PreTrainedTokenizerFast:
    """Bytes, nothing before a text, spaces in the words after them; one digit at most to a token with its space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    _train_on_bytes(tokenizer, "<|endoftext|>")
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def like_llama3() -> PreTrainedTokenizerFast:
    """Bytes, digits in threes without their space, a token that begins every text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(_LLAMA_3), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    _train_on_bytes(tokenizer, begin, end)
    template = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, clean_up_tokenization_spaces=True
    )


def _train_on_bytes(tokenizer: Tokenizer, *special: str) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=[*special], show_progress=False
    )
    tokenizer.train_from_iterator(_LINES, trainer)


def like_llama2(*, template: str = "<s> $A") -> PreTrainedTokenizerFast:
    """Characters, bytes where there is none; a space put before every text, digits alone, without pre-tokenization."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    between = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([between, pre_tokenizers.Digits(individual_digits=True)])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + bytes_, show_progress=False)
    tokenizer.train_from_iterator([line for line in _LINES if line.isascii()], trainer)
    # Trained: bytes are tokens like others, and merges alone say how a text is split.
    found = json.loads(tokenizer.to_str())
    found["pre_tokenizer"], found["added_tokens"] = None, found["added_tokens"][: len(special)]
    tokenizer = Tokenizer.from_str(json.dumps(found))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def like_t5(*, template: str = "$A </s>") -> PreTrainedTokenizerFast:
    """Likely pieces of a text, spaces before words; a token that ends every text."""
    pieces = [f"▁{word}" for word in WORDS] + [*WORDS] + [*"▁0123456789=+.,|ab\n", "😀"]
    # The longer a piece, the likelier.
    vocabulary = [(mark, 0.0) for mark in ("<pad>", "</s>", "<unk>")] + [(each, -10.0) for each in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", padding_side="left"
    )


def like_words() -> PreTrainedTokenizerFast:
    """Words and marks, spaces nowhere, a token that begins every text."""
    known = ("<s>", *WORDS, *"0123456789=+.,|ab😀", "12", "123")
    tokenizer = whole_words(*known).backend_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


KINDS = {
    "gpt2": like_gpt2,
    "gpt2-prefix": lambda: like_gpt2(prefix=True),
    "gpt2-untrimmed": lambda: like_gpt2(trimmed=False),
    "llama2": like_llama2,
    "llama2-eos": lambda: like_llama2(template="<s> $A </s>"),
    "llama2-bare": lambda: like_llama2(template="$A"),
    "llama3": like_llama3,
    "t5": like_t5,
    "words": like_words,
}
"""Small tokenizers by name."""
