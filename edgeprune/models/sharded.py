"""Weights of a language model sharded over processes by PyTorch's `fully_shard` (FSDP2).

Each process holds a part of every layer, and all of a layer only while it runs, forth or back. Embeddings, the last
norm and the weights of the logits are whole everywhere. Layers are run by our own forward rather than by their
modules', so that they are put together and taken apart here, where FSDP's hooks would.
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
    """Leave this process its part of every layer, on the device, and all of what lies outside of them.

    Args:
        model: with all weights; they are frozen.
        layers: of it.
        ranks: two processes or more.
        device: where parts are to be.
    """
    model.requires_grad_(requires_grad=False)
    mesh = init_device_mesh(device.type, (ranks.count,))
    for layer in layers:
        # Hugging Face's own forward takes each layer apart again, too.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)


def whole(tensor: Tensor) -> Tensor:
    """A weight that may be sharded, put together again; all processes ask for it."""
    if not isinstance(tensor, DTensor):
        return tensor
    with together():
        return tensor.full_tensor()


def sharded(layers: Sequence[nn.Module]) -> bool:
    """Whether `shard` has been there."""
    return all(isinstance(layer, FSDPModule) for layer in layers)


def gathering(layers: Sequence[Any], make: Callable[[Any], Callable[[Any, int], None]]) -> list["_Gathering"]:
    """Blocks of sharded layers, each of which is put together while it runs and while it is walked back through."""
    return [_Gathering(layers, number, make) for number in range(len(layers))]


@dataclass(frozen=True)
class _Gathering:
    """One block; the next one to run is asked for meanwhile."""

    layers: Sequence[FSDPModule]
    number: int
    make: Callable[[Any], Callable[[Any, int], None]]
    """Of a layer that is whole."""

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
