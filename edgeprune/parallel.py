"""One model on several processes, as `torchrun` starts them.

Every process runs the same code on the same examples with the same seeds. So masks, losses and optimisers are the same
on all of them, and methods need not know. Only batches are split: each process runs its own inputs, outputs are
gathered, and mask gradients are summed in the backward pass. Weights are sharded in `models/sharded.py`.
"""

import atexit
import math
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgeprune.errors import EdgePruneError, RunError
from edgeprune.files.folders import clear, locked


@contextmanager
def together() -> Generator[None]:
    """Run a step that all processes take part in.

    Raises:
        RunError: the step failed, for instance because a process has stopped.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RunError(
            f"Expected all processes to take part; {error!s:.300}. If one of them has stopped, what was saved stands: "
            "start all of them again, with --resume"
        ) from error


@dataclass(frozen=True)
class Ranks:
    """The processes that run one model together, and which of them this one is.

    Raises:
        RunError: communication with the other processes failed, for instance because one has stopped.
    """

    number: int = 0
    count: int = 1
    grouped: bool = False
    """True if torch has a process group even for a single process, which then runs as several do."""

    @property
    def several(self) -> bool:
        """Whether inputs, weights and values are split among processes."""
        return self.count > 1 or self.grouped

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.number == 0

    def rows(self, batch: int) -> Int[Tensor, " own"]:
        """Return the rows of a batch that this process runs: equally many per process, padded with the last row."""
        own = math.ceil(batch / self.count)
        return torch.arange(self.number * own, (self.number + 1) * own).clamp(max=batch - 1)

    def first_times(self, batch: int) -> Bool[Tensor, " own"]:
        """Return which of these rows are not padding, so that sums over processes count each row once."""
        own = math.ceil(batch / self.count)
        return torch.arange(self.number * own, (self.number + 1) * own) < batch

    def own(self, value: Tensor, dim: int) -> Tensor:
        """Return the part of `value` at this process's rows of a batch; `dim` is the batch dimension."""
        if not self.several:
            return value
        return value.index_select(dim, self.rows(value.shape[dim]).to(value.device))

    def gather(
        self, outputs: Float[Tensor, "*lead own predicted vocab"], batch: int
    ) -> Float[Tensor, "*lead batch predicted vocab"]:
        """Return the outputs of the whole batch, gathered from every process's rows."""
        if not self.several:
            return outputs
        by_rank: Tensor = _Gather.apply(outputs, self)  # pyright: ignore[reportAssignmentType]
        return by_rank.movedim(0, -4).flatten(-4, -3)[..., :batch, :, :]

    def alike(self, value: Tensor) -> Tensor:
        """Return the first process's value, which all should share; its gradient is summed over all processes."""
        if not self.several:
            return value
        return _Alike.apply(value)  # pyright: ignore[reportReturnType]

    def summed(self, value: Tensor) -> Tensor:
        """Sum `value` over all processes in place, and return it."""
        if self.several:
            with together():
                dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.several:
            with together():
                dist.barrier()

    def take_first(self, value: Tensor) -> None:
        """Overwrite `value` with the first process's, in case rounding made them differ."""
        if self.several:
            with together():
                dist.broadcast(value, src=0)

    def agree(self, number: int) -> bool:
        """Return whether `number` is the same on all processes."""
        both = torch.tensor([number, -number])
        if self.several:
            with together():
                dist.all_reduce(both, op=dist.ReduceOp.MAX)
        return bool(both[0] == -both[1])


ALONE: Final = Ranks()


def ranks_of(model: object) -> Ranks:
    """Return the processes that a model runs on; `ALONE` if the model names none."""
    return getattr(model, "ranks", ALONE)


def join() -> Ranks:
    """Return this process's rank among those that `torchrun` started; `ALONE` if it started none, or only one.

    If the machine has GPUs, each of its processes uses its own from here on.

    Raises:
        RunError: the other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_torchelastic_launched():
        return ALONE
    if not dist.is_initialized():
        _take_gpu()
        try:
            dist.init_process_group()
        except (RuntimeError, ValueError) as error:
            raise RunError(f"Expected to reach the other processes of the run: {error!s:.300}") from error
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), dist.get_world_size())


def _take_gpu() -> None:
    """Make `cuda` mean the GPU whose number is this process's local rank, if the machine has that GPU."""
    number = int(os.environ["LOCAL_RANK"])
    if number < torch.cuda.device_count():
        torch.cuda.set_device(number)


@contextmanager
def sole_writer(folder: Path, what: str) -> Generator[None]:
    """Make this run, on however many processes, the only writer to a folder: the first process locks the folder.

    Unfinished files that a killed run left in the folder are removed.

    Raises:
        Busy: another run writes to the folder.
        UnwritableFile: the folder cannot be made, or written to.
        RunError: the first process could not lock the folder.
    """
    ranks = join()
    with ExitStack() as held:
        fault: EdgePruneError | None = None
        if ranks.first:
            try:
                held.enter_context(locked(folder, what))
                clear(folder)
            except EdgePruneError as error:
                fault = error
        failed = torch.tensor(int(fault is not None))
        ranks.take_first(failed)
        if failed:
            raise fault or RunError(f"Expected {str(folder)!r} to be written to by the first process; it cannot")
        yield


class _Gather(torch.autograd.Function):
    """All processes' values, stacked. Each process takes its own part of the gradient, which is the same on all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.number = ranks.number
        parts = [torch.empty_like(value) for _ in range(ranks.count)]
        with together():
            dist.all_gather(parts, value.contiguous())
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient[ctx.number], None


class _Alike(torch.autograd.Function):
    """The first process's value, broadcast to all; the gradient is summed over processes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        same = value.contiguous().clone()
        with together():
            dist.broadcast(same, src=0)
        return same

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.contiguous().clone()
        with together():
            dist.all_reduce(total)
        return total
