"""docs/tutorial.md: its files are written, its commands run, and what it shows is what they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(command: str, folder: Path) -> str:
    """What a command prints; whether it fails is as the page says."""
    line, _, note = command.partition("  # ")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"}
    environment.pop("PYTEST_ADDOPTS", None)
    result = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert (result.returncode == 1) == (note == "fails") and result.returncode < 2, result.stdout + result.stderr
    return result.stdout


def test_everything_on_the_page_runs_and_prints_what_is_shown(tmp_path):
    output, shown = "", 0
    for kind, text in BLOCK.findall(PAGE):
        if kind == "python":
            file = tmp_path / text.splitlines()[0].removeprefix("# ")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        elif kind == "sh":
            output = " ".join("".join(run(line, tmp_path) for line in text.splitlines()).split())
        else:
            for line in text.splitlines():
                assert " ".join(line.split()) in output, line
                shown += 1
    assert shown > 10
