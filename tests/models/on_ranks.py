"""What `test_parallel.py` runs on several processes, and alone, to compare.

torchrun --nproc-per-node 2 on_ranks.py MODEL OUT
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from allocating import most_allocated
from safetensors.torch import save_file
from tiny import llama_config
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from edgeprune.evaluation.evaluate import evaluate
from edgeprune.graph import ABLATIONS
from edgeprune.masks import edge_exists
from edgeprune.methods import find_method
from edgeprune.methods.acdc import AcdcConfig, remove_greedily
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.eap_ig import EapIgConfig, integrate_gradients
from edgeprune.methods.edge_pruning.configurations import MINIMAX, PAPER
from edgeprune.methods.edge_pruning.engine import prune_edges
from edgeprune.methods.hisp import HispConfig, score_nodes
from edgeprune.methods.settings import with_settings
from edgeprune.models.llama import LlamaModel
from edgeprune.models.load import KINDS
from edgeprune.models.sharded import shard
from edgeprune.parallel import join
from edgeprune.runs.compare import CompareConfig, compare
from edgeprune.runs.config import RunConfig, load_model_on_task
from edgeprune.runs.prune import evaluate_run, prune
from edgeprune.runs.step_cost import run_step
from edgeprune.runs.sweep import sweep
from edgeprune.tasks import Sizes

PRUNING = with_settings(
    PAPER,
    {"target_sparsity": 0.5, "steps": 20, "batch_size": 5, "initial_log_alpha": 1.0, "sparsity_warmup": 0.1},
)
"""Batches that neither two nor four processes share evenly."""

DEEP = llama_config(
    num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8, hidden_size=128, intermediate_size=344,
    vocab_size=500, max_position_embeddings=32,
)  # fmt: skip
BATCH = (8, 32)


def config(model: str) -> RunConfig:
    """Thirty-three examples, so that a last batch has a single one."""
    return RunConfig(model=model, task="ioi", sizes=Sizes(train=33, validation=5, test=7), pruning=PRUNING)


def _minimax(asked: RunConfig, out: Path) -> torch.Tensor:
    """Scores of a short run in two parts, its final check with it."""
    few = with_settings(MINIMAX, {"steps": 8, "mask_samples": 4, "batch_size": 5, "checked": 9})
    saved = prune(replace(asked, parts=2, pruning=few), out, device="cpu").saved
    return torch.tensor([saved.scores[edge] for edge in saved.circuit.graph.edges])


def run_everything(model: str, out: Path) -> dict[str, torch.Tensor]:
    """Forwards, gradients, methods and runs; what all processes should find as one does."""
    asked = config(model)
    subject = load_model_on_task(asked, ("train", "test"), device="cpu")
    ours, train = subject.model, subject.splits["train"]
    found = {"weights": torch.tensor(bytearray(subject.digests["weights"].encode())), "target": train.target[:]}
    batch = train.take(torch.arange(7), torch.arange(7))
    exists = edge_exists(ours.graph)
    for lead in ((), (3,)):
        mask = torch.rand(*lead, *exists.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        # All of what is ablated may be given, as to any masked model.
        outputs = ours(batch.clean, mask, ours.sources(batch.corrupted), batch.positions)
        found[f"outputs {lead}"] = outputs.detach()
        (found[f"gradient {lead}"],) = torch.autograd.grad(outputs.square().sum(), mask)
    for ablation in ABLATIONS:
        scored = {
            "eap": attribution_patching(ours, train, ablation, config=EapConfig(batch_size=16)),
            "inputs": integrate_gradients(ours, train, ablation, config=EapIgConfig(steps=2, batch_size=16)),
            "activations": integrate_gradients(
                ours, train, ablation, config=EapIgConfig(over="activations", steps=2, batch_size=32)
            ),
        }
        found |= {f"{name} {ablation}": each.scores for name, each in scored.items()}
        mask = (scored["eap"].scores > scored["eap"].scores[exists].median()).float()
        measured = evaluate(ours, subject.splits["test"], ablation, mask, means_of=train, batch_size=4)
        found[f"evaluation {ablation}"] = torch.tensor([measured.kl, measured.metric, measured.exact_match])
    own = find_method("on_ranks:a_method_of_ones_own")
    found["own"] = own(ours, train, "resample").scores
    # A run for each input, all with corrupted values of their own; and fewer of them than processes.
    for size in (2, 16):
        found[f"hisp {size}"] = score_nodes(ours, train, "resample", config=HispConfig(batch_size=size)).scores
    some = AcdcConfig(inputs=3, at_once=1)
    found["acdc"] = remove_greedily(ours, train, "resample", config=some).scores
    saved = prune(asked, out / "run", save_every=8, device="cpu").saved
    prune(replace(asked, parts=2), out / "parts", save_every=8, device="cpu")
    found["minimax"] = _minimax(asked, out / "minimax")
    assert evaluate_run(out / "run", task="gp", device="cpu")[1]["circuit"].edges == len(saved.circuit)
    sweep(replace(asked, pruning=replace(PRUNING, steps=3)), (0.3, 0.6), 1, out / "sweep", device="cpu")
    few = CompareConfig(
        run=replace(asked, pruning=replace(PRUNING, steps=3)),
        methods=("edge-pruning", "eap"),
        targets=(0.5,),
        examples=(9,),
    )
    compare(few, out / "compare", device="cpu")
    return {name: value.contiguous() for name, value in found.items()}


def a_method_of_ones_own(model, dataset, ablation, seed=0):
    """Leans on nothing but what any masked model promises."""
    mask = edge_exists(model.graph).float().requires_grad_()
    rows = torch.arange(len(dataset))
    batch = dataset.take(rows, rows)
    outputs = model(batch.clean, mask, model.sources(batch.corrupted), batch.positions)
    return torch.autograd.grad((outputs * batch.target).sum(), mask)[0].abs()


def held(model: str) -> dict[str, torch.Tensor]:
    """How many numbers of layers' weights this process holds after a step, and which layers are whole."""
    subject = load_model_on_task(config(model), ("train",), device="cpu")
    prune_edges(subject.model, subject.splits["train"], "resample", config=replace(PRUNING, steps=1))
    weights = [w for name, w in subject.model.weights.named_parameters() if ".h." in name or ".layers." in name]
    parts = [w.to_local() if isinstance(w, DTensor) else w for w in weights]
    whole = [not isinstance(next(layer.parameters()), DTensor) for layer in layers_of(subject.model.weights)]
    return {"held": torch.tensor(sum(part.numel() for part in parts)), "whole": torch.tensor(whole)}


def layers_of(theirs: Any) -> list[torch.nn.Module]:
    """Hugging Face's layers."""
    return list(theirs.get_submodule(KINDS[theirs.config.model_type].layers))


def peak() -> dict[str, torch.Tensor]:
    """Bytes that a step of `DEEP` adds at its most, on this process."""
    theirs = AutoModelForCausalLM.from_config(DEEP)
    shard(theirs, list(theirs.model.layers), join(), torch.device("cpu"))
    model, inputs = LlamaModel(theirs, join()), torch.zeros(*BATCH, dtype=torch.long)
    last = torch.full((BATCH[0], 1), BATCH[1] - 1)
    run_step(model, inputs, last)
    return {"peak": torch.tensor(most_allocated(lambda: run_step(model, inputs, last)))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = Path(sys.argv[2])
    found = run_everything(sys.argv[1], path) | held(sys.argv[1]) | peak()
    save_file(found, path / f"rank-{join().number}.safetensors")
