"""The memory and the operations that a step of Edge Pruning takes, found without running one.

The code of a real step runs on tensors that have shapes but no memory; its allocations and operations are counted.
"""

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM

from edgeprune.errors import ConfigError, ModelError
from edgeprune.metrics.distances import kl_divergence
from edgeprune.models.load import KINDS, Precision
from edgeprune.models.transformer import Transformer
from edgeprune.streams.by_source import mixing_as_on

_LAYERS_WHOLE: Final = 3
"""Whole layers that a GPU holds at a time if layers are sharded: the one that runs, the one that is prefetched, and
the buffer that receives it."""


def _count_added_products(_added: Any, left: torch.Size, right: torch.Size, **_given: Any) -> int:
    return 2 * left.numel() * right[-1]


def _count_attention(*shapes: Any, **_given: Any) -> int:
    return sdpa_flop_count(*shapes[:3])


def _count_attention_back(*shapes: Any, **_given: Any) -> int:
    return sdpa_backward_flop_count(*shapes[:4])


_UNCOUNTED: Final = {
    torch.ops.aten.baddbmm_: _count_added_products,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_back,
}
"""Operations that torch's counter leaves out: gradients accumulated in place, and attention on CPUs."""


@dataclass(frozen=True)
class StepCost:
    """Cost of one step on one GPU that holds all weights; memory in bytes."""

    parameters: int
    sources: int
    destinations: int
    edges: int
    width: int
    """Width of the residual stream (d_model)."""

    weights: int
    """Memory of the weights, and of what is derived from them once."""

    layers: tuple[int, ...]
    """Memory of each layer's weights."""

    stack: int
    """Memory of all sources' outputs."""

    memory: int
    """Peak memory that a step adds."""

    operations: int
    """Multiplications and additions of a step."""

    plain_operations: int
    """Multiplications and additions of a forward pass without masks, on the same inputs."""

    masked_operations: int
    """Multiplications and additions of a forward pass under a mask."""

    def weights_on(self, gpus: int) -> int:
        """Return the peak memory of weights on each of `gpus` GPUs; several GPUs shard the layers."""
        if gpus == 1:
            return self.weights
        whole = min(len(self.layers), _LAYERS_WHOLE) * max(self.layers)
        return self.weights - sum(self.layers) + math.ceil(sum(self.layers) / gpus) + whole


def step_cost(
    config: Any, inputs: int, tokens: int, *, predictions: int = 1, precision: Precision, device: str = "cuda"
) -> StepCost:
    """Return the cost of one step.

    Args:
        config: the model's configuration.
        inputs: inputs that run together.
        tokens: tokens per input.
        predictions: tokens per input whose logits are compared.
        precision: precision of the model.
        device: the kind of device on which the step would run.

    Raises:
        ConfigError: the model takes fewer tokens.
        ModelError: no model can be built from `config`.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # a second, which other commands need not wait for

    with mixing_as_on(device), FakeTensorMode(), _Allocated() as allocated:
        kind = KINDS[config.model_type]
        try:
            theirs: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision))
            model = kind.adapter(theirs.requires_grad_(requires_grad=False))
            layers = tuple(map(_bytes, theirs.get_submodule(kind.layers)))
            if not layers:
                raise ValueError("it has no layers")
        except Exception as error:  # whatever Hugging Face's libraries and torch raise
            raise ModelError(f"Expected a configuration of a model; {type(error).__name__}: {error!s:.300}") from error
        if tokens > model.context_length:
            raise ConfigError(f"Expected at most {model.context_length} tokens, as the model takes; got {tokens}")
        weights, unembed = allocated.now, theirs.lm_head.weight
        ids = torch.zeros(inputs, tokens, dtype=torch.long)
        positions = torch.arange(predictions).expand(inputs, -1)
        plain, masked, step = (FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) for _ in range(3))
        with plain:
            model(ids, positions=positions)
        mask, ablated = torch.ones(1, len(model.graph.sources), len(model.graph.destinations)), model.sources(ids)
        with masked, torch.no_grad():
            model(ids, mask, ablated, positions)
        del mask, ablated
        allocated.most = before = allocated.now
        with step:
            run_step(model, ids, positions)
        return StepCost(
            parameters=sum(parameter.numel() for parameter in theirs.parameters()),
            sources=len(model.graph.sources),
            destinations=len(model.graph.destinations),
            edges=model.graph.total,
            width=unembed.shape[1],
            weights=weights,
            layers=layers,
            stack=len(model.graph.sources) * ids.numel() * unembed.shape[1] * unembed.element_size(),
            memory=allocated.most - before,
            operations=step.get_total_flops(),
            plain_operations=plain.get_total_flops(),
            masked_operations=masked.get_total_flops(),
        )


def run_step(model: Transformer, tokens: Tensor, positions: Tensor) -> None:
    """Run what a step runs on the device: sources of corrupted inputs, a masked forward, and a backward to the mask."""
    target = torch.zeros(*positions.shape, model.vocabulary_size)
    scored = torch.ones(positions.shape, dtype=torch.bool)
    mask = torch.ones(1, len(model.graph.sources), len(model.graph.destinations), requires_grad=True)
    # Ablated sources are passed as a temporary, so they are not held beyond the forward pass.
    kl_divergence(model(tokens, mask, model.sources(tokens), positions), target, scored).mean().backward()


def load_config(name: str) -> Any:
    """Load a language model's configuration, as a plan needs it.

    Args:
        name: a name on the hub, a folder with `config.json`, or that file.

    Raises:
        ModelError: it cannot be loaded, or its kind of model is not supported.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # whatever Hugging Face's libraries raise
        raise ModelError(
            f"Expected a model's name on the Hugging Face hub, a folder with config.json, or that file; {name!r} "
            f"cannot be loaded: {type(error).__name__}: {error!s:.300}"
        ) from error
    if config.model_type not in KINDS:
        raise ModelError(f"Expected a model of kind {', '.join(KINDS)}; {name!r} is of kind {config.model_type}")
    if getattr(config, "rope_parameters", None):
        # The scaling of rotations may read tensor values, which do not exist here; it changes no shape.
        config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    return config


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


class _Allocated(TorchDispatchMode):
    """Counts the bytes of all live tensors (`now`), and their peak (`most`)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.now -= size
