"""One model on several processes, as `torchrun` starts them.

Every process runs the same code, on the same examples, with the same seeds: masks, losses and optimisers are alike on
all, and methods need not know. What is split is a batch: each process runs the inputs that are its own, outputs are
gathered, and gradients by masks are summed on the way back. Weights are sharded in `models/sharded.py`.
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
    """What all processes take part in.

    Raises:
        RunError: it failed, as it does where one of them has stopped.
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
    """Processes that run one model together, and which of them this one is.

    Raises:
        RunError: of all that talks to the others: it failed, as it does where one of them has stopped.
    """

    number: int = 0
    count: int = 1
    grouped: bool = False
    """Whether torch has a group of processes for them even if there is but one, so that one runs as several do."""

    @property
    def several(self) -> bool:
        """Whether inputs, weights and values are shared out."""
        return self.count > 1 or self.grouped

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.number == 0

    def rows(self, batch: int) -> Int[Tensor, " own"]:
        """The rows of a batch that this process runs: equally many for each, the last row again where they run out."""
        own = math.ceil(batch / self.count)
        return torch.arange(self.number * own, (self.number + 1) * own).clamp(max=batch - 1)

    def first_times(self, batch: int) -> Bool[Tensor, " own"]:
        """Which of these rows no process has run before, so that sums over processes count them once."""
        own = math.ceil(batch / self.count)
        return torch.arange(self.number * own, (self.number + 1) * own) < batch

    def own(self, value: Tensor, dim: int) -> Tensor:
        """The part of `value` that belongs to this process's rows of a batch, which lies along `dim`."""
        if not self.several:
            return value
        return value.index_select(dim, self.rows(value.shape[dim]).to(value.device))

    def gather(
        self, outputs: Float[Tensor, "*lead own predicted vocab"], batch: int
    ) -> Float[Tensor, "*lead batch predicted vocab"]:
        """The outputs of the whole batch, from those of every process's rows."""
        if not self.several:
            return outputs
        by_rank: Tensor = _Gather.apply(outputs, self)  # pyright: ignore[reportAssignmentType]
        return by_rank.movedim(0, -4).flatten(-4, -3)[..., :batch, :, :]

    def alike(self, value: Tensor) -> Tensor:
        """The first process's value, which should be that of all; its gradient is the sum of all of theirs."""
        if not self.several:
            return value
        return _Alike.apply(value)  # pyright: ignore[reportReturnType]

    def summed(self, value: Tensor) -> Tensor:
        """The sum of all processes' values, which takes the place of this one's."""
        if self.several:
            with together():
                dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.several:
            with together():
                dist.barrier()

    def take_first(self, value: Tensor) -> None:
        """Put the first process's values in the place of these, should rounding have told them apart."""
        if self.several:
            with together():
                dist.broadcast(value, src=0)

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number."""
        both = torch.tensor([number, -number])
        if self.several:
            with together():
                dist.all_reduce(both, op=dist.ReduceOp.MAX)
        return bool(both[0] == -both[1])


ALONE: Final = Ranks()


def ranks_of(model: object) -> Ranks:
    """The processes that a model runs on; most know of none but this one."""
    return getattr(model, "ranks", ALONE)


def join() -> Ranks:
    """This process's place among those that `torchrun` started; alone if it started none.

    Where there are GPUs, each process of a machine has its own from here on.

    Raises:
        RunError: the others cannot be reached.
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
    """Let `cuda` mean the GPU whose number this process has on its machine, where there is one of that number."""
    number = int(os.environ["LOCAL_RANK"])
    if number < torch.cuda.device_count():
        torch.cuda.set_device(number)


@contextmanager
def sole_writer(folder: Path, what: str) -> Generator[None]:
    """Let this run, on however many processes, be the only one that writes to a folder: the first process locks it.

    What a run that was killed left unfinished in the folder goes.

    Raises:
        Busy: another run writes to it.
        UnwritableFile: it cannot be made, or written to.
        RunError: the first process could not lock it.
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
    """All processes' values, one after the other; each takes its own part of the gradient, which all have alike."""

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
    """The first process's value; the gradient is summed over processes."""

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
