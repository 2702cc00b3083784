"""Certificates of exported checkpoints: the checker runs GPT-2 and Llama by its own forward, from the folder alone."""

import json
import shutil

import numpy as np
import pytest
from checkpoints import FAMILIES, checkpoint, checkpoints
from test_check_certificate import change, check

from edgeprune.graph import ABLATIONS
from tracr_bridge.certify.certificate_folder import save_certificate

CASES = checkpoints(quick=("induction",))


def save(checkpoint, out):
    """A folder for each ablation of a checkpoint."""
    for ablation in checkpoint.certificates:
        save_certificate(checkpoint.truth(ablation), checkpoint, out / ablation)
    return {ablation: out / ablation for ablation in ABLATIONS if ablation in checkpoint.certificates}


@pytest.mark.parametrize("case", CASES)
def test_what_we_certify_of_checkpoints_holds(case, tmp_path, tmp_path_factory):
    folders = save(checkpoint(*case, tmp_path_factory), tmp_path)
    code, output = check(*folders.values(), options=("--subsets", str(2**17)))
    assert code == 0, output
    assert output.count(": holds: ") == len(folders)
    assert output.count("sets with edges that are not structural: norms read them too") == len(folders)


@pytest.fixture(scope="module", params=FAMILIES)
def certificate(request, tmp_path_factory):
    """One under zero ablation."""
    return save(checkpoint("induction", request.param, tmp_path_factory), tmp_path_factory.mktemp("saved"))["zero"]


@pytest.fixture
def zero(certificate, tmp_path):
    """A copy of it, to be spoiled."""
    return shutil.copytree(certificate, tmp_path / "copy")


def test_an_edge_too_few_in_a_checkpoint_is_refused(zero):
    change(zero, said=lambda content: content["claims"]["circuits"][0].pop())
    code, output = check(zero)
    assert code == 1
    assert "circuit 1 is not faithful: " in output


def test_an_edge_too_many_in_a_checkpoint_is_refused(zero):
    listed = json.loads((zero / "certificate.json").read_text())
    circuit = listed["claims"]["circuits"][0]
    extra = [name for name in listed["structural"] if name not in circuit]
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
