"""The state of what takes long, as a file of tensors: written whole or not at all, and given back."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from edgeprune.errors import RunError
from edgeprune.store import write_atomically


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state.

    Raises:
        UnwritableFile: there is no room, or no such folder.
    """
    apart = {name: value.clone().contiguous() for name, value in state.items()}  # some are one and the same
    write_atomically(path, lambda file: file.write(save(apart)))


def restore_from(path: Path, restore: Callable[[Mapping[str, Tensor]], None]) -> None:
    """Give a state that was written back to what it is of.

    Raises:
        RunError: it is damaged, or of something else.
    """
    try:
        restore(load_file(path))
    except (SafetensorError, KeyError, RuntimeError, ValueError, OSError) as error:
        raise RunError(
            f"Expected a checkpoint of this run in {str(path)!r}; it is damaged: {error!s:.200}. Put a copy in its "
            "place, or take it away to begin again"
        ) from error
