"""Sweeps: what is written down, gone on with, and counted."""

import json
import math
import os
import resource
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest
import torch

from edgeprune.cli.main import main
from edgeprune.errors import EdgePruneError, UnsupportedProgram
from edgeprune.files.folders import Busy, locked
from edgeprune.files.store import UnwritableFile
from edgeprune.masks import edge_exists
from edgeprune.methods import METHODS, Discovery, configuration
from edgeprune.metrics.conventions import ZERO
from tracr_bridge.bench import leaderboard
from tracr_bridge.bench import run as bench
from tracr_bridge.bench.leaderboard import table
from tracr_bridge.bench.results import Rate, Results, ResultsError, code_digest, distribution, mean, rates, read_rows
from tracr_bridge.bench.run import Run, WorkerDied, drawn_subject, named_subject, run_all
from tracr_bridge.certify.certificate_folder import save_certificate
from tracr_bridge.certify.truth import Gap
from tracr_bridge.compile.catalogue import load_file
from tracr_bridge.random_programs.draw import draw_programs

ROW = {
    "program": "p",
    "text": "t",
    "ablation": "zero",
    "method": "m",
    "seed": 0,
    "code": "c",
    "outcome": "exact",
    "status": "unique",
    "proof": "listed",
    "edges": 10,
    "iou": 1.0,
    "auroc": None,
    "seconds": {"discover": 2.0},
}


def test_a_rate_comes_with_its_interval():
    low, high = Rate(95, 100).interval()
    assert low == pytest.approx(0.8882, abs=1e-4)  # Brown, Cai and DasGupta, Statistical Science 16, 2001: Wilson's
    assert high == pytest.approx(0.9785, abs=1e-4)
    assert Rate(0, 0).interval() == (0, 1)
    assert Rate(1000, 1000).interval()[1] == 1


def test_rates_count_what_was_exact_and_what_was_not_and_nothing_else():
    rows = [ROW, ROW | {"outcome": "inexact"}, ROW | {"status": "minimal"}]
    rows += [{**ROW, "outcome": outcome, "status": None} for outcome in ("refused", "broken")]
    assert rates(rows, "ablation", "status") == {("zero", "unique"): Rate(1, 2), ("zero", "minimal"): Rate(1, 1)}


def test_a_run_that_failed_is_one_that_is_not_exact():
    failed = {name: value for name, value in ROW.items() if name not in ("status", "iou", "auroc")}
    rows = [ROW, failed | {"outcome": "failed"}, failed | {"method": "never", "outcome": "failed"}]
    assert rates(rows, "method") == {(ROW["method"],): Rate(1, 2), ("never",): Rate(0, 1)}
    headings, lines = table(rows, ("iou",))
    shown = {line[0]: dict(zip(headings, line, strict=True)) for line in lines}
    assert [shown[ROW["method"]][name] for name in ("exact", "failed", "IoU")] == ["1/2", "1", "1.000"]
    assert [shown["never"][name] for name in ("exact", "failed", "IoU", "seconds")] == ["0/1", "1", "", ""]


def test_exact_runs_that_no_certificate_lists_are_counted_apart():
    rows = [ROW, ROW | {"proof": "proved", "status": "minimal"}, ROW | {"proof": None, "outcome": "inexact"}]
    assert rates(rows, "method") == {(ROW["method"],): Rate(2, 3, proved=1)}
    headings, (line,) = table(rows, ())
    shown = dict(zip(headings, line, strict=True))
    assert (shown["exact"], shown["proved"]) == ("2/3", "1")
    told = {
        rate["status"]: (rate["exact"], rate["proved"], rate["runs"]) for rate in leaderboard.as_json(rows)["rates"]
    }
    assert told == {"unique": (1, 0, 2), "minimal": (1, 1, 1)}


def test_a_mean_is_over_the_rows_that_have_the_number():
    assert mean([{"x": 1.0}, {"x": 3.0}, {"x": None}, {"x": float("nan")}, {}], "x") == 2
    assert mean([{}], "x") is None


def test_the_distribution_counts_programs_and_not_runs():
    rows = [
        {"program": name, "text": "", "ablation": ablation, "constructs": [made_of], "true": edges}
        for name, made_of, edges in (("p", "Map", 2), ("q", "Map", 6), ("r", "SelectorWidth", 4))
        for ablation in ("zero", "resample")
        for _ in range(3)
    ]
    found = dict(distribution([*rows, {"program": "broken", "text": "", "ablation": "zero"}]))
    assert found["Map"] == "2 of 4"
    assert found["8 layers"] == "0 of 4"
    assert found["true edges, zero"] == "2 to 6, half of them 3 to 5"


