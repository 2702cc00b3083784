"""The slow, obvious masked Llama: one input, one edge at a time, after the equations of the transformer."""

import math

import torch
from transformers.activations import ACT2FN


def sources_and_logits(model, graph, ids, mask, ablated):
    """As `naive_gpt2.sources_and_logits`, of a `LlamaForCausalLM` with plain rotations."""
    config = model.config
    state = {name: value.detach() for name, value in model.state_dict().items()}
    length, d_head, groups = len(ids), config.head_dim, config.num_attention_heads // config.num_key_value_heads
    written = [torch.stack([state["model.embed_tokens.weight"][i] for i in ids])]
    biases = torch.zeros(config.hidden_size, dtype=written[0].dtype)

    def read(name, norm):
        column = [str(node) for node in graph.destinations].index(name)
        total = biases.expand(length, -1)
        for row, clean in enumerate(written):
            z = mask[row, column]
            total = total + z * clean + (1 - z) * ablated[row]
        scaled = total / (total.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
        return scaled * state[f"model.{norm}.weight"]

    def apply(name, values, rows=slice(None)):
        bias = state.get(f"model.{name}.bias")
        return values @ state[f"model.{name}.weight"][rows].T + (0 if bias is None else bias[rows])

    def turn(values):
        """Number i of a head and number i + d_head / 2 are a point in a plane that turns as positions go by."""
        turned = values.clone()
        for position in range(length):
            for i in range(d_head // 2):
                angle = position / config.rope_parameters["rope_theta"] ** (2 * i / d_head)
                x, y = values[position, i], values[position, i + d_head // 2]
                turned[position, i] = x * math.cos(angle) - y * math.sin(angle)
                turned[position, i + d_head // 2] = y * math.cos(angle) + x * math.sin(angle)
        return turned

    for layer in range(config.num_hidden_layers):
        block, outputs = f"layers.{layer}", []
        for head in range(config.num_attention_heads):
            ports = {}
            for port in "qkv":
                own = head if port == "q" else head // groups
                rows = slice(own * d_head, (own + 1) * d_head)
                inputs = read(f"a{layer}.h{own}.{port}", f"{block}.input_layernorm")
                ports[port] = apply(f"{block}.self_attn.{port}_proj", inputs, rows)
            scores = turn(ports["q"]) @ turn(ports["k"]).T / math.sqrt(d_head)
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            columns = state[f"model.{block}.self_attn.o_proj.weight"][:, head * d_head : (head + 1) * d_head]
            outputs.append(scores.softmax(-1) @ ports["v"] @ columns.T)
        written += outputs
        biases = biases + state.get(f"model.{block}.self_attn.o_proj.bias", 0)
        inputs = read(f"m{layer}", f"{block}.post_attention_layernorm")
        gate = ACT2FN[config.hidden_act](apply(f"{block}.mlp.gate_proj", inputs))
        written.append(apply(f"{block}.mlp.down_proj", gate * apply(f"{block}.mlp.up_proj", inputs)))
    return torch.stack(written), read("logits", "norm") @ state["lm_head.weight"].T
