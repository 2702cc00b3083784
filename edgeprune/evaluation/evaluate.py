"""Evaluation of a language model's circuit on a task, compared with the full model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.ablation import Ablator
from edgeprune.data import Dataset
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import edge_exists
from edgeprune.metrics.distances import kl_divergence, not_negative


@dataclass(frozen=True)
class Evaluation:
    """Results of a circuit, as means over all predictions that count."""

    kl: float
    """KL(full model || circuit), in nats."""

    metric: float
    """The task's metric: a logit or a probability difference (`answers.Metric`)."""

    exact_match: float
    """Share of predictions whose most likely token is the full model's."""

    accuracy: float
    """Share of predictions whose most likely token is a right answer."""

    edges: int
    sparsity: float
    """Share of all edges that are removed."""


@torch.no_grad()
def evaluate(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    mask: Float[Tensor, "source destination"],
    *,
    means_of: Dataset | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Evaluation:
    """Run the circuit that `mask` keeps on every input of a dataset with answers, and return its mean results.

    Args:
        model: the full model.
        dataset: the inputs, each with its corrupted counterpart.
        ablation: what removed edges carry.
        mask: 1 for the edges that are kept; a mask of ones gives the full model.
        means_of: the inputs that mean ablation averages over, separately for each length; `dataset` if None.
        batch_size: inputs per forward pass.
        progress: show a progress bar on standard error, if that is a terminal.
    """
    exists = edge_exists(model.graph)
    kept, total = int(mask[exists].sum()), model.graph.total
    ablator = Ablator(model, dataset if means_of is None else means_of, ablation)
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    batches = torch.arange(len(dataset)).split(batch_size)
    for rows in tqdm(batches, desc="evaluating", disable=None if progress else True):
        batch = dataset.take(rows, rows)
        assert batch.answers is not None, "a task has answers"
        logits = model(batch.clean, mask, ablator.own(batch), batch.positions)
        scored, best = batch.scored, logits.argmax(-1)
        # KL per prediction, not per input: an input with several predictions counts several times.
        kl = kl_divergence(logits[..., None, :], batch.target[..., None, :], scored[..., None])
        measured = (
            kl,
            batch.answers.preference(logits),
            best == batch.target.argmax(-1),
            (best[..., None] == batch.answers.right).any(-1),
        )
        sums += torch.stack([torch.where(scored, each.double(), 0).sum() for each in measured])
        count += int(scored.sum())
    kl, metric, exact_match, accuracy = (sums / count).tolist()
    return Evaluation(not_negative(kl), metric, exact_match, accuracy, kept, 1 - kept / total)
