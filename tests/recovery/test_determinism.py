"""Same program, same function; same seed, same run: in other processes, under other hash seeds, in workers of xdist."""

import inspect
import json
import os

import pytest

from edgeprune.methods import find_method
from tracr_bridge.random_programs.draw import draw_programs


def discover(program, true):
    """The compiled function and edges, what is true, the circuit found, and every loss on the way.

    A run that drew anything else would differ in the last, bit by bit.
    """
    found = find_method("edge-pruning-minimax")(program.model, program.dataset, "resample", seed=1)
    target = (program.dataset.target * program.dataset.scored[..., None]).round(decimals=2) + 0.0
    return [
        [str(value) for value in program.output_values],
        target.tolist(),
        sorted(map(str, program.model.structural)),
        true.circuit.names(),
        found.circuit.names(),
        found.scores.tolist(),
        [record.loss for record in found.history],
    ]


PROGRAM = """
from tracr.rasp import rasp
from tracr_bridge import rasp_program

@rasp_program(vocab=("a", "b"), max_seq_len=2)
def is_a() -> rasp.SOp:
    return rasp.Map(lambda token: token == "a", rasp.tokens).named("is_a")
"""

TEST = f"""
import json
from pathlib import Path

from edgeprune.methods import find_method
from tracr_bridge.random_programs.draw import draw_programs

EXPECTED = json.loads(Path("expected.json").read_text())

{inspect.getsource(discover)}

def test_found(compiled, truth):
    assert discover(compiled("detect_pattern"), truth("detect_pattern", "resample")) == EXPECTED["found"]

def test_drawn():
    assert [program.source for program in draw_programs(3, seed=0)] == EXPECTED["drawn"]
"""


@pytest.mark.sweep
def test_every_worker_of_another_process_finds_the_same(pytester, monkeypatch, compiled, truth):
    found = discover(compiled("detect_pattern"), truth("detect_pattern", "resample"))
    drawn = [program.source for program in draw_programs(3, seed=0)]
    pytester.path.joinpath("expected.json").write_text(json.dumps({"found": found, "drawn": drawn}))
    pytester.makepyfile(TEST, **{"programs/is_a": PROGRAM})
    monkeypatch.setenv("PYTHONHASHSEED", "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1")
    arguments = ("-n", "2", "--dist", "each", "--circuit-ablation", "zero", ".", "programs/is_a.py")
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=2 * (2 + 3))
