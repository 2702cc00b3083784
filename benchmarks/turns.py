"""Times several functions in turns."""

import statistics
import time
from collections.abc import Callable


def in_turns(*runs: Callable[[], object], rounds: int) -> list[float]:
    """Return each function's median seconds after a first round; a machine that slows down slows all of them."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, mine in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine[1:]) for mine in times]
