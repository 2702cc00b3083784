"""What the plugin's checks ask for, remember and report, word by word; how a program's file is loaded."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_suite import NAME

from edgeprune.errors import ProgramFileError, UnknownAblation, UnknownProgram
from edgeprune.graph import Circuit, edge_names
from edgeprune.user_code import places_of
from tracr_bridge.compile import catalogue as catalogue_module
from tracr_bridge.compile.catalogue import catalogue, load_file, load_program
from tracr_bridge.recovery import pytest_checks as suite_module
from tracr_bridge.recovery.pytest_checks import CheckFailed, Suite, refused
from tracr_bridge.recovery.recover import assess, effects


def counted(monkeypatch, name) -> list[Any]:
    """What a function of the suite is called with from now on."""
    called, real = list[Any](), getattr(suite_module, name)
    monkeypatch.setattr(suite_module, name, lambda *given, **more: called.append((given, more)) or real(*given, **more))
    return called


# Suites


def test_a_program_is_compiled_once_and_certified_once_under_each_ablation(monkeypatch):
    compiled, certified = counted(monkeypatch, "compile_program"), counted(monkeypatch, "certify")
    suite, program = Suite(), load_program(NAME)
    for ablation in ("zero", "mean", "zero", "mean"):
        assert suite.truth(program, ablation) is suite.truth(NAME, ablation)
        assert suite.truth(program, ablation).circuit.ablation == ablation
    assert suite.compiled(NAME) is suite.compiled(program)
    assert len(compiled) == 1 and [given[1] for given, _ in certified] == ["zero", "mean"]
    assert suite.method == "edge-pruning-minimax"


def test_programs_are_found_by_what_the_suite_is_given_to_find_them():
    program, asked = load_program(NAME), list[str]()
    suite = Suite(load=lambda name: asked.append(name) or program)
    assert suite.compiled("any").program is program and asked == ["any"]


def test_what_is_no_program_or_no_ablation_is_refused():
    with pytest.raises(UnknownProgram) as caught:
        Suite().compiled(len)
    assert str(caught.value) == (
        "Expected a program, its name or path/to/file.py:name; got builtin_function_or_method: a function is a program "
        "once @rasp_program(vocab=..., max_seq_len=...) stands above it"
    )
    with pytest.raises(UnknownAblation, match="'half'"):
        Suite().truth(NAME, "half")


def test_what_a_check_refuses_is_listed_a_line_each(monkeypatch):
    suite, program = Suite(), load_program(NAME)
    monkeypatch.setattr(suite_module, "refused", lambda truth, compiled: ["one thing", "and another"])
    with pytest.raises(CheckFailed) as caught:
        suite.check_truth(program, "zero")
    assert str(caught.value) == "hist, zero: what is certified does not hold\n  one thing\n  and another"
    monkeypatch.setattr(
        suite_module, "verify", lambda compiled: SimpleNamespace(equal=False, mismatches=("one thing", "and another"))
    )
    with pytest.raises(CheckFailed) as caught:
        suite.check_verify(program)
    assert str(caught.value) == "hist: RASP, Tracr's model and PyTorch differ\n  one thing\n  and another"
    truth = suite.truth(program, "zero")
    stray = [edge for edge in truth.circuit.graph.edges if edge not in truth.structural]
    circuits = (truth.circuit, Circuit(truth.circuit.graph, "zero", truth.structural | {*stray}))
    suite._truths[program, "zero"] = replace(truth, certificate=replace(truth.certificate, circuits=circuits))
    with pytest.raises(CheckFailed) as caught:
        suite.check_truth(program, "zero")
    named = ", ".join(edge_names(truth.circuit.graph, stray))
    assert str(caught.value) == f"hist, zero: a true circuit has edges that can carry nothing: {named}"


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("code", "found", "said"),
    [
        (0, {"refused": [], "unusable": []}, []),
        (1, {"refused": ["one", "two"], "unusable": []}, ["one", "two"]),
        (2, {"refused": [], "unusable": ["three"]}, ["three"]),
        (1, {"refused": ["one"], "unusable": ["three"]}, ["one", "three"]),
        (1, {"refused": [], "unusable": []}, ["it is refused without a reason"]),
    ],
)
def test_a_certificate_is_checked_from_its_folder_at_its_own_tolerance(monkeypatch, capsys, code, found, said):
    asked, saved = list[list[str]](), list[Any]()

    def main(arguments):
        asked.append(arguments)
        print(json.dumps({"certificates": {arguments[0]: found}}))
        return code

    monkeypatch.setattr(suite_module.check_certificate, "main", main)
    monkeypatch.setattr(suite_module, "save_certificate", lambda *given: saved.append(given))
    truth: Any = SimpleNamespace(certificate=SimpleNamespace(atol=0.025))
    assert refused(truth, "compiled") == said  # pyright: ignore
    ((folder, *more),) = asked
    assert more == ["--json", "--tolerance", "0.025", "--subsets", "16384", "--rows", "200000"]
    assert saved == [(truth, "compiled", Path(folder))] and not Path(folder).parent.exists()
    assert capsys.readouterr().out == ""


def test_a_report_has_each_edge_with_what_it_does():
    truth = Suite().truth("xproportion", "zero")
    missing, extra = min(truth.circuit.edges), min(truth.structural - truth.circuit.edges)
    wrong = Circuit(truth.circuit.graph, "zero", truth.circuit.edges - {missing} | {extra})
    measured = effects(assess(truth, wrong))
    assert suite_module._report(assess(truth, wrong), "mine, seed 5", "name").splitlines() == [
        f"name, zero ablation: mine, seed 5, found {len(wrong)} edges, not the true {len(wrong)} (certificate: unique)",
        f"  missing  {missing!s:<24} without it the true circuit is off by {measured[missing]:.3g}",
        f"  extra  {extra!s:<24} without it the circuit found is off by {measured[extra]:.3g}",
    ]


def test_a_method_of_ones_own_is_reproduced_with_the_folder_of_its_module(tmp_path, monkeypatch):
    folder = tmp_path / "of mine"
    for name in ("own_method.py", "own_package/__init__.py", "own_package/inner/__init__.py", "own_package/part.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    monkeypatch.syspath_prepend(folder)
    for name in ("own_method", "own_package", "own_package.part", "own_package.inner"):
        __import__(name)
        assert suite_module._search_path(f"{name}:f") == f"PYTHONPATH='{folder}' ", name
        assert suite_module._search_path(name) == ""
    for name in ("own_method_that_nobody_imported:f", "sys:f", "pytest:f", "acdc"):
        assert suite_module._search_path(name) == ""
    monkeypatch.chdir(folder)
    assert suite_module._search_path("own_package.part:f") == ""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dist-packages").mkdir()
    (tmp_path / "dist-packages" / "installed_method.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "dist-packages")
    __import__("installed_method")
    assert suite_module._search_path("installed_method:f") == ""


# Files of programs

ONE = """
from tracr.rasp import rasp
from tracr_bridge import rasp_program

