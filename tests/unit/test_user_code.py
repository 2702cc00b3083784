"""Errors out of a user's own file say the file, the line's number and the line, once."""

import os
import pickle
import sys

import pytest

from edgeprune.cli.main import main
from edgeprune.errors import InvalidProgram, MethodError
from edgeprune.user_code import at, place_of, told

PROGRAM = '''
from tracr.rasp import rasp
from tracr_bridge import rasp_program

@rasp_program(vocab=("a", "b"), max_seq_len=2{more})
def mine() -> rasp.SOp:
    """A program."""
    odd = rasp.Map(
        {function},
        rasp.tokens,
    ).named("odd")
    return {output}
'''
TOKENS = "lambda token: token"
SECOND = "lambda token: ('a', 'b').index(token[0])"
ONLY_SOME = "rasp.SequenceMap(lambda x, y: {('a', 'a'): 1, ('b', 'b'): 0}[x, y], odd, rasp.tokens).named('both')"

FAULTS = [
    ({"output": "rasp.Selct(odd, odd)"}, 12, "return rasp.Selct(odd, odd) (did you mean Select?)"),
    ({"output": "undefined"}, 12, "return undefined"),
    ({"function": "lambda token: 1 / (token == 'a')"}, 9, "lambda token: 1 / (token == 'a'),"),
    ({"function": "lambda: 1"}, 8, "odd = rasp.Map("),  # it is called with a token, and no line of it runs
    ({"function": "lambda token: __import__('math').sqrt(-1)"}, 9, "lambda token: __import__('math').sqrt(-1),"),
    ({"output": ONLY_SOME}, 12, f"return {ONLY_SOME}"),  # raises on values that Tracr alone tabulates
    ({"more": ", valid=lambda tokens: tokens[7]"}, 5, '@rasp_program(vocab=("a", "b"), max_seq_len=2, valid=lambda'),
    ({"more": ", valud=None"}, 5, '@rasp_program(vocab=("a", "b"), max_seq_len=2, valud=None)'),
    ({"output": "3"}, 5, '@rasp_program(vocab=("a", "b"), max_seq_len=2)'),
    ({"function": "lambda token: ,"}, 9, "lambda token: ,"),
]


@pytest.mark.parametrize(("fault", "line", "text"), FAULTS, ids=[text for *_, text in FAULTS])
def test_an_error_in_a_program_is_one_line_with_its_place(tmp_path, capsys, fault, line, text):
    path = tmp_path / "mine.py"
    path.write_text(PROGRAM.format(**({"more": "", "function": TOKENS, "output": "odd"} | fault)))
    assert main(["verify", f"{path}:mine"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("edgeprune: ")
    if "lambda: 1" in fault.values():
        assert f"mine.py, line {line}: " in said or "mine.py, line 9: lambda: 1," in said
    else:
        assert f"{path}, line {line}: {text}" in said and said.count(f"{path}, line") == 1


def test_a_line_below_the_working_directory_is_written_as_a_user_there_would(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(PROGRAM.format(more="", function=TOKENS, output="rasp.Selct(odd)"))
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "mine.py"]) == 2
    assert "; mine.py, line 12: return rasp.Selct(odd)" in capsys.readouterr().err


METHOD = """
import torch

def helper(tensor):
    return tensor[7]

def bad(model, dataset, ablation, *, seed=0):
    return helper(torch.zeros(3))
"""


def test_an_error_in_a_method_of_ones_own_is_one_line_with_the_innermost_line_of_it(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad_method.py").write_text(METHOD)
    (tmp_path / "bad_import.py").write_text("import there_is_no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name, place in (
        ("bad_method:bad", "bad_method.py, line 5: return tensor[7]"),
        ("bad_import:bad", "bad_import.py, line 1: import there_is_no_such_module"),
    ):
        assert main(["recover", "first_token", "--method", name]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and place in said and "Traceback" not in said


def test_a_place_goes_with_an_error_into_another_process():
    error = at(MethodError("it raised"), "mine.py, line 3: x", "", "mine.py, line 3: x")
    assert told(pickle.loads(pickle.dumps(error))) == "it raised; mine.py, line 3: x"
    assert str(error) == "it raised" and told(InvalidProgram("alone")) == "alone"


def test_lines_of_libraries_are_nobodys():
    try:
        os.stat("\0")
    except ValueError as error:
        assert "test_user_code.py, line" in place_of(error)
    assert place_of(ValueError("raised nowhere")) == ""
    assert place_of(ValueError("raised nowhere"), len) == ""
