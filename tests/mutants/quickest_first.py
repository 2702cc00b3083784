"""A plugin for the runs of mutmut: quick tests come first, so that most mutants are noticed at once."""

import json
from pathlib import Path

import pytest

STATS = Path("mutmut-stats.json")
"""How long each test took, which mutmut writes where it runs them."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the quickest first, once it is known how long each takes."""
    if STATS.exists():
        seconds: dict[str, float] = json.loads(STATS.read_text())["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))
