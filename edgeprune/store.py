"""Files that are never seen half written."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from edgeprune.errors import EdgePruneError


class UnwritableFile(EdgePruneError):
    """A file that cannot be written where it was asked for."""


def check_writable(path: Path) -> None:
    """Find out before long work whether its result can be written to `path`.

    Raises:
        UnwritableFile: the folder does not exist or cannot be written to, or `path` is itself a folder.
    """
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UnwritableFile(f"Expected a file in an existing, writable folder; got {str(path)!r}")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary file beside `path`, then rename it: whatever stood there stays whole until then.

    Raises:
        UnwritableFile: the folder does not exist, or cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        raise UnwritableFile(f"Expected a file that can be written; got {str(path)!r}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
