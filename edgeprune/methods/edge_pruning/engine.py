"""Edge Pruning: masks on edges, learned by gradient descent (Bhaskar et al., arXiv:2406.16778, §3).

One engine runs every configuration. A configuration combines the loss (`methods/loss.py`), its gradient, the pressure
that makes edges fall, the optimiser, the counterexamples, the rule for ending, and the final check. `configurations.py`
has the paper's, `edge-pruning`, and ours, `edge-pruning-minimax`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from edgeprune.data import Dataset
from edgeprune.errors import RunError
from edgeprune.graph import Ablation
from edgeprune.masked_model import MaskedModel
from edgeprune.masks import LearnedMask, live, mask_of
from edgeprune.methods.circuit_loss import CircuitLoss
from edgeprune.methods.edge_pruning.config import PruningConfig
from edgeprune.methods.edge_pruning.counterexamples import Counterexamples
from edgeprune.methods.edge_pruning.ending import Ending, Verdict
from edgeprune.methods.edge_pruning.final_check import FinalCheck
from edgeprune.methods.edge_pruning.gradient import Estimate, LikelihoodRatio
from edgeprune.methods.edge_pruning.optimizer import Adam
from edgeprune.methods.edge_pruning.pressure import LossTolerance, Pressure
from edgeprune.methods.edge_pruning.problem import Problem
from edgeprune.methods.edge_pruning.standing import ENGINE, Stage, check_standing
from edgeprune.methods.edge_pruning.within import FewestWithin
from edgeprune.methods.loss import Pairs, draw_pairs
from edgeprune.methods.method import Discovery, Trace
from edgeprune.methods.ranking import keep_within


@dataclass(frozen=True)
class Progress:
    """One step of a run."""

    step: int
    """Number of the step, from 0; it goes on counting when masks are learned a second time."""

    loss: float
    """Mean over the samples, without the pressure."""

    expected_edges: float
    sparsity: float
    """1 minus the expected share of edges kept. Under a sparsity target, edge masks alone count, not node masks."""

    figures: dict[str, float]
    """Quantities of the pressure, such as its multipliers."""


class Pruning:
    """The state of one run.

    Args:
        problem: the model, inputs, ablation and loss.
        config: the configuration.
        seed: the same seed gives the same circuit.
    """

    def __init__(self, problem: Problem, config: PruningConfig, *, seed: int = 0) -> None:
        self.problem, self.config, self.done, self.stage = problem, config, 0, Stage.LEARN
        self.generator, self._seed = torch.Generator().manual_seed(seed), seed
        masks = config.masks
        self.masks = LearnedMask(problem.graph, masks.hard_concrete, initial=masks.initial_log_alpha, of=masks.masked)
        if masks.initial_spread:
            self.masks.spread(masks.initial_spread, self.generator)
        self.counterexamples = Counterexamples(config.counterexamples)
        self._first_circuit, self._against = torch.zeros(0), torch.zeros(2, 0, dtype=torch.long)
        self._begin()

    def _begin(self) -> None:
        """Initialise everything that learning starts with, except masks and counterexamples."""
        config, self._step = self.config, 0
        tolerance = config.pressure.tolerance if isinstance(config.pressure, LossTolerance) else 0.0
        self._within = FewestWithin(tolerance)
        self.pressure: Pressure = config.pressure.start(config.steps)
        self._optimizer = Adam(config.optimizer, self.masks.log_alpha, self.pressure.multipliers)
        self._ending = Ending(
            config.ending,
            config.steps,
            self.masks,
            uncertain_until=self.pressure.full_from,
            may_start_over=config.tells_right,
        )

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.stage == Stage.DONE

    def advance(self) -> Progress | None:
        """Run one step of learning, or a whole later stage, which returns None.

        Raises:
            RunError: the loss or a mask is no longer finite.
        """
        if self.stage in (Stage.LEARN, Stage.LEARN_ANEW):
            return self._learn()
        if self.stage == Stage.REMOVE:
            self._remove()
        else:
            self._check()
        return None

    def _learn(self) -> Progress:
        """Run one step of the optimiser."""
        config, step = self.config, self._step
        drawn = draw_pairs(self.problem.dataset, config.batch_size, self.generator)
        pairs = torch.cat([drawn, self.counterexamples.pairs], dim=1)
        estimate = config.gradient.estimate(self.problem, self.masks, pairs, self.generator)
        self.counterexamples.update(pairs, estimate.per_input)
        figures = self.pressure.figures(step)
        loss = self._loss_as_it_stands(pairs) if isinstance(config.pressure, LossTolerance) else estimate.loss
        if isinstance(config.pressure, LossTolerance):
            self._within.note(loss, int(self.kept().sum()), self.masks.log_alpha)
        by_masks, by_multipliers = self.pressure.gradients(self.masks, estimate.draw, step, loss)
        factor = config.optimizer.factor(step, config.steps)
        rates = (config.optimizer.learning_rate * factor, self.pressure.multiplier_learning_rate * factor)
        self._optimizer.step((estimate.gradient + by_masks, by_multipliers), rates)
        self._keep_in_range(estimate.loss)
        self._step, self.done = step + 1, self.done + 1
        self._follow(step, estimate, pairs)
        expected = self.pressure.expected_edges
        return Progress(self.done - 1, estimate.loss, expected, 1 - expected / self.problem.graph.total, figures)

    @torch.no_grad()
    def _loss_as_it_stands(self, pairs: Pairs) -> float:
        """Return the loss of the rounded masks, to which a tolerance refers; samples have a higher loss."""
        standing, problem = self.masks.rounded(), self.problem
        losses = torch.cat([problem.losses(standing, batch) for batch in problem.batches(pairs)], -1)
        return float(problem.objective.reduce(losses))

    @torch.no_grad()
    def _keep_in_range(self, loss: float) -> None:
        if (largest := self.config.masks.largest_log_alpha) is not None:
            self.masks.log_alpha.clamp_(-largest, largest)
        if not math.isfinite(loss) or not bool(self.masks.log_alpha.isfinite().all()):
            raise RunError(
                f"Expected a finite loss and finite masks; got a loss of {loss} at step {self.done}. What was saved "
                "before stands: run again elsewhere, with lower learning rates or float32"
            )

    def _follow(self, step: int, estimate: Estimate, pairs: Pairs) -> None:
        """Act on the verdict about the step: go on, doubt the circuit, start over, or end learning."""
        gradient, initial = self.config.gradient, self.config.masks.initial_log_alpha
        standing_first = isinstance(gradient, LikelihoodRatio)
        wrong = estimate.per_input[0] > 0 if standing_first else torch.zeros(pairs.shape[1], dtype=torch.bool)
        verdict = self._ending.after(step, rounded=gradient.rounded, wrong=bool(wrong.any()))
        if verdict == Verdict.END:
            then = Stage.CHECK if self.stage == Stage.LEARN else Stage.CHECK_ANEW
            if self.config.final_check is None:
                then = Stage.REMOVE if isinstance(self.config.pressure, LossTolerance) else Stage.DONE
            self.stage = then
        elif verdict == Verdict.START_OVER:
            self.counterexamples.remember(pairs[:, wrong])
            self.masks.set_to(initial)
        elif verdict == Verdict.DOUBT:
            self.masks.lower_to(initial)
        if verdict in (Verdict.START_OVER, Verdict.DOUBT):
            self._optimizer.restart()

    def _check(self) -> None:
        """Run the circuit on many more inputs; if one shows it to be wrong, learn again, once.

        A first and a second circuit are run on the same pairs, including those that showed the first one to be wrong.
        The circuit that fewer pairs show to be wrong is kept; of equals, the one with fewer edges.
        """
        check = self._final_check()
        pairs = check.pairs(self.counterexamples.pairs)
        if self.stage == Stage.CHECK:
            self._against = check.counterexamples(self.masks.rounded(), pairs)
            self.stage = Stage.REMOVE
            if self._against.shape[1]:
                self._first_circuit = self.masks.log_alpha.detach().clone()
                self.counterexamples.remember(self._against)
                self.masks.set_to(self.config.masks.initial_log_alpha)
                self._begin()
                self.stage = Stage.LEARN_ANEW
            return
        pairs = torch.cat([pairs, self._against], dim=1).unique(dim=1)
        second = self._merit(check, pairs)
        learned = self.masks.log_alpha.detach().clone()
        self.masks.log_alpha.data.copy_(self._first_circuit)
        if second <= self._merit(check, pairs):
            self.masks.log_alpha.data.copy_(learned)
        self.stage = Stage.REMOVE

    def _merit(self, check: FinalCheck, pairs: Pairs) -> tuple[int, int]:
        """Return how many pairs show the current circuit to be wrong, and its number of edges; lower is better."""
        standing = self.masks.rounded()
        return check.counterexamples(standing, pairs).shape[1], int(standing.sum())

    def _remove(self) -> None:
        """Remove edges, and groups of edges that may go only together, if the circuit stays right; or, under a
        tolerance, as many as it allows."""
        final, pressure = self.config.final_check, self.config.pressure
        if isinstance(pressure, LossTolerance):
            self.masks.keep_exactly(self._fewest_within(pressure.tolerance))
        if final is not None and final.joint_removals:
            kept = self._final_check().without_superfluous(self.masks.rounded(), self.counterexamples.pairs)
            self.masks.keep_only(mask_of(self.problem.graph, kept) > 0)
        self.stage = Stage.DONE

    @torch.no_grad()
    def _fewest_within(self, tolerance: float) -> Bool[Tensor, "source destination"]:
        """Return the smaller of two circuits: by log_alpha now, and by log_alpha when masks had the fewest edges."""
        loss = circuit_loss(self.problem, self.config, self._seed)
        now = keep_within(loss, self.masks.edge_log_alpha(), tolerance)
        if not len(self._within.log_alpha):
            return now
        self.masks.log_alpha.copy_(self._within.log_alpha)
        then = keep_within(loss, self.masks.edge_log_alpha(), tolerance)
        return min(now, then, key=lambda kept: int(kept.sum()))

    def _final_check(self) -> FinalCheck:
        assert self.config.final_check is not None
        return FinalCheck(self.problem, self.generator, self.config.final_check.checked)

    def mean(self) -> Float[Tensor, "source destination"]:
        """Return the mask of evaluation."""
        return self.masks.mean().detach()

    def kept(self) -> Bool[Tensor, "source destination"]:
        """Return the current circuit, without dead edges."""
        if self.config.kept == "at mean sparsity":
            return live(self.problem.graph, self.masks.kept_at_mean_sparsity())
        return live(self.problem.graph, self.masks.rounded() > 0)

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to resume the run as if it had never stopped."""
        parts = {
            "counterexamples": self.counterexamples,
            "optimizer": self._optimizer,
            "ending": self._ending,
            "within": self._within,
        }
        return {
            "engine": torch.tensor(ENGINE),
            "place": torch.tensor([self.done, self._step, self.stage]),
            "noise": self.generator.get_state(),
            "log_alpha": self.masks.log_alpha.detach(),
            "first_circuit": self._first_circuit,
            "against": self._against,
            "multipliers": self.pressure.multipliers,
            **{f"{name}/{key}": value for name, part in parts.items() for key, value in part.state().items()},
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `state` returned.

        Raises:
            RunError: another version of this engine wrote the state.
            RuntimeError, ValueError: it is not a valid state of this run.
        """
        version = state.get("engine", torch.tensor(1))
        if version.shape == () and int(version) != ENGINE:
            raise RunError(
                f"Expected a checkpoint of engine {ENGINE}; got one of engine {int(version)}: begin again elsewhere"
            )
        check_standing(state, self, self._optimizer, self._ending, self._within)
        self.done, self._step, stage = state["place"].tolist()
        self.stage = Stage(stage)
        self.generator.set_state(state["noise"])
        self.masks.log_alpha.copy_(state["log_alpha"])
        self.pressure.multipliers.copy_(state["multipliers"])
        self._first_circuit, self._against = state["first_circuit"].clone(), state["against"].clone()
        for name, part in (
            ("counterexamples", self.counterexamples),
            ("optimizer", self._optimizer),
            ("ending", self._ending),
            ("within", self._within),
        ):
            prefix = f"{name}/"
            part.restore({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def problem_of(
    model: MaskedModel, dataset: Dataset, ablation: Ablation, config: PruningConfig, *, parts: int = 1
) -> Problem:
    """Return the problem that a configuration solves on a model and inputs."""
    loss = config.loss
    return Problem.of(
        model, dataset, ablation, loss.loss, logit_scale=loss.logit_scale, over=loss.criterion, parts=parts
    )


def circuit_loss(problem: Problem, config: PruningConfig, seed: int) -> CircuitLoss:
    """Return the loss that judges circuits after learning: the run's loss, on more inputs than a batch has."""
    loss = config.loss
    return CircuitLoss(
        problem.model,
        problem.dataset,
        problem.ablator,
        loss=loss.loss,
        logit_scale=loss.logit_scale,
        over=loss.criterion,
        inputs=loss.judged,
        batch_size=math.ceil(config.batch_size / problem.parts),
        seed=seed,
    )


def discover(problem: Problem, config: PruningConfig, *, seed: int, progress: bool, name: str) -> Discovery:
    """Run from beginning to end; see `Method`."""
    run = Pruning(problem, config, seed=seed)
    trace = Trace(run.masks, config.steps, run.kept)
    shown = f"{name}, {problem.ablator.ablation}"
    with tqdm(total=config.steps, desc=shown, disable=None if progress else True) as bar:
        while not run.ended:
            before = run.stage
            step = run.advance()
            if step is not None:
                trace.note(step.loss, step.expected_edges)
                bar.update()
            elif before == Stage.CHECK and run.stage == Stage.LEARN_ANEW:
                bar.reset(config.steps)
                bar.set_description(f"{shown}, again")
    return trace.discovery(problem.ablator.ablation, run.mean())


def prune_edges(
    model: MaskedModel,
    dataset: Dataset,
    ablation: Ablation,
    *,
    seed: int = 0,
    progress: bool = False,
    config: PruningConfig,
) -> Discovery:
    """Find a circuit by Edge Pruning; see `Method` and `PruningConfig`."""
    problem = problem_of(model, dataset, ablation, config)
    return discover(problem, config, seed=seed, progress=progress, name=config.name)
