"""What is published: built, checked, and installed into an empty environment, where the examples run against it."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.sweep  # a minute or two: everything that it depends on is installed


def run(*command, folder):
    """What a command prints, told nothing of the environment that the tests run in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL_"))}
    result = subprocess.run(list(map(str, command)), cwd=folder, env=kept, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the sdist and the wheel."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, folder=out)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The folder of commands of an environment that has the wheel, pytest, and what they depend on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    (wheel,) = built.glob("*.whl")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, wheel, "pytest", "-c", ROOT / "constraints.txt", folder=folder)
    return folder / "bin"


def test_what_is_built_may_be_published(built):
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), folder=built)


def test_the_wheel_has_every_module_and_nothing_at_the_top_that_a_user_may_have(built):
    (wheel,) = built.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in held} == {"edgeprune", "tracr_bridge", "_edgeprune_pytest.py"}
    source = {
        str(file.relative_to(ROOT))
        for package in ("edgeprune", "tracr_bridge", "programs")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    expected = {f"tracr_bridge/{name}" if name.startswith("programs/") else name for name in source}
    assert held == expected | {"_edgeprune_pytest.py"}


def test_the_examples_run_against_the_wheel(installed, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    examples = tmp_path / "examples"
    for example in ("own_method", "own_program"):
        assert " passed" in run(installed / "pytest", folder=examples / example)
    (tmp_path / "programs").mkdir()  # a user's own, which hides no program of ours
    (tmp_path / "programs" / "__init__.py").touch()
    told = run(installed / "pytest", "--pyargs", "tracr_bridge.programs.hist", folder=tmp_path)
    assert "5 passed" in told
    run(installed / "edgeprune", "export", "induction", "--as", "gpt2", "--out", "induction", folder=tmp_path)
    score = [installed / "python", examples / "verify_your_tool" / "score.py", "induction", "--check"]
    assert "0 wrong outputs" in run(*score, folder=tmp_path)


def test_the_command_lists_and_recovers_the_programs_of_the_wheel(installed, tmp_path):
    listed = json.loads(run(installed / "edgeprune", "programs", "--json", folder=tmp_path))["programs"]
    assert {each["name"] for each in listed} >= {"hist", "reverse", "lengths_agree"} and len(listed) == 122
    assert json.loads(run(installed / "edgeprune", "recover", "hist", "--json", folder=tmp_path))["exact"]
