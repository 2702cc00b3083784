"""Parts of the plugin by themselves: which files declare programs, what options take, what a comparison says."""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import _edgeprune_pytest as plugin
from edgeprune.graph import Circuit, Edge, Graph


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("2", 2), ("17", 17), ("0", 0), ("-1", 0), ("1.5", 0), ("a", 0)])
def test_a_count_is_a_whole_number_from_1_on(text, count):
    if count:
        assert plugin._count(text) == count
    else:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            plugin._count(text)
        assert str(caught.value) == f"expected a whole number, 1 or more, got {text}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1", 1.0), ("0.25", 0.25), ("inf", float("inf")), ("0", None), ("-1", None), ("nan", None), ("a", None)],
)
def test_seconds_are_a_number_above_0(text, seconds):
    if seconds is not None:
        assert plugin._seconds(text) == seconds
    else:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            plugin._seconds(text)
        assert str(caught.value) == f"expected more than 0 seconds, got {text}"


DECLARES = [
    "from tracr_bridge import rasp_program\n@rasp_program()\ndef f(): ...",
    "from tracr_bridge.compile.program import rasp_program\nrasp_program()",
    "from tracr_bridge import rasp_program as declare\ndeclare()(f)",
    "from tracr_bridge import *\nrasp_program()",
    "from tracr_bridge.compile.program import *\nrasp_program()",
    "import tracr_bridge\ntracr_bridge.rasp_program()",
    "import tracr_bridge.compile.program\ntracr_bridge.compile.program.rasp_program()",
    "import tracr_bridge.compile.program\ntracr_bridge.rasp_program()",
    "import tracr_bridge as bridge\nbridge.rasp_program()",
    "import tracr_bridge.compile.program as ours\nours.rasp_program()",
    "from tracr_bridge.compile import program\nprogram.rasp_program()",
    "from tracr_bridge.compile import program as ours\nours.rasp_program()",
    "def later():\n    from tracr_bridge import rasp_program\n    return rasp_program()",
    "from tracr_bridge import rasp_program\ndef f(:",
    "rasp_program tracr_bridge",
]
DECLARES_NONE = [
    "",
    "from tracr_bridge import rasp_program",
    "rasp_program()",
    "from tracr_bridge import load_program\nrasp_program()",
    "from tracr_bridge import rasp_program as declare\nrasp_program()",
    "from tracr_bridge.compile import program\nrasp_program()",
    "from tracr_bridge.compile import program as ours\nprogram.rasp_program()",
    "from other import rasp_program\nrasp_program()",
    "from other import program\nprogram.rasp_program()",
    "from .tracr_bridge import rasp_program\nrasp_program()",
    "from . import rasp_program\nrasp_program()",
    "from tracr_bridge.other import rasp_program\nrasp_program()",
    "import other\nother.rasp_program()",
    "import other as tracr_bridge\ntracr_bridge.rasp_program()",
    "import tracr_bridge as bridge\nbridge.load_program()",
    "import tracr_bridge.other\nother.rasp_program()",
    "from tracr_bridge import rasp_program\nrasp_program",
    "from tracr_bridge import rasp_program\n(lambda: rasp_program)()",
    "from tracr_bridge import rasp_program\nrasp_program.other()",
    "tracr_bridge(:",
    "rasp_program(:",
]


@pytest.mark.parametrize(
    ("text", "declares"),
    [*((text, True) for text in DECLARES), *((text, False) for text in DECLARES_NONE)],
)
def test_a_file_declares_programs_that_imports_what_declares_them_and_calls_it(tmp_path, text, declares):
    (tmp_path / "mine.py").write_text(text)
    assert plugin._declares_programs(tmp_path / "mine.py") is declares


def test_what_is_no_file_or_too_large_a_one_declares_none(tmp_path, monkeypatch, recwarn):
    (tmp_path / "folder.py").mkdir()
    assert not plugin._declares_programs(tmp_path / "folder.py")
    assert not plugin._declares_programs(tmp_path / "missing.py")
    text = DECLARES[0] + "\n'\\d'"
    (tmp_path / "mine.py").write_text(text)
    for largest, declares in ((len(text), True), (len(text) - 1, False)):
        monkeypatch.setattr(plugin, "_LARGEST", largest)
        assert plugin._declares_programs(tmp_path / "mine.py") is declares
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("mine.py", True), ("mine.txt", False), ("_mine.py", False), ("test_mine.py", False), ("mine_check.py", False),
        ("conftest.py", False), ("my_test_mine.py", True),
    ],
)  # fmt: skip
def test_files_of_pytests_own_hold_no_programs(name, may):
    config: Any = SimpleNamespace(getini=lambda of: {"python_files": ["test_*.py", "*_check.py"]}[of])
    assert plugin._may_hold_programs(Path("somewhere") / name, config) is may


def test_the_shipped_programs_are_those_beside_the_package():
    assert plugin._shipped() == Path(plugin.__file__).resolve().parent / "programs"


GRAPH = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)


def circuit(*names: str, ablation: Any = "zero", graph: Graph = GRAPH) -> Circuit:
    return Circuit(graph, ablation, frozenset(map(Edge.parse, names)))


def test_unequal_circuits_are_told_edge_by_edge():
    left, right = circuit("tok->m0", "m0->logits"), circuit("m0->logits", "pos->m0", "tok->logits")
    lines = plugin.pytest_assertrepr_compare("==", left, right)
    assert lines == [
        "circuits of 2 and 3 edges differ",
        "only left:  tok->m0",
        "only right: pos->m0",
        "only right: tok->logits",
    ]
    other = circuit("tok->m0", "m0->logits", ablation="mean")
    assert plugin.pytest_assertrepr_compare("==", left, other) == [
        "circuits of 2 and 2 edges differ",
        "ablations: zero and mean",
    ]


def test_what_is_no_two_circuits_of_one_graph_is_left_to_pytest():
    one, larger = circuit("tok->m0"), Graph.transformer(embeddings=("tok", "pos"), layers=2, heads=1)
    fake = type("Circuit", (), {})()
    for op, left, right in (
        ("!=", one, one), ("==", one, "text"), ("==", "text", one), ("==", fake, one), ("==", one, fake),
        ("==", one, circuit("tok->m0", graph=larger)),
    ):  # fmt: skip
        assert plugin.pytest_assertrepr_compare(op, left, right) is None