def test_a_line_that_was_cut_off_is_left_out_and_any_other_that_is_no_row_is_refused(tmp_path):
    file = tmp_path / "results.jsonl"
    assert read_rows(file) == []
    file.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)[:20])
    assert read_rows(file) == [ROW]
    for spoiled in ("nonsense", "[]", '{"program": "p"}', json.dumps(ROW | {"program": ["p"]})):
        file.write_text(f"{json.dumps(ROW)}\n{spoiled}\n{json.dumps(ROW)}\n")
        with pytest.raises(ResultsError, match=r"results\.jsonl', line 2: .*name another folder"):
            read_rows(file)


def test_a_results_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(ResultsError, match="Expected a results file"):
        read_rows(tmp_path / "results.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ResultsError, match="Expected a results file"):
        read_rows(tmp_path / "bytes")


def test_a_line_that_was_cut_off_is_written_over(tmp_path):
    Results(tmp_path).append(ROW)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"program": "cut off')
    results = Results(tmp_path)
    results.append(ROW | {"seed": 1})
    assert read_rows(results.path) == list(results.rows.values()) == [ROW, ROW | {"seed": 1}]


def test_rows_stand_where_the_disk_is_full(tmp_path):
    results = Results(tmp_path)
    results.append(ROW)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (results.path.stat().st_size + 20, hard))
    try:
        with pytest.raises(UnwritableFile, match=r"Expected room for results in .*: File too large"):
            results.append(ROW | {"seed": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(results.rows.values()) == read_rows(results.path) == [ROW]
    assert results.path.read_text() == json.dumps(ROW) + "\n"
    results.append(ROW | {"seed": 1})
    assert len(read_rows(results.path)) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": True},
        {"seed": 0.5},
        {"outcome": "fine"},
        {"seconds": {}},
        {"seconds": {"discover": "long"}},
        {"edges": "ten"},
        {"auroc": "high"},
        {"constructs": [3]},
    ],
)
def test_a_row_of_other_types_is_no_row(tmp_path, wrong):
    (tmp_path / "results.jsonl").write_text(json.dumps(ROW | wrong) + "\n")
    with pytest.raises(ResultsError, match=r"results\.jsonl', line 1: .*name another folder"):
        read_rows(tmp_path / "results.jsonl")


def test_a_folder_that_another_sweep_writes_to_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(Busy, match="another process has results in"):
        run_all([], [], tmp_path, jobs=1)


def test_a_file_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "results.jsonl").write_text("precious")
    with pytest.raises(ResultsError, match="name another folder"):
        Results(tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == "precious"


def dies(model, dataset, ablation, *, seed):
    os._exit(3)


@pytest.mark.sweep  # starts processes, which load everything anew
def test_a_process_that_dies_is_one_line_and_loses_no_row_before_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    runs = [Run("zero", "random", 0), Run("zero", "test_bench:dies", 0)]
    with pytest.raises(WorkerDied, match="run it again"):
        run_all([named_subject("hist"), named_subject("caesar")], runs, tmp_path, jobs=2)
    assert [row["method"] for row in read_rows(tmp_path / "results.jsonl")].count("random") >= 1


def breaks_down(model, dataset, ablation, *, seed):
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations), requires_grad=True)


def test_a_method_is_another_one_once_its_file_has_changed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_to_change.py").write_text("from test_bench import breaks_down as find\n")
    run = Run("zero", "mine_to_change:find", 0)
    (row,) = run_all([named_subject("hist")], [run], tmp_path / "out", jobs=1)
    assert row["outcome"] == "inexact"
    (tmp_path / "mine_to_change.py").write_text("def find(*_, **__):\n    raise RuntimeError\n")
    code_digest.cache_clear()
    del sys.modules["mine_to_change"]
    (row,) = run_all([named_subject("hist")], [run], tmp_path / "out", jobs=1)
    assert row["outcome"] == "failed"


def test_a_method_is_another_one_once_a_file_that_it_may_use_has_changed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package_of_mine").mkdir()
    for name in ("beside_mine.py", "mine_alone.py", "package_of_mine/__init__.py", "package_of_mine/inner.py"):
        (tmp_path / name).write_text("")
    methods = ("mine_alone:find", "package_of_mine:find", "package_of_mine.inner:find")
    before = [code_digest(method) for method in methods]
    (tmp_path / "beside_mine.py").write_text("changed = True")
    code_digest.cache_clear()
    assert [code_digest(m) != b for m, b in zip(methods, before, strict=True)] == [True, False, False]
    (tmp_path / "package_of_mine" / "inner.py").write_text("changed = True")
    code_digest.cache_clear()
    assert [code_digest(m) != b for m, b in zip(methods, before, strict=True)] == [True, True, True]


