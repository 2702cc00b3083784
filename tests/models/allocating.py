"""The most memory that was allocated at a time, as torch's own allocator tells."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def most_allocated(run: Callable[[], object]) -> int:
    """Bytes that `run` adds at its most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        run()
    now = most = 0
    events = told.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
