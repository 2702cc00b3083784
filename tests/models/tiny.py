"""Language models small enough for tests, with weights large enough to matter."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import naive_gpt2
import naive_llama
import pytest
import torch
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from edgeprune.models.gpt2 import Gpt2Model
from edgeprune.models.llama import LlamaModel

VOCABULARY = 23


def gpt2_config(**settings) -> GPT2Config:
    """Two layers of two heads, unless `settings` say otherwise."""
    small = {"num_hidden_layers": 2, "n_head": 2, "n_embd": 8, "max_position_embeddings": 12, "vocab_size": VOCABULARY}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2Config(**{**small, **ends, **settings})


def llama_config(**settings) -> LlamaConfig:
    """Two layers of four heads, each two of which share a key and a value, unless `settings` say otherwise."""
    small = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8}
    sizes = {"intermediate_size": 12, "vocab_size": VOCABULARY, "max_position_embeddings": 12}
    return LlamaConfig(**{**small, **sizes, "bos_token_id": 0, "eos_token_id": 0, **settings})


def gpt2(config: GPT2Config, seed: int = 0) -> GPT2LMHeadModel:
    """A model with random weights: biases and norms too, which training moves and initialisation does not."""
    return _spread(GPT2LMHeadModel(config), seed)


def llama(config: LlamaConfig, seed: int = 0) -> LlamaForCausalLM:
    """As `gpt2`."""
    return _spread(LlamaForCausalLM(config), seed)


def _spread(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = 0.4 * torch.randn(parameter.shape, generator=generator)
        norm = name.endswith("weight") and ("ln_" in name or "norm" in name)
        parameter.data = noise + (1 if norm else 0)
    return model.eval()


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


@st.composite
def llama_configs(draw: st.DrawFn) -> LlamaConfig:
    """Shrinks towards one layer of one head, with Llama's own choices for the rest."""
    groups = draw(st.integers(1, 3))
    heads = groups * draw(st.integers(1, 3))
    return llama_config(
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        hidden_size=heads * draw(st.integers(1, 3)),
        head_dim=2 * draw(st.integers(1, 4)),
        intermediate_size=draw(st.integers(1, 20)),
        hidden_act=draw(st.sampled_from(["silu", "gelu", "relu"])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 0.5])),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


SCALED_ROTATIONS = {
    "default": {},
    "proportional": {"partial_rotary_factor": 0.5},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4},
    "longrope": {
        "short_factor": [1.0, 1.5],
        "long_factor": [2.0, 3.0],
        "factor": 3.0,
        "original_max_position_embeddings": 4,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 6,
    },
}
"""Settings of every scaling of rotations, for heads of four numbers."""


@dataclass(frozen=True)
class Family:
    """A kind of language model: how one is made, ours, and the slow one."""

    name: str
    config: Callable[..., Any]
    configs: Callable[[], st.SearchStrategy[Any]]
    make: Callable[..., Any]
    adapter: Callable[..., Any]
    naive: Callable[..., Any]

    def original(self, seed: int = 0, *, layers: int = 2) -> Any:
        """Hugging Face's, in the one small shape."""
        return self.make(self.config(num_hidden_layers=layers), seed)

    def ours(self, seed: int = 0) -> Any:
        """The same as a masked model."""
        return self.adapter(self.original(seed))


FAMILIES = (
    Family("gpt2", gpt2_config, gpt2_configs, gpt2, Gpt2Model, naive_gpt2.sources_and_logits),
    Family("llama", llama_config, llama_configs, llama, LlamaModel, naive_llama.sources_and_logits),
)

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ids."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
