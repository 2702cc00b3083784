"""Checkpoints are whole or damaged: whatever a run writes is read back, and nothing that no run could have written."""

import math

import pytest
import torch
from safetensors.torch import save_file

from edgeprune.checkpoint import restore_from, write_state
from edgeprune.errors import RunError
from edgeprune.masks import edge_exists
from edgeprune.methods.edge_pruning.configurations import BY_NAME, MINIMAX, PAPER
from edgeprune.methods.edge_pruning.engine import Pruning, Stage, circuit_loss, problem_of
from edgeprune.methods.polish import Goal, Polish, PolishConfig
from edgeprune.methods.settings import with_settings

STEPS = 12
QUICK = {name: with_settings(config, {"steps": STEPS, "batch_size": 8}) for name, config in BY_NAME.items()}


@pytest.fixture(scope="module")
def begin(compiled):
    """`begin(config)`: a run that has not begun."""
    given = compiled("length")

    def begin(config):
        return Pruning(problem_of(given.model, given.dataset, "resample", config), config)

    return begin


def copy(state):
    return {name: value.clone() for name, value in state.items()}


@pytest.fixture(scope="module")
def middle(begin):
    """By configuration, the state after five steps."""
    found = {}
    for name, config in QUICK.items():
        run = begin(config)
        for _ in range(5):
            run.advance()
        found[name] = copy(run.state())
    return found


@pytest.mark.parametrize("name", QUICK)
def test_every_state_of_a_run_is_read_back_and_goes_on_alike(begin, tmp_path, name):
    run, other = begin(QUICK[name]), begin(QUICK[name])
    stages = set()
    while not run.ended:
        run.advance()
        stages.add(run.stage)
        write_state(run.state(), tmp_path / "state")
        restore_from(tmp_path / "state", other.restore)
        assert all(torch.equal(value, other.state()[key]) for key, value in run.state().items())
        if not run.ended:
            ahead = begin(QUICK[name])
            restore_from(tmp_path / "state", ahead.restore)
            other.advance()
            ahead.advance()
            assert torch.equal(other.kept(), ahead.kept())
    assert Stage.DONE in stages


def test_a_run_that_learns_anew_is_read_back(begin, tmp_path):
    """Its first circuit, and what showed that to be wrong, are there from then on, and the steps of both count."""
    run = begin(QUICK[MINIMAX.name])
    for _ in range(STEPS):
        run.advance()
    assert run.stage == Stage.CHECK
    state = copy(run.state())
    state["first_circuit"], state["against"] = state["log_alpha"].clone(), torch.zeros(2, 3, dtype=torch.long)
    state["place"] = torch.tensor([STEPS + 4, 4, Stage.LEARN_ANEW])
    for name in ("log_alpha", "multipliers"):
        state[f"optimizer/{name}.count"] = torch.tensor(4.0)
    write_state(state, tmp_path / "state")
    restore_from(tmp_path / "state", run.restore)
    assert (run.done, run.stage) == (STEPS + 4, Stage.LEARN_ANEW)
    for place in ([STEPS + 4, 4, Stage.LEARN], [4, 4, Stage.LEARN_ANEW], [2 * STEPS, STEPS, Stage.LEARN_ANEW]):
        write_state(state | {"place": torch.tensor(place)}, tmp_path / "state")
        with pytest.raises(RunError, match=f"no run of {STEPS} steps stands at step {place[0]}"):
            restore_from(tmp_path / "state", run.restore)


def with_number(value, number):
    changed = value.clone()
    changed.view(-1)[-1] = number
    return changed


