"""Refuses a language model whose files ask for another model than ours would be.

Transformers goes on in silence, or prints a table on standard error, in four cases: files hold an adapter that peft
would load; weights have other shapes or types than `config.json` says; nothing reads some of the weights; or a part of
the model has no weights, and is then initialised at random.
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
"""Endings of the names of buffers that older versions saved beside weights."""

_TYPES: Final = ("BF16", "F16", "F32", "F64")
"""Accepted types of weights. Types of fewer bits need scales or a codebook, which would not be read."""

_MANY: Final = 3
"""Most names that a message lists."""


def check_adapter(name: str) -> bool:
    """Return whether the files hold an adapter, which transformers then puts into the model.

    Raises:
        ModelError: there is an adapter, but peft is not installed, so it would be left out; or the adapter's folder
            holds no model.
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
    """Raise an error if `config.json` asks for something that Hugging Face's class of that kind is not.

    Args:
        name: the model's name.
        config: the model's configuration.
        check: whether to refuse what is in doubt, too.

    Raises:
        ModelError: weights are quantised; or, with `check`, the configuration names a class of another kind of model,
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
    """Raise an error if weights are not those of the model that `config.json` describes.

    Args:
        name: the model's name.
        found: the loading information of `from_pretrained`.
        check: whether to refuse weights that nothing reads, too.

    Raises:
        ModelError: weights have other shapes, are missing, or are not of one of `_TYPES`; or, with `check`, nothing
            reads some of them.
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
    """Yield the name and type of each weight in the files, from the files' headers."""
    whole = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    files = [whole] if whole else get_checkpoint_shard_files(name, cached_file(name, SAFE_WEIGHTS_INDEX_NAME))[0]
    for file in files or ():
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # it is no mapping
                if not key.endswith(_BUFFERS):
                    yield key, tensors.get_slice(key).get_dtype()


def merge_adapter(name: str, model: nn.Module) -> None:
    """Merge an adapter into the weights, and put Hugging Face's own modules back in place of peft's.

    Raises:
        ModelError: the adapter is of a kind that cannot be merged.
    """
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for path, module in modules:
        if module.__class__.__module__.startswith("peft.") and hasattr(module, "get_base_layer"):
            owner, _, last = path.rpartition(".")
            module.merge(safe_merge=True)
            setattr(model.get_submodule(owner), last, module.get_base_layer())
    if left := sorted({type(each).__name__ for each in model.modules() if type(each).__module__.startswith("peft.")}):
        raise ModelError(f"Expected an adapter that can be merged into the weights; that of {name!r} has {left}")
