"""What a method writes into what it gets reaches nobody: not the judge, not the next method."""

import copy
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeprune.data import Dataset, LazyTarget
from edgeprune.methods import find_method
from edgeprune.metrics.answers import Answers
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.compile.compile import compile_program
from tracr_bridge.recovery.known_models import certify
from tracr_bridge.recovery.pytest_checks import Suite

NAME = "hist"


def tensors(part, name="") -> dict[str, Tensor]:
    """Every tensor that can be reached from a part of a dataset, private ones too."""
    if isinstance(part, Tensor):
        return {name: part}
    inner = {each.name: getattr(part, each.name) for each in fields(part)} if is_dataclass(part) else vars(part)
    found = dict[str, Tensor]()
    for key, value in inner.items():
        if isinstance(value, Tensor | Answers | LazyTarget):
            found |= tensors(value, f"{name}.{key}")
    return found


def spoil(dataset, model=None):
    """Write into everything that is there."""
    for tensor in tensors(dataset).values():
        if tensor.dtype == torch.bool:
            tensor.logical_not_()
        else:
            tensor.mul_(0).add_(1)


def spoils(model, dataset, ablation, *, seed):
    spoil(dataset)
    outputs, sources = model(torch.zeros(1, 3, dtype=torch.long)), model.sources(torch.zeros(1, 3, dtype=torch.long))
    for tensor in (outputs, sources):
        tensor.zero_()
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations))


def writes_weights(model, dataset, ablation, *, seed):
    weights = model.weights
    for layer in weights.layers:
        for array in (layer.hidden, layer.output, *(getattr(head, p) for head in layer.heads for p in PORTS)):
            np.multiply(array, 0, out=array)
    np.multiply(weights.unembed, 0, out=weights.unembed)
    np.multiply(weights.token, 0, out=weights.token)
    return torch.zeros(len(model.graph.sources), len(model.graph.destinations))


PORTS = ("query", "key", "value", "output")


def whole(program, *, lazy: bool) -> Dataset:
    """A dataset that has all that a dataset may have."""
    data, count = program.dataset, len(program.dataset)
    positions = torch.arange(data.tokens.shape[1]).expand(count, -1).clone()
    answers = Answers(torch.ones(*data.scored.shape, 2).long(), torch.full((*data.scored.shape, 1), 2))
    target = LazyTarget(program.model, data.tokens.clone(), positions.clone()) if lazy else data.target.clone()
    return Dataset(
        tokens=data.tokens.clone(),
        scored=data.scored.clone(),
        target=target,
        group=data.group.clone(),
        positions=positions,
        counterparts=data.tokens.flip(0).clone(),
        answers=answers,
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_no_tensor_of_a_dataset_is_shared_with_a_method(compiled, lazy):
    program = compiled(NAME)
    dataset = whole(program, lazy=lazy)
    before = {name: tensor.clone() for name, tensor in tensors(dataset).items()}
    assert len(before) == 8 + lazy
    find_method("test_isolation:spoils")(program.model, dataset, "zero")
    after = tensors(dataset)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("lazy", [False, True])
def test_a_copy_holds_the_same_and_nothing_of_it_lies_in_the_same_memory(compiled, lazy):
    dataset = whole(compiled(NAME), lazy=lazy)
    one, other = tensors(dataset), tensors(dataset.copy())
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]) and tensor.data_ptr() != other[name].data_ptr(), name
    assert replace(dataset.copy(), logits=False).logits != dataset.logits
    rows = torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(dataset.copy().target[rows], dataset.target[rows])


def test_a_batch_is_written_into_without_harm(compiled):
    program = compiled(NAME)
    dataset = whole(program, lazy=False)
    before = {name: tensor.clone() for name, tensor in tensors(dataset).items()}
    rows = torch.arange(4)
    spoil(dataset.take(rows, rows.flip(0)))
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(dataset).items())


@pytest.mark.parametrize("method", ["spoils", "writes_weights"])
def test_verdicts_are_the_same_after_a_method_that_writes_into_everything(method):
    fresh = compile_program(catalogue()[NAME])
    certificate, before = certify(fresh, "zero").certificate, fresh.dataset.target
    suite = Suite(f"test_isolation:{method}")
    assert not suite.recover(NAME, "zero").comparison.exact
    program = suite.compiled(NAME)
    for model in (program.model, program.model.in_double):  # which reads the weights anew
        torch.testing.assert_close(model(program.dataset.tokens).float(), before, atol=1e-4, rtol=0)
    again = suite.discover(NAME, "zero")
    assert len(again.circuit) == 0 and suite.truth(NAME, "zero").certificate == certificate


def test_two_methods_get_the_same_inputs(compiled):
    program = compiled(NAME)
    given = copy.deepcopy(program.dataset.tokens)
    for _ in range(2):
        find_method("test_isolation:spoils")(program.model, program.dataset, "resample")
        assert torch.equal(program.dataset.tokens, given)
