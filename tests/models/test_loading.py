"""The model that is loaded is the one that was asked for: Hugging Face's, to the last logit, or none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, SCALED_ROTATIONS, VOCABULARY, families, gpt2, gpt2_config, llama, llama_config, tokens
from tokenizing import whole_words
from torch import nn
from transformers import AutoModelForCausalLM

from edgeprune.cli.main import main
from edgeprune.errors import ModelError, TaskError
from edgeprune.metrics.answers import Answers
from edgeprune.models import guard, unsupported
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.models.guard import LONGEST, TOLERANCE, check_same, make_prompts, their_logits
from edgeprune.models.llama import LlamaModel
from edgeprune.models.load import KINDS, load_model
from edgeprune.runs import config as subject
from edgeprune.runs import prune as pruning_run
from edgeprune.runs.config import RunConfig, load_model_on_task
from edgeprune.tasks import Encoded, Sizes
from tracr_bridge.certify import trained_models as trained

GPT2, LLAMA = FAMILIES


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    whole_words(*(f"w{number}" for number in range(VOCABULARY - 1))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One folder of each family, which no test changes."""
    return {family.name: save(family.original(), tmp_path_factory.mktemp(family.name)) for family in FAMILIES}


@pytest.fixture
def changed(saved, tmp_path):
    """Makes a folder that differs from one of them."""

    def change(family="gpt2", *, config=None, weights=None, raw=None) -> str:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved[family], folder)
        if config is not None:
            said = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(said | config))
        if weights is not None:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for name, content in (raw or {}).items():
            file = folder / name
            file.write_bytes(content(file.read_bytes()) if callable(content) else content)
        return str(folder)

    return change


@torch.no_grad()
def asked_for(folder, ids):
    """What was asked for, by what Hugging Face makes of the folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits


def refused(folder, match, **options):
    with pytest.raises(ModelError, match=match) as error:
        load_model(str(folder), device="cpu", **options)
    assert "\n" not in str(error.value)


# Settings that we do


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: gpt2(gpt2_config(activation_function="prelu")), id="gpt2-prelu"),
        pytest.param(lambda: llama(llama_config(hidden_act="prelu")), id="llama-prelu"),
        pytest.param(lambda: gpt2(gpt2_config(scale_attn_by_inverse_layer_idx=True)), id="gpt2-inverse-layer"),
        pytest.param(lambda: gpt2(gpt2_config(reorder_and_upcast_attn=True)), id="gpt2-upcast"),
        pytest.param(lambda: gpt2(gpt2_config(tie_word_embeddings=False)), id="gpt2-untied"),
        pytest.param(lambda: llama(llama_config(attention_bias=True, mlp_bias=True)), id="llama-biases"),
        pytest.param(lambda: llama(llama_config(head_dim=6)), id="llama-wide-heads"),
        *(
            pytest.param(lambda kind=kind: llama(_scaled(kind)), id=f"llama-{kind}")
            for kind in sorted({*SCALED_ROTATIONS} - {"default"})
        ),
    ],
)
def test_what_config_says_is_done(model, tmp_path):
    """With an activation's own parameters, which were trained."""
    folder = save(model(), tmp_path / "model")
    ours, _ = load_model(str(folder), device="cpu")
    for length in (3, 12):
        ids = tokens(2, length)
        torch.testing.assert_close(ours(ids), asked_for(folder, ids), atol=1e-4, rtol=0)


def _scaled(kind):
    return llama_config(head_dim=4, rope_parameters={"rope_type": kind, "rope_theta": 10.0, **SCALED_ROTATIONS[kind]})


@families
def test_an_activation_with_parameters_gets_no_gradient_and_serves_in_double_precision(family):
    setting = {"gpt2": "activation_function", "llama": "hidden_act"}[family.name]
    original = family.make(family.config(**{setting: "prelu"}))
    ours = family.adapter(original)
    mask = torch.ones(len(ours.graph.sources), len(ours.graph.destinations), requires_grad=True)
    ours(tokens(2, 5), mask).sum().backward()
    assert mask.grad is not None and all(parameter.grad is None for parameter in original.parameters())
    torch.testing.assert_close(ours.in_double(tokens(2, 5)), ours(tokens(2, 5)).double(), atol=1e-4, rtol=0)


