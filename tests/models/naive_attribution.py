"""The slow, obvious attribution of a GPT-2's edges: gradients by what each destination reads, one input at a time.

    python tests/models/naive_attribution.py > tests/golden/eap_ig.json

writes the golden table. Nothing here masks anything: an edge's score is the inner product of what its source writes on
the corrupted input (or its mean, or nothing) less what it writes on the clean one, and the gradient of the loss by what
its destination reads. The loss is minus the logit difference; scores are means over inputs, in double precision.
"""

import json
import math
import sys

import torch
from transformers.activations import ACT2FN

ENDS = {"inputs": 0.0, "activations": 1.0}
"""Which end of a step EAP-IG's code takes: ablated (0) or clean (1), as a share of the step."""


class Run:
    """One input's run, in which some sources are replaced, and a leaf stands beside what each destination reads."""

    def __init__(self, model, ids, *, replaced=None):
        self.model, self.replaced = model, replaced or {}
        self.written, self.leaves = {}, {}
        body, heads = model.transformer, model.config.n_head
        self.stream = [torch.zeros(len(ids), model.config.n_embd, dtype=body.wte.weight.dtype)]
        self.write("embed", body.wte.weight[ids] + body.wpe.weight[: len(ids)])
        for layer, block in enumerate(body.h):
            weights, biases = (part.chunk(3, -1) for part in (block.attn.c_attn.weight, block.attn.c_attn.bias))
            outputs = []
            for head, rows in enumerate(torch.arange(model.config.n_embd).chunk(heads)):
                q, k, v = (
                    self.read(f"a{layer}.h{head}.{port}", block.ln_1) @ weight[:, rows] + bias[rows]
                    for port, weight, bias in zip("qkv", weights, biases, strict=True)
                )
                hidden = torch.ones(len(ids), len(ids)).triu(1).bool()
                pattern = (q @ k.T / math.sqrt(len(rows))).masked_fill(hidden, -math.inf).softmax(-1)
                outputs.append(pattern @ v @ block.attn.c_proj.weight[rows])
            for head, output in enumerate(outputs):
                self.write(f"a{layer}.h{head}", output)
            self.stream.append(block.attn.c_proj.bias)
            mlp, activation = block.mlp, ACT2FN[model.config.activation_function]
            inner = activation(self.read(f"m{layer}", block.ln_2) @ mlp.c_fc.weight + mlp.c_fc.bias)
            self.write(f"m{layer}", inner @ mlp.c_proj.weight + mlp.c_proj.bias)
        self.logits = self.read("logits", body.ln_f) @ model.lm_head.weight.T

    def write(self, source, value):
        self.written[source] = self.replaced.get(source, value)
        self.stream.append(self.written[source])

    def read(self, destination, norm):
        leaf = self.leaves[destination] = torch.zeros_like(self.stream[0], requires_grad=True)
        return norm(sum(self.stream) + leaf)

    def gradients(self, right, wrong):
        """Of the loss, by what each destination reads."""
        loss = self.logits[-1, wrong] - self.logits[-1, right]
        leaves = list(self.leaves.values())  # what only a source that is replaced reads is not used
        return dict(zip(self.leaves, torch.autograd.grad(loss, leaves, materialize_grads=True), strict=True))


def naive_scores(model, pairs, edges, *, ablation="resample", over=None, steps=1, points="ends"):
    """The score of every edge by name.

    Args:
        model: a `GPT2LMHeadModel`.
        pairs: clean ids, corrupted ids, a right and a wrong answer at the end of each.
        edges: names, as `tok->a0.h0.q`.
        ablation: what an edge carries that is gone.
        over: EAP-IG's `inputs` or `activations`; EAP where it is None.
        steps: of EAP-IG.
        points: of each step, its end that EAP-IG's code takes or its middle.
    """
    model, total = model.double(), dict.fromkeys(edges, 0.0)
    clean = [Run(model, ids).written for ids, *_ in pairs]
    for row, (ids, corrupted, *_) in enumerate(pairs):
        if ablation == "mean":
            alike = [each for each, (other, *_) in zip(clean, pairs, strict=True) if len(other) == len(ids)]
            ablated = {name: sum(each[name] for each in alike) / len(alike) for name in clean[row]}
        elif ablation == "zero":
            ablated = {name: torch.zeros_like(value) for name, value in clean[row].items()}
        else:
            ablated = Run(model, corrupted).written
        moved = {name: (ablated[name] - value).detach() for name, value in clean[row].items()}

        def gradients(replaced, row=row):
            return Run(model, pairs[row][0], replaced=replaced).gradients(*pairs[row][2:])

        def averaged(source, row=row, moved=moved, gradients=gradients):
            """Over the path of one source from ablated to clean."""
            share = 0.5 if points == "middles" else ENDS[over]
            left = [1 - (step + share) / steps for step in range(steps)]  # how much of it is ablated still
            found = [gradients({source: (clean[row][source] + part * moved[source]).detach()}) for part in left]
            return {name: sum(each[name] for each in found) / steps for name in found[0]}

        if over is None:
            by_source = dict.fromkeys(moved, gradients({}))
        elif over == "inputs":
            by_source = dict.fromkeys(moved, averaged("embed"))
        else:
            by_source = {source: averaged(source) for source in moved}
        for edge in edges:
            source, destination = edge.split("->")
            total[edge] += float((moved[source] * by_source[source][destination]).sum()) / len(pairs)
    return total


VARIANTS = {
    "EAP, zero": {"ablation": "zero"},
    "EAP, mean": {"ablation": "mean"},
    "EAP, resample": {"ablation": "resample"},
    "EAP-IG, inputs, ends of 4 steps": {"over": "inputs", "steps": 4},
    "EAP-IG, inputs, middles of 4 steps": {"over": "inputs", "steps": 4, "points": "middles"},
    "EAP-IG, activations, ends of 4 steps": {"over": "activations", "steps": 4},
    "EAP-IG, activations, zero, middles of 4 steps": {
        "over": "activations",
        "steps": 4,
        "points": "middles",
        "ablation": "zero",
    },
}
"""What the table has."""


def golden_pairs():
    """Eight pairs of random ids, of two lengths."""
    from tiny import tokens

    clean, corrupted, answers = tokens(8, 6), tokens(8, 6, seed=1), tokens(8, 2, seed=2)
    lengths = [6 - row % 2 for row in range(8)]
    return [(clean[row, :n], corrupted[row, :n], *answers[row].tolist()) for row, n in enumerate(lengths)]


def golden_model():
    """Two layers of two heads."""
    from tiny import gpt2, gpt2_config

    return gpt2(gpt2_config())


if __name__ == "__main__":
    from edgeprune.graph import Graph

    names = [str(edge) for edge in Graph.transformer(embeddings=("embed",), layers=2, heads=2).edges]
    table = {what: naive_scores(golden_model(), golden_pairs(), names, **how) for what, how in VARIANTS.items()}
    rounded = {what: {edge: round(score, 8) for edge, score in scores.items()} for what, scores in table.items()}
    json.dump(rounded, sys.stdout, indent=1)
    sys.stdout.write("\n")
