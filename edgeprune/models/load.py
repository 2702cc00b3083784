"""Loads language models and their tokenizers, by name from the Hugging Face hub or from a folder."""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from edgeprune.errors import EdgePruneError, ModelError
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.models.guard import check_same, make_prompts, their_logits
from edgeprune.models.llama import LlamaModel
from edgeprune.models.sharded import shard
from edgeprune.models.transformer import Transformer
from edgeprune.models.unsupported import check_adapter, check_config, check_loaded, merge_adapter
from edgeprune.parallel import ALONE, Ranks

Precision = Literal["float32", "bfloat16"]
"""Type of weights and activations. Masks, losses and the optimiser are single precision either way."""


class Kind(NamedTuple):
    """A kind of model that can be loaded."""

    adapter: Callable[..., Transformer]
    """Our model class for it."""

    layers: str
    """Path of the layers in Hugging Face's model."""


KINDS: Final[Mapping[str, Kind]] = {
    "gpt2": Kind(Gpt2Model, "transformer.h"),
    "llama": Kind(LlamaModel, "model.layers"),
}
"""Supported kinds, by their `model_type` in `config.json`."""


def load_model(
    name: str,
    *,
    precision: Precision = "float32",
    device: str = "auto",
    ranks: Ranks = ALONE,
    check: bool = True,
) -> tuple[Transformer, PreTrainedTokenizerBase]:
    """Load a language model and its tokenizer.

    Args:
        name: a name on the hub, such as `gpt2`, or a folder with `config.json`, safetensors and a tokenizer.
        precision: the type of the weights.
        device: `cpu`, `cuda` or another device of PyTorch; `auto` is a GPU if there is one.
        ranks: the processes that run the model. If there are several, its layers are sharded over them.
        check: whether to refuse a model whose logits on a few prompts are not those of `AutoModelForCausalLM`
            (`guard.py`), or whose files are in doubt (`unsupported.py`). Not needed for a model that is known.

    Raises:
        ModelError: there is no such model or device, the model's kind is not supported, its files are damaged or
            incomplete, or it is not the model that its files describe.
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
    # These libraries log every attempt to reach the hub, and every weight. The error that is raised says enough.
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    with _told(name):
        adapted = check_adapter(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type not in KINDS:
            raise ModelError(f"Expected a model of kind {', '.join(KINDS)}; {name!r} is of kind {config.model_type}")
        kind = KINDS[config.model_type]
        check_config(name, config, check=check)
        with without_bars():
            theirs, found = _load(name, getattr(torch, precision))
        check_loaded(name, found, check=check)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if not len(tokenizer):
        raise ModelError(f"Expected a tokenizer in {name!r}; it has none")
    theirs.eval()
    expected = None
    if adapted:
        prompts = make_prompts(theirs.config.vocab_size, theirs.config.max_position_embeddings)
        expected = their_logits(theirs, prompts) if check else None
        with _told(name):
            merge_adapter(name, theirs)
    if ranks.several:
        shard(theirs, list(theirs.get_submodule(kind.layers)), ranks, placed)
    else:
        theirs.to(placed)
    ours = kind.adapter(theirs, ranks)
    if check:
        check_same(name, ours, kind.layers, expected)
    return ours, tokenizer


def _load(name: str, precision: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    """Return the model of `AutoModelForCausalLM`, and its loading information about the files."""
    found: Any = AutoModelForCausalLM.from_pretrained(
        name,
        use_safetensors=True,  # no pickle: a checkpoint without safetensors is refused
        dtype=precision,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # `check_loaded` reports and refuses them
        output_loading_info=True,
    )
    return found


@contextmanager
def _told(name: str) -> Generator[None]:
    """Turn an error of Hugging Face's libraries and their readers into an error of one line.

    Raises:
        ModelError: a library raised an error, or `name` is a file.
    """
    try:
        if Path(name).is_file():
            raise ModelError(f"Expected a model's folder, or its name on the Hugging Face hub; {name!r} is a file")
        yield
    except EdgePruneError:
        raise
    except Exception as error:  # the libraries raise many kinds
        raise ModelError(
            f"Expected a model's name on the Hugging Face hub, or a folder with config.json, safetensors and a "
            f"tokenizer; {name!r} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split()):.300}"
        ) from error


@contextmanager
def without_bars() -> Generator[None]:
    """Turn off Hugging Face's own progress bars, which appear even without a terminal."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def find_device(name: str) -> torch.device:
    """Return the device of that name; for `auto`, a GPU if there is one.

    Raises:
        ModelError: there is no such device.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(f"Expected a device such as auto, cpu or cuda; got {name!r}: {error!s:.200}") from error
    return device
