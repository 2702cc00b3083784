"""A compiled program as one of TransformerLens's models."""

from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from tracr_bridge.compile.weights import Weights


class CompiledTransformer(HookedTransformer):
    """A compiled program as a `HookedTransformer`.

    Prompts are `[batch, pos + 1]`: token ids with PAD on the right, and last the position whose logits are the output,
    so that outputs are `[batch, outputs]`, as AutoCircuit's losses take them. No position attends to PAD, whose
    embeddings are zero: as there are no biases, every node writes exactly zero on a prompt of nothing but PAD.
    """

    pad_id: int

    def input_to_embed(self, input: Tensor, **settings: Any) -> Any:
        """The residual stream after the embeddings, and what else the blocks need; see the base class."""
        tokens = input[:, :-1]
        settings["attention_mask"] = (tokens != self.pad_id).long()
        residual, _, shortformer, visible = super().input_to_embed(tokens, **settings)
        return residual, input, shortformer, visible

    def forward(self, input: Tensor, *, tokens: Tensor | None = None, **settings: Any) -> Tensor:
        """Logits at the position that each prompt asks for; `tokens` are the prompts of a run that starts midway."""
        logits = super().forward(input, tokens=tokens, **settings)
        prompts = input if tokens is None else tokens
        return logits[torch.arange(len(prompts)), prompts[:, -1]]


def rebuild(weights: Weights, scale: float) -> CompiledTransformer:
    """The same model, its outputs times `scale`."""
    heads = weights.layers[0].heads
    config = HookedTransformerConfig(
        n_layers=len(weights.layers),
        n_heads=len(heads),
        d_model=weights.token.shape[1],
        d_head=heads[0].query.shape[1],
        d_mlp=max(1, *(layer.hidden.shape[1] for layer in weights.layers)),
        d_vocab=len(weights.token),
        d_vocab_out=weights.unembed.shape[1],
        n_ctx=len(weights.position),
        act_fn="relu",
        normalization_type=None,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
        device="cpu",
    )
    rebuilt = CompiledTransformer(config)
    rebuilt.pad_id = weights.pad_id
    rebuilt.requires_grad_(requires_grad=False)
    for parameter in rebuilt.parameters():
        parameter.zero_()
    rebuilt.embed.W_E.copy_(torch.from_numpy(weights.token))
    rebuilt.embed.W_E[weights.pad_id] = 0
    rebuilt.pos_embed.W_pos.copy_(torch.from_numpy(weights.position))
    rebuilt.unembed.W_U.copy_(scale * torch.from_numpy(weights.unembed))
    for layer, block in zip(weights.layers, rebuilt.blocks, strict=True):
        if not weights.causal:  # PAD can only be hidden where attention is masked, so that the mask is widened instead
            block.attn.mask.fill_(True)  # noqa: FBT003
        for number, head in enumerate(layer.heads):
            for name, matrix in (("W_Q", head.query), ("W_K", head.key), ("W_V", head.value), ("W_O", head.output)):
                getattr(block.attn, name)[number] = torch.from_numpy(matrix)
        width = layer.hidden.shape[1]
        block.mlp.W_in[:, :width] = torch.from_numpy(layer.hidden)
        block.mlp.W_out[:width] = torch.from_numpy(layer.output)
    return rebuilt.eval()