def test_a_head_of_its_own_is_taken_though_config_ties_it(changed):
    """As transformers does where both are in the file."""
    other = torch.randn(VOCABULARY, 8)
    folder = changed(config={"tie_word_embeddings": True}, weights=lambda w: w.update({"lm_head.weight": other}))
    ours, _ = load_model(folder, device="cpu")
    assert torch.equal(ours.weights.lm_head.weight, other)
    torch.testing.assert_close(ours(tokens(2, 7)), asked_for(folder, tokens(2, 7)), atol=1e-4, rtol=0)


# The guard


def test_prompts_are_short_long_and_padded_and_have_the_vocabulary_among_them():
    for vocabulary, places in ((VOCABULARY, 12), (50_257, 1024), (5, 1)):
        short, long, padded = make_prompts(vocabulary, places)
        assert short.ids.shape == (1, min(3, places)) and long.ids.shape == (1, min(LONGEST, places))
        assert places == 1 or len(set(padded.lengths.tolist())) > 1
        assert torch.equal(padded.real.sum(1), padded.lengths) and padded.real[:, 0].all()
        ids = torch.cat([each.ids.flatten() for each in (short, long, padded)])
        assert 0 in ids and int(ids.max()) == vocabulary - 1
        assert vocabulary > len(ids) or set(ids.tolist()) == set(range(vocabulary))


@families
@pytest.mark.parametrize("number", range(3))
def test_a_difference_above_the_tolerance_is_refused_and_one_below_is_not(family, number):
    ours, layers = family.ours(), KINDS[family.name].layers
    for share, well in ((0.9, True), (1.1, False)):
        expected = their_logits(ours.weights, make_prompts(VOCABULARY, ours.context_length))
        some = expected[number]
        spread = max(float((some - some.mean(-1, keepdim=True)).abs().max()), float(some.abs().max()) / 10)
        some[-1, 3] += share * TOLERANCE[torch.float32] * spread
        if well:
            check_same("it", ours, layers, expected)
            continue
        with pytest.raises(ModelError, match=r"over 'it' to give the logits.* up to 0\.0001 of their spread; they are"):
            check_same("it", ours, layers, expected)


def test_what_may_be_rounding_is_decided_in_a_finer_type(monkeypatch):
    """Where there is room for it."""
    ours = GPT2.ours()
    ours.weights.lm_head.register_forward_hook(lambda _m, _g, out: out + 0.01 * (out.dtype == torch.float32))
    check_same("it", ours, "transformer.h")
    monkeypatch.setattr(guard, "_ROOM", 8 * sum(each.numel() for each in ours.weights.parameters()) - 1)
    with pytest.raises(ModelError, match=r"apart where they spread by .* in float32\."):
        check_same("it", ours, "transformer.h")


def test_what_was_asked_for_before_weights_changed_is_not_asked_for_anew():
    """As it would be given by the weights that it is compared with."""
    ours = GPT2.ours()
    expected = their_logits(ours.weights, make_prompts(VOCABULARY, ours.context_length))
    with pytest.raises(ModelError, match=r"apart where they spread by .* in float32\."):
        check_same("it", ours, "transformer.h", [each + 0.01 for each in expected])


@pytest.mark.parametrize("part", ["token", "place", "far"])
def test_what_no_prompt_has_is_compared_too(part):
    """A token and a place that embed otherwise, and a first layer that does at the end of a long text."""
    original = gpt2(gpt2_config(vocab_size=5000, max_position_embeddings=LONGEST + 10))
    ours = Gpt2Model(original)
    check_same("it", ours, "transformer.h")
    seen = {int(each) for prompts in make_prompts(5000, LONGEST + 10) for each in prompts.ids.flatten()}
    token = max(each for each in range(5000) if each not in seen)

    ramp = torch.arange(8.0)  # which a norm does not take away

    def otherwise(chosen):
        return lambda _module, given, output: output + (given[0] == chosen)[..., None] * ramp

    if part == "token":
        original.transformer.wte.register_forward_hook(otherwise(token))
    elif part == "place":
        original.transformer.wpe.register_forward_hook(otherwise(LONGEST + 9))
    else:
        far = torch.arange(LONGEST + 10)[:, None] > LONGEST
        original.transformer.h[0].mlp.register_forward_hook(lambda _m, _g, out: out + far[: out.shape[1]] * ramp)
    with pytest.raises(ModelError, match="to give the logits that AutoModelForCausalLM gives"):
        check_same("it", ours, "transformer.h")
    assert len(original.transformer.h) == 2  # as it was


