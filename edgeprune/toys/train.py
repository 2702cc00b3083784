"""Trains a toy: a real `GPT2LMHeadModel` with a tokenizer of whole words, saved with its task as a folder."""

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from edgeprune.errors import ConfigError, RunError
from edgeprune.files.folders import new_folder
from edgeprune.files.store import UnwritableFile, write_text
from edgeprune.models.load import without_bars
from edgeprune.tasks.example import Example
from edgeprune.toys import LESSONS
from edgeprune.toys.lesson import Lesson, ToyConfig

TASK: Final = "task.jsonl"
"""Name of the task's file in a toy's folder. It is written if the task is not one of `tasks.TASKS`."""

_UNKNOWN: Final = "<unk>"
_CONTEXT: Final = 32
_TESTS: Final = 2000


@dataclass(frozen=True)
class Toy:
    """Result of training."""

    accuracy: float
    """Share of answers that are the most likely next token, on 2,000 draws of held-out examples, or all if fewer."""

    loss: float
    """Loss of the last step, in nats per token."""

    seconds: float


def train_toy(
    out: Path, task: str = "ioi", config: ToyConfig | None = None, *, seed: int = 0, progress: bool = False
) -> Toy:
    """Train a model and save it, with its tokenizer and its task, as a folder that `load_model` reads.

    Args:
        out: the folder, which must not exist yet.
        task: the lesson, one of `LESSONS`.
        config: shape and training; None means the lesson's own.
        seed: the seed of weights, examples and what is held out.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        ConfigError: there is no such lesson.
        RunError: `out` exists.
        UnwritableFile: the folder cannot be written.
    """
    if task not in LESSONS:
        raise ConfigError(f"Expected something to learn among {', '.join(LESSONS)}; got {task!r}")
    lesson = LESSONS[task]
    config = lesson.config if config is None else config
    if os.path.lexists(out):
        raise RunError(f"Expected a folder that is not there yet; got {str(out)!r}: take it away, or name another one")
    with new_folder(out) as folder:
        return _train(folder, lesson, config, seed=seed, progress=progress)


def _train(folder: Path, lesson: Lesson, config: ToyConfig, *, seed: int, progress: bool) -> Toy:
    """Train a model, and save it with its tokenizer and task in a folder."""
    start, random = time.perf_counter(), Random(seed)
    tokenizer, course = _tokenizer(lesson), lesson.course(random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(_shape(config, len(tokenizer)))
    if not config.mlp:
        _without_mlp(model)

    batches = (_encoded(tokenizer, course.teach(random, config.batch_size)) for _ in range(config.steps))
    loss = _fit(model, config, batches, all_tokens=lesson.all_tokens, progress=progress)
    model.eval()
    tests = _encoded(tokenizer, course.test(random, _TESTS))
    with torch.no_grad():
        right = model(tests.tokens).logits[:, :-1].argmax(-1) == tests.tokens[:, 1:]
    accuracy = float(right[tests.answers[:, 1:]].double().mean())
    _save(model, tokenizer, [json.dumps(line) for line in course.task], folder)
    return Toy(accuracy, loss, time.perf_counter() - start)


def _shape(config: ToyConfig, words: int) -> GPT2Config:
    return GPT2Config(
        n_layer=config.layers,
        n_head=config.heads,
        n_embd=config.width,
        n_inner=None if config.mlp else 1,
        n_positions=_CONTEXT,
        vocab_size=words,
        tie_word_embeddings=config.tied,
        bos_token_id=None,
        eos_token_id=None,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )


@torch.no_grad()
def _without_mlp(model: GPT2LMHeadModel) -> None:
    """Set the weights of all MLPs to 0 and freeze them, so that MLPs write nothing."""
    for name, weights in model.named_parameters():
        if ".mlp." in name:
            weights.requires_grad = False
            weights.zero_()


def _tokenizer(lesson: Lesson) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word and each mark of the lesson's texts."""
    known = [_UNKNOWN, *lesson.words]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=_UNKNOWN)


@dataclass(frozen=True)
class _Texts:
    """Whole texts, padded on the right with 0."""

    tokens: Int[Tensor, "text pos"]
    real: Bool[Tensor, "text pos"]
    """True where there is no padding."""

    answers: Bool[Tensor, "text pos"]
    """True at a text's answers."""


def _encoded(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> _Texts:
    texts = [example.clean + example.predictions[-1].right[0] for example in examples]
    rows = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    length, place = torch.tensor([[len(row)] for row in rows]), torch.arange(tokens.shape[1])
    count = torch.tensor([[len(example.predictions)] for example in examples])
    return _Texts(tokens, place < length, (place >= length - count) & (place < length))


def _fit(
    model: GPT2LMHeadModel, config: ToyConfig, batches: Iterable[_Texts], *, all_tokens: bool, progress: bool
) -> float:
    """Train on all tokens but the first, or on answers alone. Return the loss of the last step."""
    weights = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    loss = torch.tensor(math.nan)
    bar = tqdm(batches, desc="training", total=config.steps, disable=None if progress else True)
    for step, texts in enumerate(bar):
        grown = min(1.0, 20 * (step + 1) / config.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * grown * (1 + math.cos(math.pi * step / config.steps)) / 2
        counted = (texts.real if all_tokens else texts.answers)[:, 1:]
        loss = F.cross_entropy(model(texts.tokens).logits[:, :-1][counted], texts.tokens[:, 1:][counted])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    return loss.item()


def _save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, task: Sequence[str], folder: Path) -> None:
    try:
        with without_bars():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # raised for a full disk, too
        raise UnwritableFile(f"Expected room for a model; {error!s:.200}") from error
    if task:
        write_text(folder / TASK, "\n".join(task) + "\n")
