"""The notebooks run from a kernel of their own, from the first cell to the last, and show what their text says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"


@pytest.fixture
def one_thread(monkeypatch):
    """For the kernel: threads of small models wait for each other where cores are busy."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def outputs(name: str, folder: Path) -> list[str]:
    """What each code cell shows, as text, its pictures as SVG."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "a notebook is kept without its outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return [
        "".join(
            out.get("text", "") or "".join(out["data"].get(kind, "") for kind in ("image/svg+xml", "text/plain"))
            for out in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_a_known_circuit_is_certified_and_found(tmp_path):
    _, truth, found, other, inside = outputs("known_circuit.ipynb", tmp_path)
    assert "unique on" in truth and "<svg" in truth
    assert found == "(True, frozenset(), frozenset())"
    assert other.splitlines()[0] == "2 missing: tok->a1.h0.k tok->a1.h0.q"
    assert "(Edge.parse('tok->m0'), Edge.parse('m0->a1.h0.v')" in inside and "source destination port" in inside


def test_a_trained_model_is_pruned_and_its_circuit_is_true(tmp_path):
    trained, task, found, measured, truth, ran = outputs("trained_model.ipynb", tmp_path)
    assert "of held-out lists are sorted right" in trained and task.startswith("8 edges")
    assert "<svg" in found and "kl=" in measured
    assert truth.startswith("unique") and truth.endswith("True")
    assert float(ran.split("%")[0]) > 95
