"""GPT-2 and Llama under masks: against Hugging Face's own, a naive loop over edges, and one mask at a time."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SCALED_ROTATIONS, families, gpt2, llama, llama_config, tokens
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgeprune.ablation import group_means
from edgeprune.errors import ModelError
from edgeprune.graph import Graph
from edgeprune.masks import edge_exists
from edgeprune.metrics.answers import Answers
from edgeprune.models import llama as llama_adapter
from edgeprune.models import transformer as adapter
from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.models.llama import LlamaModel
from edgeprune.models.transformer import Transformer
from edgeprune.streams import by_source
from edgeprune.tasks import Encoded

ROTATED = {"rtol": 1e-4, "atol": 1e-5}
"""Hugging Face takes sines of Llama's angles in single precision, whatever that of the weights."""

seeds = st.integers(0, 2**31)
quick = settings(max_examples=40, deadline=None)
quicker = settings(max_examples=15, deadline=None)


def shape(model: Transformer) -> tuple[int, int]:
    return len(model.graph.sources), len(model.graph.destinations)


def masks(model: Transformer, *lead: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*lead, *shape(model), generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("layers", "heads", "edges"), [(12, 12, 32_491), (2, 2, 46)])
def test_edges_are_counted_as_in_the_paper(layers, heads, edges):
    assert Graph.transformer(embeddings=("embed",), layers=layers, heads=heads).total == edges


@families
@given(st.data(), seeds)
@quick
def test_with_every_edge_the_logits_are_those_of_hugging_face(family, data, seed):
    """Up to what a norm makes of rounding in a narrow stream; Hugging Face has some in single precision always."""
    original = family.make(data.draw(family.configs()), seed)
    clean, corrupted = tokens(3, 7, seed=seed), tokens(3, 7, seed=seed + 1)
    for precision, most in ((torch.float32, 1e-3), (torch.float64, 1e-4)):
        ours = family.adapter(original.to(precision))
        with torch.no_grad():
            theirs = original(clean).logits
        everything = torch.ones(shape(ours))
        for found in (ours(clean), ours(clean, everything), ours(clean, everything, ours.sources(corrupted))):
            torch.testing.assert_close(found, theirs, atol=most, rtol=0)


@families
@given(st.data(), seeds, st.lists(st.integers(1, 8), min_size=2, max_size=4))
@quick
def test_padding_on_the_right_changes_nothing_before_it(family, data, seed, lengths):
    # In double precision: what a mask leaves of a narrow stream may cancel out, and a norm makes much of rounding.
    original = family.make(data.draw(family.configs()), seed).double()
    precise, ids = family.adapter(original), tokens(len(lengths), max(lengths), seed=seed)
    real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        theirs = original(ids, attention_mask=real.long()).logits
    torch.testing.assert_close(precise(ids)[real], theirs[real], atol=1e-4, rtol=0)
    mask, ablated = masks(precise, seed=seed), precise.sources(ids.flip(0))
    padded = precise(ids, mask, ablated)
    for row, length in enumerate(lengths):
        alone = precise(ids[row : row + 1, :length], mask, ablated[:, row : row + 1, :length])
        torch.testing.assert_close(padded[row, :length], alone[0], atol=1e-4, rtol=0)


@contextmanager
def mixed_anew(numbers: int | None):
    """So many numbers are mixed at a time, and none of them held for the way back; as in a large model."""
    with pytest.MonkeyPatch.context() as patch:
        if numbers is not None:
            patch.setattr(by_source, "_HELD", 0)
            patch.setattr(by_source, "_AT_ONCE", {"cpu": numbers})
        yield


at_once = st.sampled_from([None, 1, 100, 10**9])


