"""Runs a sweep on a Ray cluster: each program is one task, and its rows come back one by one.

Every machine of the cluster needs this toolkit and its dependencies, in the versions of the driver (the machine that
starts the sweep). Workers load shipped programs by name and get random programs as text. Your own program and method
files are not sent, because they may read other files: put them at the same path on every machine, for instance in a
shared folder. Tasks run in the driver's working directory if the worker has it, so that relative paths and methods
beside them resolve alike. Before it runs, a task compares all code (methods included) and the versions that rows
record with the driver's, and refuses to run if they differ.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from edgeprune.errors import EdgePruneError
from edgeprune.files.store import versions
from edgeprune.methods import find_method
from tracr_bridge.bench.results import Row, code_digest
from tracr_bridge.bench.run import Run, Subject, Work, WorkerDied, named_subject, run_subject

_AHEAD: Final = 1000
"""Tasks handed to Ray at a time: enough to show it how many machines are worth using, few enough for one `wait`."""

_ANSWER: Final = 10.0
"""Seconds within which a machine has to answer; Ray itself gives up only after two minutes."""


class ClusterError(EdgePruneError):
    """The Ray cluster cannot be used: Ray is missing, nobody answers, or one of its machines has other code."""


def rows(work: Work, seconds: float, address: str) -> Iterator[Row]:
    """Yield the rows of all work, each as soon as it is known.

    A process that is already connected to a cluster keeps that connection, whatever the address. Otherwise the
    connection is closed after the last row, and so is a cluster that was started for this sweep.

    Args:
        work: programs, and the runs to make on each.
        seconds: time limit of one discovery.
        address: as for `ray.init`: `auto`, `host:6379`, `ray://host:10001`, or `local` to start a cluster here.

    Raises:
        ClusterError: Ray is not installed, there is no cluster at the address, or its code is not the driver's.
        WorkerDied: a task ended before it was done; all other tasks have ended, and rows that arrived were yielded.
    """
    if not work:
        return
    ray = _installed_ray()
    asked = _Asked.here({run.method for _, todo in work for run in todo})
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        yield from (_relayed if _outside() else _streamed)(work, seconds, asked)
    finally:
        if ours:
            ray.shutdown()


def _installed_ray() -> Any:
    """Return the module `ray`, as Any: its type hints are not reliable.

    Raises:
        ClusterError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f"Expected Ray to be installed: pip install 'edgeprune[ray]' ({error})") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Connect to the cluster at the address, or start one.

    Raises:
        ClusterError: there is no cluster at the address.
    """
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
        started_here = {"include_dashboard": False} if address == "local" else {}
        ray.init(address, log_to_driver=False, logging_level="warning", **started_here)
    except (Exception, SystemExit) as error:  # Ray exits when the machine belongs to no cluster
        reason = "Ray gave up" if isinstance(error, SystemExit) else str(error).strip().rpartition("\n")[2]
        raise ClusterError(
            f"Expected a Ray cluster as auto, host:6379, ray://host:10001 or local; got {address!r}: {reason} "
            "(`ray start --head` starts a cluster; one that asks for tokens is joined with RAY_AUTH_MODE=token)"
        ) from error


def _outside() -> bool:
    """Whether this process is a Ray client, outside the cluster."""
    from ray.util.client import ray as client

    return client.is_connected()


# On the workers


@dataclass(frozen=True)
class _Asked:
    """The driver's working directory, versions and code; a worker must match the versions and the code."""

    folder: str
    versions: Mapping[str, str]
    code: dict[str, str]
    """The digest of the code, by method (`results.code_digest`)."""

    @classmethod
    def here(cls, methods: set[str]) -> "_Asked":
        return cls(os.getcwd(), versions(), {method: code_digest(method) for method in methods})


