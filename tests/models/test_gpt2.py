"""GPT-2 under masks: against Hugging Face's own, against a naive loop over edges, and batched against one at a time."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_gpt2 import sources_and_logits
from tiny import gpt2, gpt2_config, gpt2_configs, tokens
from transformers import GPT2Config

from edgeprune import wide_stream
from edgeprune.ablation import group_means
from edgeprune.answers import Answers
from edgeprune.errors import ModelError
from edgeprune.graph import Graph
from edgeprune.masks import edge_exists
from edgeprune.models import gpt2 as adapter
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.tasks import Encoded

seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None)
quicker = settings(max_examples=15, deadline=None)


def shape(model: Gpt2Model) -> tuple[int, int]:
    return len(model.graph.sources), len(model.graph.destinations)


def masks(model: Gpt2Model, *lead: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*lead, *shape(model), generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("layers", "heads", "edges"), [(12, 12, 32_491), (2, 2, 46)])
def test_edges_are_counted_as_in_the_paper(layers, heads, edges):
    assert Graph.transformer(embeddings=("embed",), layers=layers, heads=heads).total == edges


@given(gpt2_configs(), seeds)
@quick
def test_with_every_edge_the_logits_are_those_of_hugging_face(config, seed):
    original = gpt2(config, seed)
    ours, clean, corrupted = Gpt2Model(original), tokens(3, 7, seed=seed), tokens(3, 7, seed=seed + 1)
    with torch.no_grad():
        theirs = original(clean).logits
    torch.testing.assert_close(ours(clean), theirs, atol=1e-4, rtol=0)
    everything = torch.ones(shape(ours))
    torch.testing.assert_close(ours(clean, everything), theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours(clean, everything, ours.sources(corrupted)), theirs, atol=1e-4, rtol=0)


@given(gpt2_configs(), seeds, st.lists(st.integers(1, 8), min_size=2, max_size=4))
@quick
def test_padding_on_the_right_changes_nothing_before_it(config, seed, lengths):
    original = gpt2(config, seed)
    ours, ids = Gpt2Model(original), tokens(len(lengths), max(lengths), seed=seed)
    real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        theirs = original(ids, attention_mask=real.long()).logits
    mask, ablated = masks(ours, seed=seed), ours.sources(ids.flip(0))
    padded = ours(ids, mask, ablated)
    torch.testing.assert_close(ours(ids)[real], theirs[real], atol=1e-4, rtol=0)
    for row, length in enumerate(lengths):
        alone = ours(ids[row : row + 1, :length], mask, ablated[:, row : row + 1, :length])
        torch.testing.assert_close(padded[row, :length], alone[0], atol=1e-4, rtol=0)


@given(gpt2_configs(), seeds)
@quicker
def test_masked_forwards_and_their_gradients_are_those_of_a_naive_loop_over_edges(config, seed):
    original = gpt2(config, seed).double()
    ours, ids = Gpt2Model(original), tokens(2, 5, seed=seed)
    ablated = ours.sources(tokens(2, 5, seed=seed + 1))
    mask = masks(ours, seed=seed, dtype=torch.float64).requires_grad_()
    outputs = ours(ids, mask, ablated)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * outputs).sum(), mask)
    naive = torch.stack(
        [sources_and_logits(original, ours.graph, ids[row], mask, ablated[:, row])[1] for row in range(2)]
    )
    (slow,) = torch.autograd.grad((weights * naive).sum(), mask)
    torch.testing.assert_close(outputs, naive)
    exists = edge_exists(ours.graph)
    torch.testing.assert_close(gradient[exists], slow[exists])
    assert not gradient[~exists].any()


@given(gpt2_configs(), seeds)
@quicker
def test_sources_are_those_of_a_naive_run(config, seed):
    original = gpt2(config, seed).double()
    ours, ids = Gpt2Model(original), tokens(2, 5, seed=seed)
    sources = ours.sources(ids)
    everything = torch.ones(shape(ours), dtype=torch.float64)
    for row in range(2):
        naive = sources_and_logits(original, ours.graph, ids[row], everything, torch.zeros_like(sources[:, row]))[0]
        torch.testing.assert_close(sources[:, row], naive)


@given(gpt2_configs(), seeds)
@quicker
def test_a_mask_of_zeros_does_not_depend_on_the_clean_input(config, seed):
    ours = Gpt2Model(gpt2(config, seed))
    ablated, nothing = ours.sources(tokens(3, 6, seed=seed)), torch.zeros(shape(ours))
    for carried in (None, ablated):
        outputs = [ours(tokens(3, 6, seed=seed + other), nothing, carried) for other in (1, 2)]
        assert torch.equal(*outputs)


@given(seeds, st.booleans())
@quicker
def test_batched_masks_equal_one_at_a_time(seed, in_parts):
    """Also where there is no room for all of them in one forward."""
    ours, ids = Gpt2Model(gpt2(gpt2_config(), seed)), tokens(4, 6, seed=seed)
    ablated, several = ours.sources(tokens(4, 6, seed=seed + 1)), masks(ours, 3, 2, seed=seed)
    room = adapter._ROOM
    try:
        adapter._ROOM = len(ours.graph.sources) * 4 * 6 * 8 * 2 if in_parts else room
        with torch.set_grad_enabled(not in_parts):
            batched = ours(ids, several, ablated)
            own = ours(ids[:3, None, None], several, ablated[:, :3, None, None])
    finally:
        adapter._ROOM = room
    assert batched.shape == (3, 2, 4, 6, ours.vocabulary_size)
    for first in range(3):
        for second in range(2):
            torch.testing.assert_close(batched[first, second], ours(ids, several[first, second], ablated))
            torch.testing.assert_close(own[first, second, 0], batched[first, second, first])


def test_outputs_are_given_at_the_positions_that_are_asked_for():
    ours, ids = Gpt2Model(gpt2(gpt2_config())), tokens(3, 6)
    positions = torch.tensor([[5, 0], [2, 2], [1, 4]])
    for mask in (None, masks(ours), masks(ours, 2)):
        everywhere, some = ours(ids, mask), ours(ids, mask, None, positions)
        for row, asked in enumerate(positions.tolist()):
            torch.testing.assert_close(some[..., row, :, :], everywhere[..., row, asked, :])


def test_a_graph_that_is_kept_can_be_walked_twice():
    ours = Gpt2Model(gpt2(gpt2_config()).double())
    mask = masks(ours, dtype=torch.float64).requires_grad_()
    loss = ours(tokens(2, 5), mask, ours.sources(tokens(2, 5, seed=1))).square().sum()
    first, second = (torch.autograd.grad(loss, mask, retain_graph=True)[0] for _ in range(2))
    assert first.any()
    torch.testing.assert_close(first, second)


def test_a_run_leaves_nothing_behind(monkeypatch):
    """The stacks of a run are freed with its outputs, without waiting for the garbage collector."""
    made = []

    class Noted(wide_stream._Stacks):
        def __init__(self, held):
            super().__init__(held)
            made.append(weakref.ref(self))

    monkeypatch.setattr(wide_stream, "_Stacks", Noted)
    ours = Gpt2Model(gpt2(gpt2_config()))
    gc.disable()
    try:
        ours(tokens(2, 5), masks(ours).requires_grad_()).sum().backward()
        ours(tokens(2, 5), masks(ours).requires_grad_())
    finally:
        gc.enable()
    assert [reference() for reference in made] == [None, None]


def test_weights_are_not_changed_and_get_no_gradient():
    original = gpt2(gpt2_config())
    before = {name: value.clone() for name, value in original.state_dict().items()}
    ours = Gpt2Model(original)
    ours(tokens(2, 5), masks(ours).requires_grad_()).sum().backward()
    assert all(parameter.grad is None for parameter in original.parameters())
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])


def test_half_precision_weights_give_outputs_that_are_close_and_single():
    original = gpt2(gpt2_config())
    exact = Gpt2Model(original)
    mask = masks(exact).requires_grad_()
    expected = exact(tokens(2, 5), mask, exact.sources(tokens(2, 5, seed=1))).detach()
    half = Gpt2Model(original.to(torch.bfloat16))
    outputs = half(tokens(2, 5), mask, half.sources(tokens(2, 5, seed=1)))
    assert half.sources(tokens(2, 5)).dtype == torch.bfloat16
    torch.testing.assert_close(outputs, expected, atol=0.2, rtol=0.1)
    outputs.sum().backward()
    assert mask.grad is not None and mask.grad.dtype == torch.float32 and mask.grad.isfinite().all()


def test_means_of_half_precision_sources_are_those_of_single_precision():
    model = Gpt2Model(gpt2(gpt2_config()).to(torch.bfloat16))
    ids, count = tokens(600, 4), 600
    answers = Answers(torch.zeros(count, 1, 1, dtype=torch.long), torch.zeros(count, 1, 1, dtype=torch.long))
    last, scored = torch.full((count, 1), 3), torch.ones(count, 1, dtype=torch.bool)
    dataset = Encoded(ids, ids, torch.full((count,), 4), last, scored, answers).dataset(model)
    means = group_means(model, dataset)
    assert means.dtype == torch.bfloat16
    torch.testing.assert_close(means[:, 0].float(), model.sources(ids).float().mean(1), atol=1e-3, rtol=1e-2)


def test_gradients_reach_the_mask_and_no_ablated_value():
    ours = Gpt2Model(gpt2(gpt2_config()))
    ablated = ours.sources(tokens(2, 5)).requires_grad_()
    mask = masks(ours).requires_grad_()
    ours(tokens(2, 5), mask, ablated).sum().backward()
    assert mask.grad is not None and ablated.grad is None


def test_ablated_values_of_another_type_are_taken():
    half = Gpt2Model(gpt2(gpt2_config()).to(torch.bfloat16))
    assert half(tokens(2, 5), masks(half), half.sources(tokens(2, 5)).float()).isfinite().all()


def test_positions_may_have_leading_dimensions_of_their_own():
    ours, ids = Gpt2Model(gpt2(gpt2_config())), tokens(2, 5)
    positions = torch.tensor([[[0], [1]], [[2], [3]], [[4], [0]]])
    several = ours(ids, masks(ours), None, positions)
    for number, each in enumerate(positions):
        torch.testing.assert_close(several[number], ours(ids, masks(ours), None, each))


def test_cross_attention_is_refused():
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5, bos_token_id=0, eos_token_id=0)
    config.add_cross_attention = True
    with pytest.raises(ModelError, match="reads one text; got one with cross attention"):
        Gpt2Model(gpt2(config))
