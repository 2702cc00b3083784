"""Exports: what is a little too far off is refused, and each of several circuits is run again."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from checkpoints import FAMILIES, checkpoint

from edgeprune.errors import ModelError, UnsupportedProgram
from edgeprune.graph import Circuit
from edgeprune.models.load import KINDS
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.truth import Truth
from tracr_bridge.checkpoints import export as exporting
from tracr_bridge.checkpoints.transplant import Transplant, transplant
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.compile.model import structural_mask

NAME = "next_to"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return checkpoint(NAME, "gpt2", tmp_path_factory)


@pytest.fixture(scope="module")
def compiled_program():
    return compile_program(load_program(NAME))


class Shifted:
    """A model of plain transformers whose first logit is off."""

    def __init__(self, model, off) -> None:
        self._model, self._off = model, off

    def __call__(self, tokens, attention_mask):
        logits = self._model(tokens, attention_mask=attention_mask).logits.clone()
        logits[..., 0] += self._off
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("off", "holds"), [(0.0009, True), (0.0011, False), (-0.0011, False)])
def test_logits_may_be_a_thousandth_off_the_compiled_programs(exported, compiled_program, monkeypatch, off, holds):
    plain = exporting._plain_model(exported.folder)
    monkeypatch.setattr(exporting, "_plain_model", lambda folder: Shifted(plain, off))
    data, family = exported.dataset, exported.family
    moved = data.target.clone()
    moved[..., 0] += off
    asked = (compiled_program, family, exported.folder, replace(data, target=moved))
    if holds:
        assert exporting._check_outputs(*asked) == pytest.approx(abs(off), rel=0.05)
    else:
        with pytest.raises(UnsupportedProgram, match=r"from the compiled program's by 0\.0011, more than 0\.001"):
            exporting._check_outputs(*asked)


@pytest.mark.parametrize(("off", "holds"), [(0.0009, True), (0.0011, False)])
def test_the_adapters_outputs_may_be_a_thousandth_off_plain_transformers(exported, compiled_program, off, holds):
    moved = exported.dataset.target.clone()
    moved[..., 0] -= off
    asked = (compiled_program, exported.family, exported.folder, replace(exported.dataset, target=moved))
    if holds:
        exporting._check_outputs(*asked)
    else:
        with pytest.raises(UnsupportedProgram, match=r"from the adapter of next_to; they differ by 0\.0011"):
            exporting._check_outputs(*asked)


def test_every_output_is_held_against_rasps(exported, compiled_program):
    """One value of one input is another one."""
    *others, last = compiled_program.expected
    wrong = next(value for value in compiled_program.output_values if value != last[-1])
    spoiled = replace(compiled_program, expected=(*others, (*last[:-1], wrong)))
    with pytest.raises(UnsupportedProgram, match=rf"differs at position {len(last) - 1}, where RASP gives {wrong!r}"):
        exporting._check_outputs(spoiled, exported.family, exported.folder, exported.dataset)


def test_each_of_several_circuits_is_run_again_when_it_is_read(exported):
    for ablation in ("zero", "resample"):
        certificate = exported.certificates[ablation]
        true = certificate.circuits[0]
        less = Circuit(true.graph, ablation, frozenset(sorted(true.edges)[1:]))
        for circuits in ((true, less), (less, true)):
            said = replace(certificate, status="ambiguous", circuits=circuits)
            with pytest.raises(ModelError, match=f"one is not under {ablation}"):
                replace(exported, certificates={ablation: said}).truth(ablation)


def test_each_of_several_circuits_is_run_in_double_precision_before_it_is_written(
    exported, compiled_program, monkeypatch
):
    certificate = exported.certificates["zero"]
    true = certificate.circuits[0]
    less = Circuit(true.graph, "zero", frozenset(sorted(true.edges)[1:]))
    judge = Judge(exported.model, exported.dataset, "zero", atol=certificate.atol)
    said = Truth(true, exported.structural, replace(certificate, circuits=(true, less)), judge)
    monkeypatch.setattr(exporting, "derive_truth", lambda *_given, **_more: said)
    nothing = Transplant(None, [], [])
    with pytest.raises(UnsupportedProgram, match="one of next_to under zero ablation is not"):
        exporting._certify(
            "zero", exported.model, exported.dataset, exported.structural, nothing, compiled_program, seed=0
        )


def test_a_sample_of_a_domain_and_its_seed_are_said_to_be_that(tmp_path, monkeypatch):
    def sampled(program, *, seed):
        return compile_program(program, budget=25, seed=seed)

    monkeypatch.setattr(exporting, "compile_and_verify", sampled)
    made = exporting.export(load_program(NAME), "gpt2", tmp_path / "made", seed=3)
    assert made.content["domain"]["exhaustive"] is False and len(made.dataset) == 25
    assert made.certificates["resample"].exhaustive is False
    assert made.content["domain"]["inputs"] != [
        " ".join(map(str, tokens)) for tokens in sampled(load_program(NAME), seed=0).domain.inputs
    ]
    again = Judge(made.model, made.dataset, "resample", atol=0.01, seed=3)
    assert torch.equal(made.truth("resample").judge.rows_of_pairs, again.rows_of_pairs)


def test_no_edge_into_what_reads_nothing_is_structural():
    """Heads that a Llama is filled up with have weights of 0; the constant that pins norms does nothing there."""
    compiled = compile_program(load_program(NAME))
    ids = [compiled.assembled.input_encoder.encoding_map[token] for token in ("compiler_bos", *compiled.program.vocab)]
    for family in FAMILIES:
        made = transplant(compiled.model.weights, family, ids, bos_id=ids[0])
        model = KINDS[family].adapter(made.model)
        possible = structural_mask(model.graph, made.written, made.read)
        idle = 0
        for column, node in enumerate(model.graph.destinations):
            if node.kind == "a":
                weights = ports(made.model, family, node)
                assert bool(possible[:, column].any()) == bool(weights.any()), (family, node)
                idle += not weights.any()
        assert idle or family == "gpt2"


def ports(theirs, family, node):
    """The weights with which a head reads its queries, keys or values."""
    if family == "gpt2":
        width, heads = theirs.config.n_embd, theirs.config.n_head
        weight = theirs.transformer.h[node.layer].attn.c_attn.weight.view(width, 3, heads, -1)
        return weight[:, "qkv".index(node.port), node.head]
    port = getattr(theirs.model.layers[node.layer].self_attn, f"{node.port}_proj").weight
    return port.view(-1, theirs.config.head_dim, port.shape[1])[node.head]
