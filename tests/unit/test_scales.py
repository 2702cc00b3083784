"""What differences between Tracr's model and ours are measured by, and how they are told, on arrays made by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tracr_bridge.compile import verify as verifying
from tracr_bridge.compile.verify import LAYER_ATOL, VALUE_ATOL
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights


def entry(shape: tuple[int, int], row: int, column: int, value: float = 1.0) -> np.ndarray:
    """Zeros but for one number."""
    array = np.zeros(shape, np.float32)
    array[row, column] = value
    return array


def scale_of(columns: list[float]) -> Any:
    """Of a model whose head reads columns 0 and 1 to match, moves column 2 to 3, and whose MLP reads 0 and writes 3."""
    head = HeadWeights(*(entry((5, 1), column, 0) for column in range(3)), entry((1, 5), 0, 3))
    layer = LayerWeights((head,), entry((5, 1), 0, 0, -2), entry((1, 5), 0, 3, -1000))
    weights = Weights(np.zeros((3, 5)), np.zeros((3, 5)), (layer,), entry((5, 1), 3, 0), causal=False, pad_id=2)
    scale = verifying._Scale(weights)
    assert scale.columns.tolist() == [1] * 5
    scale.columns = np.array(columns)
    return scale


@pytest.mark.parametrize(("columns", "largest"), [([2, 3, 5, 7, 9], 3), ([4, 3, 5, 7, 9], 4), ([0.5, 0.2, 5, 7, 9], 1)])
def test_scores_have_the_scale_of_what_queries_and_keys_read(columns, largest):
    assert scale_of(columns).scores(0, 0) == largest


@pytest.mark.parametrize(("columns", "largest"), [([2, 3, 5, 7, 9], 7), ([2, 3, 5, 0.1, 9], 1)])
def test_outputs_have_the_scale_of_what_is_unembedded(columns, largest):
    assert scale_of(columns).output() == largest


@pytest.mark.parametrize(
    ("columns", "apart", "written"),
    [
        ([2, 3, 5, 1, 9], 0.0, 5),  # of the value
        ([6, 3, 5, 1, 9], 0.0, 6),  # of the scores
        ([2, 3, 5, 8, 9], 0.0, 8),  # what was there
        ([2, 3, 5, 1, 9], LAYER_ATOL / 2, 5),
        ([2, 3, 5, 1, 9], 3 * LAYER_ATOL, 15),
    ],
)
def test_what_a_head_writes_has_the_scale_of_what_it_moves_and_of_how_far_its_scores_are_apart(columns, apart, written):
    scale = scale_of(columns)
    scale.attend(0, [apart])
    assert scale.columns.tolist() == pytest.approx([*columns[:3], written, columns[4]])


def test_heads_of_a_layer_read_what_was_there_before_it():
    scale = scale_of([2, 3, 5, 1, 9])
    (layer,) = scale._weights.layers
    again = HeadWeights(*(entry((5, 1), column, 0) for column in (0, 1, 3)), entry((1, 5), 0, 4))
    scale._weights = SimpleNamespace(layers=[LayerWeights((*layer.heads, again), layer.hidden, layer.output)])
    scale.columns[4] = 1
    scale.attend(0, [0.0, 0.0])
    assert scale.columns.tolist() == [2, 3, 5, 5, 3]


@pytest.mark.parametrize(
    ("largest", "written"),
    [
        ([10, 0, 0, 0, 0], 200),  # 10 * 2 * 1000, of which one in a hundred is rounding
        ([1, 0, 0, 0, 0], 40),  # the scale of the column is 2 already
        ([1, 50, 50, 50, 50], 40),
    ],
)
def test_what_an_mlp_writes_has_the_scale_of_its_largest_term(largest, written):
    scale = scale_of([2, 3, 5, 7, 9])
    scale.transform(0, np.array(largest, float))
    assert scale.columns.tolist() == pytest.approx([2, 3, 5, written, 9])


def test_small_terms_of_an_mlp_leave_the_scale_as_it_is():
    scale = scale_of([2, 3, 5, 1000, 9])
    scale.transform(0, np.zeros(5))
    assert scale.columns.tolist() == [2, 3, 5, 1000, 9]


def comparison(rows: list[int]) -> Any:
    compiled: Any = SimpleNamespace(domain=SimpleNamespace(inputs=[("a",), ("b", "c"), ("d", "e")]))
    return verifying._Comparison(compiled, torch.tensor(rows))


@pytest.mark.fakes
def test_a_difference_is_a_share_of_the_scale_or_of_the_value_if_that_is_larger():
    compare = comparison([2, 1])
    ours, theirs = torch.tensor([[[4.0, 1.0]], [[100.0, 2.0]]]), np.array([[[4.0, 1.5]], [[101.0, 2.0]]])
    every = torch.ones(2, 1, 1, dtype=torch.bool)
    assert compare("here", ours, theirs, scale=2.0, where=every).relative == 0.25
    found = compare("here", ours, theirs, scale=np.array([2.0, 50.0]), where=every)
    assert found.relative == pytest.approx(0.01, rel=0.02)
    assert found.text == (
        "here, Tracr's own model gives 1.5 and ours 1 on input [d e], position 0 counted from BOS; they differ by 0.01 "
        "of their scale, 50, more than 0.0001; one of the two reads the compiled weights wrongly: please report this "
        "program"
    )
    second = compare("here", ours, theirs, scale=1e4, where=every)
    assert second.relative == 1e-4 and second.text == ""
    only = compare("there", ours, theirs, scale=2.0, where=torch.tensor([False, True])[:, None, None])
    assert only.relative == pytest.approx(1 / 101)
    assert only.text.startswith("there, Tracr's own model gives 101 and ours 100 on input [b c], position 0 counted")
    nowhere = compare("here", ours, theirs, scale=2.0, where=~every)
    assert (nowhere.relative, nowhere.text) == (0, "")


@pytest.mark.fakes
def test_a_place_is_counted_from_bos():
    ours, theirs = torch.zeros(1, 3), np.array([[0.0, 0.0, 1.0]])
    found = comparison([1])("here", ours, theirs, scale=1.0, where=torch.ones(1, 3, dtype=torch.bool))
    assert "and ours 0 on input [b c], position 2 counted from BOS" in found.text


@pytest.mark.fakes
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_differs_infinitely(value):
    for ours, theirs in ((value, 1.0), (1.0, value)):
        found = comparison([0])(
            "here", torch.tensor([[ours]]), np.array([[theirs]]), scale=1.0, where=torch.ones(1, 1) > 0
        )
        assert found.relative == float("inf")


def mismatches(wanted: Any, value: Any, *, categorical: bool = False, rounding: float = 0.0) -> list[str]:
    compiled: Any = SimpleNamespace(
        expected=[(), (None, wanted)], categorical=categorical, domain=SimpleNamespace(inputs=[("x",), ("a", "b")])
    )
    return verifying._mismatches(compiled, 1, ["BOS", "anything", value, "PAD"], "PyTorch", rounding)


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("wanted", "value", "rounding", "same"),
    [
        (0, VALUE_ATOL, 0.0, True),
        (0, -VALUE_ATOL * 1.001, 0.0, False),
        (0, 1.0, 1.0, True),
        (0, 1.001, 1.0, False),
        (1e6, 1e6 + 1, 0.0, True),
        (-1e6, -1e6 - 1, 0.0, True),
        (1e6, 1e6 + 1.001, 0.0, False),
        (0, float("nan"), 0.0, False),
    ],
)
def test_numbers_are_the_same_within_the_tolerance_or_rounding(wanted, value, rounding, same):
    said = f"input [a b] position 1: RASP {wanted!r}, PyTorch {value!r}"
    assert mismatches(wanted, value, rounding=rounding) == ([] if same else [said])


@pytest.mark.fakes
def test_values_of_a_categorical_program_are_the_same_or_not():
    assert mismatches("b", "b", categorical=True) == []
    assert mismatches("b", "c", categorical=True) == ["input [a b] position 1: RASP 'b', PyTorch 'c'"]
    assert mismatches(1, 1.001, categorical=True) == ["input [a b] position 1: RASP 1, PyTorch 1.001"]


@pytest.mark.fakes
@pytest.mark.parametrize(
    ("most", "numbers", "sizes"),
    [
        (4096, 2**22, [10]),
        (4, 2**22, [4, 4, 2]),
        (4096, 3 * 267, [3, 3, 3, 1]),  # of each input 3 * (5 * (7 + 4 * 2) + 11) numbers, and 3 * 3 * 1 scores
        (4096, 4 * 267 - 1, [3, 3, 3, 1]),
        (4096, 4 * 267, [4, 4, 2]),
        (4096, 1, [1] * 10),
    ],
)
def test_as_many_inputs_are_run_at_a_time_as_fit(monkeypatch, most, numbers, sizes):
    monkeypatch.setattr(verifying, "_BATCH", most)
    monkeypatch.setattr(verifying, "_NUMBERS", numbers)
    head = HeadWeights(*[np.zeros((5, 1))] * 3, np.zeros((1, 5)))
    layers = (LayerWeights((head,), np.zeros((5, 11)), np.zeros((11, 5))),) * 2
    weights = Weights(np.zeros((3, 5)), np.zeros((3, 5)), layers, np.zeros((5, 1)), causal=False, pad_id=2)
    model = SimpleNamespace(weights=weights, graph=SimpleNamespace(sources=range(7)))
    dataset, domain = SimpleNamespace(tokens=torch.zeros(10, 3)), SimpleNamespace(inputs=[()] * 10)
    batches = verifying._batches(SimpleNamespace(model=model, dataset=dataset, domain=domain))  # pyright: ignore
    assert torch.cat(list(batches)).tolist() == list(range(10))
    assert [len(batch) for batch in batches] == sizes
