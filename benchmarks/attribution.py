"""Cost of attribution patching (EAP), compared with a forward and backward pass of the model.

    python benchmarks/attribution.py          four programs under zero and resample, seconds

A plain pass, a masked pass and EAP are timed in turns in this process; each runs every input of the domain once, in
batches of one size. The plain pass has no mask and computes the gradient of the summed loss for the token embedding.
The masked pass keeps all edges and computes the gradient for the mask; it leaves out the rest of EAP, such as running
corrupted inputs.
"""

import torch
from turns import in_turns

from edgeprune.ablation import Ablator
from edgeprune.graph import Ablation
from edgeprune.methods.eap import EapConfig, attribution_patching
from edgeprune.methods.loss import Objective
from tracr_bridge.compile.catalogue import load_program
from tracr_bridge.compile.compile import Compiled, compile_program

PROGRAMS = ("hist", "reverse", "sort_freq", "shuffle_dyck1")
ROUNDS = 60


def row(compiled: Compiled, ablation: Ablation) -> str:
    """Time both passes and EAP on one program, and return the row of the table."""
    model, dataset, config = compiled.model, compiled.dataset, EapConfig()
    ablator, objective = Ablator(model, dataset, ablation), Objective(dataset, config.loss)
    batches = [(b, ablator(b)) for b in dataset.batches(config.batch_size, torch.Generator().manual_seed(0))]

    def plainly() -> None:
        # The only parameter that a plain run exposes.
        embedding = model._token = model._token.detach().requires_grad_()  # pyright: ignore[reportPrivateUsage]
        for batch, _ in batches:
            torch.autograd.grad(objective.per_input(model(batch.clean), batch).sum(), embedding)
        model._token = embedding.detach()  # pyright: ignore[reportPrivateUsage]

    def masked() -> None:
        for batch, ablated in batches:
            mask = torch.ones(len(model.graph.sources), len(model.graph.destinations), requires_grad=True)
            loss = objective.per_input(model(batch.clean, mask, ablated), batch).sum()
            torch.autograd.grad(loss, mask)

    def patched() -> None:
        attribution_patching(model, dataset, ablation, config=config)

    plain, mixed, eap = in_turns(plainly, masked, patched, rounds=ROUNDS)
    took = " | ".join(f"{1e3 * each:.1f}" for each in (plain, mixed, eap))
    return f"| {compiled.program.name} | {ablation} | {took} | {eap / plain:.2f} | {eap / mixed:.2f} |"


def main() -> None:
    """Print a row for each program and ablation."""
    torch.set_num_threads(1)
    print("| program | ablation | plain pass, ms | masked pass, ms | EAP, ms | EAP / plain | EAP / masked |")
    print("|---|---|---|---|---|---|---|")
    for name in PROGRAMS:
        compiled = compile_program(load_program(name))
        for ablation in ("zero", "resample"):
            print(row(compiled, ablation))


if __name__ == "__main__":
    main()