def damaged(state):
    """Each kind of damage: its name, and the state with it."""
    yield "nothing at all", {}
    yield "another tensor", state | {"more": torch.zeros(1)}
    for name, value in state.items():
        yield f"{name}: lost", {key: each for key, each in state.items() if key != name}
        yield f"{name}: longer", state | {name: torch.cat([value.view(-1), value.view(-1), value.new_ones(1)])}
        yield f"{name}: one axis more", state | {name: value[None]}
        wider = torch.int32 if value.dtype in (torch.int64, torch.uint8) else torch.float64
        yield f"{name}: another type", state | {name: value.to(wider)}
        if value.dim() == 1 and len(value):
            yield f"{name}: a single number", state | {name: value[0]}
            yield f"{name}: cut off", state | {name: value[:-1]}
        if value.is_floating_point() and value.numel():
            yield f"{name}: NaN", state | {name: with_number(value, math.nan)}
    for name in ("optimizer/log_alpha.second", "optimizer/log_alpha.count", "optimizer/multipliers.count"):
        if state[name].numel():
            yield f"{name}: below 0", state | {name: with_number(state[name], -1.0)}
    yield "more steps than were taken", state | {"optimizer/log_alpha.count": torch.tensor(6.0)}
    yield "infinite masks", state | {"log_alpha": with_number(state["log_alpha"], math.inf)}
    for place in ([-5, 5, 0], [10**9, 5, 0], [5, -5, 0], [5, 10**9, 0], [5, 5, 6], [5, 5, -1], [5, 5, 2], [4, 5, 0]):
        yield f"place {place}", state | {"place": torch.tensor(place)}
    yield "place after its end", state | {"place": torch.tensor([STEPS + 1, STEPS + 1, 5])}
    yield "learning when there is nothing left", state | {"place": torch.tensor([STEPS, STEPS, 0])}


@pytest.mark.parametrize("name", QUICK)
def test_what_no_run_could_have_written_is_damaged_and_changes_nothing(begin, middle, tmp_path, name):
    run = begin(QUICK[name])
    before = copy(run.state())
    wrong = list(damaged(middle[name]))
    assert len(wrong) > 80
    for what, state in wrong:
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "state")
        with pytest.raises(RunError, match="it is damaged") as error:
            restore_from(tmp_path / "state", run.restore)
            pytest.fail(f"{what} was believed")
        assert "\n" not in str(error.value) and len(str(error.value)) < 1000
        assert all(torch.equal(value, before[key]) for key, value in run.state().items()), what
    write_state(middle[name], tmp_path / "state")
    restore_from(tmp_path / "state", run.restore)


def test_an_end_before_its_time_is_no_end(begin, middle, tmp_path):
    """The paper's configuration takes all its steps."""
    state = middle[PAPER.name]
    write_state(state | {"place": torch.tensor([5, 5, Stage.DONE])}, tmp_path / "state")
    with pytest.raises(RunError, match=f"no run of {STEPS} steps stands at step 5, 5 of its stage 5"):
        restore_from(tmp_path / "state", begin(QUICK[PAPER.name]).restore)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": torch.zeros(2, 2, dtype=torch.bool)}, "kept is of shape"),
        ({"kept": torch.zeros(3)}, "kept is torch.float32 and not torch.bool"),
        ({"loss": torch.tensor(math.nan, dtype=torch.float64)}, "loss is not from 0 to inf"),
        ({"loss": torch.tensor(-1.0, dtype=torch.float64)}, "loss is not from 0 to inf"),
        ({"at": torch.tensor([5, 0, 0, 0])}, "a step"),
        ({"at": torch.tensor([0, -1, 0, 0])}, "at is not from 0 to inf"),
        ({"at": torch.tensor(0)}, "at is of shape"),
        ({"more": torch.zeros(1)}, "it has more too"),
    ],
)
def test_a_damaged_state_of_polishing_is_told(compiled, tmp_path, change, message):
    given = compiled("length")
    loss = circuit_loss(problem_of(given.model, given.dataset, "resample", PAPER), PAPER, 0)
    run = Polish(loss, Goal(edges=3), edge_exists(given.model.graph), PolishConfig())
    for _ in range(2):
        run.advance()
    write_state(run.state(), tmp_path / "state")
    restore_from(tmp_path / "state", run.restore)
    write_state(run.state() | change, tmp_path / "state")
    with pytest.raises(RunError, match=message):
        restore_from(tmp_path / "state", run.restore)


def test_a_circuit_with_edges_that_there_are_not_is_damaged(compiled, tmp_path):
    given = compiled("length")
    loss = circuit_loss(problem_of(given.model, given.dataset, "resample", PAPER), PAPER, 0)
    run = Polish(loss, Goal(edges=3), edge_exists(given.model.graph), PolishConfig())
    write_state(run.state() | {"kept": torch.ones_like(run.kept)}, tmp_path / "state")
    with pytest.raises(RunError, match="edges that there are not"):
        restore_from(tmp_path / "state", run.restore)
