"""What a language model's files ask for, where that is another model than ours would be.

Transformers goes on in silence, or with a table on standard error, where files hold an adapter that peft would load,
weights of other shapes or types than `config.json` speaks of, weights that nothing reads, or none for a part of the
model, which it then draws anew.
"""

import importlib.util
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import transformers
from safetensors import safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files
from transformers.utils.peft_utils import find_adapter_config_file

from edgeprune.errors import ModelError

_BUFFERS: Final = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""What older versions wrote beside weights."""

_TYPES: Final = ("BF16", "F16", "F32", "F64")
"""Of weights that are what they say: fewer bits want scales, or a codebook, which would not be read."""

_MANY: Final = 3
"""Names that a message has."""


def check_adapter(name: str) -> bool:
    """Whether the files hold an adapter, which transformers then puts into the model.

    Raises:
        ModelError: they do, and peft is not installed, so that it would be left out; or there is no model beside it.
    """
    if find_adapter_config_file(name) is None:
        return False
    merged = "merge it (peft's merge_and_unload, then save_pretrained)"
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"Expected a model without an adapter, as peft is not installed; {name!r} has adapter_config.json: install "
            f"peft, {merged}, or remove the adapter's files if the base model is meant"
        )
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise ModelError(f"Expected a model beside its adapter; {name!r} holds the adapter alone: {merged}")
    return True


def check_config(name: str, config: Any, *, check: bool) -> None:
    """Refuse what `config.json` asks for and Hugging Face's own class of that kind is not.

    Args:
        name: the model's.
        config: its configuration.
        check: whether what is in doubt is refused.

    Raises:
        ModelError: weights are quantised; or, where that is to be checked, it names a class of another kind of model,
            or code of its own.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"Expected weights that are not quantised; {name!r} has quantization_config: dequantise them")
    if not check:
        return
    for each in getattr(config, "architectures", None) or ():
        kind = getattr(
            getattr(getattr(transformers, each, None), "config_class", None), "model_type", config.model_type
        )
        if kind != config.model_type:
            raise ModelError(
                f"Expected one kind of model in config.json of {name!r}; it says model_type {config.model_type}, and "
                f"architectures {each}, which is {kind}: correct it, or --no-check takes it for {config.model_type}"
            )
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        raise ModelError(
            f"Expected a model that transformers has code for; {name!r} brings its own (auto_map), which is not run: "
            f"--no-check takes it for the {config.model_type} that transformers knows"
        )


def check_loaded(name: str, found: Mapping[str, Any], *, check: bool) -> None:
    """Refuse weights that are not those of the model that `config.json` speaks of.

    Args:
        name: the model's.
        found: what `from_pretrained` says of them.
        check: whether weights that nothing reads are refused.

    Raises:
        ModelError: they are others, some are missing or no floating-point numbers, or nothing reads them.
    """
    if others := sorted(found["mismatched_keys"]):
        shapes = [f"{key} is {list(stored)} and should be {list(wanted)}" for key, stored, wanted in others]
        raise ModelError(f"Expected weights of the sizes that config.json of {name!r} says; {_some(shapes)}")
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"Expected all weights of the model in {name!r}; missing: {_some(missing)}")
    if more := sorted(key for key in found["unexpected_keys"] if not key.endswith(_BUFFERS)) if check else []:
        raise ModelError(
            f"Expected the weights that config.json of {name!r} speaks of; there are more, which nothing reads: "
            f"{_some(more)}. It is another model's file, or a setting is wrong; --no-check goes on without them"
        )
    if wrong := sorted(f"{key} ({kind})" for key, kind in _stored(name) if kind not in _TYPES):
        raise ModelError(f"Expected weights that are {', '.join(_TYPES)}; in {name!r} there are {_some(wrong)}")


def _some(names: Collection[str]) -> str:
    shown, more = list(names)[:_MANY], len(names) - _MANY
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _stored(name: str) -> Iterator[tuple[str, str]]:
    """Weights in the files and their types, by the files' headers."""
    whole = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    files = [whole] if whole else get_checkpoint_shard_files(name, cached_file(name, SAFE_WEIGHTS_INDEX_NAME))[0]
    for file in files or ():
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # it is no mapping
                if not key.endswith(_BUFFERS):
                    yield key, tensors.get_slice(key).get_dtype()


def merge_adapter(name: str, model: nn.Module) -> None:
    """Put what an adapter adds into the weights, and leave Hugging Face's own modules in place of peft's.

    Raises:
        ModelError: it is of a kind that cannot be merged.
    """
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for path, module in modules:
        if module.__class__.__module__.startswith("peft.") and hasattr(module, "get_base_layer"):
            owner, _, last = path.rpartition(".")
            module.merge(safe_merge=True)
            setattr(model.get_submodule(owner), last, module.get_base_layer())
    if left := sorted({type(each).__name__ for each in model.modules() if type(each).__module__.startswith("peft.")}):
        raise ModelError(f"Expected an adapter that can be merged into the weights; that of {name!r} has {left}")
