"""Edge attribution patching with integrated gradients, over inputs or over activations.

Hanna, Pezzelle and Belinkov, "Have Faith in Faithfulness", arXiv:2403.17806: an edge scores
`(ablated - clean) . mean over alpha of d loss / d input of its destination`, the derivative of EAP averaged along the
straight line from ablated to clean input embeddings (over `inputs`), or, as in MIB (arXiv:2504.13151), along that
of the source's own output (over `activations`), each source having a path of its own.

Both follow from derivatives by the mask. With z = alpha for every edge out of an embedding, and 1 for all others, a
model runs on interpolated embeddings; with z = alpha for every edge out of one source, on its interpolated output.
Scores have the sign of EAP's, and edges are chosen by size.

Note, beside the authors' code (github.com/hannamw/EAP-IG at 795f560):

- Over inputs with the same loss, under resample, scores are theirs (`tests/golden/eap_ig.json`), where derivatives are
  taken at the `ends` of steps. The `middles` are a variant of ours with names of its own: where attention is
  saturated, as in compiled models, gradients at the ends are next to 0.
- Over activations they interpolate all heads of a layer together, and add up the scores of all edges whatever is
  interpolated; here each source's path scores its own edges, as the formula says.
- They interpolate token embeddings and leave positions as they are, which differs under zero ablation alone; their
  EAP-IG over inputs takes no other ablation than resample.
- The divergence from the full model is KL(full || run), summed over the vocabulary; theirs is its mean. Numbers, which
  have none, take a squared error.
- Scores are means over inputs, as theirs are for a metric that is a sum over a batch.
- One threshold keeps edges in place of a given number of them.
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
    """Whose path it is: that of all embeddings together, or of each source's output by itself."""

    steps: int = 30
    """Points on the path (the authors' code; the paper's figures use 5)."""

    points: Literal["ends", "middles"] = "ends"
    """Where each step has its point: at the end that the authors' code takes, ablated over inputs and clean over
    activations, or in the middle."""

    threshold: float = 0.01
    """Size of a score above which an edge is kept, in units of the loss."""

    loss: Loss = "divergence"
    """See `loss.Loss`."""

    logit_scale: float = 10.0
    """Logits are multiplied by this before a divergence; compiled outputs are one-hot."""

    batch_size: int = 512
    """Inputs a pass; every input is run once for each step."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} >= 1, got {getattr(self, name)}" for name in ("steps", "batch_size") if getattr(self, name) < 1
        ]
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")

    @property
    def path(self) -> Float[Tensor, " step"]:
        """A point in each of `steps` equal parts of the way from 0, all ablated, to 1, all clean."""
        end = 0.0 if self.over == "inputs" else 1.0
        return (torch.arange(self.steps) + (0.5 if self.points == "middles" else end)) / self.steps


PATHS: Final[Mapping[str, EapIgConfig]] = {
    "eap-ig-inputs": EapIgConfig(),
    "eap-ig-inputs-middles": EapIgConfig(points="middles"),
    "eap-ig-activations": EapIgConfig(over="activations"),
    "eap-ig-activations-middles": EapIgConfig(over="activations", points="middles"),
}
"""The published method, twice, and its variants, by name."""


def integrate_gradients(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: EapIgConfig | None = None,
) -> Discovery:
    """Score every edge by its derivative along a path; see `Method` and `EapIgConfig`."""
    config = EapIgConfig() if config is None else config
    integrate = _along_inputs if config.over == "inputs" else _along_activations
    ablator = Ablator(model, dataset, ablation)
    objective = Objective(dataset, config.loss, logit_scale=config.logit_scale)
    total = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
    batches = dataset.batches(config.batch_size, torch.Generator().manual_seed(seed))
    for batch in tqdm(batches, desc=f"EAP-IG, {ablation}", disable=None if progress else True):
        total -= integrate(model, objective, batch, ablator.own(batch), config.path)
    return keep_above(model.graph, ablation, total / len(dataset), config.threshold, signed=True)


# Both give the derivatives by z, summed over inputs and averaged over the path.


def _along_inputs(
    model: MaskedModel, objective: Objective, batch: Batch, ablated: Sources | None, path: Float[Tensor, " step"]
) -> Float[Tensor, "source destination"]:
    """All edges, while all embeddings go from ablated to clean.

    The derivative by an edge's z is that by its destination's input, times what the source writes in that run, which is
    that of interpolated embeddings, less the ablated value. The scores want what it writes in the clean run instead: in
    the difference between two runs, one with the clean run's values for ablated ones, the interpolated run's own drop
    out. No edge but those of embeddings carries an ablated value, so that the outputs of both are the same.
    """
    embeds = torch.tensor([node.kind in EMBEDDINGS for node in model.graph.sources])
    with torch.no_grad():
        clean = model.sources(ranks_of(model).own(batch.clean, -2))  # of the inputs that `ablated` is of
    ablated = torch.zeros_like(clean) if ablated is None else ablated
    twice = torch.stack([ablated, torch.where(embeds[:, None, None, None].to(clean.device), ablated, clean)], dim=1)
    tokens = batch.clean.expand(2, *batch.clean.shape)
    total = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
    for alpha in path:
        masks = torch.where(embeds[:, None], alpha, torch.ones_like(total)).repeat(2, 1, 1).requires_grad_()
        loss = objective.per_input(model(tokens, masks, twice, batch.positions), batch).sum(-1)
        (gradient,) = torch.autograd.grad(loss[0] - loss[1], masks)
        total += gradient[0] + torch.where(embeds[:, None], 0, gradient[1])
        del loss  # and all that it holds, before the next run
    return total / len(path)


def _along_activations(
    model: MaskedModel, objective: Objective, batch: Batch, ablated: Sources | None, path: Float[Tensor, " step"]
) -> Float[Tensor, "source destination"]:
    """The edges of each source, while that source alone goes from ablated to clean."""
    total = torch.zeros(len(model.graph.sources), len(model.graph.destinations))
    for row in range(len(total)):
        masks = torch.ones(len(path), *total.shape)
        masks[:, row] = path[:, None]
        masks.requires_grad_()
        loss = objective.per_input(model(batch.clean, masks, ablated, batch.positions), batch).sum()
        total[row] = torch.autograd.grad(loss, masks)[0][:, row].mean(0)
        del loss
    return total
