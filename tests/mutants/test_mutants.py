"""Every planted bug is noticed. Behind the marker `mutants`; that they can still be planted is always checked."""

import ast
import json

import pytest
import run_mutants
from forked import PLUGINS, Ran, run_pytest, start
from run_mutants import MUTANTS, OWN, ROOT, SECONDS, SUITE, Mutant, Noticed, copy_of_the_code, first_failure


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_can_be_planted(mutant):
    text = (ROOT / mutant.file).read_text()
    assert mutant.apply(text) != text
    ast.parse(mutant.apply(text))


def test_there_are_enough_of_them_and_each_has_a_name():
    names = {mutant.name for mutant in MUTANTS}
    assert len(names) == len(MUTANTS) >= 415


# What is run first, on a package of one function

BUG = Mutant("two for one", "edgeprune/numbers.py", "return 1", "return 2")

TESTS = """
    import os
    import subprocess
    import sys
    import time

    import pytest

    from edgeprune.numbers import one

    def test_that_notices_nothing():
        pass

    def test_one():
        assert one() == 1

    @pytest.mark.parametrize("times", [1, 2])
    def test_more_of_one(times):
        assert times * one() == times

    def test_what_a_process_imports(tmp_path):
        code = "from edgeprune.numbers import one; print(one())"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == "1\\n"

    def test_that_never_ends():
        time.sleep(3600)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "edgeprune").mkdir()
    (tmp_path / "edgeprune/numbers.py").write_text("def one():\n    return 1\n")
    (tmp_path / "edgeprune/__init__.py").touch()
    (tmp_path / "_edgeprune_pytest.py").touch()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_numbers.py").write_text("\n".join(line[4:] for line in TESTS.splitlines()))
    monkeypatch.setattr(run_mutants, "OWN", {})
    monkeypatch.setattr(run_mutants, "SUITE", ("test_numbers.py::test_one",))
    start(PLUGINS)
    return tmp_path


@pytest.mark.parametrize(
    ("recorded", "noticed_by"),
    [
        ("test_more_of_one[2]", "test_more_of_one[2]"),
        ("test_what_a_process_imports", "test_what_a_process_imports"),  # a process of a test sees the bug, too
        ("test_that_notices_nothing", "test_one"),  # one that passes
        ("test_that_is_no_more", "test_one"),
        ("test_more_of_one[3]", "test_one"),
    ],
)
def test_what_is_recorded_is_run_first_and_else_the_suite(package, recorded, noticed_by):
    assert first_failure(BUG, package, recorded=f"test_numbers.py::{recorded}") == f"test_numbers.py::{noticed_by}"


@pytest.mark.parametrize(
    "recorded", ["test_numbers.py::test_that_is_no_more", "test_that_is_no_more.py::test_one", None]
)
def test_a_test_that_is_no_more_notices_nothing(package, recorded, monkeypatch):
    monkeypatch.setattr(run_mutants, "SUITE", ("test_numbers.py::test_that_notices_nothing",))
    assert first_failure(BUG, package, recorded=recorded) is None


def test_tests_that_are_named_are_run_alone(package):
    notices_nothing = ["test_numbers.py::test_that_notices_nothing"]
    assert first_failure(BUG, package, tests=notices_nothing, recorded="test_numbers.py::test_one") is None


def test_tests_that_cannot_be_run_notice_nothing_and_are_told(package):
    broken = Mutant("no function", BUG.file, "def one():", "def other():")
    with pytest.raises(AssertionError, match=r"(?s)no function: no test was run.*cannot import name 'one'"):
        first_failure(broken, package, recorded="test_numbers.py::test_one")


def test_a_run_that_never_ends_is_given_up(package):
    with pytest.raises(TimeoutError, match="still running after 2 s"):
        run_pytest(package, ["test_numbers.py::test_that_never_ends"], seconds=2)


def test_packages_that_are_not_of_the_copy_are_told(package):
    (package / "_edgeprune_pytest.py").unlink()  # so that the one that is installed is found
    with pytest.raises(AssertionError, match=r"\['_edgeprune_pytest'\] were not imported from the copy"):
        run_pytest(package, ["test_numbers.py::test_one"], seconds=SECONDS)


def test_the_most_particular_file_of_tests_is_run_first_and_each_once():
    files = run_mutants.in_order(Mutant("", "edgeprune/models/gpt2.py", "", ""))
    assert files[:2] == ["tests/models/test_export.py", "tests/models/test_transformers.py"]
    assert len(files) == len(set(files)) and set(files) >= set(SUITE)


def test_what_noticed_is_written_down_in_the_order_of_the_bugs_without_those_that_are_no_more(tmp_path):
    file = tmp_path / "noticed.json"
    first, second, third = MUTANTS[:3]
    file.write_text(json.dumps({"of old": "a test", third.name: "another", second.name: "a test"}))
    noticed = Noticed(file)
    noticed.record(first, "test_a.py::test_ä")
    noticed.record(first, "test_a.py::test_ö")
    assert list(json.loads(file.read_text()).items()) == [
        (first.name, "test_a.py::test_ö"),
        (second.name, "a test"),
        (third.name, "another"),
    ]
    assert list(tmp_path.iterdir()) == [file]


# The command


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command on the first two bugs, the second of which nothing may notice, and its file of Markdown."""
    first, second = MUTANTS[:2]

    def run(*more, second_is_noticed=True, without_bugs=0):
        found = {first.name: "test_a.py::test_a[x|y]", second.name: "test_b.py::test_b" if second_is_noticed else None}
        monkeypatch.setattr(run_mutants, "NOTICED", tmp_path / "noticed.json")
        monkeypatch.setattr(run_mutants, "start", lambda: None)
        monkeypatch.setattr(run_mutants, "first_failure", lambda mutant, *_, **__: found[mutant.name])
        monkeypatch.setattr(run_mutants, "run_pytest", lambda *_, **__: Ran(without_bugs, ("test_b.py::test_b",), ""))
        options = ["--only", first.name, second.name, "--jobs", "1", "--out", str(tmp_path / "table.md"), *more]
        return run_mutants.main(options), tmp_path / "table.md"

    return run


