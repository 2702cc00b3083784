"""True circuits against brute force: on small random transformers every set of edges is run, one input at a time."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny
import torch
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from oracle import sources_and_output

from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram
from edgeprune.graph import ABLATIONS, Edge
from edgeprune.groups import removals
from edgeprune.masks import mask_of
from tracr_bridge.certify import behaviours, truth
from tracr_bridge.certify.behaviours import minimal_circuits
from tracr_bridge.certify.elimination import eliminate
from tracr_bridge.certify.faithfulness import Judge, JudgedModel
from tracr_bridge.certify.truth import derive_truth, is_faithful, is_true
from tracr_bridge.compile.model import TracrModel
from tracr_bridge.compile.weights import HeadWeights, LayerWeights, Weights

MOST = 7
"""Edges whose subsets are all run, at the most; 10 where there is time."""

Sets = set[frozenset[Edge]]


@dataclass(frozen=True)
class Case:
    """A model, a few inputs, and the slow forward of the same model."""

    model: JudgedModel
    dataset: Dataset
    edges: tuple[Edge, ...]
    read: list[torch.Tensor]
    slow: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    """Sources and outputs `[pos, ...]` of ids, a mask and ablated sources, in double precision."""

    atol: float

    def judge(self, ablation) -> Judge:
        return Judge(self.model, self.dataset, ablation, atol=self.atol)

    def faithful(self, ablation) -> Sets:
        """Every faithful set of edges, from the slow forward alone."""
        graph, rows = self.model.graph, range(len(self.dataset))
        ids = [row[:length] for row, length in zip(self.dataset.tokens, self.lengths, strict=True)]
        ones = torch.ones(len(graph.sources), len(graph.destinations)).double()
        width = self.model.sources(self.dataset.tokens[:1]).shape[-1]
        nothing = [torch.zeros(len(graph.sources), len(each), width).double() for each in ids]
        plain = [self.slow(*each) for each in zip(ids, [ones] * len(ids), nothing, strict=True)]
        pairs = [(row, row) for row in rows]
        if ablation == "resample":
            pairs = [pair for pair in product(rows, rows) if self.lengths[pair[0]] == self.lengths[pair[1]]]

        def ablated(row: int, other: int) -> torch.Tensor:
            if ablation == "zero":
                return nothing[row]
            if ablation == "resample":
                return plain[other][0]
            same = [plain[each][0] for each in rows if self.lengths[each] == self.lengths[row]]
            return torch.stack(same).mean(0)

        runs = [(ids[row], ablated(row, other), plain[row][1]) for row, other in pairs]

        def reproduces(kept: tuple[Edge, ...]) -> bool:
            mask = mask_of(graph, kept).double()
            # All but BOS are scored.
            return all(float((self.slow(i, mask, a)[1] - out)[1:].abs().max()) <= self.atol for i, a, out in runs)

        every = [kept for count in range(len(self.edges) + 1) for kept in combinations(self.edges, count)]
        return {frozenset(kept) for kept in every if reproduces(kept)}

    @property
    def lengths(self) -> list[int]:
        """With BOS."""
        return (self.dataset.scored.sum(1) + 1).tolist()


def minimal(faithful: Sets) -> Sets:
    return {kept for kept in faithful if not any(other < kept for other in faithful)}


def dataset_of(model, vocabulary: list[int], *, bos: int, pad: int, length: int) -> Dataset:
    """All inputs of 1 to `length` tokens."""
    texts = [list(text) for size in range(1, length + 1) for text in product(vocabulary, repeat=size)]
    tokens = torch.tensor([[bos, *text, *[pad] * (length - len(text))] for text in texts])
    sizes = torch.tensor([len(text) for text in texts])
    place = torch.arange(1 + length)
    scored = (place > 0) & (place <= sizes[:, None])
    with torch.no_grad():
        return Dataset(tokens, scored, model(tokens), sizes - 1, logits=False)


def random_weights(random: np.random.Generator, *, layers: int, heads: int, causal: bool, length: int) -> Weights:
    """Small whole numbers, most of them 0, so that many values are equal and some cancel."""
    d_model, key_size, hidden, vocabulary = 4, 2, 2, 4
    share = random.uniform(0.15, 0.4)

    def some(*shape: int) -> np.ndarray:
        return (random.integers(-2, 3, shape) * (random.random(shape) < share)).astype(np.float32)

    def head() -> HeadWeights:
        scale = random.choice([1, 20], 2).astype(np.float32)  # attention that is soft, and such as Tracr writes
        query, key, value = (some(d_model, key_size) for _ in range(3))
        return HeadWeights(query * scale[0], key * scale[1], value, some(key_size, d_model))

    blocks = tuple(
        LayerWeights(tuple(head() for _ in range(heads)), some(d_model, hidden), some(hidden, d_model))
        for _ in range(layers)
    )
    token, position = np.abs(some(vocabulary, d_model)), some(1 + length, d_model)
    return Weights(token, position, blocks, some(d_model, 1 + int(random.integers(2))), causal, vocabulary - 1)


def compiled_case(random: np.random.Generator, *, atol: float, most: int, **shape: Any) -> Case | None:
    """A model such as Tracr's, if it has few enough edges and depends on its inputs."""
    weights = random_weights(random, **shape)
    model = TracrModel(weights, token_ids=[0, 1, 2])
    if not 2 <= len(model.structural) <= most:
        return None
    dataset = dataset_of(model, [1, 2], bos=0, pad=weights.pad_id, length=shape["length"])
    slow = partial(sources_and_output, weights, model.graph)
    return Case(model, dataset, tuple(sorted(model.structural)), list(model.read), slow, atol)


