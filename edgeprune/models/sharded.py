"""Weights of a language model, sharded over processes by PyTorch's `fully_shard` (FSDP2).

Each process holds a part of every layer. It holds a whole layer only during that layer's forward and backward pass.
Embeddings, the last norm and the unembedding are whole in every process. Our own forward pass does not call the layers'
modules, so FSDP's hooks do not run: layers are gathered (unsharded) and resharded here instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from edgeprune.parallel import Ranks, together


def shard(model: nn.Module, layers: Sequence[nn.Module], ranks: Ranks, device: torch.device) -> None:
    """Keep this process's part of every layer, and all weights outside the layers, on the device.

    Args:
        model: Hugging Face's model with all its weights, which are frozen here.
        layers: the layers of `model`.
        ranks: the processes to shard over.
        device: the device of this process's weights.
    """
    model.requires_grad_(requires_grad=False)
    mesh = init_device_mesh(device.type, (ranks.count,))
    for layer in layers:
        # With this, Hugging Face's own forward pass reshards each layer, too.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a weight that may be sharded. All processes must call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    with together():
        return tensor.full_tensor()


def sharded(layers: Sequence[nn.Module]) -> bool:
    """Return whether `shard` has sharded the layers."""
    return all(isinstance(layer, FSDPModule) for layer in layers)


def gathering(layers: Sequence[Any], make: Callable[[Any], Callable[[Any, int], None]]) -> list["_Gathering"]:
    """Return the blocks of sharded layers. Each layer is gathered during its forward and its backward pass."""
    return [_Gathering(layers, number, make) for number in range(len(layers))]


@dataclass(frozen=True)
class _Gathering:
    """The block of one layer. It prefetches the layer that runs next, forward or backward."""

    layers: Sequence[FSDPModule]
    number: int
    make: Callable[[Any], Callable[[Any, int], None]]
    """Makes the block of a gathered layer."""

    def __call__(self, stream: Any, length: int) -> None:
        layer = self.layers[self.number]
        self._unshard(1)
        stream.on_the_way_back(layer.reshard)
        self.make(layer)(stream, length)
        stream.on_the_way_back(lambda: self._unshard(-1))
        layer.reshard()

    def _unshard(self, step: int) -> None:
        coming = self.number + step
        with together():
            self.layers[self.number].unshard()
            if 0 <= coming < len(self.layers):
                self.layers[coming].unshard(async_op=True)
