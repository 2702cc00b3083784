"""Tokenizers of every kind, made here: one of whole words, one like GPT-2's, and one like Llama's."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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
