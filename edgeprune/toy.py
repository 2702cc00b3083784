"""A small GPT-2 that knows a task, trained here: something to prune where no model hub can be reached.

A real `GPT2LMHeadModel` and a tokenizer of whole words, trained as language models are, on every token of prompts of
indirect object identification. For each template a fifth of the names is held out: they come in prompts of other
templates and never in its own, so that what is measured on them has not been learned by heart.
"""

import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from edgeprune.errors import ConfigError, RunError
from edgeprune.models.load import without_bars
from edgeprune.store import UnwritableFile, check_writable
from edgeprune.tasks.ioi import TEMPLATES, fill
from edgeprune.tasks.words import NAMES, OBJECTS, PLACES

HELD_OUT: Final = 0.2
"""Share of the names that a template is tested with, and not trained with."""

_UNKNOWN: Final = "<unk>"
_CONTEXT: Final = 32


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Shape of the model, and how it is trained."""

    layers: int = 4
    """Blocks."""

    heads: int = 4
    """Heads of each layer."""

    width: int = 64
    """d_model, numbers."""

    steps: int = 800
    """Of training."""

    batch_size: int = 128
    """Prompts a step, all of them new."""

    learning_rate: float = 3e-3
    """AdamW's at its highest: it grows over a twentieth of the steps, then falls to 0 along a cosine."""

    def __post_init__(self) -> None:
        counts = ("layers", "heads", "width", "steps", "batch_size")
        faults = [f"{name} >= 1, got {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        if not faults and self.width % self.heads:
            faults.append(f"a width that is a multiple of {self.heads} heads, got {self.width}")
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")


@dataclass(frozen=True)
class Toy:
    """What was trained."""

    accuracy: float
    """Share of 2,000 prompts with held-out names whose most likely next token is right."""

    loss: float
    """Of the last step, nats a token."""

    seconds: float


def train_toy(out: Path, config: ToyConfig | None = None, *, seed: int = 0, progress: bool = False) -> Toy:
    """Train a model and save it, with its tokenizer, as a folder that `load_model` reads.

    Args:
        out: the folder, which must not be there yet.
        config: shape and training.
        seed: of weights, prompts and what is held out.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        RunError: there is something at `out`.
        UnwritableFile: it cannot be written there.
    """
    config = ToyConfig() if config is None else config
    if out.exists():
        raise RunError(f"Expected a folder that is not there yet; got {str(out)!r}")
    check_writable(out)
    start, random = time.perf_counter(), Random(seed)
    tokenizer = _tokenizer()
    held_out = {template: random.sample(NAMES, round(HELD_OUT * len(NAMES))) for template in TEMPLATES}
    trained = {template: [name for name in NAMES if name not in held_out[template]] for template in TEMPLATES}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(_shape(config, len(tokenizer)))
    loss = _fit(model, config, lambda: _draw(tokenizer, trained, config.batch_size, random), progress=progress)
    model.eval()
    tokens, length = _draw(tokenizer, held_out, 2000, random)
    with torch.no_grad():
        rows = torch.arange(len(tokens))
        best = model(tokens).logits[rows, length - 2].argmax(-1)
    accuracy = float((best == tokens[rows, length - 1]).double().mean())
    _save(model, tokenizer, out)
    return Toy(accuracy, loss, time.perf_counter() - start)


def _shape(config: ToyConfig, words: int) -> GPT2Config:
    return GPT2Config(
        n_layer=config.layers,
        n_head=config.heads,
        n_embd=config.width,
        n_positions=_CONTEXT,
        vocab_size=words,
        bos_token_id=None,
        eos_token_id=None,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word and each mark of the prompts."""
    splitter = pre_tokenizers.Whitespace()
    blank = {"a": "", "b": "", "c": "", "place": "", "object": ""}
    words = {word for template in TEMPLATES for word, _ in splitter.pre_tokenize_str(template.format(**blank))}
    known = [_UNKNOWN, *sorted(words | {*NAMES, *PLACES, *OBJECTS})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=_UNKNOWN)


def _draw(
    tokenizer: PreTrainedTokenizerFast, names: Mapping[str, Sequence[str]], count: int, random: Random
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, " prompt"]]:
    """Prompts with their answers, padded on the right with 0, and how many tokens each has."""
    templates = random.choices(TEMPLATES, k=count)
    examples = [fill(template, names[template], random) for template in templates]
    texts = [example.clean + example.predictions[0].right[0] for example in examples]
    rows = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


def _fit(
    model: GPT2LMHeadModel,
    config: ToyConfig,
    draw: Callable[[], tuple[Tensor, Tensor]],
    *,
    progress: bool,
) -> float:
    """Train on all tokens but the first; the loss of the last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    loss = torch.tensor(math.nan)
    bar = tqdm(range(config.steps), desc="training", disable=None if progress else True)
    for step in bar:
        grown = min(1.0, 20 * (step + 1) / config.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * grown * (1 + math.cos(math.pi * step / config.steps)) / 2
        tokens, length = draw()
        logits = model(tokens).logits[:, :-1]
        real = torch.arange(1, tokens.shape[1]) < length[:, None]
        loss = F.cross_entropy(logits[real], tokens[:, 1:][real])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    return loss.item()


def _save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write to a folder beside `out`, then rename it."""
    temporary = out.with_name(f".{uuid.uuid4().hex}")
    try:
        with without_bars():
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        os.replace(temporary, out)
    except OSError as error:
        raise UnwritableFile(f"Expected a folder that can be written; got {str(out)!r}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
