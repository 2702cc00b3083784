"""Files that are never seen half written."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from edgeprune.errors import EdgePruneError


class UnwritableFile(EdgePruneError):
    """A file that cannot be written where it was asked for."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary file beside `path`, then rename it: whatever stood there stays whole until then.

    Raises:
        UnwritableFile: the folder does not exist, or cannot be written to.
    """
    name: str | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            name = file.name
            write(file.file)
        os.replace(name, path)
    except OSError as error:
        raise UnwritableFile(f"Expected a file that can be written; got {str(path)!r}: {error.strerror}") from error
    finally:
        if name is not None and os.path.exists(name):
            os.unlink(name)
