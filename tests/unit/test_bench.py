"""Sweeps over random programs: what is written down, gone on with, and counted."""

import json

import pytest

from edgeprune.store import UnwritableFile
from tracr_bridge.bench import Rate, ResultsError, distribution, rates, read_rows, sweep
from tracr_bridge.catalogue import load_file
from tracr_bridge.cli import main
from tracr_bridge.sample import draw_programs

ROW = {
    "program": "p",
    "ablation": "zero",
    "method": "m",
    "seed": 0,
    "code": "c",
    "outcome": "exact",
    "status": "unique",
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
    assert rates(rows) == {("zero", "unique"): Rate(1, 2), ("zero", "minimal"): Rate(1, 1)}


def test_the_distribution_counts_programs_and_not_runs():
    rows = [
        {"program": name, "ablation": ablation, "constructs": [made_of], "true": edges}
        for name, made_of, edges in (("p", "Map", 2), ("q", "Map", 6), ("r", "SelectorWidth", 4))
        for ablation in ("zero", "resample")
    ]
    found = dict(distribution([*rows, {"program": "broken", "ablation": "zero"}]))
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


def test_a_method_that_fails_is_an_outcome_and_an_ablation_named_twice_is_run_once(tmp_path):
    programs = draw_programs(1, seed=0)
    (row,) = sweep(programs, ["zero", "zero"], tmp_path, method="test_suite:none", seed=0, jobs=1)
    assert row["outcome"] == "broken"
    assert "test_suite:none" in row["reason"]


def test_a_sweep_goes_on_where_it_was_stopped_and_keeps_what_was_not_recovered(tmp_path):
    programs = [program for program in draw_programs(12, seed=0) if program.source.count(".named(") == 1][:2]

    def run(count):
        return sweep(programs[:count], ["zero"], tmp_path, method="test_suite:zeros", seed=0, jobs=1)

    (first,) = run(1)
    assert first["outcome"] == "inexact"
    assert len(first["missing"]) == first["true"] > 0 == len(first["extra"])
    results = tmp_path / "results.jsonl"
    results.write_text(results.read_text() + '{"cut off')
    assert run(2)[0] == first
    assert [row["program"] for row in read_rows(results)] == [row["program"] for row in run(2)]
    for program, row in zip(programs, run(2), strict=True):
        saved = load_file(tmp_path / "failures" / f"drawn_{row['program']}.py")["drawn"]
        longest = program.domain(budget=100, seed=0).inputs[-1]
        assert saved.evaluate(longest) == program.evaluate(longest)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFile, match="Expected a folder for results"):
        sweep([], ["zero"], tmp_path / "file" / "bench", method="edge-pruning", seed=0, jobs=1)
    (tmp_path / "results.jsonl").symlink_to(tmp_path / "nowhere" / "results.jsonl")
    with pytest.raises(UnwritableFile, match="Expected a folder for results"):
        sweep([], ["zero"], tmp_path, method="edge-pruning", seed=0, jobs=1)


def test_bench_prints_rates_and_says_where_results_are(capsys, tmp_path, monkeypatch):
    arguments = ["bench", "--random", "2", "--ablation", "resample", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sum(rate["runs"] for rate in result["rates"]) + result["refused"] == 2
    assert all(rate["exact"] == rate["runs"] for rate in result["rates"])
    monkeypatch.setattr("tracr_bridge.bench._run", None)  # nothing is run again
    assert main(arguments) == 0
    assert "results.jsonl" in capsys.readouterr().out.replace("\n", "")
