"""Weights as they are copied out of Tracr's model: each in its place, and in double precision the same."""

from collections.abc import Iterable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tracr.compiler import compiling
from tracr.rasp import rasp

from tracr_bridge.compile.compile import Compiled, compile_program
from tracr_bridge.compile.program import Program
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, extract_weights


def two_heads():
    """A layer of two heads, of which one has no MLP's work to do, and a layer of one."""
    moved = [rasp.Select(rasp.indices, rasp.indices, lambda k, q, by=by: k == q - by) for by in (1, 2)]
    first, second = (rasp.Aggregate(select, rasp.tokens).named(f"moved_{n}") for n, select in enumerate(moved))
    return rasp.SequenceMap(lambda x, y: (x, y), first, second).named("both")


@pytest.fixture(scope="module")
def two() -> Compiled:
    return compile_program(Program("mine", "", two_heads, ("a", "b", "c"), 3, causal=True))


def test_each_array_is_tracrs_own_in_its_place(two):
    assembled, config = two.assembled, two.assembled.model_config
    weights, params, size = extract_weights(assembled), assembled.params, config.key_size
    assert config.num_heads == 2 and size > 1
    np.testing.assert_array_equal(weights.token, params["token_embed"]["embeddings"])
    np.testing.assert_array_equal(weights.position, params["pos_embed"]["embeddings"])
    assert len(weights.layers) == config.num_layers
    assert weights.causal is True
    assert weights.pad_id == assembled.input_encoder.encoding_map[compiling.COMPILER_PAD]
    for number, layer in enumerate(weights.layers):
        name = f"transformer/layer_{number}"
        for head, own in enumerate(layer.heads):
            columns = slice(head * size, (head + 1) * size)
            for port in ("query", "key", "value"):
                np.testing.assert_array_equal(getattr(own, port), params[f"{name}/attn/{port}"]["w"][:, columns])
            np.testing.assert_array_equal(own.output, params[f"{name}/attn/linear"]["w"][columns])
        np.testing.assert_array_equal(layer.hidden, params[f"{name}/mlp/linear_1"]["w"])
        np.testing.assert_array_equal(layer.output, params[f"{name}/mlp/linear_2"]["w"])


@pytest.mark.fakes
def test_weights_are_single_precision_whatever_tracrs_are(two):
    params = {
        name: {part: np.array(array, np.float64) for part, array in entry.items()}
        for name, entry in two.assembled.params.items()
    }
    spoiled: Any = SimpleNamespace(
        params=params,
        get_compiled_model=two.assembled.get_compiled_model,
        **{each: getattr(two.assembled, each) for each in ("model_config", "input_encoder", "residual_labels")},
    )
    found, weights = extract_weights(spoiled), extract_weights(two.assembled)
    for each in ("token", "position", "layers", "unembed"):
        for double, single in zip(arrays(getattr(found, each)), arrays(getattr(weights, each)), strict=True):
            assert double.dtype == np.float32
            np.testing.assert_array_equal(double, single)


def test_the_unembedding_selects_the_columns_of_the_output(two):
    unembed, labels = extract_weights(two.assembled).unembed, two.assembled.residual_labels
    assert unembed.shape == (len(labels), len(two.output_values)) and unembed.dtype == np.float32
    for column, value in enumerate(two.output_values):
        (row,) = np.nonzero(unembed[:, column])[0]
        assert unembed[row, column] == 1 and labels[row].endswith(f":{value}")


def test_a_causal_mask_is_that_of_the_program():
    noncausal = compile_program(Program("mine", "", two_heads, ("a", "b"), 3))
    assert extract_weights(noncausal.assembled).causal is False


@pytest.mark.fakes
def test_a_bias_which_tracr_never_writes_is_refused(two):
    params = {name: dict(entry) for name, entry in two.assembled.params.items()}
    name = "transformer/layer_0/mlp/linear_1"
    params[name]["b"] = params[name]["b"] + np.float32(1)
    spoiled: Any = SimpleNamespace(
        params=params,
        **{each: getattr(two.assembled, each) for each in ("model_config", "input_encoder", "residual_labels")},
    )
    with pytest.raises(AssertionError, match=f"Tracr writes no biases, yet {name} has one"):
        extract_weights(spoiled)


def arrays(part: Any) -> list[np.ndarray]:
    """All arrays in a layer, a head or a tuple of such."""
    if isinstance(part, np.ndarray):
        return [part]
    inside = vars(part).values() if isinstance(part, LayerWeights | HeadWeights) else part
    return [array for each in inside for array in arrays(each)] if isinstance(inside, Iterable) else []


def test_double_precision_has_the_same_numbers_in_the_same_places(two):
    single = extract_weights(two.assembled)
    double = single.in_double()
    for each in fields(single):
        one, other = getattr(single, each.name), getattr(double, each.name)
        assert type(one) is type(other)
        if not arrays(one):
            assert one == other
        for before, after in zip(arrays(one), arrays(other), strict=True):
            assert (before.dtype, after.dtype) == (np.float32, np.float64)
            np.testing.assert_array_equal(before, after)
    assert len(double.layers) == len(single.layers) and isinstance(double.layers[0].heads[1], HeadWeights)


def head(query, key, value, output) -> HeadWeights:
    return HeadWeights(*(np.array(part, np.float32) for part in (query, key, value, output)))


def test_what_a_layer_writes_and_reads_is_what_can_have_an_effect():
    """Columns of a head that no value fills write nothing; queries of columns that no key has match nothing."""
    one = head([[1, 0, 2]], [[3, 4, 0]], [[5, 0, 6]], [[7], [8], [0]])
    layer = LayerWeights((one,), np.array([[1, 0, 2]], np.float32), np.array([[0], [3], [4]], np.float32))
    assert [rows.tolist() for rows in layer.written] == [[[7], [0]], [[0], [4]]]
    assert [columns.tolist() for columns in layer.read] == [[[1]], [[3]], [[5, 0]], [[0, 2]]]
    idle = replace(layer, heads=(replace(one, output=0 * one.output),))
    assert [columns.shape for columns in idle.read] == [(1, 1), (1, 1), (1, 0), (1, 2)]
