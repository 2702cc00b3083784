"""Edge attribution patching with integrated gradients (EAP-IG), over inputs or over activations.

Hanna, Pezzelle and Belinkov, "Have Faith in Faithfulness", arXiv:2403.17806. An edge's score is
`(ablated - clean) . mean over alpha of d loss / d input of its destination`. This averages EAP's derivative along the
straight line from ablated to clean input embeddings (over `inputs`) or, as in MIB (arXiv:2504.13151), from the ablated
to the clean output of the edge's source (over `activations`); each source has its own path.

Both follow from derivatives with respect to the mask. With z = alpha for every edge out of an embedding and z = 1 for
all others, the model runs on interpolated embeddings. With z = alpha for every edge out of one source, it runs on that
source's interpolated output. Scores have the sign of EAP's, and edges are chosen by the size of their scores.

Note, compared with the authors' code (github.com/hannamw/EAP-IG at 795f560):

- Over inputs, with the same loss and resample ablation, scores equal theirs (`tests/golden/eap_ig.json`) if derivatives
  are taken at the `ends` of steps. The `middles` are our variant, under names of their own: where attention is
  saturated, as in compiled models, gradients at the ends are almost 0.
- Over activations, they interpolate all heads of a layer together, and add up the scores of all edges whatever is
  interpolated. Here each source's path scores that source's edges alone, as in the formula.
- They interpolate token embeddings and keep position embeddings clean, which differs only under zero ablation; their
  EAP-IG over inputs supports resample ablation only.
- The divergence from the full model is KL(full || run), summed over the vocabulary; theirs is the mean over it.
  Numerical outputs have no divergence and use squared error.
- Scores are means over inputs, as theirs are for a metric that is a sum over a batch.
- One threshold decides which edges are kept, instead of a given number of edges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Batch, Dataset
from edgeprune.errors import ConfigError
from edgeprune.graph import EMBEDDINGS, Ablation
from edgeprune.masked_model import MaskedModel, Sources
from edgeprune.methods.loss import Loss, Objective
from edgeprune.methods.method import Discovery, keep_above
from edgeprune.parallel import ranks_of


@dataclass(frozen=True, kw_only=True)
class EapIgConfig:
    """Settings of `integrate_gradients`."""

    over: Literal["inputs", "activations"] = "inputs"
    """What is interpolated: all embeddings together, or each source's output by itself."""

    steps: int = 30
    """Number of points on the path (30 in the authors' code, 5 in the paper's figures)."""

    points: Literal["ends", "middles"] = "ends"
    """Where each step is evaluated: at the end that the authors' code takes (the ablated end over inputs, the clean end
    over activations), or in the middle."""

    threshold: float = 0.01
    """Edges whose score exceeds this in size are kept; in units of the loss."""

    loss: Loss = "divergence"
    """Loss to differentiate; see `loss.Loss`."""

    logit_scale: float = 10.0
    """Factor on the logits before the divergence; above 1 because compiled outputs are one-hot."""

    batch_size: int = 512
    """Inputs per pass; every input is run once per step."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} >= 1, got {getattr(self, name)}" for name in ("steps", "batch_size") if getattr(self, name) < 1
        ]
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")

    @property
    def path(self) -> Float[Tensor, " step"]:
        """The values of alpha: one in each of `steps` equal parts of the way from 0 (all ablated) to 1 (all clean)."""
        end = 0.0 if self.over == "inputs" else 1.0
        return (torch.arange(self.steps) + (0.5 if self.points == "middles" else end)) / self.steps


PATHS: Final[Mapping[str, EapIgConfig]] = {
    "eap-ig-inputs": EapIgConfig(),
    "eap-ig-inputs-middles": EapIgConfig(points="middles"),
    "eap-ig-activations": EapIgConfig(over="activations"),
    "eap-ig-activations-middles": EapIgConfig(over="activations", points="middles"),
}
"""Configurations by name: the published method over inputs and over activations, and our variants of both."""


def integrate_gradients(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: EapIgConfig | None = None,
) -> Discovery:
    """Score every edge by minus its derivative averaged along a path; see `Method` and `EapIgConfig`."""
    config = EapIgConfig() if config is None else config
    integrate = _along_inputs if config.over == "inputs" else _along_activations
    ablator = Ablator(model, dataset, ablation)
    objective = Objective(dataset, config.loss, logit_scale=config.logit_scale)
    total = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
    batches = dataset.batches(config.batch_size, torch.Generator().manual_seed(seed))
    for batch in tqdm(batches, desc=f"EAP-IG, {ablation}", disable=None if progress else True):
        total -= integrate(model, objective, batch, ablator.own(batch), config.path)
    return keep_above(model.graph, ablation, total / len(dataset), config.threshold, signed=True)


# Both return derivatives with respect to z, summed over inputs and averaged over the path.


def _along_inputs(
    model: MaskedModel, objective: Objective, batch: Batch, ablated: Sources | None, path: Float[Tensor, " step"]
) -> Float[Tensor, "source destination"]:
    """Return the derivatives for all edges, along the path on which all embeddings go from ablated to clean.

    dL/dz_e = (dL/d input_dest) . (source - ablated), with the source's output from the interpolated run. The score
    needs its output in the clean run instead. So each alpha takes two runs: one with the true ablated values, and one
    with clean outputs in their place for all sources but embeddings. The difference of the two derivatives is
    (dL/d input_dest) . (clean - ablated). Both runs have the same outputs, as only edges out of embeddings carry an
    ablated value.
    """
    embeds = torch.tensor([node.kind in EMBEDDINGS for node in model.graph.sources])
    with torch.no_grad():
        clean = model.sources(ranks_of(model).own(batch.clean, -2))  # the same inputs as `ablated`
    ablated = torch.zeros_like(clean) if ablated is None else ablated
    twice = torch.stack([ablated, torch.where(embeds[:, None, None, None].to(clean.device), ablated, clean)], dim=1)
    tokens = batch.clean.expand(2, *batch.clean.shape)
    total = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
    for alpha in path:
        masks = torch.where(embeds[:, None], alpha, torch.ones_like(total)).repeat(2, 1, 1).requires_grad_()
        loss = objective.per_input(model(tokens, masks, twice, batch.positions), batch).sum(-1)
        (gradient,) = torch.autograd.grad(loss[0] - loss[1], masks)
        total += gradient[0] + torch.where(embeds[:, None], 0, gradient[1])
        del loss  # frees the autograd graph before the next run
    return total / len(path)


def _along_activations(
    model: MaskedModel, objective: Objective, batch: Batch, ablated: Sources | None, path: Float[Tensor, " step"]
) -> Float[Tensor, "source destination"]:
    """Return the derivatives for the edges of each source, along the path of that source's output alone."""
    total = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
    for row in range(len(total)):
        masks = torch.ones(len(path), *total.shape)
        masks[:, row] = path[:, None]
        masks.requires_grad_()
        loss = objective.per_input(model(batch.clean, masks, ablated, batch.positions), batch).sum()
        total[row] = torch.autograd.grad(loss, masks)[0][:, row].mean(0)
        del loss
    return total