@families
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_that_does_what_ours_does_not_is_refused(family, precision, changed):
    folder = changed(family.name, config={"is_causal": False})
    match = r"up to .* of their spread; they are .* apart.*usually config\.json asks.*--no-check goes on with ours"
    refused(folder, f"(?i){match}", precision=precision)
    load_model(folder, device="cpu", precision=precision, check=False)


@families
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_passes(family, kind):
    check_same("it", family.adapter(family.original().to(kind)), KINDS[family.name].layers)


def test_a_model_whose_logits_are_all_the_same_passes(changed):
    load_model(changed("llama", weights=lambda w: w["lm_head.weight"].fill_(0.3)), device="cpu")


# Adapters


LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def with_adapter(changed) -> str:
    generator = torch.Generator().manual_seed(0)
    shapes = {"A": (2, 8), "B": (8, 2)}
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight": torch.randn(
            *shape, generator=generator
        )
        for layer in range(2)
        for part, shape in shapes.items()
    }
    folder = changed("llama", raw={})
    (Path(folder) / "adapter_config.json").write_text(json.dumps(LORA | {"base_model_name_or_path": "elsewhere"}))
    save_file(weights, Path(folder) / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_never_left_out(changed, monkeypatch):
    """Without peft it would be, which is no matter of what is checked."""
    monkeypatch.setattr(unsupported.importlib.util, "find_spec", lambda _name: None)
    for check in (True, False):
        refused(
            with_adapter(changed), "as peft is not installed; .* has adapter_config.json: install peft", check=check
        )


def test_an_adapter_is_merged_where_there_is_peft(changed):
    pytest.importorskip("peft")
    folder = with_adapter(changed)
    ours, _ = load_model(folder, device="cpu")
    ids = tokens(2, 9)
    wanted = asked_for(folder, ids)
    torch.testing.assert_close(ours(ids), wanted, atol=1e-4, rtol=0)
    (Path(folder) / "adapter_config.json").unlink()
    assert (asked_for(folder, ids) - wanted).abs().max() > 0.1


class Wrapped(nn.Module):
    """What peft puts in the place of a layer."""

    __module__ = "peft.tuners"

    def __init__(self, base, *, mergeable=True):
        super().__init__()
        self.base, self.mergeable = base, mergeable
        if mergeable:
            self.get_base_layer = lambda: base

    def merge(self, *, safe_merge):
        self.base.weight.data += 1.0


def test_a_merge_leaves_nothing_of_peft():
    model = llama(llama_config())
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[0].mlp
    before, own = attention.q_proj.weight.clone(), attention.q_proj
    attention.q_proj = Wrapped(own)
    unsupported.merge_adapter("it", model)
    assert attention.q_proj is own and torch.equal(own.weight, before + 1)
    mlp.up_proj = Wrapped(mlp.up_proj, mergeable=False)
    with pytest.raises(ModelError, match=r"an adapter that can be merged .* that of 'it' has \['Wrapped'\]"):
        unsupported.merge_adapter("it", model)


# Files


@pytest.mark.parametrize("name", ["lm_head.bias", "v_head.weight", "transformer.h.0.attn.q_norm.weight"])
def test_weights_that_nothing_reads_are_named(name, changed):
    folder = changed(weights=lambda w: w.update({name: torch.ones(8)}))
    refused(folder, f"there are more, which nothing reads: {name}.*--no-check goes on without them")
    load_model(folder, device="cpu", check=False)


def test_buffers_of_older_versions_are_no_weights(changed):
    older = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4), "transformer.h.0.attn.bias": torch.ones(1).bool()}
    load_model(changed(weights=lambda w: w.update(older)), device="cpu")


