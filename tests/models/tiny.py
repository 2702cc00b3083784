"""Language models small enough for tests, with weights large enough to matter."""

import torch
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY = 23


def gpt2_config(**settings) -> GPT2Config:
    """Two layers of two heads, unless `settings` say otherwise."""
    small = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 12, "vocab_size": VOCABULARY}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2Config(**{**small, **ends, **settings})


def gpt2(config: GPT2Config, seed: int = 0) -> GPT2LMHeadModel:
    """A model with random weights: biases and LayerNorms too, which training moves and initialisation does not."""
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = 0.4 * torch.randn(parameter.shape, generator=generator)
        parameter.data = noise + (1 if ".ln_" in name and name.endswith("weight") else 0)
    return model


@st.composite
def gpt2_configs(draw: st.DrawFn) -> GPT2Config:
    """Shrinks towards one layer of one head, with GPT-2's own choices for the rest."""
    heads = draw(st.integers(1, 4))
    return gpt2_config(
        n_layer=draw(st.integers(1, 3)),
        n_head=heads,
        n_embd=heads * draw(st.integers(1, 6)),
        n_inner=draw(st.none() | st.integers(1, 20)),
        activation_function=draw(st.sampled_from(["gelu_new", "relu", "gelu", "gelu_pytorch_tanh", "silu"])),
        layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-3, 0.5])),
        scale_attn_weights=draw(st.sampled_from([True, False])),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
        reorder_and_upcast_attn=draw(st.booleans()),
        tie_word_embeddings=draw(st.sampled_from([True, False])),
    )


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ids."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