def test_what_failed_or_was_made_otherwise_is_run_again(tmp_path):
    subjects, run = [named_subject("hist")], [Run("zero", "random", 0)]
    (row,) = run_all(subjects, run, tmp_path, jobs=1)
    assert run_all(subjects, run, tmp_path, jobs=1) == [row]
    for change in ({"versions": {"torch": "1.0"}}, {"config": {"threshold": 99}}, {"outcome": "failed"}):
        Results(tmp_path).append(row | change)
        (again,) = run_all(subjects, run, tmp_path, jobs=1)
        assert again | {"seconds": 0} == row | {"seconds": 0}
    assert len(read_rows(tmp_path / "results.jsonl")) == 7


@pytest.mark.sweep
def test_a_method_of_ones_own_is_the_same_in_every_process(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    subjects, run = [named_subject("hist"), named_subject("caesar")], Run("zero", "test_bench:breaks_down", 0)
    rows = run_all(subjects, [run], tmp_path, jobs=2)
    assert [row["outcome"] for row in rows] == ["inexact", "inexact"]
    assert run_all(subjects, [run], tmp_path, jobs=2) == rows
    assert len(read_rows(tmp_path / "results.jsonl")) == 2


def test_a_method_that_fails_is_an_outcome_and_a_run_named_twice_is_run_once(tmp_path):
    subjects = [named_subject("hist")]
    (row,) = run_all(subjects, 2 * [Run("zero", "test_suite:none", 0)], tmp_path, jobs=1)
    assert row["outcome"] == "failed" and row["seconds"].keys() == {"certify", "discover"}
    assert "test_suite:none" in row["reason"]
    (row,) = run_all(subjects, [Run("zero", "test_suite:hangs", 0)], tmp_path, jobs=1, seconds=0.2)
    assert "ran longer than the 0.2 s" in row["reason"]


@pytest.mark.parametrize(("body", "outcome"), [("1", "refused"), ("1 / 0", "broken")])
def test_a_program_that_cannot_be_run_is_an_outcome(tmp_path, body, outcome):
    (tmp_path / "mine.py").write_text(
        "from tracr.rasp import rasp\nfrom tracr_bridge import rasp_program\n"
        "@rasp_program(vocab=('a', 'b'), max_seq_len=2)\n"
        f"def mine():\n    return rasp.Map(lambda token: {body}, rasp.tokens).named('mine')\n"
    )
    (row,) = run_all([named_subject(f"{tmp_path / 'mine.py'}:mine")], [Run("zero", "eap", 0)], tmp_path, jobs=1)
    assert (row["outcome"], row["program"]) == (outcome, f"{tmp_path / 'mine.py'}:mine")
    assert row["seconds"].keys() == {"compile"}


@pytest.mark.parametrize("method", METHODS)
def test_settings_are_the_same_once_they_are_read_back(method):
    assert json.loads(json.dumps(configuration(method))) == configuration(method)


def test_a_row_says_all_about_its_run(tmp_path):
    runs = [Run(ablation, method, 0) for ablation in ("zero", "resample") for method in ("acdc", "random")]
    rows = run_all([named_subject("hist"), named_subject("length")], runs, tmp_path, jobs=1)
    found = {(row["program"], row["ablation"], row["method"]): row for row in rows}
    assert len(found) == len(rows) == 8
    exact = found["hist", "zero", "acdc"]
    assert exact["outcome"] == "exact" and exact["proof"] == "listed"
    assert exact["versions"].keys() >= {"edgeprune", "torch", "jax", "tracr-pypi", "python"}
    assert exact["config"]["threshold"] == 0.01
    assert exact["seconds"].keys() == {"certify", "discover"}
    assert [exact[name] for name in ("iou", "node_iou", "auroc", "best_threshold_exact")] == [1, 1, 1, 1]
    assert exact["faithfulness"] == pytest.approx(1, abs=1e-3)
    wrong = found["hist", "zero", "random"]
    assert wrong["outcome"] == "inexact" and wrong["proof"] is None
    assert wrong["iou"] < 1
    assert len(wrong["missing"]) + wrong["found"] - len(wrong["extra"]) == wrong["true"]
    assert found["length", "resample", "acdc"]["outcome"] == "refused"
    written = {(row["program"], row["ablation"], row["method"]): row for row in read_rows(tmp_path / "results.jsonl")}
    assert written == found


def test_a_sweep_goes_on_where_it_was_stopped_and_keeps_what_was_not_recovered(tmp_path):
    programs = [program for program in draw_programs(12, seed=0) if program.source.count(".named(") <= 2][:2]
    assert len(programs) == 2

    def run(count):
        subjects = [drawn_subject(program) for program in programs[:count]]
        return run_all(subjects, [Run("zero", "test_suite:zeros", 0)], tmp_path, jobs=1)

    (first,) = run(1)
    assert first["outcome"] == "inexact"
    assert len(first["missing"]) == first["true"] > 0 == len(first["extra"])
    results = tmp_path / "results.jsonl"
    results.write_text(results.read_text() + '{"program": "cut off')
    assert run(2)[0] == first
    assert [row["program"] for row in read_rows(results)] == [row["program"] for row in run(2)]
    for program, row in zip(programs, run(2), strict=True):
        saved = load_file(tmp_path / "failures" / f"{row['program']}.py")[row["program"]]
        longest = program.domain(budget=100, seed=0).inputs[-1]
        assert saved.evaluate(longest) == program.evaluate(longest)


def _sweep_for_ever(out):
    runs = [Run("zero", method, seed) for seed in range(1000) for method in ("random", "eap")]
    run_all([named_subject("hist")], runs, out, jobs=1)


@pytest.mark.sweep  # starts processes, which load everything anew
def test_a_sweep_that_is_killed_loses_no_run_that_it_finished(tmp_path):
    process = get_context("spawn").Process(target=_sweep_for_ever, args=(tmp_path,))
    process.start()
    results = tmp_path / "results.jsonl"
    deadline = time.monotonic() + 120
    while not (results.exists() and results.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.join()
    before = read_rows(results)
    assert len(before) >= 3
    wanted = [Run("zero", row["method"], row["seed"]) for row in before]
    again = run_all([named_subject("hist")], [*wanted, Run("zero", "single-edge", 0)], tmp_path, jobs=1)
    assert again[:-1] == before
    assert read_rows(results)[:-1] == before


def notes_its_process(model, dataset, ablation, *, seed):
    Path(os.environ["PROCESSES"], str(os.getpid())).touch()
    time.sleep(0.2)
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations))


