"""Draw random programs that depend on a seed alone.

Hypothesis searches for failures: it mutates and repeats what it drew, and mixes in constants from whatever modules are
loaded. A sweep needs the plain distribution instead, the same in every process.
"""

import itertools
from collections.abc import Callable
from random import Random
from typing import Any, NoReturn

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, PrimitiveProvider
from tqdm import tqdm

from tracr_bridge.random_programs.strategies import DrawnProgram, rasp_programs

_BATCH = 64
"""Maximum number of programs drawn at a time."""


def draw_programs(count: int, *, seed: int, progress: bool = False) -> list[DrawnProgram]:
    """Return `count` different random programs; a larger `count` starts with the same programs.

    Args:
        count: number of programs.
        seed: the same seed gives the same programs in any process, under the same version of Hypothesis.
        progress: show a progress bar on standard error, if that is a terminal.
    """
    drawn: dict[str, DrawnProgram] = {}

    def collect(program: DrawnProgram) -> None:
        drawn.setdefault(program.source, program)
        bar.update(min(len(drawn), count) - bar.n)

    with tqdm(total=count, desc="drawing programs", disable=None if progress else True) as bar:
        for batch in itertools.count():
            if len(drawn) >= count:
                break
            _draw(collect, min(2**batch, _BATCH), seed=f"{seed}/{batch}")
    return list(drawn.values())[:count]


def _draw(collect: Callable[[DrawnProgram], None], count: int, *, seed: str) -> None:
    """Draw `count` programs and pass each to `collect`."""

    class Seeded(_Uniform):
        def __init__(self, conjecturedata: Any, /) -> None:
            super().__init__(conjecturedata)
            self.random = Random(seed)

    AVAILABLE_PROVIDERS["edgeprune-uniform"] = Seeded
    try:
        plain = settings(
            backend="edgeprune-uniform",
            max_examples=count,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        )
        plain(given(rasp_programs())(collect))()
    finally:
        del AVAILABLE_PROVIDERS["edgeprune-uniform"]


class _Uniform(PrimitiveProvider):
    """A Hypothesis backend that draws integers uniformly and booleans with the given probability."""

    random: Random

    def draw_boolean(self, p: float = 0.5) -> bool:
        return self.random.random() < p

    def draw_integer(self, min_value: int | None = None, max_value: int | None = None, **_: Any) -> int:
        assert min_value is not None and max_value is not None, "programs are drawn from bounded choices"
        return self.random.randint(min_value, max_value)

    def draw_float(self, **_: Any) -> NoReturn:
        raise NotImplementedError

    def draw_string(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError

    def draw_bytes(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError
