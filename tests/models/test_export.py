"""Programs as checkpoints of Hugging Face: they do what RASP says, and their circuits are true and recovered."""

import json
import runpy
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, checkpoint, checkpoints
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from tracr.rasp import rasp
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from edgeprune.cli.main import main
from edgeprune.errors import CircuitMismatch, DegenerateProgram, ModelError, UnsupportedProgram
from edgeprune.files.store import CircuitFileError, UnwritableFile
from edgeprune.graph import ABLATIONS, Circuit, Edge
from edgeprune.masks import mask_of
from edgeprune.methods import METHODS
from edgeprune.metrics.distances import ATOL
from edgeprune.models.load import KINDS
from tracr_bridge import rasp_program
from tracr_bridge.bench.run import Run, named_subject, run_subject
from tracr_bridge.certify.behaviours import minimal_circuits
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.truth import is_true
from tracr_bridge.checkpoints import export as exporting
from tracr_bridge.checkpoints.export import export
from tracr_bridge.checkpoints.read_back import load_exported
from tracr_bridge.checkpoints.transplant import LARGE, transplant
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.random_programs.strategies import rasp_programs
from tracr_bridge.recovery import recover
from tracr_bridge.recovery.known_models import find, known

QUICK = ("induction", "depth", "share_of_others")
"""Positions that are read, several heads a layer, and a number for an output."""

CASES = checkpoints(QUICK)


def is_exact(exported, circuit):
    return recover.assess(exported.truth(circuit.ablation), circuit).comparison.exact


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    return checkpoint(*request.param, tmp_path_factory)


