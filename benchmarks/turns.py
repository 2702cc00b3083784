"""Timing things side by side."""

import statistics
import time
from collections.abc import Callable


def in_turns(*runs: Callable[[], object], rounds: int) -> list[float]:
    """The median seconds of each, over rounds after a first one: a machine that slows down slows all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, mine in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine[1:]) for mine in times]