@st.composite
def compiled_cases(draw: st.DrawFn, most: int = MOST) -> Case:
    """Shrinks towards one layer of one head."""
    shape = {
        "layers": draw(st.integers(1, 2)),
        "heads": draw(st.integers(1, 2)),
        "causal": draw(st.booleans()),
        "length": draw(st.integers(1, 2)),
    }
    atol = draw(st.sampled_from([1e-2, 0.3, 1.1]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    for _ in range(200):
        case = compiled_case(random, atol=atol, most=most, **shape)
        if case is not None and not is_faithful(case.judge("zero"), []):
            return case
    reject()


@st.composite
def language_cases(draw: st.DrawFn) -> Case:
    """A GPT-2 or Llama of one layer and one head, some of whose parts are made to do nothing."""
    family = draw(st.sampled_from(tiny.FAMILIES))
    one = {"gpt2": {"n_head": 1}, "llama": {"num_attention_heads": 1, "num_key_value_heads": 1}}[family.name]
    original = family.make(family.config(num_hidden_layers=1, vocab_size=4, **one), draw(st.integers(0, 2**16)))
    parts = {"gpt2": ("c_attn", "c_fc", "lm_head"), "llama": ("q_proj", "v_proj", "down_proj")}[family.name]
    idle = draw(st.sets(st.sampled_from(parts), max_size=2))
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            if any(part in name for part in idle) and "lm_head" not in name:
                parameter.zero_()
    model = family.adapter(original)
    dataset = dataset_of(model, [1, 2], bos=0, pad=3, length=2)
    double = family.make(original.config, 0).double()
    double.load_state_dict(original.state_dict())
    slow = torch.no_grad()(partial(family.naive, double, model.graph))
    width = model.sources(dataset.tokens[:1]).shape[-1]
    read = [torch.eye(width)] * len(model.graph.destinations)
    return Case(model, dataset, tuple(model.graph.edges), read, slow, draw(st.sampled_from([1e-2, 0.5, 2.0])))


ablations = st.sampled_from(ABLATIONS)
cases = compiled_cases()
quick = settings(max_examples=12, deadline=None)


def enumerating(few: int = 0, unmerged: int = 0) -> Any:
    """Behaviours are looked for however few sets there are."""
    return patch.multiple(behaviours, _FEW=few, _UNMERGED=unmerged)


@given(cases, ablations)
@quick
def test_all_true_circuits_are_found(case, ablation):
    found = minimal_circuits(case.judge(ablation), case.edges)
    assert found is not None and len(set(found.circuits)) == len(found.circuits)
    assert set(found.circuits) == minimal(case.faithful(ablation))


@given(cases, ablations, st.integers(0, 1), st.integers(0, 2))
@settings(quick, max_examples=25)
def test_all_true_circuits_are_found_by_what_nodes_compute(case, ablation, few, unmerged):
    with enumerating(few, unmerged):
        found = minimal_circuits(case.judge(ablation), case.edges)
    assert found is not None and len(set(found.circuits)) == len(found.circuits)
    assert set(found.circuits) == minimal(case.faithful(ablation))


@pytest.mark.sweep
@given(compiled_cases(most=10), ablations, st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_all_true_circuits_of_larger_graphs_are_found_by_what_nodes_compute(case, ablation, unmerged):
    with enumerating(unmerged=unmerged):
        found = minimal_circuits(case.judge(ablation), case.edges)
    assert found is not None and set(found.circuits) == minimal(case.faithful(ablation))


@given(language_cases(), ablations, st.booleans())
@settings(max_examples=8, deadline=None)
def test_all_true_circuits_of_language_models_are_found(case, ablation, forced):
    with enumerating() if forced else nullcontext():
        found = minimal_circuits(case.judge(ablation), case.edges)
    assert found is not None and set(found.circuits) == minimal(case.faithful(ablation))


@given(cases, ablations, st.sampled_from(["WIDEST", "MOST_CHOICES", "ROW_BUDGET"]))
@quick
def test_what_would_cost_too_much_is_not_answered(case, ablation, limit):
    with enumerating(), patch.multiple(behaviours, **{limit: 0}):
        found = minimal_circuits(case.judge(ablation), case.edges)
        # A limit is met, unless every edge proved necessary before it was.
        assert found is None or set(found.circuits) == minimal(case.faithful(ablation))
    with enumerating(), patch.multiple(behaviours, MOST_CHOICES=1, ROW_BUDGET=1):
        assert minimal_circuits(case.judge(ablation), case.edges) is None


def certified(case: Case, ablation, **kept: Any):
    try:
        return derive_truth(
            case.model, case.dataset, frozenset(case.edges), case.read, ablation, atol=case.atol, **kept
        )
    except DegenerateProgram:
        assert frozenset() in case.faithful(ablation)
        reject()


@given(cases, ablations)
@quick
def test_a_complete_certificate_says_what_is_so(case, ablation):
    certificate = certified(case, ablation).certificate
    faithful, listed = case.faithful(ablation), {circuit.edges for circuit in certificate.circuits}
    assert certificate.complete
    if certificate.status == "unique":
        (only,) = listed
        assert all(only <= kept for kept in faithful)
        assert all(len(only) < len(kept) for kept in faithful - {only})
    else:
        assert certificate.status == "ambiguous" and len(listed) > 1
        assert not any(one < other for one in listed for other in listed)
        assert all(any(one <= kept for one in listed) for kept in faithful)


@given(cases, ablations)
@quick
def test_a_minimal_certificate_lists_circuits_without_a_faithful_proper_subset(case, ablation):
    asked: list[int] = []

    def first_in_vain(judge, edges):
        asked.append(len(edges))
        return None if len(asked) == 1 else minimal_circuits(judge, edges)

    with patch.object(truth, "minimal_circuits", first_in_vain):
        certificate = certified(case, ablation).certificate
    assert certificate.status == "minimal" and not certificate.complete and certificate.choices == 0
    assert {circuit.edges for circuit in certificate.circuits} <= minimal(case.faithful(ablation))


@given(cases, ablations)
@quick
def test_a_locally_minimal_certificate_lists_circuits_that_no_group_can_leave(case, ablation):
    with patch.object(truth, "minimal_circuits", lambda judge, edges: None):
        certificate = certified(case, ablation).certificate
    faithful = case.faithful(ablation)
    assert certificate.status == "locally-minimal" and not certificate.complete
    for circuit in certificate.circuits:
        assert circuit.edges in faithful
        edges = sorted(case.edges)
        for move in removals(case.model.graph, edges).tolist():
            gone = {edge for edge, goes in zip(edges, move, strict=True) if goes}
            assert not gone & circuit.edges or circuit.edges - gone not in faithful


@given(cases, ablations, st.integers(0, 3))
@quick
def test_every_order_of_elimination_ends_in_a_faithful_circuit(case, ablation, seed):
    faithful = case.faithful(ablation)
    for end in eliminate(case.judge(ablation), case.edges, seed=seed, orders=3):
        assert end in faithful and not any(end - {edge} in faithful for edge in end)


@given(cases, ablations, st.data())
@quick
def test_a_set_is_true_if_it_is_faithful_and_no_proper_subset_is(case, ablation, data):
    faithful, judge = case.faithful(ablation), case.judge(ablation)
    assume(frozenset() not in faithful)
    some = data.draw(st.sampled_from(sorted(map(sorted, faithful)))) if data.draw(st.booleans()) else None
    kept = frozenset(some or data.draw(st.sets(st.sampled_from(case.edges), min_size=1)))
    assert is_faithful(judge, kept) == (kept in faithful)
    assert is_true(judge, kept) == (kept in minimal(faithful))
    for true in minimal(faithful):
        assert is_true(judge, true) is True
