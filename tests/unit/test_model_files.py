"""What a language model's files are refused for, and the order in which a model is loaded, without a model."""

import importlib.util
import json
import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeprune.errors import ModelError, TaskError
from edgeprune.models import load, unsupported
from edgeprune.models.load import Kind, find_device, load_model, without_bars
from edgeprune.models.unsupported import check_adapter, check_config, check_loaded, merge_adapter
from edgeprune.parallel import ALONE


def said(call, *given, kind=ModelError, **more):
    with pytest.raises(kind) as error:
        call(*given, **more)
    return str(error.value)


# Adapters


MERGED = "merge it (peft's merge_and_unload, then save_pretrained)"


def test_an_adapter_asks_for_peft_and_for_a_model_beside_it(tmp_path, monkeypatch):
    name, found = str(tmp_path), []
    monkeypatch.setattr(unsupported, "find_adapter_config_file", lambda name: found.append(name))
    assert check_adapter(name) is False and found == [name]
    monkeypatch.setattr(unsupported, "find_adapter_config_file", lambda name: "adapter_config.json")
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: asked.append(name))
    assert said(check_adapter, name) == (
        f"Expected a model without an adapter, as peft is not installed; {name!r} has adapter_config.json: install "
        f"peft, {MERGED}, or remove the adapter's files if the base model is meant"
    )
    assert asked == ["peft"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there")
    assert said(check_adapter, name) == (
        f"Expected a model beside its adapter; {name!r} holds the adapter alone: {MERGED}"
    )
    (tmp_path / "config.json").write_text("{}")
    assert check_adapter(name) is True
    assert check_adapter("name/on-the-hub") is True


class Layer(nn.Module):
    """What peft puts in a layer's place."""

    __module__ = "peft.tuners.lora"

    def __init__(self, base):
        super().__init__()
        self.base, self.merged = base, []

    def get_base_layer(self):
        return self.base

    def merge(self, *, safe_merge):
        self.merged.append(safe_merge)


class Other(nn.Module):
    __module__ = "peft.tuners.others"


def test_an_adapter_is_merged_layer_by_layer_and_what_cannot_be_is_named():
    inner, outer = nn.Linear(1, 1), nn.Linear(2, 2)
    first, second = Layer(inner), Layer(outer)
    model = nn.Sequential(nn.Sequential(first), second, nn.ReLU())
    merge_adapter("name", model)
    assert model[0][0] is inner and model[1] is outer
    assert first.merged == second.merged == [True]
    model = nn.Sequential(Other(), nn.Sequential(Other()))
    assert said(merge_adapter, "name", model) == (
        "Expected an adapter that can be merged into the weights; that of 'name' has ['Other']"
    )


# Configurations


def config_of(**more):
    return SimpleNamespace(**{"model_type": "gpt2", **more})


def test_quantised_weights_are_refused_whether_checked_or_not():
    config = config_of(quantization_config={"bits": 4})
    for check in (True, False):
        assert said(check_config, "name", config, check=check) == (
            "Expected weights that are not quantised; 'name' has quantization_config: dequantise them"
        )
    check_config("name", config_of(quantization_config=None), check=True)
    check_config("name", config_of(), check=True)


def test_a_class_of_another_kind_is_refused_where_it_is_checked():
    config = config_of(architectures=["GPT2LMHeadModel", "LlamaForCausalLM"])
    assert said(check_config, "name", config, check=True) == (
        "Expected one kind of model in config.json of 'name'; it says model_type gpt2, and architectures "
        "LlamaForCausalLM, which is llama: correct it, or --no-check takes it for gpt2"
    )
    check_config("name", config, check=False)
    for fine in (["GPT2LMHeadModel"], ["NoSuchModel"], [], None):
        check_config("name", config_of(architectures=fine), check=True)


def test_code_of_its_own_is_refused_where_it_is_checked():
    config = config_of(auto_map={"AutoModelForCausalLM": "own.Model"})
    assert said(check_config, "name", config, check=True) == (
        "Expected a model that transformers has code for; 'name' brings its own (auto_map), which is not run: "
        "--no-check takes it for the gpt2 that transformers knows"
    )
    check_config("name", config, check=False)
    for fine in ({"AutoTokenizer": "own.Tokenizer"}, {}, None):
        check_config("name", config_of(auto_map=fine), check=True)


# Weights


FINE = {"mismatched_keys": (), "missing_keys": (), "unexpected_keys": ()}


def loaded(tmp_path, tensors=None, *, check=True, **found):
    save_file(tensors or {"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    return check_loaded(str(tmp_path), {**FINE, **found}, check=check)


def test_weights_are_of_the_sizes_that_are_said_all_there_and_read(tmp_path):
    name = str(tmp_path)
    loaded(tmp_path)
    others = {("b", torch.Size([2]), torch.Size([3])), ("a", torch.Size([4, 1]), torch.Size([5]))}
    assert said(loaded, tmp_path, mismatched_keys=others) == (
        f"Expected weights of the sizes that config.json of {name!r} says; a is [4, 1] and should be [5]; "
        "b is [2] and should be [3]"
    )
    assert said(loaded, tmp_path, missing_keys={"b", "a"}) == (
        f"Expected all weights of the model in {name!r}; missing: a; b"
    )
    more = {"d", "b", "c", "a", "e", "h.attn.bias"}
    assert said(loaded, tmp_path, unexpected_keys=more) == (
        f"Expected the weights that config.json of {name!r} speaks of; there are more, which nothing reads: a; b; c; "
        "and 2 more. It is another model's file, or a setting is wrong; --no-check goes on without them"
    )
    loaded(tmp_path, unexpected_keys=more, check=False)
    buffers = {"h.attn.bias", "h.attn.masked_bias", "h.rotary_emb.inv_freq"}
    loaded(tmp_path, unexpected_keys=buffers)
    assert said(loaded, tmp_path, missing_keys={"a", "b", "c", "d"}).endswith("missing: a; b; c; and 1 more")
    assert said(loaded, tmp_path, missing_keys={"a", "b", "c"}).endswith("missing: a; b; c")


@pytest.mark.parametrize("parts", [1, 2])
def test_weights_are_floating_point_numbers_in_every_file(tmp_path, parts):
    tensors = {
        f"w{kind}": torch.zeros(1, dtype=getattr(torch, kind)) for kind in ("bfloat16", "float16", "float32", "float64")
    }
    wrong = {"y": torch.zeros(1, dtype=torch.int8), "h.attn.bias": torch.zeros(1, dtype=torch.uint8)}
    found = {**FINE}
    if parts == 1:
        save_file(tensors, tmp_path / "model.safetensors")
        check_loaded(str(tmp_path), found, check=True)
        save_file(tensors | wrong, tmp_path / "model.safetensors")
    else:
        save_file(tensors, tmp_path / "one.safetensors")
        save_file(wrong, tmp_path / "two.safetensors")
        names = dict.fromkeys(tensors, "one.safetensors") | dict.fromkeys(wrong, "two.safetensors")
        index = {"metadata": {}, "weight_map": names}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said(check_loaded, str(tmp_path), found, check=False) == (
        f"Expected weights that are BF16, F16, F32, F64; in {str(tmp_path)!r} there are y (I8)"
    )


# Loading


class Theirs:
    config = SimpleNamespace(vocab_size=11, max_position_embeddings=7)

    def __init__(self, noted):
        self.noted = noted

    def eval(self):
        self.noted.append("eval")

    def to(self, device):
        self.noted.append(("to", device))

    def get_submodule(self, name):
        return [name, "of theirs"]


@pytest.fixture
def steps(monkeypatch):
    """What is done, in order; and what each step gives."""
    noted = []
    gives = SimpleNamespace(
        noted=noted, theirs=Theirs(noted), found={"loaded": 1}, adapted=False, tokenizer=["a"], kind="own"
    )

    def step(name, result):
        def noting(*given, **more):
            noted.append((name, given, more))
            return result() if callable(result) else result

        return noting

    config = SimpleNamespace(from_pretrained=step("config", lambda: SimpleNamespace(model_type=gives.kind)))
    ours = step("ours", "our model")
    for name, value in {
        "check_adapter": step("adapter", lambda: gives.adapted),
        "AutoConfig": config,
        "check_config": step("check config", None),
        "AutoModelForCausalLM": SimpleNamespace(from_pretrained=step("weights", lambda: (gives.theirs, gives.found))),
        "check_loaded": step("check loaded", None),
        "AutoTokenizer": SimpleNamespace(from_pretrained=step("tokenizer", lambda: gives.tokenizer)),
        "make_prompts": step("prompts", "prompts"),
        "their_logits": step("logits", "logits"),
        "merge_adapter": step("merge", None),
        "shard": step("shard", None),
        "check_same": step("check same", None),
        "KINDS": {"own": Kind(ours, "where.layers"), "two": Kind(ours, "there")},
    }.items():
        monkeypatch.setattr(load, name, value)
    return gives


@pytest.mark.fakes
def test_a_model_is_loaded_checked_and_compared(steps):
    assert load_model("name", precision="bfloat16", device="cpu") == ("our model", ["a"])
    config = steps.noted[2][1][1]
    assert steps.noted == [
        ("adapter", ("name",), {}),
        ("config", ("name",), {"trust_remote_code": False}),
        ("check config", ("name", config), {"check": True}),
        (
            "weights",
            ("name",),
            {
                "use_safetensors": True,
                "dtype": torch.bfloat16,
                "trust_remote_code": False,
                "ignore_mismatched_sizes": True,
                "output_loading_info": True,
            },
        ),
        ("check loaded", ("name", steps.found), {"check": True}),
        ("tokenizer", ("name",), {"trust_remote_code": False}),
        "eval",
        ("to", torch.device("cpu")),
        ("ours", (steps.theirs, ALONE), {}),
        ("check same", ("name", "our model", "where.layers", None), {}),
    ]
    assert config.model_type == "own"


@pytest.mark.fakes
def test_single_precision_is_loaded_unless_asked_for_otherwise(steps):
    load_model("name")
    assert steps.noted[3][2]["dtype"] == torch.float32
    assert steps.noted[7] == ("to", torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.mark.fakes
@pytest.mark.parametrize("check", [True, False])
def test_with_an_adapter_logits_are_taken_before_it_is_merged(steps, check):
    steps.adapted = True
    load_model("name", device="cpu", check=check)
    expected = [("prompts", (11, 7), {})] + [("logits", (steps.theirs, "prompts"), {})] * check
    assert steps.noted[7 : 7 + len(expected)] == expected
    assert steps.noted[7 + len(expected)] == ("merge", ("name", steps.theirs), {})
    last = ("check same", ("name", "our model", "where.layers", "logits"), {})
    assert (steps.noted[-1] == last) == check
    assert [each[2] for each in steps.noted if each[0] in ("check config", "check loaded")] == [{"check": check}] * 2


def test_models_of_other_kinds_and_without_a_tokenizer_are_refused(steps):
    steps.kind = "bert"
    assert said(load_model, "name", device="cpu") == ("Expected a model of kind own, two; 'name' is of kind bert")
    steps.kind, steps.tokenizer = "own", []
    assert said(load_model, "name", device="cpu") == "Expected a tokenizer in 'name'; it has none"


@pytest.mark.fakes
def test_several_processes_share_a_model_out(steps, monkeypatch):
    ranks = SimpleNamespace(several=True)
    load_model("name", device="cpu", ranks=ranks)
    assert ("shard", (steps.theirs, ["where.layers", "of theirs"], ranks, torch.device("cpu")), {}) in steps.noted
    assert ("ours", (steps.theirs, ranks), {}) in steps.noted
    assert not [each for each in steps.noted if each[0] == "to"]
    assert said(load_model, "name", device="cpu:0", ranks=ranks) == (
        "Expected a kind of device, of which each process takes its own, such as cuda; got 'cpu:0'"
    )
    load_model("name", device="cpu:0")
    monkeypatch.setattr(load, "find_device", lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for number, fine in (("0", True), ("1", True), ("2", False)):
        monkeypatch.setitem(os.environ, "LOCAL_RANK", number)
        if fine:
            load_model("name", device="cuda", ranks=ranks)
            continue
        assert said(load_model, "name", device="cuda", ranks=ranks) == (
            "Expected as many processes on a machine as it has GPUs, 2; got more: set --nproc-per-node"
        )


@pytest.mark.parametrize("where", ["check_adapter", "merge_adapter"])
def test_whatever_hugging_face_raises_is_said_in_one_line(steps, monkeypatch, where, tmp_path):
    def raises(error):
        def call(*given, **more):
            raise error

        return call

    steps.adapted = True
    monkeypatch.setattr(load, where, raises(KeyError("no\n  such " + "x" * 400)))
    start = (
        "Expected a model's name on the Hugging Face hub, or a folder with config.json, safetensors and a tokenizer; "
        "'name' cannot be loaded: KeyError: "
    )
    found = said(load_model, "name", device="cpu")
    assert found.startswith(start) and "\n" not in found and len(found) == len(start) + 300
    monkeypatch.setattr(load, where, raises(TaskError("ours")))
    assert said(load_model, "name", device="cpu", kind=TaskError) == "ours"
    (tmp_path / "file").write_text("")
    assert said(load_model, str(tmp_path / "file"), device="cpu") == (
        f"Expected a model's folder, or its name on the Hugging Face hub; {str(tmp_path / 'file')!r} is a file"
    )


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_off_while_a_model_is_loaded_and_then_as_before(monkeypatch, shown):
    now = [shown]
    monkeypatch.setattr(load.logging, "is_progress_bar_enabled", lambda: now[-1])
    monkeypatch.setattr(load.logging, "disable_progress_bar", lambda: now.append(False))
    monkeypatch.setattr(load.logging, "enable_progress_bar", lambda: now.append(True))
    with pytest.raises(KeyError), without_bars():
        assert now[-1] is False
        raise KeyError
    assert now == [shown, False] + [True] * shown


@contextmanager
def gpus(monkeypatch, there):
    with monkeypatch.context() as patch:
        asked = []
        patch.setattr(torch.cuda, "is_available", lambda: there)
        zeros = torch.zeros
        patch.setattr(torch, "zeros", lambda *size, device: asked.append((size, device)) or zeros(*size))
        yield asked


def test_a_device_is_a_gpu_where_there_is_one_and_is_tried(monkeypatch):
    for there, kind in ((True, "cuda"), (False, "cpu")):
        with gpus(monkeypatch, there) as asked:
            assert find_device("auto") == torch.device(kind)
            assert asked == [((1,), torch.device(kind))]
            assert find_device("meta") == torch.device("meta")
    start = "Expected a device such as auto, cpu or cuda; got 'none such': "
    found = said(find_device, "none such")
    assert found.startswith(start) and len(start) < len(found) <= len(start) + 200