@families
@given(st.data(), seeds, at_once)
@quicker
def test_masked_forwards_and_their_gradients_are_those_of_a_naive_loop_over_edges(family, data, seed, numbers):
    original = family.make(data.draw(family.configs()), seed).double()
    ours, ids = family.adapter(original), tokens(2, 5, seed=seed)
    ablated = ours.sources(tokens(2, 5, seed=seed + 1))
    mask = masks(ours, seed=seed, dtype=torch.float64).requires_grad_()
    with mixed_anew(numbers):
        outputs = ours(ids, mask, ablated)
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        (gradient,) = torch.autograd.grad((weights * outputs).sum(), mask)
    naive = torch.stack([family.naive(original, ours.graph, ids[row], mask, ablated[:, row])[1] for row in range(2)])
    (slow,) = torch.autograd.grad((weights * naive).sum(), mask)
    torch.testing.assert_close(outputs, naive, **ROTATED)
    exists = edge_exists(ours.graph)
    torch.testing.assert_close(gradient[exists], slow[exists], **ROTATED)
    assert not gradient[~exists].any()


@families
@given(st.data(), seeds)
@quicker
def test_sources_are_those_of_a_naive_run(family, data, seed):
    original = family.make(data.draw(family.configs()), seed).double()
    ours, ids = family.adapter(original), tokens(2, 5, seed=seed)
    sources = ours.sources(ids)
    everything = torch.ones(shape(ours), dtype=torch.float64)
    for row in range(2):
        naive = family.naive(original, ours.graph, ids[row], everything, torch.zeros_like(sources[:, row]))[0]
        torch.testing.assert_close(sources[:, row], naive, **ROTATED)


@families
@given(st.data(), seeds)
@quicker
def test_a_mask_of_zeros_does_not_depend_on_the_clean_input(family, data, seed):
    ours = family.adapter(family.make(data.draw(family.configs()), seed))
    ablated, nothing = ours.sources(tokens(3, 6, seed=seed)), torch.zeros(shape(ours))
    for carried in (None, ablated):
        outputs = [ours(tokens(3, 6, seed=seed + other), nothing, carried) for other in (1, 2)]
        assert torch.equal(*outputs)


@families
@given(seeds, st.booleans(), at_once)
@quicker
def test_batched_masks_equal_one_at_a_time(family, seed, in_parts, numbers):
    """Also where there is no room for all of them in one forward."""
    ours, ids = family.ours(seed), tokens(4, 6, seed=seed)
    ablated, several = ours.sources(tokens(4, 6, seed=seed + 1)), masks(ours, 3, 2, seed=seed)
    room = adapter._ROOM
    try:
        adapter._ROOM = len(ours.graph.sources) * 4 * 6 * 8 * 2 if in_parts else room
        with torch.set_grad_enabled(not in_parts), mixed_anew(numbers):
            batched = ours(ids, several, ablated)
            own = ours(ids[:3, None, None], several, ablated[:, :3, None, None])
    finally:
        adapter._ROOM = room
    assert batched.shape == (3, 2, 4, 6, ours.vocabulary_size)
    for first in range(3):
        for second in range(2):
            torch.testing.assert_close(batched[first, second], ours(ids, several[first, second], ablated))
            torch.testing.assert_close(own[first, second, 0], batched[first, second, first])


@families
def test_outputs_are_given_at_the_positions_that_are_asked_for(family):
    ours, ids = family.ours(), tokens(3, 6)
    positions = torch.tensor([[5, 0], [2, 2], [1, 4]])
    for mask in (None, masks(ours), masks(ours, 2)):
        everywhere, some = ours(ids, mask), ours(ids, mask, None, positions)
        for row, asked in enumerate(positions.tolist()):
            torch.testing.assert_close(some[..., row, :, :], everywhere[..., row, asked, :])


@families
@pytest.mark.parametrize("numbers", [None, 1, 100])
def test_a_graph_that_is_kept_can_be_walked_twice(family, numbers):
    ours = family.adapter(family.original().double())
    mask = masks(ours, dtype=torch.float64).requires_grad_()
    with mixed_anew(numbers):
        loss = ours(tokens(2, 5), mask, ours.sources(tokens(2, 5, seed=1))).square().sum()
        first, second = (torch.autograd.grad(loss, mask, retain_graph=True)[0] for _ in range(2))
    assert first.any()
    torch.testing.assert_close(first, second)


