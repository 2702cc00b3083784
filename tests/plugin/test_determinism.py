"""Same seed, same run: in other processes, under other hash seeds, and in every worker of pytest-xdist."""

import inspect
import json

from edgeprune.methods import find_method
from tracr_bridge.sample import draw_programs


def discover(program, ablation):
    """The circuit, the scores and every loss on the way: a run that drew anything else would differ in the last."""
    found = find_method("edge-pruning")(program.model, program.dataset, ablation, seed=1)
    return [found.circuit.names(), found.scores.tolist(), [record.loss for record in found.history]]


TEST = f"""
import json
from pathlib import Path

from edgeprune.methods import find_method
from tracr_bridge.sample import draw_programs

EXPECTED = json.loads(Path("expected.json").read_text())

{inspect.getsource(discover)}

def test_found(compiled, truth):
    found = discover(compiled("sort_unique"), "resample")
    assert [*found, truth("sort_unique", "resample").circuit.names()] == EXPECTED["found"]

def test_drawn():
    assert [program.source for program in draw_programs(8, seed=0)] == EXPECTED["drawn"]
"""


def test_every_worker_of_another_process_finds_the_same(pytester, monkeypatch, compiled, truth):
    found = [*discover(compiled("sort_unique"), "resample"), truth("sort_unique", "resample").circuit.names()]
    drawn = [program.source for program in draw_programs(8, seed=0)]
    pytester.path.joinpath("expected.json").write_text(json.dumps({"found": found, "drawn": drawn}))
    pytester.makepyfile(TEST)
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    pytester.runpytest_subprocess("-n", "2", "--dist", "each").assert_outcomes(passed=4)