def test_plain_transformers_gives_what_rasp_says(exported):
    """From the folder alone, one text at a time and without padding."""
    model = AutoModelForCausalLM.from_pretrained(exported.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    content = json.loads((exported.folder / "circuit.json").read_text())
    columns, domain = content["outputs"]["columns"], content["domain"]
    assert type(model).__module__.startswith("transformers.")
    for text, expected in islice(zip(domain["inputs"], domain["expected"], strict=True), 0, None, 7):
        ids = tokenizer(text, return_tensors="pt")
        assert ids["input_ids"][0, 0] == tokenizer.bos_token_id
        with torch.no_grad():
            logits = model(**ids).logits[0, 1:]
        for row, value in zip(logits, expected, strict=True):
            if value is not None and content["outputs"]["kind"] == "categorical":
                assert columns[int(row.argmax())] == value
            elif value is not None:
                assert float(row[0]) == pytest.approx(value, abs=1e-2)


def test_circuits_are_true_where_they_are_run(exported):
    """Through the adapter, by masks: faithful, and no proper subset is."""
    for ablation, circuits in exported.circuits.items():
        judge = Judge(exported.model, exported.dataset, ablation, atol=ATOL)
        assert circuits and exported.certificates[ablation].complete
        assert all(is_true(judge, each.edges) is True for each in circuits)
        assert is_exact(exported, circuits[0])
        less = Circuit(exported.model.graph, ablation, frozenset(sorted(circuits[0].edges)[1:]))
        assert not is_exact(exported, less)
        empty = judge.differences(mask_of(exported.model.graph, [])[None])
        assert float(empty) > 0.1


def recoveries(family: str, quick: str) -> Any:
    """Every program at seed 0, and those in QUICK at seeds 1 and 2; one run is not for the sweep.

    The command itself recovers a Llama, in `test_exported_path.py`.
    """
    runs: list[Any] = []
    for name, of in (case.values[0] for case in CASES):
        for seed in (range(3) if name in QUICK else range(1)) if of == family else ():
            marks = [] if (name, seed) == (quick, 0) else pytest.mark.sweep
            runs.append(pytest.param((name, of), seed, id=f"{name}-{of}-{seed}", marks=marks))
    return pytest.mark.parametrize(("exported", "seed"), runs, indirect=["exported"])


class _Recovery:
    """A class for each family: several processes that run tests take a class each."""

    def test_edge_pruning_recovers_them(self, exported, seed):
        # Under the others, most are recovered by the command alone (`test_exported_path.py`).
        for ablation in ABLATIONS if exported.content["program"]["name"] in QUICK else ("zero",):
            found = METHODS["edge-pruning-minimax"](exported.model, exported.dataset, ablation, seed=seed)
            assert is_exact(exported, found.circuit), (ablation, found.circuit.names())


@recoveries("gpt2", "induction")
class TestRecoveryOfGpt2(_Recovery): ...


@recoveries("llama", "")
class TestRecoveryOfLlama(_Recovery): ...


@pytest.mark.parametrize(
    "name", ["acdc", "eap", "eap-ig-inputs", pytest.param("eap-ig-activations", marks=pytest.mark.sweep)]
)
def test_other_methods_run_on_them(exported, name):
    found = METHODS[name](exported.model, exported.dataset, "resample")
    assert found.circuit.graph == exported.model.graph and found.scores.isfinite().all()


def test_what_is_written_says_what_it_is(exported):
    content = exported.content
    assert content["format"] == "edgeprune export 3" and content["max_abs_diff"] < 1e-3
    assert {node.kind for node in exported.model.graph.sources} == {"embed", "a", "m"}
    assert content["circuits"].keys() == set(ABLATIONS)
    for each in content["circuits"].values():
        assert each["edges"] == each["certificate"]["circuits"][0] and each["certificate"]["gap"]["kept"] > 0.1
    again = load_exported(exported.folder)
    assert again.circuits == exported.circuits and again.truth("zero").judge.atol == ATOL
    seen = [again.model.weights.config, *again.model.weights.modules()]
    assert all(str(exported.folder) not in repr(vars(part)) for part in seen)


def test_the_adapter_agrees_once_nothing_is_harmless_any_more(exported):
    """Compiled attention is all or nothing, whatever its scale, and no rotation or output bias does anything."""
    config = AutoConfig.from_pretrained(exported.folder)
    if exported.family == "llama":
        config.rope_parameters["rope_theta"] = 10.0
    model = AutoModelForCausalLM.from_pretrained(exported.folder, config=config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "c_attn" in name or "q_proj" in name:
                parameter[..., : config.hidden_size] /= 100
            elif "c_proj.bias" in name:
                parameter.normal_()
        tokens = exported.dataset.tokens
        plain = model(tokens, attention_mask=torch.ones_like(tokens)).logits
        ours = KINDS[exported.family].adapter(model)(tokens)
        before = exported.model(tokens)
    assert float((plain - before).abs().max()) > 0.1
    torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-3)


@given(rasp_programs(causal=True), st.sampled_from(FAMILIES))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_random_causal_programs_do_the_same_there(program, family):
    compiled = compile_program(program)
    ids = compiled.assembled.input_encoder.encoding_map
    bos = ids["compiler_bos"]
    made = transplant(compiled.model.weights, family, [bos, *(ids[token] for token in program.vocab)], bos_id=bos)
    tokens, wanted = compiled.dataset.tokens, compiled.dataset.target
    with torch.no_grad():
        plain = made.model(tokens, attention_mask=torch.ones_like(tokens)).logits
        ours = KINDS[family].adapter(made.model)(tokens)
    apart = torch.where(compiled.dataset.scored[..., None], (plain[..., : wanted.shape[-1]] - wanted).abs(), 0)
    # Beside a constant c, a stream x is read as 1 - |x|^2 / 2c^2 of itself; where that is much, there is no export.
    stream = compiled.model.sources(tokens).sum(0)
    lost = float(stream.abs().max() * stream.square().sum(-1).max()) / (2 * LARGE[family] ** 2)
    assert float(apart.max()) < 1e-3 + 8 * lost
    torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-4)


@pytest.mark.sweep
@given(rasp_programs(causal=True), st.sampled_from(FAMILIES))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_causal_programs_are_exported_and_recovered(tmp_path_factory, program, family):
    compiled = compile_program(program)
    assume(compiled.model.graph.total <= 150 and len(compiled.dataset) <= 128)  # larger ones take minutes
    try:
        made = export(program, family, tmp_path_factory.mktemp("drawn") / family)
    except UnsupportedProgram as refused:
        # Numbers of tens; how far such programs may be off is asked for above.
        assert "which pins norms" in str(refused)
        reject()
    for ablation in made.certificates:
        found = METHODS["edge-pruning-minimax"](made.model, made.dataset, ablation)
        assert is_exact(made, found.circuit)


SCORE = Path(__file__).parents[2] / "examples" / "verify_your_tool" / "score.py"


def test_edges_are_scored_by_a_script_that_needs_nothing_but_the_file(tmp_path):
    """Without any package: -S leaves them out."""
    made = export(load_program("next_to"), "llama", tmp_path / "made")
    true = made.circuits["resample"][0].names()
    for edges, status, said in ((true, 0, "missing: none\nextra: none"), ([*true[1:], "embed->m0"], 1, "recall 0.750")):
        (tmp_path / "found.txt").write_text("\n".join(edges))
        command = [sys.executable, "-I", "-S", str(SCORE), str(made.folder), "--edges", str(tmp_path / "found.txt")]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == status and said in ran.stdout, ran.stderr
    (tmp_path / "found.txt").write_text("tok->m0")
    start = [sys.executable, "-I", "-S", str(SCORE)]
    for asked, said in (
        ([str(made.folder), "--edges", str(tmp_path / "found.txt")], "the model has no 'tok->m0'"),
        ([str(tmp_path / "none"), "--edges", str(tmp_path / "found.txt")], "none/circuit.json"),
        ([str(made.folder), "--edges", str(tmp_path / "none.txt")], "none.txt"),
        ([str(made.folder), "--lens"], "expected --edges FILE, or --check"),
    ):
        ran = subprocess.run([*start, *asked], capture_output=True, text=True, check=False)
        assert ran.returncode == 2 and said in ran.stderr


@pytest.mark.parametrize(("kept", "status"), [(slice(None), 0), (slice(1, None), 1)])
def test_what_a_complete_list_lacks_is_wrong_however_many_it_has(tmp_path, monkeypatch, capsys, kept, status):
    made = export(load_program("cancels_out"), "gpt2", tmp_path / "made")
    assert made.certificates["resample"].status == "ambiguous"
    (tmp_path / "found.txt").write_text("\n".join(made.circuits["resample"][1].names()[kept]))
    arguments = [str(SCORE), str(made.folder), "--ablation", "resample", "--edges", str(tmp_path / "found.txt")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCORE), run_name="__main__")
    assert ended.value.code == status
    assert "certificate: ambiguous" in capsys.readouterr().out


