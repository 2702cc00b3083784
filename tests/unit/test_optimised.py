"""`python -O`, which leaves `assert` out: what a verdict rests on is refused all the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tracr_bridge.certify import certificate_folder

SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace

import tracr_bridge  # before Haiku

import torch
from tracr.compiler import compiling
from tracr.rasp import rasp

from edgeprune.errors import BrokenPromise
from tracr_bridge.certify import truth
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.certify.certificate_folder import save_certificate
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.recovery.known_models import certify
from tracr_bridge.compile.weights import extract_weights

assert False, "asserts are left out"
compiled = compile_program(catalogue()["xproportion"])
found = certify(compiled, "zero")
print(found.certificate.status, len(found.circuit))
save_certificate(found, compiled, Path(sys.argv[1]))


def refused(call):
    try:
        call()
    except BrokenPromise as error:
        print("refused:", error)
    else:
        print("accepted")


search = truth.minimal_circuits
truth.minimal_circuits = lambda judge, edges: SimpleNamespace(circuits=[], choices=0)
refused(lambda: certify(compiled, "zero"))
truth.minimal_circuits = lambda judge, edges: None
Judge.reproduces = lambda self, masks: torch.zeros(len(masks), dtype=torch.bool)
refused(lambda: certify(compiled, "zero"))
model = compiling.compile_rasp_to_model(rasp.Map(lambda x: x + 1, rasp.tokens), {0, 1}, 2, compiler_bos="BOS")
model.params["transformer/layer_0/mlp/linear_1"]["b"] += 1.0
refused(lambda: extract_weights(model))
"""


TOO_LATE = """
import haiku
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.compile.compile import compile_program

compile_program(catalogue()["xproportion"])
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = (sys.executable, "-O", *command)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_haiku_that_came_first_has_lost_its_asserts_and_that_is_said():
    assert "Expected tracr_bridge to be imported before Haiku under python -O" in run("-c", TOO_LATE).stderr


def test_certificates_and_their_checks_hold_without_asserts(tmp_path):
    done = run("-c", SCRIPT, str(tmp_path / "folder"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "unique 5",
        "refused: a faithful set has a subset-minimal one inside",
        "refused: a pair that fails in one batch fails in another",
        "refused: Tracr writes no biases, yet transformer/layer_0/mlp/linear_1 has one",
    ]
    checker = str(Path(certificate_folder.__file__).with_name("check_certificate.py"))
    assert run(checker, str(tmp_path / "folder")).returncode == 0
    certificate = tmp_path / "folder" / "certificate.json"
    said = json.loads(certificate.read_text())
    said["claims"]["circuits"][0].pop()
    certificate.write_text(json.dumps(said))
    assert run(checker, str(tmp_path / "folder")).returncode == 1