@rasp_program(vocab=("a", "b"), max_seq_len=2)
def one() -> rasp.SOp:
    return rasp.tokens
"""


def test_a_file_leaves_the_search_path_as_it_was_and_its_module_where_it_is_looked_up(tmp_path):
    before = list(sys.path)
    (tmp_path / "mine.py").write_text(
        ONE + "\nimport sys\nassert sys.path[0] == str(__import__('pathlib').Path(__file__).parent)"
    )
    assert load_file(tmp_path / "mine.py")["one"].source == (tmp_path / "mine.py").read_text()
    assert sys.path == before
    assert sys.modules["_program_file_mine"].one.name == "one"
    (tmp_path / "bad.py").write_text("raise KeyError('gone')")
    with pytest.raises(ProgramFileError):
        load_file(tmp_path / "bad.py")
    assert sys.path == before


def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path):
    file = tmp_path / "mine.py"
    for text, message, place in (
        ("x = 1\ndef f(:\n", f"{file} is not Python: line 2: invalid syntax", "line 2: def f(:"),
        ("x = 1\nraise KeyError('gone')\n", f"{file} cannot be imported: KeyError: 'gone'", "line 2: raise KeyError"),
        ("x = 1\n", f"{file} holds no program; declare one with @rasp_program(vocab=..., max_seq_len=...)", ""),
    ):
        file.write_text(text)
        with pytest.raises(ProgramFileError) as caught:
            load_file(file)
        assert str(caught.value) == message
        assert [place in each for each in places_of(caught.value)] == [True] * bool(place)
    with pytest.raises(ProgramFileError) as caught:
        load_file(tmp_path)
    assert str(caught.value) == f"Expected a Python file with programs; there is no file {str(tmp_path)!r}"


def test_a_file_is_read_in_the_encoding_that_it_declares(tmp_path):
    text = "# -*- coding: latin-1 -*-\n" + ONE + "\n# schön\n"
    (tmp_path / "mine.py").write_bytes(text.encode("latin-1"))
    assert load_file(tmp_path / "mine.py")["one"].source == text


def test_a_name_that_there_is_none_of_is_refused_with_what_is_close_or_there(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(ONE + ONE.replace("def one", "def two"))
    assert load_program(f"{file}:two").name == "two"
    for spec, message in (
        (f"{file}:ona", f"There is no program 'ona' in {file}; did you mean one?"),
        (f"{file}:zzz", f"There is no program 'zzz' in {file}; it has one, two"),
        (str(file), f"Expected {file}:NAME, as {file} holds several programs: one, two"),
        (
            "zzzz",
            "There is no program 'zzzz' in the catalogue; `edgeprune programs` lists what it has, and a Python file's "
            "programs go by path/to/file.py:name",
        ),
        (
            "shuffle_dyck",
            "There is no program 'shuffle_dyck' in the catalogue; did you mean shuffle_dyck2 or shuffle_dyck1?",
        ),
    ):
        with pytest.raises(UnknownProgram) as caught:
            load_program(spec)
        assert str(caught.value) == message


def test_a_name_that_two_files_of_the_catalogue_have_is_refused(tmp_path, monkeypatch):
    for name in ("first.py", "second.py"):
        (tmp_path / name).write_text(ONE)
    (tmp_path / "_hidden.py").write_text("1 / 0")
    monkeypatch.setattr(catalogue_module, "SHIPPED", tmp_path)
    catalogue.cache_clear()
    try:
        with pytest.raises(ProgramFileError) as caught:
            catalogue()
        assert str(caught.value) == "Expected each name once; 'one' is declared in second.py and elsewhere"
        (tmp_path / "second.py").write_text(ONE.replace("def one", "def another"))
        assert list(catalogue()) == ["another", "one"]
    finally:
        catalogue.cache_clear()
