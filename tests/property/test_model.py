"""The masked model: against a plain run, against a naive loop over edges, and batched against one at a time."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import sources_and_output

from edgeprune.ablation import Ablator
from edgeprune.masks import edge_exists, mask_of
from tracr_bridge.compile.model import TracrModel
from tracr_bridge.compile.weights import Weights, extract_weights

# One head a layer and several, numerical and categorical, bidirectional and causal.
NAMES = ["reverse", "xproportion", "detect_pattern", "induction"]

programs = st.sampled_from(NAMES)
seeds = st.integers(0, 2**31)
quick = settings(max_examples=15, deadline=None)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rows(dataset, count: int, seed: int):
    clean = torch.randint(len(dataset), (count,), generator=generator(seed))
    return dataset.take(clean, dataset.partners(clean, generator(seed)))


def random_masks(model, count: int, seed: int) -> torch.Tensor:
    shape = (count, len(model.graph.sources), len(model.graph.destinations))
    return torch.rand(shape, generator=generator(seed)).round(decimals=1)


@given(programs, seeds)
@quick
def test_a_mask_of_ones_is_the_plain_model(compiled, name, seed):
    program = compiled(name)
    batch = random_rows(program.dataset, 5, seed)
    ones = torch.ones(len(program.model.graph.sources), len(program.model.graph.destinations))
    ablated = program.model.sources(batch.corrupted)
    torch.testing.assert_close(program.model(batch.clean, ones, ablated), program.model(batch.clean))


@given(programs, seeds)
@quick
def test_a_mask_of_zeros_does_not_depend_on_the_clean_input(compiled, name, seed):
    program = compiled(name)
    batch = random_rows(program.dataset, 5, seed)
    zeros = torch.zeros(len(program.model.graph.sources), len(program.model.graph.destinations))
    ablated = program.model.sources(batch.corrupted)
    ours = program.model(batch.clean, zeros, ablated)
    torch.testing.assert_close(ours, program.model(batch.corrupted, zeros, ablated))
    assert program.model(batch.clean, zeros).abs().max() == 0


@given(programs, seeds)
@quick
def test_batched_masks_equal_one_at_a_time(compiled, name, seed):
    program = compiled(name)
    batch = random_rows(program.dataset, 4, seed)
    masks = random_masks(program.model, 3, seed)
    ablated = program.model.sources(batch.corrupted)
    batched = program.model(batch.clean, masks, ablated)
    for mask, output in zip(masks, batched, strict=True):
        torch.testing.assert_close(program.model(batch.clean, mask, ablated), output)
    own = program.model(batch.clean[:3, None], masks, ablated[:, :3, None])
    for row in range(3):
        torch.testing.assert_close(own[row, 0], batched[row, row])


@given(programs, seeds)
@quick
def test_inputs_of_several_lengths_share_a_batch(compiled, name, seed):
    program = compiled(name)
    batch = random_rows(program.dataset, 6, seed)
    mask = random_masks(program.model, 1, seed)[0]
    together = program.model(batch.clean, mask)
    for row, group in enumerate(batch.group.tolist()):
        length = 2 + group  # BOS and the shortest input
        alone = program.model(batch.clean[row : row + 1, :length], mask)
        torch.testing.assert_close(together[row, :length], alone[0])


def jittered(weights: Weights, seed: int) -> Weights:
    """The same weights, each but the zeros multiplied by a random number near 1.

    Tracr puts many a ReLU exactly at 0, where rounding decides which of two derivatives is taken.
    """
    random = np.random.default_rng(seed)

    def jitter(value):
        if is_dataclass(value):
            return replace(value, **{field.name: jitter(getattr(value, field.name)) for field in fields(value)})
        if isinstance(value, tuple):
            return tuple(map(jitter, value))
        if isinstance(value, np.ndarray):
            return (value * random.uniform(0.9, 1.1, value.shape)).astype(np.float32)
        return value

    return jitter(weights)


@given(programs, seeds)
@quick
def test_masked_runs_and_their_gradients_equal_a_loop_over_edges(compiled, name, seed):
    program = compiled(name)
    weights = replace(jittered(extract_weights(program.assembled), seed), pad_id=-1)
    model = TracrModel(weights, token_ids=list(range(len(weights.token))))
    graph = model.graph
    batch = random_rows(program.dataset, 1, seed)
    length = 2 + int(batch.group[0])
    clean, corrupted = batch.clean[0, :length], batch.corrupted[0, :length]
    ones = torch.ones(len(graph.sources), len(graph.destinations), dtype=torch.float64)
    ablated = sources_and_output(weights, graph, corrupted, ones, torch.zeros(len(graph.sources), 1, 1))[0]
    torch.testing.assert_close(model.sources(corrupted[None])[:, 0], ablated.float(), atol=1e-3, rtol=1e-3)

    mask = random_masks(model, 1, seed)[0]
    slow, fast = mask.double().requires_grad_(), mask.clone().requires_grad_()
    expected = sources_and_output(weights, graph, clean, slow, ablated)[1]
    found = model(clean[None], fast, model.sources(corrupted[None]))[0]
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-3)
    (slow_gradient,) = torch.autograd.grad(expected.square().sum(), slow)
    (fast_gradient,) = torch.autograd.grad(found.square().sum(), fast)
    scale = float(slow_gradient.abs().max().clamp(min=1))
    torch.testing.assert_close(fast_gradient.double() / scale, slow_gradient / scale, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", NAMES)
def test_edges_outside_the_structural_set_carry_exactly_nothing(compiled, name, ablation):
    program = compiled(name)
    dataset, model = program.dataset, program.model
    batch = random_rows(dataset, 20, 0)
    mask = mask_of(model.graph, model.structural)
    weights = extract_weights(program.assembled)
    ablated = Ablator(model, dataset, ablation)(batch)
    torch.testing.assert_close(model(batch.clean, mask, ablated), model(batch.clean), atol=1e-5, rtol=0)
    # The same through the loop, which knows of no structure.
    length = 2 + int(batch.group[0])
    dense = torch.zeros(len(model.graph.sources), length, weights.token.shape[1])
    dense = dense if ablated is None else ablated[:, 0, :length]
    looped = sources_and_output(weights, model.graph, batch.clean[0, :length], mask.double(), dense.double())[1]
    torch.testing.assert_close(looped.float(), batch.target[0, :length], atol=1e-4, rtol=1e-4)


def test_no_gradient_reaches_entries_without_an_edge(compiled):
    program = compiled("detect_pattern")
    mask = random_masks(program.model, 1, 0)[0].requires_grad_()
    program.model(program.dataset.tokens, mask).square().sum().backward()
    assert mask.grad is not None
    assert mask.grad[~edge_exists(program.model.graph)].abs().max() == 0
    assert mask.grad[~program.model.structural_mask].abs().max() == 0


def test_no_inputs_and_no_masks_give_no_outputs(compiled):
    program = compiled("reverse")
    tokens, mask = program.dataset.tokens, mask_of(program.model.graph, program.model.structural)
    shape = program.dataset.target.shape
    assert program.model(tokens[:0], mask).shape == (0, *shape[1:])
    assert program.model(tokens, mask[None][:0]).shape == (0, *shape)


@given(programs, seeds, st.data())
@quick
def test_outputs_come_in_the_order_in_which_positions_are_asked_for(compiled, name, seed, data):
    program = compiled(name)
    batch = random_rows(program.dataset, 3, seed)
    longest = batch.clean.shape[-1]
    asked = torch.tensor([data.draw(st.lists(st.integers(0, longest - 1), min_size=4, max_size=4)) for _ in range(3)])
    masks, ablated = random_masks(program.model, 2, seed), program.model.sources(batch.corrupted)
    every = program.model(batch.clean, masks, ablated)
    some = program.model(batch.clean, masks, ablated, asked)
    for row, positions in enumerate(asked.tolist()):
        assert torch.equal(some[:, row], every[:, row, positions])
    backwards = program.model(batch.clean, masks, ablated, asked.flip(-1))
    assert torch.equal(backwards, some.flip(-2))
