"""Sweeps on Ray: what two workers on this machine give, and what is said where there is no cluster to use."""

import runpy
import sys
from pathlib import Path

import pytest

from edgeprune.cli.main import main
from tracr_bridge.bench import on_ray
from tracr_bridge.bench import run as bench
from tracr_bridge.bench.on_ray import ClusterError
from tracr_bridge.bench.results import read_rows
from tracr_bridge.bench.run import Run, WorkerDied, named_subject, run_all

ray = pytest.importorskip("ray")

# Ray forks as it starts processes, which then run other programs; JAX, where another test has used it, warns of that.
pytestmark = pytest.mark.filterwarnings(r"ignore:os.fork\(\) was called:RuntimeWarning")

PROGRAM = """\
from tracr.rasp import rasp
from tracr_bridge import rasp_program

@rasp_program(vocab=("a", "b"), max_seq_len=2)
def mine():
    return rasp.Map(lambda token: token == "a", rasp.tokens).named("mine")
"""

METHODS = """\
import os, time, torch

def hangs(model, dataset, ablation, *, seed):
    time.sleep(60)

def dies_on_few_edges(model, dataset, ablation, *, seed):
    if model.graph.total < 20:
        os._exit(3)
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations))
"""


slow = pytest.mark.sweep  # a cluster takes seconds to start, and its workers as long to import what they need


@pytest.fixture(scope="module")
def cluster():
    """One for all tests: its workers take seconds to import what they need."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def unconnected(monkeypatch):
    """A process that is yet to connect, wherever the cluster is."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.fixture
def methods(tmp_path, monkeypatch):
    """A module of one's own in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"methods_{tmp_path.name}"
    Path(f"{name}.py").write_text(METHODS)
    return name


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@slow
def test_a_cluster_gives_what_one_process_gives(cluster, tmp_path):
    subjects = [named_subject(name) for name in ("hist", "caesar")]
    runs = [Run("zero", method, 0) for method in ("eap", "single-edge", "random")]
    rows = run_all(subjects, runs, tmp_path / "ray", jobs=1, ray="auto")
    assert without_seconds(rows) == without_seconds(run_all(subjects, runs, tmp_path / "here", jobs=1))
    assert ray.is_initialized()  # it was there before


@slow
def test_files_of_ones_own_are_found_from_the_same_folder_and_time_is_limited(cluster, methods):
    Path("mine.py").write_text(PROGRAM)
    subject = named_subject("mine.py")
    (row,) = run_all([subject], [Run("zero", f"{methods}:hangs", 0)], Path("out"), jobs=1, seconds=0.2, ray="auto")
    assert "ran longer than the 0.2 s" in row["reason"]
    Path("mine.py").write_text(PROGRAM.replace("==", "!="))
    with pytest.raises(ClusterError, match=r"differs from the machine that asks in mine\.py: install the same"):
        run_all([subject], [Run("zero", "random", 0)], Path("out"), jobs=1, ray="auto")
    Path("mine.py").unlink()
    with pytest.raises(ClusterError, match=r"put your own at the same path on every machine \(.*no file 'mine\.py'"):
        run_all([subject], [Run("zero", "random", 0)], Path("out"), jobs=1, ray="auto")


@slow
def test_a_machine_with_other_versions_is_refused(cluster, tmp_path, monkeypatch):
    asked = on_ray.versions() | {"torch": "1.0"}
    monkeypatch.setattr(on_ray, "versions", lambda: asked)
    with pytest.raises(ClusterError, match="differs from the machine that asks in torch: install the same versions"):
        run_all([named_subject("hist")], [Run("zero", "random", 0)], tmp_path, jobs=1, ray="auto")


@slow
def test_a_driver_outside_the_cluster_asks_by_way_of_a_relay(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "_outside", lambda: True)
    (row,) = run_all([named_subject("hist")], [Run("zero", "single-edge", 0)], tmp_path, jobs=1, ray="ray://host:10001")
    assert row["outcome"] == "exact"


@slow
def test_a_connection_is_ended_by_who_made_it(cluster, unconnected, monkeypatch):
    ended = []
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    rows = on_ray.rows([(named_subject("hist"), [Run("zero", "random", seed) for seed in range(3)])], 60.0, "local")
    assert next(rows)["outcome"] == "inexact"
    assert not ended
    rows.close()
    assert ended


@slow
def test_a_worker_that_dies_is_one_line_and_loses_no_row_of_its_own_or_of_others(cluster, methods):
    dies = f"{methods}:dies_on_few_edges"
    runs = [Run("zero", "random", 0), Run("zero", dies, 0)]
    with pytest.raises(WorkerDied, match=r"1 of 2 tasks were ended .* \(hist\); what they sent was kept: run it again"):
        run_all([named_subject("hist"), named_subject("xproportion")], runs, Path("out"), jobs=1, ray="auto")
    kept = {(row["program"], row["method"]) for row in read_rows(Path("out", "results.jsonl"))}
    assert kept == {("hist", "random"), ("xproportion", "random"), ("xproportion", dies)}


def test_where_ray_is_not_installed_it_is_said_how_to_install_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["bench", "hist", "--method", "random", "--ray", "local", "--out", str(tmp_path)]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "pip install 'edgeprune[ray]'" in said
    assert said.count("\n") == 1
    for module in (bench, on_ray):
        runpy.run_path(module.__file__)  # whoever does not ask for Ray does not import it


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_there_is_no_cluster_is_refused(unconnected, capsys, tmp_path, address):
    assert main(["bench", "hist", "--method", "random", "--ray", address, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"got '{address}'" in said
    assert said.count("\n") == 1
