"""The slow, obvious masked GPT-2: one input, one edge at a time, after the equations of the transformer."""

import math

import torch
from transformers.activations import ACT2FN


def sources_and_logits(model, graph, ids, mask, ablated):
    """All sources `[source, pos, d_model]` and the logits `[pos, vocab]` of one input of a `GPT2LMHeadModel`.

    `mask` is `[source, destination]`; `ablated` is `[source, pos, d_model]`. Works in the model's type.
    """
    config, body = model.config, model.transformer
    state = {name: value.detach() for name, value in model.state_dict().items()}
    length, d_head = len(ids), config.n_embd // config.n_head
    written = [torch.stack([body.wte.weight[i] + body.wpe.weight[n] for n, i in enumerate(ids)]).detach()]
    biases = torch.zeros(config.n_embd, dtype=written[0].dtype)

    def read(name: str, norm: str) -> torch.Tensor:
        column = [str(node) for node in graph.destinations].index(name)
        total = biases.expand(length, -1)
        for row, clean in enumerate(written):
            z = mask[row, column]
            total = total + z * clean + (1 - z) * ablated[row]
        centred = total - total.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_epsilon).sqrt()
        return scaled * state[f"transformer.{norm}.weight"] + state[f"transformer.{norm}.bias"]

    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        weight, bias = state[f"{block}.attn.c_attn.weight"], state[f"{block}.attn.c_attn.bias"]
        outputs = []
        for head in range(config.n_head):
            ports = {}
            for number, port in enumerate("qkv"):
                columns = slice(number * config.n_embd + head * d_head, number * config.n_embd + (head + 1) * d_head)
                ports[port] = read(f"a{layer}.h{head}.{port}", f"h.{layer}.ln_1") @ weight[:, columns] + bias[columns]
            scores = ports["q"] @ ports["k"].T
            if config.scale_attn_weights:
                scores = scores / math.sqrt(d_head)
            if config.scale_attn_by_inverse_layer_idx:
                scores = scores / (layer + 1)
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            rows = state[f"{block}.attn.c_proj.weight"][head * d_head : (head + 1) * d_head]
            outputs.append(scores.softmax(-1) @ ports["v"] @ rows)
        written += outputs
        biases = biases + state[f"{block}.attn.c_proj.bias"]
        hidden = read(f"m{layer}", f"h.{layer}.ln_2") @ state[f"{block}.mlp.c_fc.weight"]
        hidden = ACT2FN[config.activation_function](hidden + state[f"{block}.mlp.c_fc.bias"])
        written.append(hidden @ state[f"{block}.mlp.c_proj.weight"] + state[f"{block}.mlp.c_proj.bias"])
    return torch.stack(written), read("logits", "ln_f") @ state["lm_head.weight"].T