def _sweep_in_processes(out):
    runs = [Run("zero", "test_bench:notes_its_process", seed) for seed in range(1000)]
    run_all([named_subject(name) for name in ("hist", "caesar", "reverse")], runs, out, jobs=2)


@pytest.mark.sweep  # starts processes, which load everything anew
@pytest.mark.parametrize("signal", [SIGTERM, SIGKILL])
def test_the_processes_of_a_sweep_that_is_killed_end_with_it(tmp_path, monkeypatch, signal):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("PROCESSES", str(tmp_path))
    process = get_context("spawn").Process(target=_sweep_in_processes, args=(tmp_path / "out",))
    process.start()
    deadline = time.monotonic() + 120

    def wait_until(holds):
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def processes():
        return [int(file.name) for file in tmp_path.iterdir() if file.name.isdecimal()]

    wait_until(lambda: len(processes()) == 2)
    os.kill(process.pid, signal)
    process.join()
    wait_until(lambda: not any(_runs(each) for each in processes()))


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.sweep  # starts processes, which load everything anew
def test_processes_give_what_one_process_gives(tmp_path):
    subjects, runs = (
        [named_subject(name) for name in ("hist", "caesar")],
        [Run("zero", "eap", 0), Run("zero", "single-edge", 0)],
    )

    def run(jobs):
        rows = run_all(subjects, runs, tmp_path / str(jobs), jobs=jobs)
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    assert run(2) == run(1)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFile, match="Expected a folder for results"):
        run_all([], [], tmp_path / "file" / "bench", jobs=1)
    (tmp_path / "results.jsonl").symlink_to(tmp_path / "nowhere" / "results.jsonl")
    with pytest.raises(UnwritableFile, match="Expected a folder for results"):
        run_all([], [], tmp_path, jobs=1)


