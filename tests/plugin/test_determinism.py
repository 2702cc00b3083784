"""Same seed, same circuit: in other processes, under other hash seeds, and in every worker of pytest-xdist."""

import json

from tracr_bridge.sample import draw_programs

TEST = """
import json
from pathlib import Path

import pytest
from tracr_bridge.sample import draw_programs

EXPECTED = json.loads(Path("expected.json").read_text())

@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_found(compiled, truth, recover, ablation):
    found = recover("sort_unique", ablation, seed=1)
    assert [found.found.names(), truth("sort_unique", ablation).circuit.names()] == EXPECTED[ablation]

def test_drawn():
    assert [program.source for program in draw_programs(8, seed=0)] == EXPECTED["drawn"]
"""


def test_every_worker_of_another_process_finds_the_same(pytester, monkeypatch, recover, truth):
    circuits = {
        ablation: [
            recover("sort_unique", ablation, seed=1).found.names(),
            truth("sort_unique", ablation).circuit.names(),
        ]
        for ablation in ("zero", "resample")
    }
    drawn = [program.source for program in draw_programs(8, seed=0)]
    pytester.path.joinpath("expected.json").write_text(json.dumps({**circuits, "drawn": drawn}))
    pytester.makepyfile(TEST)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    pytester.runpytest_subprocess("-n", "2", "--dist", "each").assert_outcomes(passed=6)
