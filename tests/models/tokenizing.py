"""Tokenizers of both kinds, made here: one of whole words, and one like GPT-2's."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from edgeprune.tasks import gendered_pronoun, greater_than, ioi, words


@cache
def byte_pairs(*, size: int = 4000) -> PreTrainedTokenizerFast:
    """Byte pairs, as in GPT-2, learned from the words of the tasks: all of them are one token, and years are two."""
    text = [f" {word}" for word in (*words.NAMES, *words.PLACES, *words.OBJECTS)] * 50
    text += [f"{word}" for word in words.NAMES] * 50
    text += [f"{template}" for template in (*ioi.TEMPLATES, *gendered_pronoun.TEMPLATES)] * 3
    text += [" she", " he"] * 50 + [f" {word}" for word in (*words.EVENTS, *words.ADJECTIVES, *words.PEOPLE)] * 3
    text += [f"{number:02}" for number in range(100)] * 20 + [f" {number}" for number in greater_than.CENTURIES] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def whole_words(*known: str) -> PreTrainedTokenizerFast:
    """One token for each of the words and marks that are known, and one for all others."""
    vocabulary = {word: number for number, word in enumerate(("<unk>", *known))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
