"""What a step of Edge Pruning costs, without its being run.

The very code that would run is run on tensors that have shapes and no memory, while all that it allocates is added up,
and all that it multiplies is counted.
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
"""Layers that a GPU holds whole at a time where they are sharded: the one that runs, the one that is asked for, and
what that one arrives in."""


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
"""What torch's counter leaves out: gradients that are added up in place, and attention on CPUs."""


@dataclass(frozen=True)
class StepCost:
    """One step on one GPU that holds all weights; memory in bytes."""

    parameters: int
    sources: int
    destinations: int
    edges: int
    width: int
    """d_model."""

    weights: int
    """With what is made of them once."""

    layers: tuple[int, ...]
    """Weights of each layer."""

    stack: int
    """What all sources write."""

    memory: int
    """What a step adds at its most."""

    operations: int
    """Multiplications and additions of a step."""

    plain_operations: int
    """Those of a forward of the plain model on the same inputs."""

    masked_operations: int
    """Those of a forward under a mask."""

    def weights_on(self, gpus: int) -> int:
        """Weights that each of so many GPUs holds at its most, layers being sharded over several."""
        if gpus == 1:
            return self.weights
        whole = min(len(self.layers), _LAYERS_WHOLE) * max(self.layers)
        return self.weights - sum(self.layers) + math.ceil(sum(self.layers) / gpus) + whole


def step_cost(
    config: Any, inputs: int, tokens: int, *, predictions: int = 1, precision: Precision, device: str = "cuda"
) -> StepCost:
    """What one step of so many inputs takes.

    Args:
        config: the model's.
        inputs: those that run together.
        tokens: of each.
        predictions: tokens of each whose logits are compared.
        precision: of the model.
        device: the kind of device on which the step would run.

    Raises:
        ConfigError: the model takes no so many tokens.
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
    """What a step asks of the device: sources of corrupted inputs, a forward under a mask, and the way back to it."""
    target = torch.zeros(*positions.shape, model.vocabulary_size)
    scored = torch.ones(positions.shape, dtype=torch.bool)
    mask = torch.ones(1, len(model.graph.sources), len(model.graph.destinations), requires_grad=True)
    # What is ablated is not held beyond the forward.
    kl_divergence(model(tokens, mask, model.sources(tokens), positions), target, scored).mean().backward()


def load_config(name: str) -> Any:
    """A language model's configuration, such as a plan needs it.

    Args:
        name: on the hub, a folder with `config.json`, or that file.

    Raises:
        ModelError: there is none, or of another kind.
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
        # How rotations are scaled may depend on values, of which there are none here, and changes no size.
        config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    return config


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


class _Allocated(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most that there were."""

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
