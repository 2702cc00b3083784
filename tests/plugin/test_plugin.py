"""The pytest plugin, in pytest runs of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tracr_bridge.compile.verify import verify

EXAMPLES = Path(__file__).parents[2] / "examples"

PROGRAM = '''
from tracr.rasp import rasp
from tracr_bridge import rasp_program

@rasp_program(vocab=("a", "b"), max_seq_len=2)
def is_a() -> rasp.SOp:
    """Whether a token is "a"."""
    return rasp.Map(lambda token: token == "a", rasp.tokens).named("is_a")
'''

WIDTH = '''
from tracr.rasp import rasp
from tracr_bridge import rasp_program

@rasp_program(vocab=("a", "b"), max_seq_len=2)
def width() -> rasp.SOp:
    """The length of the input."""
    all_true = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("all_true")
    return rasp.SelectorWidth(all_true).named("width")
'''

METHODS = """
import torch

def nothing(model, dataset, ablation, *, seed):
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations))
"""

RECORDS = """
import torch

def nothing(model, dataset, ablation, *, seed):
    with open("seeds.txt", "a") as file:
        file.write(f"{ablation} {seed}\\n")
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations))
"""


@pytest.fixture(scope="session")
def loaded(compiled, recover):
    """What a run inside this process loads, pytester unloads; torch cannot be loaded twice, so all is loaded before."""
    recover("length", "zero")
    verify(compiled("length"))


@pytest.fixture
def run(pytester, loaded):
    """Run pytest on one small program, with methods at hand, and hand back what came of it."""
    pytester.makepyfile(**{"programs/is_a": PROGRAM, "my_methods": METHODS})
    pytester.syspathinsert()

    def run(*arguments):
        # In this process the plugin is there already, of which pytest warns.
        quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
        return pytester.runpytest_inprocess("--circuit-ablation=zero", *quiet, *arguments)

    return run


def test_the_example_with_a_program_of_ones_own_passes(pytester, loaded):
    for file in (EXAMPLES / "own_program").rglob("*"):
        if file.suffix in (".py", ".ini"):
            target = pytester.path / file.relative_to(EXAMPLES / "own_program")
            target.parent.mkdir(exist_ok=True)
            target.write_text(file.read_text())
    result = pytester.runpytest_inprocess("-v")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines(
        [
            "circuit method: edge-pruning-minimax",
            "programs/first_token.py::first_token::verify PASSED*",
            "programs/first_token.py::first_token::truth[[]zero] PASSED*",
            "programs/first_token.py::first_token::recovery[[]zero-edge-pruning-minimax-seed0] PASSED*",
            "programs/first_token.py::first_token::truth[[]resample] PASSED*",
            "test_first_token.py::*from_the_positions[[]first_token-resample] PASSED*",
        ],
        consecutive=False,
    )


def test_the_example_with_a_method_of_ones_own_passes_in_a_process_of_its_own(pytester):
    for name in ("knockout.py", "pytest.ini"):
        (pytester.path / name).write_text((EXAMPLES / "own_method" / name).read_text())
    pytester.runpytest_subprocess().assert_outcomes(passed=10)


def test_the_plugin_itself_loads_nothing_heavy():
    code = "import _edgeprune_pytest, sys; print(sorted({'jax', 'torch', 'edgeprune'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_failing_recovery_lists_missing_edges_with_their_effects_and_a_command(run):
    result = run("--circuit-method=my_methods:nothing")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "is_a, zero ablation: my_methods:nothing, seed 0, found 0 edges, not the true 2 (certificate: unique)",
            "  missing  tok->m0 * without it the true circuit is off by 1",
            "  missing  m0->logits * without it the true circuit is off by 1",
            "reproduce: edgeprune recover programs/is_a.py:is_a --ablation zero --method my_methods:nothing --seed 0",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_an_unknown_method_is_a_usage_error(run):
    result = run("--circuit-method=my_methods:missing")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*Expected a function 'missing' in module 'my_methods'; there is none"])


def test_checks_are_chosen_by_name_by_mark_by_last_failure_and_by_id(run):
    arguments = ("--circuit-method=my_methods:nothing", "--circuit-seeds=3")
    result = run(*arguments, "-k", "recovery", "-m", "sweep", "-x")
    result.assert_outcomes(failed=1, deselected=3)
    assert "seed1" in result.stdout.str()
    run(*arguments, "--lf").assert_outcomes(failed=1)
    run("programs/is_a.py::is_a::truth[zero]").assert_outcomes(passed=1)


def test_a_file_is_collected_when_it_is_named_or_matched_and_not_otherwise(pytester, run):
    pytester.makepyfile(mine=PROGRAM.replace("is_a", "mine"), **{"other/more": PROGRAM.replace("is_a", "more")})
    run("mine.py", "--collect-only", "-q").stdout.fnmatch_lines(["mine.py::mine::verify"])
    pytester.makepyfile(my_test="from tracr_bridge import rasp_program\ndef test_mine(): pass")
    assert run("my_test.py").ret == 0  # pytest's own, although it declares programs
    outside = pytester.path / "other"
    for named in ("other/*.py", "other", outside, outside / "more.py"):
        result = run("-o", f"edgeprune_programs={named}", "--collect-only", "-q")
        result.stdout.fnmatch_lines_random(["other/more.py::more::verify", "programs/is_a.py::is_a::verify"])
    result = run("-o", "testpaths=my_test.py", "-o", "edgeprune_programs=other", "--collect-only", "-q")
    lines = ["my_test.py::test_mine", "other/more.py::more::verify", "programs/is_a.py::is_a::verify"]
    result.stdout.fnmatch_lines_random(lines)
    result = run("-o", "edgeprune_programs=nowhere/*.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*Expected edgeprune_programs to name files or folders; 'nowhere/*.py' names none"])


def test_a_file_in_a_folder_called_programs_that_declares_none_is_not_run(pytester, run):
    pytester.makepyfile(**{"programs/train": "raise SystemExit('it was run')"})
    run("--collect-only").assert_outcomes()


NOT_OURS = {
    "a comment": "# not a rasp_program of tracr_bridge\n",
    "a text": "NOTE = 'from tracr_bridge import rasp_program; rasp_program()'\n",
    "an import alone": "from tracr_bridge import rasp_program\n",
    "a call alone": "def rasp_program(): pass\nrasp_program()\n",
    "another's": "from deploying import rasp_program\nrasp_program()\n",
    "a relative import": "from .tracr_bridge import rasp_program\nrasp_program()\n",
    "another part": "from tracr_bridge import Program\nProgram()\n",
}


@pytest.mark.parametrize("kind", NOT_OURS)
def test_a_file_that_does_not_import_and_call_it_is_not_run(pytester, run, kind):
    code = NOT_OURS[kind] + "import pathlib; pathlib.Path('ran').touch(); raise SystemExit('it was run')\n"
    pytester.makepyfile(**{"programs/deploy": code, "other/deploy": code})
    for arguments in ((), ("programs",)):  # pytest itself runs any file that is named
        result = run("--collect-only", "-q", *arguments)
        assert "deploy" not in result.stdout.str() and result.ret == 0
    result = run("--collect-only", "-q", "-o", "edgeprune_programs=other/*.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*Expected edgeprune_programs to name files that import rasp_program*names none"])
    assert not (pytester.path / "ran").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from tracr_bridge import rasp_program", "from tracr_bridge import rasp_program as declare"),
        ("from tracr_bridge import rasp_program", "from tracr_bridge.compile.program import rasp_program as declare"),
        ("from tracr_bridge import rasp_program", "import tracr_bridge"),
        ("from tracr_bridge import rasp_program", "import tracr_bridge as bridge"),
        ("from tracr_bridge import rasp_program", "import tracr_bridge.compile.program"),
    ],
)
def test_a_file_that_imports_and_calls_it_under_another_name_is_collected(pytester, run, before, after):
    name = {"declare": "declare", "tracr_bridge": "tracr_bridge.rasp_program", "bridge": "bridge.rasp_program"}.get(
        after.split()[-1], "tracr_bridge.compile.program.rasp_program"
    )
    pytester.makepyfile(**{"programs/is_a": PROGRAM.replace(before, after).replace("@rasp_program", f"@{name}")})
    run("--collect-only", "-q").stdout.fnmatch_lines(["programs/is_a.py::is_a::verify"])


def test_a_file_elsewhere_that_a_link_leads_to_is_not_run(pytester, run, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "far.py"
    outside.write_text(PROGRAM.replace("is_a", "far"))
    (pytester.path / "programs" / "far.py").symlink_to(outside)
    assert "far" not in run("--collect-only", "-q").stdout.str()


def test_programs_of_a_loop_over_a_set_are_collected_by_name(pytester, run):
    loop = PROGRAM.partition("@rasp_program")[0] + (
        "def build() -> rasp.SOp:\n"
        '    """\x1b[31mRed."""\n'
        '    return rasp.Map(lambda token: token == "a", rasp.tokens).named("is_a")\n'
        'for name in ("z", "x", "y"):  # in the order of some set\n'
        '    globals()[name] = rasp_program(vocab=("a", "b"), max_seq_len=2)(build)\n'
    )
    pytester.makepyfile(**{"programs/is_a": loop})
    found = [line for line in run("--collect-only", "-q").stdout.lines if line.endswith("::verify")]
    assert found == [f"programs/is_a.py::{name}::verify" for name in "xyz"]


def test_a_mark_that_would_run_nothing_is_a_usage_error(pytester, run):
    pytester.makepyfile(test_mine="import pytest\n@pytest.mark.programs('hist')\ndef test_mine(): pass\n")
    result = run("test_mine.py")
    assert (
        "Expected @pytest.mark.programs(name, ...) on a test with an argument program"
        in result.stdout.str() + result.stderr.str()
    )
    assert result.ret != 0


def test_settings_that_would_test_nothing_are_usage_errors(run):
    for option in ("--circuit-seeds=0", "--circuit-timeout=0", "--circuit-timeout=-3"):
        result = run(option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*{option.partition('=')[0]}: expected *more*"])
    run("--circuit-ablation=zero").assert_outcomes(passed=3)  # named twice, run once


def test_the_command_of_a_failing_recovery_reproduces_it(run, pytester):
    pytester.makepyfile(**{"methods/elsewhere": METHODS, "programs/b c": PROGRAM.replace("is_a", "b")})
    result = run("--circuit-method=elsewhere:nothing", "-o", "pythonpath=methods", "-k", "b and recovery")
    (line,) = {line for line in result.stdout.lines if line.startswith("reproduce: ")}  # where CI is set it comes twice
    bin_folder = Path(sys.executable).parent
    command = line.removeprefix("reproduce: ").replace("edgeprune", str(bin_folder / "edgeprune"), 1)
    again = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr
    assert "missing" in again.stdout


def test_an_unusable_program_file_is_an_error_of_one_line(pytester, run):
    pytester.makepyfile(**{"programs/broken": "from tracr_bridge import rasp_program\ndef broken(:"})
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*broken.py is not Python: line 2: *"])
    assert "Traceback" not in result.stdout.str()


def test_a_program_that_cannot_fail_is_skipped_under_that_ablation_and_fails_under_all(pytester, run):
    pytester.makepyfile(
        **{
            "programs/width": WIDTH,
            "programs/constant": PROGRAM.replace("is_a", "constant").replace('token == "a"', "1"),
        }
    )
    result = run("--circuit-ablation=resample", "-k", "width and resample or constant and verify", "-rs")
    result.assert_outcomes(skipped=2, failed=1, deselected=12)
    result.stdout.fnmatch_lines(
        ["Expected outputs that vary; those of constant are*", "*with every edge ablated*nothing could fail on it*"]
    )


def test_unequal_circuits_say_which_edges_they_differ_in(pytester):
    pytester.makepyfile(
        """
        from edgeprune.graph import Circuit, Edge, Graph

        def test_equal():
            graph = Graph.transformer(embeddings=("tok", "pos"), layers=1, heads=1)
            one, other = frozenset({Edge.parse("tok->m0")}), frozenset({Edge.parse("pos->m0")})
            assert Circuit(graph, "zero", one) == Circuit(graph, "mean", other)
        """
    )
    result = pytester.runpytest_subprocess()
    result.stdout.fnmatch_lines(
        [
            "*circuits of 1 and 1 edges differ",
            "*ablations: zero and mean",
            "*only left:  tok->m0",
            "*only right: pos->m0",
        ]
    )


BROKEN = PROGRAM.replace("is_a", "broken").replace('token == "a"', "{'a': 1}[token]")


def test_a_broken_program_is_told_once_with_its_line_whichever_of_its_tests_run(pytester, run):
    pytester.makepyfile(**{"programs/broken": BROKEN})
    for chosen, teller in ((), "verify"), (("-k", "recovery"), "recovery[[]zero"), (("-k", "truth"), "truth[[]zero]"):
        result = run(*chosen, "-rfs", "programs/broken.py")
        assert result.parseoutcomes()["failed"] == 1 and "passed" not in result.parseoutcomes()
        told = "RASP's interpreter raises in broken of broken"
        lines = [line for line in result.stdout.lines if line.startswith(told)]
        assert len({*lines}) == 1 and lines[0].endswith("narrow the domain with `valid`")
        place = "programs/broken.py, line 7: return rasp.Map(lambda token: {'a': 1}[[]token], rasp.tokens).named(*"
        result.stdout.fnmatch_lines([place, f"FAILED programs/broken.py::broken::{teller}*"])
        assert len(result.stdout.lines) < 25
    result = run("-rs", "programs/broken.py")
    result.assert_outcomes(failed=1, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*broken is broken, as broken::verify says*"])


def test_a_method_that_raises_is_told_in_few_lines(pytester, run):
    code = "import torch\n\ndef inner(x):\n    return x[7]\n\ndef bad(model, dataset, ablation, *, seed):\n"
    pytester.makepyfile(raising=code + "    return inner(torch.zeros(3))\n")
    result = run("--circuit-method=raising:bad")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["Method raising:bad raised IndexError: *", "raising.py, line 4: return x[[]7]"])
    assert len(result.stdout.lines) < 25 and "Traceback" not in result.stdout.str()


MINE = """
import pytest

@pytest.mark.programs("is_a", "hist")
def test_mine(truth, compiled, program):
    assert truth(program, "zero").circuit.edges
    assert compiled(program).program.name == program

def test_by_name(recover):
    assert recover("is_a", "zero").found
"""


def test_a_program_of_ones_own_is_known_by_its_name_to_the_mark_and_to_fixtures(pytester, run):
    pytester.makepyfile(test_mine=MINE)
    result = run("test_mine.py", "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["test_mine.py::test_mine[[]is_a] PASSED*", "test_mine.py::test_mine[[]hist] PASSED*"])
    # It goes before one of the toolkit's, and is the one that is collected.
    pytester.makepyfile(**{"programs/hist": PROGRAM.replace("is_a", "hist")})
    pytester.makepyfile(
        test_mine="def test_mine(compiled, request):\n"
        "    own = [item.tests.program for item in request.session.items if item.name == 'verify']\n"
        "    assert compiled('hist').program in own and compiled('hist').program.max_seq_len == 2\n"
    )
    run("-k", "test_mine or verify").assert_outcomes(passed=3, deselected=4)
    pytester.makepyfile(**{"programs/other": PROGRAM.replace("is_a", "hist")})
    result = run("test_mine.py")
    result.stdout.fnmatch_lines(["E *Expected one program 'hist'; it is declared in */hist.py and */other.py"])


WRONG_MARKS = {
    "programs": "got no name",
    "programs()": "got no name",
    "programs(['is_a'])": "got ['is_a'], which is neither a name nor a program",
    "programs(names='is_a')": "got the keyword names",
    "programs('is_b')": "got 'is_b': There is no program 'is_b' in the catalogue*programs/is_a.py",
    "programs('hist', 'gone.py:x')": "got 'gone.py:x': Expected a Python file with programs; there is no file",
    "programs('hist')\n@pytest.mark.parametrize('program', [1])": "the test is parametrized with program besides",
}


def test_a_mark_that_is_used_wrongly_is_told_in_one_line(pytester, run):
    for number, mark in enumerate(WRONG_MARKS):
        test = f"import pytest\n@pytest.mark.{mark}\ndef test_mine(program): pass\n"
        pytester.makepyfile(**{f"test_mark_{number}": test})
    result = run()
    result.assert_outcomes(errors=len(WRONG_MARKS))
    usage = "::test_mine: Expected @pytest.mark.programs(name, ...) on a test with an argument program, *"
    told = [f"*{number}.py{usage}{says}*" for number, says in enumerate(WRONG_MARKS.values())]
    result.stdout.fnmatch_lines([line.replace("[", "[[]") for line in told])
    assert "pluggy/" not in result.stdout.str() and len(result.stdout.lines) < 12 + 4 * len(WRONG_MARKS)


def test_fixtures_that_are_used_wrongly_say_how_they_are_used(pytester, run):
    pytester.makepyfile(
        """
        def test_attribute(truth): truth.circuit
        def test_arguments(truth): truth("is_a")
        def test_ablation(truth): truth("is_a", "noise")
        def test_function(compiled): compiled(lambda: 3)
        def test_mark(program): pass
        """
    )
    result = run("-k", "test_")
    result.assert_outcomes(failed=4, errors=1, deselected=3)
    result.stdout.fnmatch_lines_random(
        [
            "E *Expected a call, truth(program, ablation); got .circuit of the fixture itself",
            "E *Expected truth(program, ablation); missing a required argument: 'ablation'",
            "E *Expected an ablation among zero, mean, resample; got 'noise'",
            "E *Expected a program, its name or path/to/file.py:name; got function: *",
            "Expected @pytest.mark.programs(name, ...) on a test *; the test has no such mark",
        ]
    )
    assert "pytest_checks.py" not in result.stdout.str()


def test_every_seed_that_is_asked_for_reaches_the_method_and_so_does_the_method_that_is_named(run, pytester):
    pytester.makepyfile(my_methods=RECORDS)
    result = run("--circuit-method=my_methods:nothing", "--circuit-seeds=3", "-k", "recovery")
    result.assert_outcomes(failed=3, deselected=2)
    assert (pytester.path / "seeds.txt").read_text().splitlines() == ["zero 0", "zero 1", "zero 2"]
