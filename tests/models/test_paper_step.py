"""The paper's objective, followed step by step by a reference in double precision, and each of its rules."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import FAMILIES

from edgeprune.data import Dataset
from edgeprune.masks import LearnedMask, edge_exists, live
from edgeprune.methods.edge_pruning.configurations import PAPER
from edgeprune.methods.edge_pruning.engine import Pruning
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.settings import with_settings

STEPS, INPUTS, BATCH, START, SPREAD, TARGET = 50, 12, 5, 1.0, 0.5, 0.4
CONFIG = with_settings(
    PAPER,
    {
        "steps": STEPS,
        "batch_size": BATCH,
        "target_sparsity": TARGET,
        "initial_log_alpha": START,
        "initial_spread": SPREAD,
    },
)
"""The paper's, from where masks have a gradient at once."""


@pytest.fixture(scope="module")
def problem():
    """A small GPT-2 in double precision, of which the last token counts."""
    family = FAMILIES[0]
    theirs = family.make(family.config(vocab_size=17, max_position_embeddings=8), 0).double()
    for weight in theirs.parameters():
        weight.data *= 3  # far enough from uniform to have something to lose
    model = family.adapter(theirs)
    clean, corrupted = torch.randint(17, (2, INPUTS, 6), generator=torch.Generator().manual_seed(1))
    last = torch.full((INPUTS, 1), 5)
    scored, group = torch.ones(INPUTS, 1, dtype=torch.bool), torch.zeros(INPUTS, dtype=torch.long)
    dataset = Dataset(clean, scored, model(clean, positions=last), group, positions=last, counterparts=corrupted)
    return Problem.of(model, dataset, "resample", "divergence")


def follow(problem):
    """The rules of the paper and of its code, one after the other, in double precision: what each step leaves."""
    model, data, exists = problem.model, problem.dataset, edge_exists(problem.graph)
    source, edges, generator = exists.nonzero()[:, 0], int(exists.sum()), torch.Generator().manual_seed(0)
    count = edges + len(problem.graph.sources)
    log_alpha = START + SPREAD * torch.randn(count, generator=generator).double()
    values, moments = [log_alpha, torch.zeros(2).double()], [[0.0, 0.0], [0.0, 0.0]]
    for step in range(STEPS):
        rows = torch.randperm(INPUTS, generator=generator)[:BATCH]
        u = torch.rand(1, count, generator=generator).clamp(1e-6, 1 - 1e-6)[0].double()
        log_alpha, lambdas = learned = [value.clone().requires_grad_() for value in values]
        z = (1.2 * torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / (2 / 3)) - 0.1).clamp(0, 1)
        mask = torch.zeros(exists.shape).double().masked_scatter(exists, z[:edges] * z[edges:][source])
        logits = model(data.tokens[rows], mask, model.sources(data.counterparts[rows]), data.positions[rows])
        full, circuit = data.target[rows].log_softmax(-1), logits.log_softmax(-1)
        kl = (full.exp() * (full - circuit)).sum(-1).mean()
        short = TARGET * min(1, step / (2500 / 3000 * STEPS)) - (1 - z[:edges].mean())
        gradients = torch.autograd.grad(kl + lambdas[0] * short + lambdas[1] * short**2, learned)
        norm = torch.cat(gradients).norm()
        warmup = 200 / 3000 * STEPS
        rate = 0.8 * (step / warmup if step < warmup else (STEPS - step) / (STEPS - warmup))
        for which, sign in enumerate((-1, 1)):
            gradient = gradients[which] * min(1.0, 1 / float(norm))
            moments[which][0] = 0.9 * moments[which][0] + 0.1 * gradient
            moments[which][1] = 0.999 * moments[which][1] + 0.001 * gradient**2
            first, second = moments[which][0] / (1 - 0.9 ** (step + 1)), moments[which][1] / (1 - 0.999 ** (step + 1))
            values[which] = values[which] * (1 - 0.01 * rate) + sign * rate * first / (second.sqrt() + 1e-8)
        mean = (1.2 * values[0].sigmoid() - 0.1).clamp(0, 1)
        kept = [part >= part.sort(descending=True).values[round(float(part.sum())) - 1] for part in mean.split(edges)]
        yield values, float(kl.detach()), kept[0] & kept[1][source]


def apart(problem, config):
    """The largest differences that a run shows from the reference in 50 steps: log_alpha, multipliers, loss, edges."""
    asked = Problem.of(
        problem.model, problem.dataset, "resample", config.loss.loss, logit_scale=config.loss.logit_scale
    )
    run, found, exists = Pruning(asked, config), torch.zeros(4).double(), edge_exists(problem.graph)
    for (log_alpha, multipliers), loss, kept in follow(problem):
        step = run.advance()
        now = (
            (run.masks.log_alpha.detach() - log_alpha).abs().max(),
            (run.pressure.multipliers - multipliers).abs().max(),
            torch.tensor(abs(step.loss - loss)),
            (run.kept() != live(problem.graph, torch.zeros_like(exists).masked_scatter(exists, kept))).sum(),
        )
        found = torch.maximum(found, torch.stack([each.double() for each in now]))
    assert run.ended
    return found


def test_fifty_steps_are_those_of_the_reference(problem):
    log_alpha, multipliers, loss, kept = apart(problem, CONFIG).tolist()
    assert log_alpha < 1e-3 and multipliers < 1e-3 and loss < 1e-4 and kept == 0


@pytest.mark.parametrize(
    "without",
    [
        {"weight_decay": 0.0},
        {"largest_gradient_norm": None},
        {"learning_rate_warmup": 0.0},
        {"learning_rate_decay": 0.0},
        {"sparsity_warmup": 1e-3},
        {"multiplier_learning_rate": 0.4},
        {"learning_rate": 0.4},
        {"loss": "squared"},
        {"logit_scale": 2.0},
        {"kept": "rounded"},
    ],
    ids=lambda without: next(iter(without)),
)
def test_a_run_without_a_rule_is_another(problem, without):
    config = with_settings(CONFIG, without)
    log_alpha, multipliers, loss, kept = apart(problem, config).tolist()
    assert max(log_alpha, multipliers, loss) > 0.01 or kept > 0


def test_sparsity_is_that_of_edge_masks_alone(problem):
    """Were every node gone, and every edge's own mask whole, nothing would be sparse."""
    run = Pruning(problem, replace(CONFIG, masks=replace(CONFIG.masks, initial_spread=0.0)))
    edges = int(edge_exists(problem.graph).sum())
    with torch.no_grad():
        run.masks.log_alpha[:edges], run.masks.log_alpha[edges:] = 20.0, -20.0
    assert run.advance().sparsity == 0


def test_thresholds_of_edges_and_nodes_are_their_own():
    """As many edges as edges' means add up to, and as many nodes as nodes'; an edge is kept with its source."""
    graph = FAMILIES[0].adapter(FAMILIES[0].make(FAMILIES[0].config(), 0)).graph
    masks = LearnedMask(graph, PAPER.masks.hard_concrete, initial=10.0, of="edges and nodes")
    edges = graph.total
    with torch.no_grad():
        masks.log_alpha[: edges // 2] = -10.0
        masks.log_alpha[edges] = -10.0  # the first source
    kept = masks.kept_at_mean_sparsity()
    expected = torch.zeros(edges, dtype=torch.bool)
    expected[edges // 2 :] = True
    exists = edge_exists(graph)
    cells = exists.nonzero()
    assert torch.equal(kept[exists], expected & (cells[:, 0] != 0))
    assert math.isclose(float(masks.mean().detach().sum()), float(kept.sum()), abs_tol=1e-3)