def test_the_table_has_the_command_at_its_top_and_the_count_below(command, capsys):
    first, second = MUTANTS[:2]
    status, file = command()
    lines = file.read_text().splitlines()
    assert status == 0
    assert f"python tests/mutants/run_mutants.py --only '{first.name}' '{second.name}' --jobs 1 --out {file}" in lines
    assert lines[-4:-2] == [
        f"| {first.name} | `{first.file}` | `test_a.py::test_a[x\\|y]` |",
        f"| {second.name} | `{second.file}` | `test_b.py::test_b` |",
    ]
    assert lines[-1] == "2 of 2 killed"
    assert "\n".join(lines[-4:]) in capsys.readouterr().out


def test_what_was_noticed_is_written_down_and_what_named_tests_notice_is_not(command, tmp_path):
    command("--tests", "test_a.py")
    assert not (tmp_path / "noticed.json").exists()
    command()
    assert len(json.loads((tmp_path / "noticed.json").read_text())) == 2


def test_a_bug_that_survives_is_shown_and_is_an_error(command):
    status, file = command(second_is_noticed=False)
    assert status == 1 and file.read_text().endswith(
        f"| {MUTANTS[1].name} | `{MUTANTS[1].file}` | **none** |\n\n1 of 2 killed\n"
    )
    assert [*json.loads((file.parent / "noticed.json").read_text())] == [MUTANTS[0].name]


def test_a_slice_is_what_was_noticed_last_time(command, tmp_path):
    (tmp_path / "noticed.json").write_text(json.dumps({MUTANTS[1].name: "test_b.py::test_b", "of old": "a test"}))
    status, file = command("--slice", second_is_noticed=False)
    assert status == 1 and "0 of 1 killed" in file.read_text()
    assert MUTANTS[1].name in json.loads((tmp_path / "noticed.json").read_text())  # or the next slice would pass


def test_nothing_counts_where_a_test_fails_without_a_bug(command, capsys):
    status, file = command(without_bugs=1)
    assert status == 1 and not file.exists()
    assert "None of this counts: without any bug, test_b.py::test_b fails too" in capsys.readouterr().out


# Hours


@pytest.fixture(scope="session")
def frozen(tmp_path_factory):
    start()
    return copy_of_the_code(tmp_path_factory.mktemp("frozen"))


@pytest.mark.mutants
@pytest.mark.parametrize("file", dict.fromkeys([*SUITE, *OWN.values()]))
def test_nothing_fails_without_a_bug(file, frozen):
    assert run_pytest(frozen, [file], seconds=SECONDS).status == 0


@pytest.mark.mutants
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_bug_is_noticed(mutant, frozen):
    assert first_failure(mutant, frozen, recorded=Noticed().tests.get(mutant.name)) is not None
