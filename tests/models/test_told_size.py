"""The paper's objective on checkpoints, told the size of the true circuit: which it finds is a golden table."""

import json
import sys
from pathlib import Path

import pytest
from checkpoints import FAMILIES, checkpoint

from tracr_bridge.compile.catalogue import catalogue

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "told_size.json").read_text())
"""Whether the circuit found at seed 0 is exact, and edges of the smallest true one (`benchmarks/told_size.py`)."""

AGAIN = (("larger_before", "gpt2"), ("next_to", "gpt2"), ("others_so_far", "gpt2"))
"""Those that are run again: small graphs, with one that is exact among them."""


def test_every_checkpoint_is_in_the_table():
    assert GOLDEN.keys() == {
        f"{name}-{family}" for name, program in catalogue().items() if program.causal for family in FAMILIES
    }
    assert {found for key in map("-".join, AGAIN) for found, _ in GOLDEN[key].values()} == {True, False}


@pytest.mark.sweep
@pytest.mark.parametrize("ablation", ["mean", "resample"])
@pytest.mark.parametrize("case", AGAIN, ids="-".join)
def test_a_checkpoint_neither_leaves_the_table_nor_joins_it(case, ablation, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    from told_size import told_size

    exact, _, true, _ = told_size(checkpoint(*case, tmp_path_factory), ablation, tmp_path / "run")
    assert [exact, true] == GOLDEN["-".join(case)][ablation]