def _run(subject: Subject, todo: list[Run], seconds: float, asked: _Asked) -> Iterator[Row]:
    """Yield the rows of one program; this is the Ray task.

    Raises:
        ClusterError: this machine lacks a file, or has other code or versions than the driver.
    """
    with suppress(OSError):  # if the folder is missing here, the checks below report the missing files
        os.chdir(asked.folder)
    machine = socket.gethostname()
    try:
        for method in {run.method for run in todo}:
            find_method(method)  # load it, so that `code_digest` finds its file
        text = subject.text if subject.drawn else named_subject(subject.name).text
    except EdgePruneError as error:
        raise ClusterError(
            f"{machine} of the Ray cluster has not all files of the machine that asks: put your own at the same path "
            f"on every machine ({error})"
        ) from error
    differing = [name for name, version in versions().items() if version != asked.versions[name]]
    differing += [method for method in {run.method for run in todo} if code_digest(method) != asked.code[method]]
    differing += [subject.name] if text != subject.text else []
    if differing:
        raise ClusterError(
            f"{machine} of the Ray cluster differs from the machine that asks in {', '.join(differing)}: install the "
            "same versions on every machine, and put the same files of your own at the same path"
        )
    yield from run_subject(subject, todo, seconds)


# On the driver


def _streamed(work: Work, seconds: float, asked: _Asked) -> Iterator[Row]:
    """Yield the rows of as many tasks at a time as the cluster has room for."""
    from ray.exceptions import RayError, RayTaskError

    ray = _installed_ray()
    # A lambda: Ray needs a generator function, and the type checker of the tests wraps all named functions.
    task = ray.remote(num_returns="streaming", max_retries=0)(lambda *given: (yield from _run(*given)))
    to_come = iter(work)
    streams: dict[Any, str] = {}
    died: list[str] = []
    try:
        while True:
            for subject, todo in islice(to_come, _AHEAD - len(streams)):
                streams[task.options(name=subject.name).remote(subject, todo, seconds, asked)] = subject.name
            if not streams:
                break
            (stream, *_), _ = ray.wait(list(streams))
            try:
                row: Row = ray.get(next(stream))
            except StopIteration:
                del streams[stream]
            except RayTaskError as error:
                raise _reason(error) from error
            except RayError:  # the worker was killed, or its machine was lost or ran out of memory
                died.append(streams.pop(stream))
            else:
                yield row
    finally:  # a connection that is not ours stays open, so its running tasks have to be cancelled
        for stream in streams:
            ray.cancel(stream)
    _check_none_died(died, len(work))


def _reason(error: Any) -> Exception:
    """Return the error to raise for a task's error; one for the user has a one-line message."""
    from ray.exceptions import RaySystemError

    if isinstance(error.cause, EdgePruneError):
        return error.cause
    if isinstance(error.cause, RaySystemError):  # Ray could not load the task
        reason = str(error.cause).partition("\n")[0]
        return ClusterError(f"Expected this version of edgeprune on every machine of the Ray cluster; got {reason!r}")
    return error


def _check_none_died(died: Sequence[str], programs: int) -> None:
    """Raise WorkerDied if any task died."""
    if died:
        more = " and more" if len(died) > 3 else ""
        raise WorkerDied(
            f"{len(died)} of {programs} tasks were ended from outside, or by a method ({', '.join(died[:3])}{more}); "
            "what they sent was kept: run it again"
        )


class _Relay:
    """Actor inside the cluster for a driver outside it: Ray cannot stream to that driver, which asks row by row."""

    def __init__(self, work: Work, seconds: float, asked: _Asked) -> None:
        self._rows = _streamed(work, seconds, asked)

    def next(self) -> Row | None:
        return next(self._rows, None)


def _relayed(work: Work, seconds: float, asked: _Asked) -> Iterator[Row]:
    """Yield the rows that a relay inside the cluster hands on."""
    from ray.exceptions import RayError, RayTaskError

    ray = _installed_ray()
    relay = ray.remote(num_cpus=0)(_Relay).remote(list(work), seconds, asked)
    try:
        while (row := ray.get(relay.next.remote())) is not None:
            yield row
    except RayTaskError as error:
        raise _reason(error) from error
    except RayError as error:
        raise WorkerDied(
            "The Ray cluster lost the process that hands on its rows, or could not load it: run it again, with this "
            f"version of edgeprune on every machine ({error})"
        ) from error
    finally:
        with suppress(Exception):  # if the connection is lost, there is nothing to end
            ray.kill(relay)
