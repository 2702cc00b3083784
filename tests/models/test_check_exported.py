"""Certificates of exported checkpoints: the checker runs GPT-2 and Llama by its own forward, from the folder alone."""

import json
import shutil

import numpy as np
import pytest
from test_check_certificate import change, check

from edgeprune.graph import ABLATIONS
from tracr_bridge.catalogue import catalogue, load_program
from tracr_bridge.certificate_folder import save_certificate
from tracr_bridge.export import export

QUICK = ("induction",)

CASES = [
    pytest.param((name, family), id=f"{name}-{family}", marks=[] if name in QUICK else pytest.mark.sweep)
    for name, program in catalogue().items()
    if program.causal
    for family in ("gpt2", "llama")
]


@pytest.fixture(scope="module", params=CASES)
def folders(request, tmp_path_factory):
    """A folder for each ablation, of a checkpoint that is written once."""
    name, family = request.param
    out = tmp_path_factory.mktemp(name)
    exported = export(load_program(name), family, out / family)
    for ablation in exported.certificates:
        save_certificate(exported.truth(ablation), exported, out / ablation)
    return {ablation: out / ablation for ablation in ABLATIONS if ablation in exported.certificates}


@pytest.fixture
def zero(folders, tmp_path):
    """A copy under zero ablation."""
    if "zero" not in folders:
        pytest.skip("nothing can fail under zero ablation")
    return shutil.copytree(folders["zero"], tmp_path / "copy")


def test_what_we_certify_of_checkpoints_holds(folders):
    code, output = check(*folders.values())
    assert code == 0, output
    assert output.count(": holds: ") == len(folders)
    assert output.count("sets with edges that are not structural: norms read them too") == len(folders)


def test_an_edge_too_few_in_a_checkpoint_is_refused(zero):
    change(zero, said=lambda content: content["claims"]["circuits"][0].pop())
    code, output = check(zero)
    assert code == 1
    assert "circuit 1 is not faithful: " in output


def test_an_edge_too_many_in_a_checkpoint_is_refused(zero):
    listed = json.loads((zero / "certificate.json").read_text())
    circuit = listed["claims"]["circuits"][0]
    extra = [name for name in listed["structural"] if name not in circuit]
    if not extra:
        pytest.skip("all structural edges are true")
    change(zero, said=lambda content: content["claims"]["circuits"][0].append(extra[0]))
    code, output = check(zero)
    assert code == 1
    assert "circuit 1 is " in output


def test_a_weight_of_a_checkpoint_changed_is_refused(zero):
    def alter(weights):
        weights["lm_head.weight"] *= 1.1

    change(zero, weights=alter)
    code, output = check(zero)
    assert code == 1
    assert "the full model's outputs differ by " in output


def test_a_norm_of_a_checkpoint_changed_is_refused(zero):
    def alter(weights):
        name = next(name for name in weights if name.endswith(("ln_f.weight", "model.norm.weight")))
        weights[name] = np.ones_like(weights[name])

    change(zero, weights=alter)
    code, output = check(zero)
    assert code == 1
    assert "the full model's outputs differ by " in output
