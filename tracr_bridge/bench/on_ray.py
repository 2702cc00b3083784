"""A sweep on a Ray cluster: every program is a task there, and its rows come back one by one.

What each machine of the cluster needs is this toolkit with all that it depends on, in the versions of the driver, the
machine that asks. Shipped programs are loaded there by name, and drawn ones travel as their text. Files of one's own,
programs and methods, are not sent, since nobody knows what else they read: they have to be at the same path everywhere,
as in a shared folder. Tasks run in the driver's working directory, where there is one, so that relative paths, and
methods beside them, mean the same. Before it runs, a task compares all code, that of methods among it, and the versions
that rows note, and refuses to run with others.
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
"""Tasks handed to Ray at a time: enough for it to see how many machines would pay, few enough to wait for at once."""

_ANSWER: Final = 10.0
"""Seconds in which a machine has to answer; Ray itself takes two minutes to give up."""


class ClusterError(EdgePruneError):
    """A Ray cluster that cannot be used: Ray is missing, nobody answers, or a machine of it holds other code."""


def rows(work: Work, seconds: float, address: str) -> Iterator[Row]:
    """The rows of all work, each as soon as it is known.

    A process that is connected to a cluster already stays so, whatever the address; otherwise the connection, or the
    cluster if it was started for this, ends with the rows.

    Args:
        work: programs, and what to run on each.
        seconds: how long one discovery may take.
        address: as `ray.init` takes it: `auto`, `host:6379`, `ray://host:10001`, or `local` to start a cluster here.

    Raises:
        ClusterError: Ray is not installed, there is no cluster at the address, or its code is not the driver's.
        WorkerDied: a task ended before its work did; all other tasks have ended too, and what was sent is handed on.
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
    """Ray itself; most of what it returns has no type that holds.

    Raises:
        ClusterError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f"Expected Ray to be installed: pip install 'edgeprune[ray]' ({error})") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Connect to the cluster at the address, or start one.

    Raises:
        ClusterError: there is none.
    """
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
        started_here = {"include_dashboard": False} if address == "local" else {}
        ray.init(address, log_to_driver=False, logging_level="warning", **started_here)
    except (Exception, SystemExit) as error:  # the latter is how Ray gives up on a machine that is no cluster's
        reason = "Ray gave up" if isinstance(error, SystemExit) else str(error).strip().rpartition("\n")[2]
        raise ClusterError(
            f"Expected a Ray cluster as auto, host:6379, ray://host:10001 or local; got {address!r}: {reason} "
            "(`ray start --head` starts a cluster; one that asks for tokens is joined with RAY_AUTH_MODE=token)"
        ) from error


def _outside() -> bool:
    """Whether the cluster is one that this machine does not belong to."""
    from ray.util.client import ray as client

    return client.is_connected()


# On the workers


@dataclass(frozen=True)
class _Asked:
    """What the driver runs, and from where; a worker has to have the same."""

    folder: str
    versions: Mapping[str, str]
    code: dict[str, str]
    """The digest of each method."""

    @classmethod
    def here(cls, methods: set[str]) -> "_Asked":
        return cls(os.getcwd(), versions(), {method: code_digest(method) for method in methods})


def _run(subject: Subject, todo: list[Run], seconds: float, asked: _Asked) -> Iterator[Row]:
    """The rows of one program, as a task.

    Raises:
        ClusterError: this machine would run something else than what was asked for.
    """
    with suppress(OSError):  # files that are named from a folder that is not here are missed below
        os.chdir(asked.folder)
    machine = socket.gethostname()
    try:
        for method in {run.method for run in todo}:
            find_method(method)  # its file counts, once it is loaded
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
    """The rows, from as many tasks at a time as the cluster has room for."""
    from ray.exceptions import RayError, RayTaskError

    ray = _installed_ray()
    # A lambda, as Ray takes generator functions alone, and what checks types in tests wraps all that have a name.
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
            except RayError:  # whatever ends a worker: it was killed, or its machine was lost or had no memory left
                died.append(streams.pop(stream))
            else:
                yield row
    finally:  # if the connection is not ours, nobody else stops what is running
        for stream in streams:
            ray.cancel(stream)
    _check_none_died(died, len(work))


def _reason(error: Any) -> Exception:
    """What a task raised, in one line if it is for the user."""
    from ray.exceptions import RaySystemError

    if isinstance(error.cause, EdgePruneError):
        return error.cause
    if isinstance(error.cause, RaySystemError):  # Ray could not even load the task
        reason = str(error.cause).partition("\n")[0]
        return ClusterError(f"Expected this version of edgeprune on every machine of the Ray cluster; got {reason!r}")
    return error


def _check_none_died(died: Sequence[str], programs: int) -> None:
    """Raises WorkerDied where one did."""
    if died:
        more = " and more" if len(died) > 3 else ""
        raise WorkerDied(
            f"{len(died)} of {programs} tasks were ended from outside, or by a method ({', '.join(died[:3])}{more}); "
            "what they sent was kept: run it again"
        )


class _Relay:
    """Inside the cluster, for a driver that is not: Ray streams to no such client, which asks row by row instead."""

    def __init__(self, work: Work, seconds: float, asked: _Asked) -> None:
        self._rows = _streamed(work, seconds, asked)

    def next(self) -> Row | None:
        return next(self._rows, None)


def _relayed(work: Work, seconds: float, asked: _Asked) -> Iterator[Row]:
    """The rows, by way of a relay in the cluster."""
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
        with suppress(Exception):  # nothing to end where the connection is lost
            ray.kill(relay)