@families
@pytest.mark.parametrize("numbers", [1, 100])
def test_gradients_of_several_masks_are_those_of_one_at_a_time(family, numbers):
    """Each with ablated values of its own, mixed anew."""
    ours, ids = family.adapter(family.original().double()), tokens(3, 5)
    several = masks(ours, 4, dtype=torch.float64).requires_grad_()
    carried = torch.stack([ours.sources(tokens(3, 5, seed=seed)) for seed in range(4)], dim=1)
    with mixed_anew(numbers):
        outputs = ours(ids.expand(4, 3, 5), several, carried)
        (together,) = torch.autograd.grad(outputs.square().sum(), several)
    for number in range(4):
        alone = ours(ids, several[number], carried[:, number]).square().sum()
        torch.testing.assert_close(together[number], torch.autograd.grad(alone, several)[0][number])


@families
def test_a_run_leaves_nothing_behind(family, monkeypatch):
    """The stacks of a run are freed with its outputs, without waiting for the garbage collector."""
    made = []

    class Noted(by_source._Stacks):
        def __init__(self, held):
            super().__init__(held)
            made.append(weakref.ref(self))

    monkeypatch.setattr(by_source, "_Stacks", Noted)
    ours = family.ours()
    gc.disable()
    try:
        ours(tokens(2, 5), masks(ours).requires_grad_()).sum().backward()
        ours(tokens(2, 5), masks(ours).requires_grad_())
    finally:
        gc.enable()
    assert [reference() for reference in made] == [None, None]


@families
def test_weights_are_not_changed_and_get_no_gradient(family):
    original = family.original()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    ours = family.adapter(original)
    ours(tokens(2, 5), masks(ours).requires_grad_()).sum().backward()
    assert all(parameter.grad is None for parameter in original.parameters())
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])


@families
def test_half_precision_weights_give_outputs_that_are_close_and_single(family):
    original = family.original()
    exact = family.adapter(original)
    mask = masks(exact).requires_grad_()
    expected = exact(tokens(2, 5), mask, exact.sources(tokens(2, 5, seed=1))).detach()
    half = family.adapter(original.to(torch.bfloat16))
    outputs = half(tokens(2, 5), mask, half.sources(tokens(2, 5, seed=1)))
    assert half.sources(tokens(2, 5)).dtype == torch.bfloat16
    torch.testing.assert_close(outputs, expected, atol=0.2, rtol=0.1)
    outputs.sum().backward()
    assert mask.grad is not None and mask.grad.dtype == torch.float32 and mask.grad.isfinite().all()


@families
def test_means_of_half_precision_sources_are_those_of_single_precision(family):
    model = family.adapter(family.original().to(torch.bfloat16))
    ids, count = tokens(600, 4), 600
    answers = Answers(torch.zeros(count, 1, 1, dtype=torch.long), torch.zeros(count, 1, 1, dtype=torch.long))
    last, scored = torch.full((count, 1), 3), torch.ones(count, 1, dtype=torch.bool)
    dataset = Encoded(ids, ids, torch.full((count,), 4), last, scored, answers).dataset(model)
    means = group_means(model, dataset)
    assert means.dtype == torch.bfloat16
    torch.testing.assert_close(means[:, 0].float(), model.sources(ids).float().mean(1), atol=1e-3, rtol=1e-2)


@families
def test_gradients_reach_the_mask_and_no_ablated_value(family):
    ours = family.ours()
    ablated = ours.sources(tokens(2, 5)).requires_grad_()
    mask = masks(ours).requires_grad_()
    ours(tokens(2, 5), mask, ablated).sum().backward()
    assert mask.grad is not None and ablated.grad is None


@families
def test_ablated_values_of_another_type_are_taken(family):
    half = family.adapter(family.original().to(torch.bfloat16))
    assert half(tokens(2, 5), masks(half), half.sources(tokens(2, 5)).float()).isfinite().all()


@families
def test_positions_may_have_leading_dimensions_of_their_own(family):
    ours, ids = family.ours(), tokens(2, 5)
    positions = torch.tensor([[[0], [1]], [[2], [3]], [[4], [0]]])
    several = ours(ids, masks(ours), None, positions)
    for number, each in enumerate(positions):
        torch.testing.assert_close(several[number], ours(ids, masks(ours), None, each))