def test_weights_that_are_missing_or_of_other_sizes_or_types_are_named(changed):
    for check in (True, False):
        gone = changed(weights=lambda w: w.pop("transformer.h.0.ln_1.weight"))
        refused(gone, r"missing: transformer\.h\.0\.ln_1\.weight$", check=check)
        wide = changed("llama", config={"intermediate_size": 16})
        refused(wide, r"mlp\.down_proj\.weight is \[8, 12\] and should be \[8, 16\]; .*; and 3 more$", check=check)
        for kind, said in ((torch.int64, "I64"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")):
            other = torch.ones(8).to(kind)
            whole = changed(weights=lambda w, other=other: w.update({"transformer.ln_f.weight": other}))
            refused(whole, rf"in .* there are transformer\.ln_f\.weight \({said}\)", check=check)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_may_be_of_any_floating_type(kind, changed):
    folder = changed(weights=lambda w: w.update({name: value.to(kind) for name, value in w.items()}))
    ours, _ = load_model(folder, device="cpu")
    assert ours.weights.dtype == torch.float32
    torch.testing.assert_close(ours(tokens(2, 7)), asked_for(folder, tokens(2, 7)), atol=1e-4, rtol=0)


INDEX = json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": "model-2.safetensors"}}).encode()
DAMAGED = {
    "truncated": {"model.safetensors": lambda whole: whole[:-100]},
    "only a header's length": {"model.safetensors": lambda whole: whole[:8]},
    "empty": {"model.safetensors": b""},
    "no safetensors": {"model.safetensors": b"\x80\x02}q\x00."},
    "config that is no JSON": {"config.json": b"{"},
    "config that is a list": {"config.json": b"[]"},
    "config that is nested": {"config.json": b"[" * 100_000},
    "config that is no text": {"config.json": b"\xff\xfe"},
    "a tokenizer that is none": {"tokenizer.json": b"[]"},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_in_one_line(name, changed, capfd):
    folder = changed(raw=DAMAGED[name])
    capfd.readouterr()
    refused(folder, "cannot be loaded: ")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("index", [INDEX, b"{", b"[]", b'{"weight_map": 3}'])
def test_a_damaged_index_is_refused_in_one_line(index, changed):
    folder = Path(changed())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(index)
    refused(folder, "cannot be loaded: ")


def test_a_folder_without_config_and_a_file_are_refused(saved, tmp_path):
    refused(tmp_path, "a folder with config.json, safetensors and a tokenizer; .* cannot be loaded")
    refused(saved["gpt2"] / "config.json", "a model's folder, or its name on the Hugging Face hub; .* is a file$")
    refused(tmp_path / "nothing", "cannot be loaded")


def test_config_that_asks_for_another_model_is_refused(changed):
    for said in ({"quant_method": "fp8"}, {"quant_method": "gptq", "bits": 4}):
        for check in (True, False):
            refused(changed("llama", config={"quantization_config": said}), "not quantised", check=check)
    mistral = changed("llama", config={"architectures": ["MistralForCausalLM"]})
    refused(mistral, "model_type llama, and architectures MistralForCausalLM, which is mistral")
    load_model(mistral, device="cpu", check=False)
    own = changed("llama", config={"auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}})
    refused(own, r"brings its own \(auto_map\), which is not run: --no-check takes it for the llama")
    load_model(own, device="cpu", check=False)
    for known in ("LlamaForSequenceClassification", "LLaMAForCausalLM"):  # of the same kind; a name of old
        load_model(changed("llama", config={"architectures": [known]}), device="cpu")


def test_nobody_is_asked_whether_to_run_code(changed, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    unknown = {"model_type": "xyz", "auto_map": {"AutoConfig": "configuration_own.Own"}}
    refused(changed("llama", config=unknown), "custom code")


# NaN


@pytest.mark.parametrize(
    ("weight", "value"),
    [
        ("transformer.h.1.mlp.c_fc.weight", float("nan")),
        ("transformer.ln_f.bias", float("inf")),
        ("transformer.wte.weight", float("nan")),
        ("transformer.wpe.weight", float("nan")),
    ],
)
def test_weights_that_are_no_numbers_are_the_models_own(weight, value, tmp_path):
    model = gpt2(gpt2_config(vocab_size=3000, max_position_embeddings=80))
    model.get_parameter(weight).data.view(-1)[-1] = value
    folder = save(model, tmp_path / "model")
    refused(folder, rf"itself gives NaN or infinity, with nothing pruned: such weights are {weight}$")


def test_without_the_check_a_task_finds_that_the_model_gives_nan(changed, tmp_path):
    folder = changed(weights=lambda w: w["transformer.ln_f.bias"].fill_(float("nan")))
    task = tmp_path / "task.jsonl"
    line = {"clean": "w1 w2<predict> w3</predict>", "corrupted": "w2 w2", "split": "every"}
    task.write_text(json.dumps(line) + "\n")
    config = RunConfig(model=folder, task=str(task), sizes=Sizes(train=1, validation=1, test=1))
    with pytest.raises(ModelError, match=r"itself gives NaN or infinity on the train split of .*, with nothing"):
        load_model_on_task(config, ["train"], device="cpu", check=False)


# Lengths


def encoded(*lengths: int, width: int | None = None) -> Encoded:
    count, width = len(lengths), width or max(lengths)
    ids, ends = tokens(count, width), torch.tensor(lengths)
    answers = Answers(torch.zeros(count, 1, 1, dtype=torch.long), torch.zeros(count, 1, 1, dtype=torch.long))
    return Encoded(ids, ids.flip(0), ends, ends[:, None] - 1, torch.ones(count, 1, dtype=torch.bool), answers)


def longrope() -> LlamaModel:
    factors = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0], "factor": 2.0}
    rope = {"rope_type": "longrope", "rope_theta": 10.0, "original_max_position_embeddings": 16, **factors}
    return LlamaModel(llama(llama_config(head_dim=4, max_position_embeddings=32, rope_parameters=rope)))


@pytest.mark.parametrize(
    ("lengths", "well"), [((10, 16), True), ((17, 20), True), ((10, 20), False), ((16, 17), False)]
)
def test_lengths_on_one_side_of_a_switch_give_what_they_give_alone_and_others_are_refused(lengths, well):
    model, examples = longrope(), encoded(*lengths)
    if not well:
        with pytest.raises(
            TaskError, match=f"change, .* longest, {lengths[1]} tokens; there are some of {lengths[0]}:"
        ):
            examples.dataset(model)
        return
    target = examples.dataset(model).target[:]
    for row, length in enumerate(lengths):
        with torch.no_grad():
            alone = model.weights(examples.tokens[row : row + 1, :length]).logits
        torch.testing.assert_close(target[row], alone[0, -1:], atol=1e-4, rtol=0)


def test_examples_of_one_length_that_another_split_pads_over_the_switch_are_refused():
    with pytest.raises(TaskError, match="on one side of the length at which"):
        encoded(10, 10, width=20).dataset(longrope())


@pytest.mark.parametrize("kind", SCALED_ROTATIONS)
def test_padding_is_told_to_matter_where_it_does(kind):
    """Of six places; those beyond stretch dynamic rotations more and more."""
    shape = {"head_dim": 4, "max_position_embeddings": 6}
    rope = {"rope_type": kind, "rope_theta": 10.0, **SCALED_ROTATIONS[kind]}
    ours = LlamaModel(llama(llama_config(**shape, rope_parameters=rope)))
    for length, width in ((3, 4), (3, 5), (5, 6), (6, 7), (7, 12), (12, 12)):
        ids = tokens(1, width)
        apart = float((ours(ids)[:, :length] - ours(ids[:, :length])).abs().max())
        assert ours.pads(length, width) == (apart < 1e-5)
    assert Gpt2Model(gpt2(gpt2_config())).pads(3, 12)


# The command line


@pytest.mark.parametrize("flags", [[], ["--no-check"]])
def test_every_command_that_loads_a_model_says_whether_to_check_it(flags, monkeypatch, tmp_path, saved):
    told = list[bool]()

    def load(_name, *, check, **_others):
        told.append(check)
        raise ModelError("Expected nothing")

    config = RunConfig(model=str(saved["gpt2"]), task="ioi")
    monkeypatch.setattr(subject, "load_model", load)
    monkeypatch.setattr(trained, "load_model", load)
    monkeypatch.setattr(pruning_run, "read_config", lambda _folder: config)
    monkeypatch.setattr(pruning_run, "load_saved", lambda _file: type("Saved", (), {"circuit": None}))
    task = tmp_path / "task.jsonl"
    task.write_text('{"clean": "w1 w2<predict> w3</predict>", "corrupted": "w2 w2 w3"}\n')
    whole = save(gpt2(gpt2_config(n_layer=1, n_head=1)), tmp_path / "one")
    asked = ["--model", str(saved["gpt2"]), "--task", "ioi", "--target-sparsity", "0.5"]
    for number, command in enumerate(("prune", "sweep", "compare")):
        assert main([command, *asked, "--out", str(tmp_path / f"out{number}"), *flags]) == 2
    assert main(["evaluate", str(tmp_path), *flags]) == 2
    for command in ("truth", "recover"):
        assert main([command, str(whole), "--task", str(task), "--tolerance", "0.1", *flags]) == 2
    monkeypatch.setattr("edgeprune.models.load.load_model", load)
    assert main(["task", "ioi", "--model", str(saved["gpt2"]), *flags]) == 2
    assert told == [not flags] * 7
