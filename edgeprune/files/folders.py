"""Folders with one writer at a time, and folders that appear only when they are complete.

A writer holds a lock that the operating system releases when its process ends, however it ends. What a killed process
left is recognised by that: it is hidden, and nobody holds its lock.
"""

import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from edgeprune.errors import EdgePruneError, RunError
from edgeprune.files.store import UnwritableFile, check_writable, load_json, read_text

LOCK: Final = ".edgeprune.lock"
"""Lock file in a folder that is being written to. It is removed at the end; one that is left over blocks nobody."""

_HIDDEN: Final = re.compile(r"(\.[0-9a-f]{32})(\.lock)?")


class Busy(RunError):
    """Another process writes to the folder."""


@contextmanager
def locked(folder: Path, what: str = "a run") -> Generator[None]:
    """Create a folder if it is missing, and hold its lock, so that no other process writes to it.

    Raises:
        Busy: another process writes to it.
        UnwritableFile: it is not a folder, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableFile(f"Expected a folder for {what}; got {str(folder)!r}: {error.strerror}") from error
    busy = f"Expected a folder that nobody else writes to; another process has {what} in {str(folder)!r}: wait for it, "
    with _lock(folder / LOCK, f"{busy}or name another folder"):
        yield


@contextmanager
def _lock(path: Path, busy: str) -> Generator[None]:
    """Hold a lock; its file is removed at the end.

    Raises:
        Busy: another process holds the lock; `busy` is the message.
        UnwritableFile: the lock's file cannot be created.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Busy(busy) from error
    except OSError as error:
        raise UnwritableFile(f"Expected a folder that can be written to; got {str(path.parent)!r}: {error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before it is released: a process that has opened the file notices that it is gone
        lock.release()


def unfinished(folder: Path) -> list[Path]:
    """Return locks and hidden files in a folder: left by a killed process, or in use by one that is writing."""
    return [file for file in folder.iterdir() if file.name == LOCK or _HIDDEN.fullmatch(file.name)]


def existing(name: str) -> str:
    """Return the absolute path of a file or folder, so that it means the same from elsewhere, or else the name."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def is_unused(folder: Path) -> bool:
    """Whether the folder does not exist, or holds nothing but unfinished files."""
    return not os.path.lexists(folder) or (folder.is_dir() and len(unfinished(folder)) == len(list(folder.iterdir())))


def clear(*folders: Path) -> None:
    """Remove what killed processes left in folders that this process has locked.

    That is, files of `store.write_atomically`, and folders of `new_folder` whose process has ended.

    Raises:
        UnwritableFile: a file cannot be removed.
    """
    for file in (each for folder in folders if folder.is_dir() for each in unfinished(folder)):
        if file.suffix != ".lock" and not file.is_dir():  # another process may hold a lock
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UnwritableFile(f"Expected a file that can be removed; got {str(file)!r}: {error}") from error
    for folder in filter(Path.is_dir, folders):
        _remove_abandoned(folder)


@contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """Yield a hidden folder beside `out` to write to, and rename it to `out` at the end; on an error, remove it.

    Hidden folders of killed processes beside `out` are removed too.

    Raises:
        Busy: another process is making `out`.
        UnwritableFile: `out` exists already, or cannot be made.
    """
    if not os.path.lexists(out):
        check_writable(out)
    # All processes that make `out` use one hidden name, so one lock says whether any does and the folder is in use.
    parent, name = os.path.split(os.path.abspath(out))
    hidden = Path(parent) / f".{sha256(os.fsencode(name)).hexdigest()[:32]}"
    busy = f"Expected a folder that nobody else makes; another process is at work on {str(out)!r}: name another folder"
    with _lock(hidden.with_name(f"{hidden.name}.lock"), busy):
        _remove_abandoned(hidden.parent)
        shutil.rmtree(hidden, ignore_errors=True)
        if os.path.lexists(out):
            raise UnwritableFile(
                f"Expected a folder that does not exist yet; got {str(out)!r}: take it away, or name another one"
            )
        try:
            hidden.mkdir()
            yield hidden
            os.replace(hidden, out)
        except OSError as error:
            raise UnwritableFile(f"Expected a folder that can be made; got {str(out)!r}: {error!s:.200}") from error
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the hidden folders of processes that ended before they finished."""
    for file in parent.iterdir():
        if (found := _HIDDEN.fullmatch(file.name)) and found[2]:
            with suppress(EdgePruneError), _lock(file, "it is needed"):
                shutil.rmtree(parent / found[1], ignore_errors=True)


def circuit_file(path: Path) -> Path:
    """Return the file of a circuit: `path` itself, or `circuit.json` in that folder.

    Raises:
        RunError: the folder holds a run that has not ended; the message says at which step it stands.
    """
    if not path.is_dir():
        return path
    file = path / "circuit.json"
    if not os.path.lexists(file) and (path / "run.json").is_file():
        content, metrics = load_json(path / "run.json", "a run", RunError), path / "metrics.jsonl"
        done = read_text(metrics, "metrics", RunError).count("\n") if metrics.is_file() else 0
        try:
            steps = f"{int(content['config']['pruning']['steps']):,}"
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunError(f"Expected a run of `edgeprune prune` in {str(path)!r}; its run.json is none") from error
        raise RunError(
            f"Expected a run that has ended; the one in {str(path)!r} stands at step {done:,} of {steps}: go on with "
            f"the command that began it, and --resume{_from_checkpoint(path / 'checkpoint.safetensors')}"
        )
    return file


def _from_checkpoint(path: Path) -> str:
    """Return where a run will resume, in words."""
    if not path.is_file():
        return ", from the beginning, as it has no checkpoint yet"
    try:
        with safe_open(path, framework="numpy") as tensors:
            return f", from its checkpoint at step {int(tensors.get_tensor('place')[0]):,}"
    except (SafetensorError, OSError, IndexError, TypeError, ValueError):
        return ""