def test_the_script_runs_the_model_with_plain_transformers(tmp_path, monkeypatch, capsys):
    made = export(load_program("share_of_others"), "gpt2", tmp_path / "made")
    monkeypatch.setattr(sys, "argv", [str(SCORE), str(made.folder), "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCORE), run_name="__main__")
    assert ended.value.code == 0 and ", 0 wrong outputs" in capsys.readouterr().out


# What is refused, and leaves nothing behind


def test_a_program_that_attends_both_ways_is_refused(tmp_path, capsys):
    assert main(["export", "reverse", "--as", "gpt2", "--out", str(tmp_path / "out")]) == 2
    assert "Expected a causal program, as gpt2 sees no later token" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_does_the_same_and_is_causal_is_named(tmp_path):
    @rasp_program(vocab=("a", "b"), max_seq_len=3)
    def same() -> rasp.SOp:
        """Whether it is an "a"."""
        return rasp.Map(lambda token: int(token == "a"), rasp.tokens).named("same")

    with pytest.raises(UnsupportedProgram, match=r"same attends both ways: declared with causal=True it does the same"):
        export(same, "gpt2", tmp_path / "out")

    @rasp_program(vocab=("a", "b", "c"), max_seq_len=4, min_seq_len=4)
    def earlier() -> rasp.SOp:
        """How many equal tokens there are up to here, once all four have been seen."""
        before = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
        equal = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
        seen = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE))
        times = rasp.SelectorWidth(rasp.SelectorAnd(before, equal))
        return rasp.SequenceMap(lambda count, all_of_them: count if all_of_them == 4 else 0, times, seen).named(
            "earlier"
        )

    with pytest.raises(UnsupportedProgram, match=r": 'occurrences_so_far' does the same, and is causal"):
        export(earlier, "llama", tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UnwritableFile, match="a folder that does not exist yet"):
        export(load_program("next_to"), "gpt2", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_an_export_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    def stops(*_given, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "derive_truth", stops)
    with pytest.raises(KeyboardInterrupt):
        export(load_program("next_to"), "llama", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_something_else_is_never_written(tmp_path, monkeypatch):
    def spoiled(*given, **more):
        made = transplant(*given, **more)
        made.model.lm_head.weight.data.neg_()
        return made

    monkeypatch.setattr(exporting, "transplant", spoiled)
    with pytest.raises(UnsupportedProgram, match="small beside 2,048, which pins norms; logits of next_to differ"):
        export(load_program("next_to"), "gpt2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_a_folder_or_a_folder_of_folders(tmp_path, capsys):
    assert main(["export", "next_to", "--as", "gpt2", "--out", str(tmp_path / "one"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["exported"]
    assert found["edges"] == {"zero": [7], "mean": [4], "resample": [4]}
    assert Path(found["folder"]) == tmp_path / "one"
    names = ["next_to", "larger_before"]
    assert main(["export", *names, "--as", "llama", "--as", "gpt2", "--out", str(tmp_path / "set")]) == 0
    made = {f"{name}-{family}" for name in names for family in FAMILIES}
    assert {file.name for file in (tmp_path / "set").iterdir()} == made
    assert "AutoModelForCausalLM" in capsys.readouterr().out


def test_checkpoints_are_recovered_and_benched_as_programs_are(tmp_path, capsys):
    folder = str(export(load_program("next_to"), "llama", tmp_path / "made").folder)
    assert main(["truth", folder, "--ablation", "resample", "--json"]) == 0
    certified = json.loads(capsys.readouterr().out)
    assert (certified["program"], len(certified["edges"]), certified["total"]) == ("next_to-llama", 4, 19)
    assert certified["others_matter"] is True
    page = tmp_path / "page.html"
    assert main(["recover", folder, "--ablation", "resample", "--json", "--report", str(page)]) == 0
    recovered = json.loads(capsys.readouterr().out)
    assert recovered["exact"] and recovered["found"] == certified["edges"]
    assert "next_to-llama" in page.read_text()
    asked = [
        "bench",
        folder,
        f"{folder}/",
        "--method",
        "acdc",
        "--method",
        "random",
        "--ablation",
        "zero",
        "--out",
        str(tmp_path),
    ]
    assert main([*asked, "--jobs", "1", "--json"]) == 1
    rates = {each["method"]: each["exact"] for each in json.loads(capsys.readouterr().out)["rates"]}
    assert rates == {"acdc": 1, "random": 0}
    (row, _) = (json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines())
    assert row["outcome"] == "exact" and row["edges"] == 19 and row["iou"] == 1


def test_an_ablation_under_which_nothing_could_fail_is_refused_of_a_checkpoint_too(tmp_path, capsys):
    @rasp_program(vocab=("a", "b"), max_seq_len=3, causal=True)
    def odd() -> rasp.SOp:
        """Whether the number of tokens so far is odd."""
        so_far = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("all"))
        return rasp.Map(lambda number: number % 2, so_far.named("so_far")).named("odd")

    made = export(odd, "gpt2", tmp_path / "made")
    assert len(made.truth("zero").circuit) > 0 and made.circuits["resample"] == ()
    with pytest.raises(DegenerateProgram, match="circuit under resample ablation; odd gives the same output"):
        made.truth("resample")
    assert main(["recover", str(made.folder), "--ablation", "resample"]) == 2
    assert "nothing could fail on it" in capsys.readouterr().err


def test_a_name_is_a_program_and_a_path_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "next_to").mkdir()
    assert find("next_to") == load_program("next_to") and find("./next_to") == Path("next_to")
    (tmp_path / "next_to" / "circuit.json").write_text("{}")
    assert main(["truth", "next_to", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["program"] == "next_to" and "the folder is ./next_to" in said.err
    (tmp_path / "next_to" / "circuit.json").unlink()
    with pytest.raises(CircuitFileError, match=r"next_to/circuit\.json"):
        known(find("./next_to"))


def test_files_that_do_not_belong_together_are_refused(tmp_path, capsys):
    made, other = (export(load_program(name), "gpt2", tmp_path / name) for name in ("next_to", "any_x"))
    with pytest.raises(CircuitMismatch):
        is_exact(made, other.circuits["zero"][0])
    path = made.folder / "circuit.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"format": "edgeprune export 9"}, "a file of format 'edgeprune export 3'"),
        ({"structural": content["structural"][1:]}, "it was changed"),
        ({"circuits": {}}, "it was changed"),
        ({"digest": ""}, "it was changed"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(CircuitFileError, match=message):
            load_exported(made.folder)
        assert main(["truth", str(made.folder)]) == main(["bench", str(made.folder), "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    path.write_text("[]")
    with pytest.raises(CircuitFileError, match="a file of format"):
        load_exported(made.folder)
    path.write_text(json.dumps(content))
    assert load_exported(made.folder).circuits == made.circuits
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        before = (made.folder / name).read_bytes()
        (made.folder / name).write_bytes(before[:-1] + b" ")
        with pytest.raises(ModelError, match=f"{name} beside it is another"):
            load_exported(made.folder)
        (made.folder / name).write_bytes(before)
    (made.folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"beside it; .*No such file"):
        load_exported(made.folder)
    with pytest.raises(CircuitFileError, match="which holds several"):
        load_exported(tmp_path)


def test_a_circuit_that_is_not_true_here_is_refused(tmp_path, monkeypatch):
    """As on a machine that rounds otherwise."""
    made = export(load_program("next_to"), "gpt2", tmp_path / "made")
    made.model.weights.transformer.h[0].mlp.c_proj.weight.data.zero_()
    with pytest.raises(ModelError, match="true on this machine too; one is not under resample"):
        made.truth("resample")
    monkeypatch.setattr("tracr_bridge.checkpoints.read_back.is_true", lambda *_: False)
    subject, runs = named_subject(str(made.folder)), [Run("zero", "acdc", 0), Run("mean", "acdc", 0)]
    rows = list(run_subject(subject, runs, 60.0))
    assert [row["outcome"] for row in rows] == ["broken", "broken"] and "on this machine" in rows[0]["reason"]


def test_circuits_are_run_in_double_precision(tmp_path, monkeypatch):
    made = export(load_program("next_to"), "gpt2", tmp_path / "made")
    double = made.model.in_double
    assert {each.dtype for each in double.weights.parameters()} == {torch.float64}
    assert {each.dtype for each in made.model.weights.parameters()} == {torch.float32}
    assert double(made.dataset.tokens).dtype == double.in_double(made.dataset.tokens).dtype == torch.float64
    torch.testing.assert_close(double(made.dataset.tokens).float(), made.model(made.dataset.tokens))

    def in_single_alone(judge, _edges):
        return judge.model.sources(made.dataset.tokens[:1]).dtype == torch.float32

    monkeypatch.setattr(exporting, "is_true", in_single_alone)
    with pytest.raises(UnsupportedProgram, match="in double precision too; one of next_to under zero ablation is not"):
        export(load_program("next_to"), "llama", tmp_path / "refused")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_certificate_holds_in_double_precision_from_the_start(tmp_path, family):
    made = export(load_program("next_to"), family, tmp_path / "made")
    for ablation, certificate in made.certificates.items():
        judge = Judge(made.model.in_double, made.dataset, ablation, atol=ATOL)
        found = minimal_circuits(judge, sorted(made.structural))
        assert found is not None and {each.edges for each in certificate.circuits} == set(found.circuits)


def test_biases_of_a_gpt2_do_something(tmp_path):
    """Those that a value depends on, and on other exports those of an MLP; a softmax takes those of keys away."""
    made = export(load_program("next_to"), "gpt2", tmp_path / "made")
    tokens = made.dataset.tokens
    before, width = made.model(tokens), made.model.weights.config.n_embd
    for name, part, changes in (
        ("ln_1.bias", slice(None), True),
        ("attn.c_attn.bias", slice(2 * width, None), True),
        ("attn.c_attn.bias", slice(width, 2 * width), False),
        ("ln_2.bias", slice(None), True),
        ("mlp.c_fc.bias", slice(None), True),
    ):
        model = AutoModelForCausalLM.from_pretrained(made.folder)
        with torch.no_grad():
            model.transformer.h[0].get_parameter(name)[part] = 0
            assert bool((model(tokens).logits - before).abs().max() > 0.1) == changes, name


def test_the_one_head_of_a_llama_is_the_second_of_its_group(tmp_path):
    made = export(load_program("next_to"), "llama", tmp_path / "made")
    assert {str(edge.source) for edge in made.circuits["zero"][0].edges} == {"embed", "a0.h1", "m0"}
    assert len(made.model.graph.sources) == 6


@pytest.mark.parametrize("vocabulary", [(1, "1"), ("a b", " "), (0, 1, 2), ("compiler_bos_", "x")])
def test_every_vocabulary_has_words(vocabulary):
    names = exporting.words_of(vocabulary)
    assert len(set(names.values())) == len(vocabulary)
    assert all(word.split() == [word] for word in names.values())


def test_llama_gets_a_layer_for_positions_only_where_they_are_read(tmp_path):
    @rasp_program(vocab=("a", "b"), max_seq_len=3, causal=True)
    def seen() -> rasp.SOp:
        """Whether an "a" has been seen."""
        same = rasp.Select(rasp.tokens, rasp.tokens, lambda key, query: key == "a").named("same")
        return rasp.SelectorWidth(same).named("width")

    layers = {}
    for name, program in (("induction", load_program("induction")), ("seen", seen)):
        own = len(compile_program(program).model.weights.layers)
        made = export(program, "llama", tmp_path / name)
        layers[name] = made.model.weights.config.num_hidden_layers - own
    assert layers == {"induction": 1, "seen": 0}
    embed = Edge.parse("embed->a0.h0.v")
    circuit = load_exported(tmp_path / "induction").circuits["resample"][0]
    assert embed not in circuit.edges  # positions are the same in the corrupted input
    assert embed in load_exported(tmp_path / "induction").circuits["zero"][0].edges


def test_circuits_that_are_not_listed_are_run_before_they_are_called_false(tmp_path, monkeypatch):
    """Norms are taken over all that is written: no list of structural circuits says that another is not true."""
    made = export(load_program("induction"), "llama", tmp_path / "made")
    assert made.certificates["zero"].status == "unique"
    true, outside = made.circuits["zero"][0].edges, min(set(made.model.graph.edges) - made.structural)
    other = Circuit(made.model.graph, "zero", true - {min(true)} | {outside})
    assert not is_exact(made, other)
    monkeypatch.setattr(recover, "is_true", lambda _judge, edges: edges == other.edges)
    assessment = recover.assess(made.truth("zero"), other)
    assert assessment.comparison.exact and assessment.proof == "proved"
    assert assessment.truth.certificate.status == "minimal"


def test_numbers_that_are_not_small_beside_the_constant_are_refused(tmp_path):
    @rasp_program(vocab=(0, 1, 2), max_seq_len=3, causal=True)
    def large() -> rasp.SOp:
        """Whether sixty times the token is more than sixty times how often it came."""
        same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("same")
        token = rasp.numerical(rasp.Map(lambda t: 60 * t, rasp.tokens).named("token"))
        width = rasp.numerical(rasp.Map(lambda w: 60 * w, rasp.SelectorWidth(same).named("width")).named("times"))
        difference = rasp.numerical(rasp.LinearSequenceMap(token, width, 1, -1).named("difference"))
        return rasp.Map(lambda v: v > 0, difference).named("large")

    with pytest.raises(UnsupportedProgram, match="small beside 2,048, which pins norms"):
        export(large, "gpt2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_words_that_a_tokenizer_would_take_apart_are_numbered(tmp_path):
    @rasp_program(vocab=("compiler_bosx", "a b"), max_seq_len=2, causal=True)
    def odd() -> rasp.SOp:
        """How often the token has come."""
        same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("same")
        return rasp.SelectorWidth(same).named("times")

    made = export(odd, "llama", tmp_path / "out")
    assert made.content["program"]["vocabulary"] == {"token0": "compiler_bosx", "token1": "a b"}
    assert made.content["domain"]["inputs"][0] == "token0"


def test_older_versions_of_transformers_are_told_what_they_would_pass_over(tmp_path):
    made = export(load_program("next_to"), "llama", tmp_path / "out")
    assert json.loads((made.folder / "config.json").read_text())["rope_theta"] == 1e36
    tokenizer = json.loads((made.folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoModelForCausalLM.from_pretrained(made.folder).config.rope_parameters["rope_theta"] == 1e36