def test_cross_attention_is_refused():
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5, bos_token_id=0, eos_token_id=0)
    config.add_cross_attention = True
    with pytest.raises(ModelError, match="reads one text; got one with cross attention"):
        Gpt2Model(gpt2(config))


# Llama's own


@pytest.mark.parametrize("kind", SCALED_ROTATIONS)
def test_rotations_are_scaled_as_in_hugging_face(kind):
    """At every length, whatever length came before; those beyond six positions are long ones."""
    shape = {"head_dim": 4, "max_position_embeddings": 6}
    scaled = {"rope_type": kind, "rope_theta": 10.0, **SCALED_ROTATIONS[kind]}
    config = llama_config(**shape, rope_parameters=scaled)
    plain = LlamaModel(llama(llama_config(**shape, rope_parameters={"rope_type": "default", "rope_theta": 10.0})))
    ours, moved = LlamaModel(llama(config)), 0.0
    for length in (12, 3, 12, 7):
        ids = tokens(2, length, seed=length)
        with torch.no_grad():
            theirs = llama(config)(ids).logits  # a new one, as some remember the longest input
        torch.testing.assert_close(ours(ids), theirs, atol=1e-4, rtol=0)
        moved = max(moved, float((ours(ids) - plain(ids)).abs().max()))
    assert (moved > 1e-3) == (kind != "default")


def test_every_scaling_of_rotations_is_tried():
    assert {*ROPE_INIT_FUNCTIONS, "default"} == {*SCALED_ROTATIONS}


def test_a_run_without_gradients_leaves_nothing_that_later_ones_cannot_use():
    ours = LlamaModel(llama(llama_config()))
    with torch.inference_mode():
        ours(tokens(2, 5))
    ours(tokens(2, 5), masks(ours).requires_grad_()).sum().backward()


def test_the_graph_of_codellama_13b_is_that_of_the_paper():
    config = LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        vocab_size=32016,
        max_position_embeddings=16384,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    with torch.device("meta"):
        ours = LlamaModel(LlamaForCausalLM(config))
    assert ours.graph.total == 3_877_661
    assert (len(ours.graph.sources), ours.vocabulary_size, ours.context_length) == (1641, 32016, 16384)


def test_no_weight_of_llama_is_copied():
    original = llama(llama_config(attention_bias=False))
    before = {parameter.data_ptr() for parameter in original.parameters()}
    attention = llama_adapter._attention(original.model.layers[0])
    for each in (*attention.inputs, attention.outputs):
        assert each.data_ptr() in before


def test_heads_that_share_a_key_read_it_through_one_destination():
    ours = LlamaModel(llama(llama_config()))
    names = [str(node) for node in ours.graph.destinations if node.layer == 1]
    assert names == [*(f"a1.h{i}.q" for i in range(4)), "a1.h0.k", "a1.h1.k", "a1.h0.v", "a1.h1.v", "m1"]


@families
def test_no_masks_give_no_outputs(family):
    ours, clean = family.ours(), tokens(3, 5)
    assert ours(clean, masks(ours, 2)[:0]).shape == (0, 3, 5, ours.vocabulary_size)
    assert ours(clean, masks(ours, 2)[:0], positions=torch.tensor([[4]] * 3)).shape == (0, 3, 1, ours.vocabulary_size)


@families
@pytest.mark.parametrize("rows", [1, 7])
def test_gradients_are_the_same_however_many_rows_are_mixed_and_held_at_a_time(family, rows, monkeypatch):
    """What is mixed in several slices is held slice by slice."""
    ours, ids = family.ours(), tokens(3, 5)
    ablated, found = ours.sources(tokens(3, 5, seed=1)), []
    for at_once in (10**9, rows * 8 * 12):
        monkeypatch.setattr(by_source, "_AT_ONCE", {"cpu": at_once})
        mask = masks(ours).requires_grad_()
        (gradient,) = torch.autograd.grad(ours(ids, mask, ablated).square().sum(), mask)
        found.append(gradient)
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)
