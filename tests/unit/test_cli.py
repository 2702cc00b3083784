"""The command line, in process: exit status, JSON, tables and one-line complaints."""

import json
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from edgeprune.cli.main import main
from edgeprune.files.other_tools import MADE_SCORES, MERGED, NO_ABLATION, NO_ORIGIN, NO_WIDTH
from edgeprune.files.store import load_circuit, load_saved
from edgeprune.graph import Circuit, Graph

ONE = """
from tracr.rasp import rasp
from tracr_bridge import rasp_program

@rasp_program(vocab=("a", "b"), max_seq_len=2{more})
def mine() -> rasp.SOp:
    "The token before."
    return {body}
"""
BEFORE = "rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q - 1), rasp.tokens)"


@pytest.fixture
def program_file(tmp_path):
    def write(body: str = BEFORE, more: str = "") -> str:
        (tmp_path / "mine.py").write_text(ONE.format(body=body, more=more))
        return f"{tmp_path / 'mine.py'}:mine"

    return write


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_program_is_certified_and_saved_without_what_language_models_need(tmp_path):
    code = (
        "import sys; from edgeprune.cli.main import main\n"
        f"main(['truth', 'first_token', '--json', '--save', {str(tmp_path / 'saved')!r}])\n"
        "print('transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False" and (tmp_path / "saved" / "certificate.json").is_file()


@pytest.mark.parametrize("command", ["draw a.json -o a.svg", "draw a.json -o a.html", "circuits union a.json a.json"])
def test_saved_circuits_are_drawn_and_compared_without_torch(tmp_path, command):
    graph = Graph.transformer(embeddings=("embed",), layers=1, heads=1)
    Circuit(graph, "zero", frozenset(graph.edges[::2])).save(tmp_path / "a.json")
    code = (
        "import sys; from edgeprune.cli.main import main\n"
        f"assert main({command.split()!r}) == 0\n"
        "print(sorted({'jax', 'torch', 'tracr', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_teaches_and_imports_nothing_heavy():
    code = (
        "import sys; from edgeprune.cli.main import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'jax', 'torch', 'tracr', 'numpy', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edgeprune recover reverse" in result.stdout
    assert "Exit status: 0" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_where_no_package_adds_commands_help_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr("edgeprune.cli.main.entry_points", lambda group: ())
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "Commands that need Tracr are missing: install the package again." in text
    assert " prune " in text and "│ recover " not in text and "Exit status: 0" in text


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"edgeprune {version('edgeprune')}\n"


def test_programs_are_listed_as_a_table_and_as_json(capsys):
    status, out, _ = run(capsys, "programs")
    assert status == 0
    assert "xproportion" in out
    status, out, _ = run(capsys, "programs", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)["programs"]}
    assert listed["reverse"]["doc"] == "The input backwards."


def test_verify_of_ones_own_file(capsys, program_file):
    status, out, _ = run(capsys, "verify", program_file(), "--json")
    found = json.loads(out)
    assert status == 0
    assert found["equal"] is True
    assert found["inputs"] == 6
    assert found["max_abs_diff"] < 1e-4
    status, out, _ = run(capsys, "verify", program_file())
    assert "RASP = Tracr = PyTorch" in out


def test_truth_lists_edges_and_the_certificate(capsys, program_file):
    status, out, _ = run(capsys, "truth", program_file(), "--ablation", "resample", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["edges"] == ["tok->a0.h0.v", "a0.h0->logits"]
    assert (found["structural"], found["total"], found["others_matter"]) == (6, 13, False)
    certificate = found["certificate"]
    assert {"status", "inputs", "pairs", "exhaustive", "atol", "gap", "margin", "choices"} <= certificate.keys()
    assert certificate["circuits"] == [found["edges"]] and 0 < certificate["margin"] <= certificate["atol"]
    assert certificate["status"] == "unique"
    assert certificate["pairs"] == 2**2 + 4**2
    status, out, _ = run(capsys, "truth", program_file())
    assert "unique: all true circuits were enumerated" in out and "closest call" in out


def test_recover_compares_and_draws(capsys, program_file, tmp_path):
    picture, page, saved = tmp_path / "p.svg", tmp_path / "p.html", tmp_path / "c.json"
    spec = program_file()
    status, out, err = run(
        capsys,
        "recover",
        spec,
        "--json",
        "--seed",
        "1",
        "--picture",
        str(picture),
        "--report",
        str(page),
        "--save",
        str(saved),
    )
    found = json.loads(out)
    assert status == 0
    assert (found["exact"], found["proof"]) == (True, "listed")
    assert (found["missing"], found["extra"]) == ([], [])
    assert found["found"] == found["truth"]
    assert found["seconds"].keys() == {"compile", "truth", "discover"}
    assert str(picture) in err
    assert "<svg" in picture.read_text()
    assert load_circuit(saved).names() == json.loads(out)["found"]
    text = page.read_text()
    assert "<svg" in text
    assert "a0.h0-&gt;logits" in text
    assert "src=" not in text
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == [
        "c.json",
        "mine.py",
        "p.html",
        "p.svg",
    ]


def test_several_ablations_are_recovered_side_by_side(capsys, program_file, tmp_path):
    both = ("recover", program_file(), "--method", "single-edge", "--ablation", "zero", "--ablation", "resample")
    status, out, _ = run(capsys, *both, "--json", "--report", str(tmp_path / "both.html"))
    assert [found["ablation"] for found in json.loads(out)["recoveries"]] == ["zero", "resample"]
    assert status == 0
    assert (tmp_path / "both.html").read_text().count('name="ablation"') == 2
    status, _, err = run(capsys, *both, "--save", str(tmp_path / "both.json"))
    assert (status, err) == (2, "edgeprune: Expected one --ablation, as a --save holds one circuit; got 2\n")
    one = str(tmp_path / "one")
    status, _, err = run(capsys, "recover", program_file(), "--save", one, "--report", one)
    assert status == 2
    assert "Expected a file of its own for each result" in err


def test_saved_circuits_are_drawn_compared_and_converted(capsys, program_file, tmp_path):
    found, graph, edges, back = (str(tmp_path / f"{name}.json") for name in ("found", "graph", "edges", "back"))
    assert run(capsys, "truth", program_file(), "--save", str(tmp_path / "certificate"))[0] == 0
    true = str(tmp_path / "certificate" / "circuit.json")
    assert run(capsys, "recover", program_file(), "--method", "random", "--save", found)[0] == 1
    saved = load_saved(Path(found))
    assert (saved.model, saved.method["name"], saved.method["seed"]) == ("mine", "random", 0)
    assert len(saved.scores) == saved.circuit.graph.total
    picture = tmp_path / "p.svg"
    status, out, _ = run(capsys, "draw", found, "-o", str(picture), "--against", true)
    assert status == 1
    assert str(picture) in out.replace("\n", "")
    assert "<svg" in picture.read_text()
    status, out, _ = run(capsys, "draw", true, "-o", str(picture), "--json")
    assert (status, json.loads(out)["exact"]) == (0, None)
    status, out, _ = run(capsys, "convert", true, graph, "--to", "eap-ig", "--json")
    assert (status, json.loads(out)["losses"]) == (0, [NO_ABLATION, NO_WIDTH, MADE_SCORES, MERGED, NO_ORIGIN])
    assert run(capsys, "convert", graph, edges, "--from", "eap-ig", "--to", "edge-pruning", "--like", true)[0] == 0
    assert run(capsys, "convert", edges, back, "--from", "edge-pruning", "--like", true)[0] == 0
    assert load_circuit(Path(back)).edges >= load_circuit(Path(true)).edges  # tok and pos are one on the way
    for arguments, message in [
        (("--from", "edge-pruning"), "Expected --ablation or --like: a file of edge-pruning does not say"),
        (("--from", "edge-pruning", "--ablation", "zero"), "Expected --like CIRCUIT.json"),
        (("--from", "eap-ig", "--ablation", "noise"), "Expected an ablation among"),
        (("--ablation", "zero"), "Expected neither --like nor --ablation"),
    ]:
        status, _, err = run(capsys, "convert", edges, back, *arguments)
        assert status == 2
        assert message in err


def test_scores_of_an_eap_ig_graph_keep_their_sign_and_edges_are_ranked_by_size(capsys, program_file, tmp_path):
    found, graph, back = (str(tmp_path / f"{name}.json") for name in ("found", "graph", "back"))
    run(capsys, "recover", program_file(), "--method", "eap", "--ablation", "resample", "--save", found)
    assert run(capsys, "convert", found, graph, "--to", "eap-ig")[0] == 0
    content = json.loads(Path(graph).read_text())
    for entry in content["edges"].values():
        entry["score"] *= -1
    Path(graph).write_text(json.dumps(content))
    assert run(capsys, "convert", graph, back, "--from", "eap-ig", "--ablation", "resample")[0] == 0
    saved = load_saved(Path(back))
    assert min(saved.scores.values()) < 0 and saved.method == {"name": "unknown", "signed": True}


def test_a_certificate_is_saved_as_a_folder_that_is_there_or_not(capsys, program_file, tmp_path):
    folder = tmp_path / "certificate"
    status, _, err = run(capsys, "truth", program_file(), "--json", "--save", str(folder))
    assert status == 0 and str(folder) in err
    assert {file.name for file in folder.iterdir()} == {
        "certificate.json", "circuit.json", "domain.npz", "weights.npz"
    }  # fmt: skip
    before = (folder / "certificate.json").read_bytes()
    for taken in (folder, tmp_path / "mine.py", tmp_path / "no" / "folder"):
        status, out, err = run(capsys, "truth", program_file(), "--save", str(taken))
        assert (status, out, err.count("\n")) == (2, "", 1) and "Expected a" in err
    assert (folder / "certificate.json").read_bytes() == before


def test_a_circuit_is_drawn_against_the_nearest_of_a_certificate(capsys, tmp_path):
    folder, picture = tmp_path / "certificate", str(tmp_path / "p.svg")
    assert run(capsys, "truth", "cancels_out", "--ablation", "resample", "--save", str(folder))[0] == 0
    content = json.loads((folder / "circuit.json").read_text())
    listed = json.loads((folder / "certificate.json").read_text())["claims"]["circuits"]
    assert len(listed) == 2
    found = tmp_path / "found.json"
    for edges, exact in ((listed[0], True), (listed[1], True), (listed[1][1:], False)):
        found.write_text(json.dumps(content | {"edges": edges}))
        status, out, _ = run(capsys, "draw", str(found), "-o", picture, "--against", str(folder), "--json")
        assert (status, json.loads(out)["exact"]) == (0 if exact else 1, exact)
    assert "missing" in (tmp_path / "p.svg").read_text()
    certificate = json.loads((folder / "certificate.json").read_text())
    for claims in ({}, {"circuits": 3}, {"circuits": [["tok->nowhere"]]}, {"circuits": listed[1:]}):
        (folder / "certificate.json").write_text(json.dumps(certificate | {"claims": claims}))
        status, _, err = run(capsys, "draw", str(found), "-o", picture, "--against", str(folder))
        assert (status, err.count("\n")) == (2, 1) and "Expected circuits in" in err
    (folder / "certificate.json").unlink()  # as the folder of any run
    found.write_text(json.dumps(content))
    assert run(capsys, "draw", str(found), "-o", picture, "--against", str(folder))[0] == 0


def test_a_recovery_with_several_true_circuits_says_the_sizes_of_all_and_of_the_one_compared(capsys):
    _, out, _ = run(capsys, "recover", "cancels_out", "--ablation", "resample", "--method", "single-edge", "--json")
    sizes = [len(circuit) for circuit in json.loads(out)["certificate"]["circuits"]]
    compared = len(json.loads(out)["truth"])
    assert len(sizes) == 2 and compared in sizes
    _, out, _ = run(capsys, "recover", "cancels_out", "--ablation", "resample", "--method", "single-edge")
    said = " ".join(out.replace("│", " ").split())
    assert f"2, of {sizes[0]}, {sizes[1]} edges; compared with the nearest, of {compared}" in said
    assert "true, " not in said


def test_recover_prints_tables_and_fails_with_1_where_it_does_not_hold(capsys, program_file, monkeypatch):
    from edgeprune import methods
    from edgeprune.graph import Circuit, Edge
    from edgeprune.methods import Discovery

    def wrong(model, dataset, ablation, *, seed=0, progress=False):
        edges = frozenset(map(Edge.parse, ["tok->a0.h0.v", "tok->m0"]))
        scores = torch.ones(len(model.graph.sources), len(model.graph.destinations))
        return Discovery(Circuit(model.graph, ablation, edges), scores, ())

    monkeypatch.setattr(methods, "METHODS", {"wrong": wrong})
    status, out, _ = run(capsys, "recover", program_file(), "--method", "wrong")
    assert status == 1
    assert "not exact: 3 missing, 1 extra" in out


BAD = [
    (["recover", "revers"], "did you mean reverse"),
    (["verify", "no/such/file.py:f"], "there is no file"),
    (["truth", "reverse", "--ablation", "noise"], "among zero, mean, resample; got 'noise'"),
    (["recover", "reverse", "--ablation", "noise"], "among zero, mean, resample; got 'noise'"),
    (["recover", "reverse", "--method", "magic"], "or package.module:function; got 'magic'"),
    (["recover", "reverse", "--picture", "circuit.gif"], "a picture ending in svg, png, pdf"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_unusable_input_is_one_line_on_standard_error_and_status_2(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("edgeprune: ")
    assert message in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["discover"],
        ["recover"],
        ["recover", "reverse", "--seed", "x"],
        ["truth", "reverse", "--fast"],
        ["bench", "--random", "0"],
        ["bench", "--seeds", "0"],
        ["bench", "--timeout", "0"],
        ["bench", "--random", "2", "--jobs", "0"],
    ],
)
def test_unusable_arguments_are_one_line_too(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    captured = capsys.readouterr()
    assert (caught.value.code, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    assert "--help" in captured.err


BAD_PROGRAMS = [
    ("3", "", "it returns int; a program returns a rasp.SOp"),
    ("rasp.Map(lambda x: 1 / 0, rasp.tokens)", "", "RASP's interpreter raises"),
    ("rasp.Map(lambda x: 1, rasp.tokens)", "", "nothing could fail on it"),
    ("rasp.tokens + rasp.length", "", "rasp.length is not compiled"),
    ("rasp.tokens", ", min_seq_len=0", "min_seq_len is 0"),
    ("rasp.tokens", "", "tokens: the output is an input, so that no layer computes it"),
    ("rasp.Map(lambda x: [x], rasp.tokens)", "", "it gives ['a']; outputs are None, or values that are hashable"),
    ("rasp.numerical(rasp.Map(lambda x: float('inf'), rasp.tokens))", "", "it gives inf; outputs are None"),
    ("__import__('sys').exit(0)", "", "building it raises SystemExit: 0"),
    ("rasp.tokens", ", valid=lambda tokens: False", "its domain is empty"),
]


@pytest.mark.parametrize(("body", "more", "message"), BAD_PROGRAMS, ids=[m for _, _, m in BAD_PROGRAMS])
def test_an_unusable_program_of_ones_own_is_one_line_too(capsys, program_file, body, more, message):
    status, _, err = run(capsys, "truth", program_file(body, more))
    assert status == 2
    assert err.count("\n") == 1
    assert message in err


def test_what_a_file_prints_does_not_mix_with_the_json(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("print('loading')\n" + ONE.format(body=BEFORE, more=""))
    status, out, err = run(capsys, "verify", f"{tmp_path / 'mine.py'}:mine", "--json")
    assert status == 0
    assert json.loads(out)["equal"] is True
    assert "loading" in err


def test_a_length_of_another_type_is_one_line(program_file):
    # In a process of its own, as types are checked at run time in this one.
    command = [sys.executable, "-m", "edgeprune.cli.main", "truth", program_file(more=", min_seq_len=1.0")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.endswith("min_seq_len is 1.0; it is a whole number\n")


def test_brackets_in_a_docstring_are_no_markup(capsys, tmp_path):
    source = ONE.format(body=BEFORE, more="").replace("The token before.", "Whether [x] opens and [/x] closes.")
    (tmp_path / "mine.py").write_text(source)
    status, out, _ = run(capsys, "verify", f"{tmp_path / 'mine.py'}:mine")
    assert status == 0
    assert "[x] opens and [/x] closes" in out


@pytest.mark.parametrize("seed", ["-1", str(2**32), "one"])
def test_a_seed_out_of_range_is_one_line(capsys, seed):
    with pytest.raises(SystemExit) as caught:
        main(["truth", "reverse", "--seed", seed])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("option", ["--picture", "--report", "--save"])
def test_a_result_that_could_not_be_written_is_refused_before_the_work(capsys, monkeypatch, option):
    monkeypatch.setattr("tracr_bridge.recovery.recover.recover", None)
    status, _, err = run(capsys, "recover", "reverse", "--json", option, "/no/such/folder/p.svg")
    assert status == 2
    assert "Expected a file in an existing, writable folder; got '/no/such/folder/p.svg'" in err


def test_what_a_program_says_of_itself_steers_no_terminal(capsys, program_file, tmp_path):
    """Escapes in a docstring, in a table, and in an error's message; lines of a mistake are one."""
    spec = program_file()
    file = tmp_path / "mine.py"
    file.write_text(file.read_text().replace("The token before.", r"\x1b[31mRed\x07 \u202e\x9b."))
    status, out, _ = run(capsys, "verify", spec)
    assert status == 0 and r"\x1b[31mRed\x07 \u202e\x9b." in out and not {"\x1b", "\x07", "\u202e", "\x9b"} & set(out)
    file.write_text(r"raise ValueError('\x1b]0;mine\x07 here\n and there')")
    status, _, error = run(capsys, "verify", spec)
    assert status == 2 and error.count("\n") == 1 and r"\x1b]0;mine\x07 here and there" in error
    assert not {"\x1b", "\x07"} & set(error)


@pytest.mark.parametrize(("stop", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_a_command_that_is_told_to_end_removes_what_is_unfinished_and_says_how_to_go_on(
    capsys, monkeypatch, tmp_path, stop, status
):
    from edgeprune.toys import train

    def interrupted(*_, **__):
        assert len(list(tmp_path.iterdir())) == 2  # the folder, and its lock
        signal.raise_signal(getattr(signal, stop))

    monkeypatch.setattr(train, "_fit", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    # What runs in the background, or under nohup, is born deaf to some, and commands leave it so.
    usual = signal.default_int_handler if stop == "SIGINT" else signal.SIG_DFL
    born = signal.signal(getattr(signal, stop), usual)
    try:
        given, _, error = run(capsys, "train-toy", "ioi", "--out", str(tmp_path / "toy"))
    finally:
        signal.signal(getattr(signal, stop), born)
    assert (given, error) == (status, "edgeprune: stopped: nothing was written; begin again\n")
    assert not any(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) is before


COMMANDS = {
    "Programs and their circuits": ["bench", "export", "programs", "recover", "truth", "verify"],
    "Language models": ["compare", "evaluate", "plan", "prune", "sweep", "task", "train-toy"],
    "Circuits and files": ["circuits", "convert", "draw"],
}


def test_help_lists_every_command_in_its_group(capsys):
    assert main(["--help"]) == 0
    found, group = {}, ""
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("╭"):
            group = line.strip("╭─╮ ")
        elif line.startswith("│ ") and line[2].isalpha():
            found.setdefault(group, []).append(line[2:].split()[0])
    assert found == COMMANDS


@pytest.mark.parametrize("command", [name for names in COMMANDS.values() for name in names])
def test_every_command_has_help_with_an_example_that_parses_and_no_option_without_words(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    shown = [line.strip(" │") for line in capsys.readouterr().out.splitlines()]
    example = next(line for line in shown[shown.index("Example:") :] if line.startswith("edgeprune "))
    ran = []
    monkeypatch.setattr("edgeprune.cli.main._run", lambda run, json: ran.append(run) or 0)
    assert main(example.split()[1:]) == 0 and len(ran) == 1
    for line in shown:
        if line.startswith(("--", "*  --")):
            assert (len(line.split()) > 2 and not line.endswith("[required]")) or ". [" in line, line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recver", "reverse"], 'did you mean "recover"?'),
        (["recover", "reverse", "--metod", "eap"], "Did you mean --method?"),
        (["circuits", "intersct", "a.json", "b.json"], 'Did you mean "intersect"?'),
        (["draw", "a.json"], "--out requires an argument"),
        (["convert", "a.json", "b.json", "c.json"], "c.json"),
    ],
)
def test_a_slip_is_told_with_what_was_meant(capsys, arguments, says):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and says in error and error.count("\n") == 1
    assert error.endswith(" --help\n")


def test_the_shell_completes_commands_and_options():
    from edgeprune.cli.main import _declared

    script = _declared().app.generate_completion(shell="bash")
    assert all(name in script for names in COMMANDS.values() for name in names) and "--target-sparsity" in script


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["truth", "hist", "--seed", "1.5"], "Expected a whole number; got '1.5'"),
        (["bench", "--random", "none"], "Expected a whole number; got 'none'"),
        (["truth", "hist", "--criterion", "none"], 'Choose from: "mean", "worst"'),
        (["truth", "hist", "--seed", "9" * 5000], "Expected a whole number"),
        (
            ["prune", "--model", "a", "--task", "b", "--out", "c", "--steps", "1.5"],
            "Expected a whole number; got '1.5'",
        ),
        (
            ["prune", "--model", "a", "--task", "b", "--out", "c", "--train", "1.5"],
            "Expected a whole number; got '1.5'",
        ),
        (["plan", "--model", "a", "--batch", "1.5"], "Expected a whole number; got '1.5'"),
        (["sweep", "--model", "a", "--task", "b", "--out", "c", "--target-sparsity", "[]"], 'unable to convert "[]"'),
        (
            ["prune", "--model", "a", "--task", "b", "--out", "c", "--target-sparsity", "none"],
            'unable to convert "none"',
        ),
        (["recver\x1b[31m"], "recver\\x1b[31m"),
    ],
)
def test_what_is_no_number_is_not_taken_for_one(capsys, arguments, says):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and says in error and error.count("\n") == 1 and "\x1b" not in error


def test_a_slip_in_a_command_loads_no_command():
    code = "import sys; from edgeprune.cli.main import main\ntry: main(['recver'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'jax', 'torch', 'tracr', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]" and 'did you mean "recover"?' in result.stderr


@pytest.mark.parametrize("columns", ["0", "-3", "wide"])
def test_a_terminal_without_a_width_shows_help(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["--help"]) == 0 and "edgeprune recover reverse" in capsys.readouterr().out


def test_completion_that_cannot_be_installed_is_one_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHELL", "/bin/bash")
    with pytest.raises(SystemExit) as ended:
        main(["--install-completion"])
    assert ended.value.code == 2 and "Expected bash, zsh or fish" in capsys.readouterr().err
