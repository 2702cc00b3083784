"""Language models and their tokenizers, by name on the Hugging Face hub or from a folder."""

import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoConfig, AutoTokenizer, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from edgeprune.errors import ModelError
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.models.llama import LlamaModel
from edgeprune.models.sharded import shard
from edgeprune.models.transformer import Transformer
from edgeprune.parallel import ALONE, Ranks

Precision = Literal["float32", "bfloat16"]
"""Of weights and of what they compute; masks, losses and their optimiser are single precision either way."""


class Kind(NamedTuple):
    """A kind of model that can be loaded."""

    theirs: Any
    """Hugging Face's."""

    adapter: Callable[..., Transformer]
    """Ours over it."""

    layers: str
    """Where Hugging Face's has its layers."""


KINDS: Final[Mapping[str, Kind]] = {
    "gpt2": Kind(GPT2LMHeadModel, Gpt2Model, "transformer.h"),
    "llama": Kind(LlamaForCausalLM, LlamaModel, "model.layers"),
}
"""By the names that `config.json` gives them."""

_LAYER: Final = re.compile(r"\.(h|layers)\.\d+\.")
"""In the name of a weight, what says which layer's it is."""


def load_model(
    name: str, *, precision: Precision = "float32", device: str = "auto", ranks: Ranks = ALONE
) -> tuple[Transformer, PreTrainedTokenizerBase]:
    """A language model and its tokenizer.

    Args:
        name: on the hub, such as `gpt2`, or a folder with `config.json`, safetensors and a tokenizer.
        precision: of the weights.
        device: `cpu`, `cuda` or another of torch's; `auto` is a GPU where there is one.
        ranks: the processes that it runs on, among which its layers are sharded if they are several.

    Raises:
        ModelError: there is no such model, it is of another kind, its files are damaged or incomplete, or there is no
            such device.
    """
    placed = find_device(device)
    if ranks.several and ":" in device:
        raise ModelError(
            f"Expected a kind of device, of which each process takes its own, such as cuda; got {device!r}"
        )
    if ranks.several and placed.type == "cuda" and int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
        raise ModelError(
            f"Expected as many processes on a machine as it has GPUs, {torch.cuda.device_count()}; got more: set "
            "--nproc-per-node"
        )
    # They tell of every try to reach the hub, and of every weight; what is raised says it all.
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type not in KINDS:
            raise ModelError(f"Expected a model of kind {', '.join(KINDS)}; {name!r} is of kind {config.model_type}")
        kind = KINDS[config.model_type]
        # No pickle: a checkpoint without safetensors is refused.
        with without_bars():
            found: Any = kind.theirs.from_pretrained(
                name, use_safetensors=True, dtype=getattr(torch, precision), output_loading_info=True
            )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except ModelError:
        raise
    except Exception as error:  # whatever Hugging Face's libraries and their readers raise
        raise ModelError(
            f"Expected a model's name on the Hugging Face hub, or a folder with config.json, safetensors and a "
            f"tokenizer; {name!r} cannot be loaded: {type(error).__name__}: {error!s:.300}"
        ) from error
    model, loaded = found
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"Expected all weights of the model in {name!r}; missing: {', '.join(missing):.200}")
    buffers = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # of older versions, which are no weights
    if more := sorted(key for key in loaded["unexpected_keys"] if _LAYER.search(key) and not key.endswith(buffers)):
        raise ModelError(f"Expected the weights that config.json of {name!r} speaks of; there are more: {more[0]}")
    if not len(tokenizer):
        raise ModelError(f"Expected a tokenizer in {name!r}; it has none")
    model.eval()
    if ranks.several:
        shard(model, list(model.get_submodule(kind.layers)), ranks, placed)
    else:
        model.to(placed)
    return kind.adapter(model, ranks), tokenizer


@contextmanager
def without_bars() -> Generator[None]:
    """Hugging Face's own progress bars off, which show where there is no terminal too."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def find_device(name: str) -> torch.device:
    """The device of that name; a GPU for `auto`, where there is one.

    Raises:
        ModelError: there is none.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"Expected a device such as auto, cpu or cuda; got {name!r}: {error!s:.200}") from error
    return device
