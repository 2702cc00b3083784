"""The script for a GPU runs from end to end, on a CPU; what it wrote is whole whenever it is stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "on_gpu.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.sweep
def test_a_rehearsal_measures_all_there_is_and_makes_a_page_that_says_so(tmp_path):
    done = run("--rehearse", "--out", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rehearsal"] and set(found["seconds"]) == {
        "agreement",
        "gpt2_small",
        "one_process",
        "codellama_13b",
        "toy",
    }
    for row in found["agreement"]:
        most = {"float32": 1e-5, "bfloat16": 0.05}[row["precision"]]
        assert row["logits"] <= most and row["gradient"] <= most
    assert all(row["logits"] <= 1e-5 and row["gradient"] <= 1e-5 for row in found["one_process"])
    assert [row["inputs"] for row in found["codellama_13b"]] == [1, 2]
    assert found["codellama_step"][0]["parts"] == 2 and found["toy"][0]["steps"] == 4
    printed = run("--page", str(tmp_path / "found.json")).stdout
    assert "A rehearsal on a CPU" in printed
    assert printed.count("\n## ") == 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path):
    done = run("--out", str(tmp_path / "found.json"))
    assert done.returncode == 2
    assert done.stderr == "Expected a GPU; torch sees none here. --rehearse runs the same code on a CPU\n"
    assert not list(tmp_path.iterdir())


def test_a_section_that_fails_is_named_and_keeps_what_it_had(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import on_gpu

    record = on_gpu.Record(tmp_path / "found.json", on_gpu.REHEARSAL)

    def fails():
        record.note("half", figure=1.5)
        raise RuntimeError("no more")

    record.run("half", fails)
    monkeypatch.setattr(on_gpu, "SECONDS", 0.0)
    record.run("late", fails)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["half"] == [{"figure": 1.5}]
    assert [row["what"] for row in found["stopped"]] == ["half", "late"]
    assert "RuntimeError: no more" in found["stopped"][0]["why"] and "not begun" in found["stopped"][1]["why"]


def test_the_page_in_the_docs_is_that_of_what_was_measured(monkeypatch):
    """Of nothing, until a GPU is at hand and its figures are beside the page."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from on_gpu_page import page

    measured = ROOT / "docs" / "gpu.json"
    found = json.loads(measured.read_text()) if measured.exists() else {}
    assert (ROOT / "docs" / "gpu.md").read_text() == page(found)