def test_the_leaderboard_puts_the_most_exact_method_first_and_draws_what_it_says(tmp_path):
    rows = [
        ROW
        | {
            "method": method,
            "ablation": ablation,
            "outcome": "exact" if exact else "inexact",
            "seed": seed,
            "auroc": 0.9,
        }
        for method, exact in (("worse", False), ("better", True))
        for ablation in ("zero", "mean")
        for seed in range(2)
    ]
    headings, lines = leaderboard.table([*rows, ROW | {"outcome": "refused"}])
    assert [line[:3] for line in lines] == [
        ("better", "mean", "2/2"),
        ("better", "zero", "2/2"),
        ("worse", "mean", "0/2"),
        ("worse", "zero", "0/2"),
    ]
    assert dict(zip(headings, lines[0], strict=True))["AUROC"] == "0.900"
    leaderboard.write(rows, tmp_path)
    written = (tmp_path / "leaderboard.md").read_text()
    assert "| better | mean | 2/2 | 0 |" in written
    for name in ("exact", "auroc", "seconds"):
        assert f"]({name}.svg)" in written
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.count("<svg") == 3
    assert ZERO in written and "where EAP-IG keeps positions" in page and leaderboard.as_json(rows)["note"] == ZERO
    assert "note" not in leaderboard.as_json([row for row in rows if row["ablation"] == "mean"])
    assert "<td>better</td><td>mean</td><td>2/2</td><td>0</td>" in page


def test_a_leaderboard_of_nothing_is_one_too(tmp_path):
    leaderboard.write([ROW | {"outcome": "failed"}], tmp_path)
    assert "| m | zero | 0/1 | 0 |" in (tmp_path / "leaderboard.md").read_text()
    leaderboard.write([], tmp_path)
    assert "0 runs on 0 programs" in (tmp_path / "leaderboard.md").read_text()


def test_bench_prints_rates_and_says_where_results_are(capsys, tmp_path, monkeypatch):
    arguments = ["bench", "--random", "2", "--ablation", "resample", "--jobs", "1", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sum(rate["runs"] for rate in result["rates"]) + result["refused"] == 2
    assert all(rate["exact"] == rate["runs"] for rate in result["rates"])
    monkeypatch.setattr("tracr_bridge.bench.run.run_subject", None)  # nothing is run again
    assert main(arguments) == 0
    assert "leaderboard.md" in capsys.readouterr().out.replace("\n", "")


def test_a_leaderboard_is_written_while_nobody_else_may_write_there(tmp_path, monkeypatch, capsys):
    written = []

    def write(rows, folder):
        with pytest.raises(Busy), locked(folder):
            pass
        written.append((len(rows), folder))

    monkeypatch.setattr(leaderboard, "write", write)
    out = tmp_path / "out"
    arguments = ["bench", "hist", "--method", "single-edge", "--ablation", "resample", "--jobs", "1"]
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    capsys.readouterr()
    assert written == [(1, out)]


def test_bench_runs_the_methods_and_programs_that_are_named(capsys, tmp_path):
    arguments = [
        "bench",
        "hist",
        "caesar",
        "--method",
        "single-edge",
        "--method",
        "random",
        "--ablation",
        "zero",
        "--seeds",
        "2",
    ]
    assert main([*arguments, "--out", str(tmp_path), "--jobs", "1"]) == 1
    assert "single-edge" in capsys.readouterr().out
    assert len(read_rows(tmp_path / "results.jsonl")) == 8
    assert main(["bench", "hist", "--random", "2", "--out", str(tmp_path)]) == 2
    assert "Expected either programs or --random" in capsys.readouterr().err
    assert main(["bench", "--method", "magic", "--out", str(tmp_path)]) == 2
    assert (
        "Expected a method among edge-pruning-minimax, edge-pruning-minimax-unchecked, edge-pruning, acdc"
        in capsys.readouterr().err
    )


def test_a_program_that_there_is_not_is_refused():
    with pytest.raises(EdgePruneError, match="There is no program 'nowhere'"):
        named_subject("nowhere")


def test_a_row_that_no_reader_would_take_is_not_written(tmp_path):
    results = Results(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        results.append(ROW | {"gap": math.inf})
    assert results.path.read_text() == ""


@pytest.mark.fakes
def test_an_effect_that_is_no_number_is_none_in_a_row(compiled, truth):
    given, certified = compiled("hist"), truth("hist", "zero")
    endless = replace(certified, certificate=replace(certified.certificate, gap=Gap(math.inf, 0.0)))
    scores = torch.zeros(edge_exists(certified.circuit.graph).shape)
    row = bench._row(given, endless, Discovery(certified.circuit, scores, ()))
    assert row["gap"] is None and row["outcome"] == "exact"


def test_a_certificate_whose_effect_is_no_number_is_refused_in_words(compiled, truth, tmp_path):
    certified = truth("hist", "zero")
    endless = replace(certified, certificate=replace(certified.certificate, gap=Gap(math.inf, 0.0)))
    with pytest.raises(UnsupportedProgram, match="Expected outputs that are numbers without some edge"):
        save_certificate(endless, compiled("hist"), tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
