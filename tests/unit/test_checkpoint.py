"""Checkpoints are whole or damaged: whatever a run writes is read back, and nothing that no run could have written."""

import math
from dataclasses import replace

import pytest
import torch
from linear import WEIGHTS, Linear, data
from safetensors.torch import save_file

from edgeprune.errors import RunError
from edgeprune.files.checkpoint import Allowed, check_state, part, read_state, restore_from, write_state
from edgeprune.masks import edge_exists
from edgeprune.methods.edge_pruning.configurations import BY_NAME, MINIMAX, PAPER
from edgeprune.methods.edge_pruning.engine import Pruning, Stage, circuit_loss, problem_of
from edgeprune.methods.edge_pruning.standing import _check_place
from edgeprune.methods.polish import Goal, Polish, PolishConfig
from edgeprune.methods.settings import with_settings

STEPS = 12
QUICK = {name: with_settings(config, {"steps": STEPS, "batch_size": 8}) for name, config in BY_NAME.items()}


MODEL = Linear(WEIGHTS)
DATA = data(MODEL, range(1, 10))


@pytest.fixture(scope="module")
def begin():
    """`begin(config)`: a run that has not begun."""

    def begin(config):
        return Pruning(problem_of(MODEL, DATA, "resample", config), config)

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
def test_a_damaged_state_of_polishing_is_told(tmp_path, change, message):
    loss = circuit_loss(problem_of(MODEL, DATA, "resample", PAPER), PAPER, 0)
    run = Polish(loss, Goal(edges=3), edge_exists(MODEL.graph), PolishConfig())
    for _ in range(2):
        run.advance()
    write_state(run.state(), tmp_path / "state")
    restore_from(tmp_path / "state", run.restore)
    write_state(run.state() | change, tmp_path / "state")
    with pytest.raises(RunError, match=message):
        restore_from(tmp_path / "state", run.restore)


def test_a_circuit_with_edges_that_there_are_not_is_damaged(tmp_path):
    loss = circuit_loss(problem_of(MODEL, DATA, "resample", PAPER), PAPER, 0)
    run = Polish(loss, Goal(edges=3), edge_exists(MODEL.graph), PolishConfig())
    write_state(run.state() | {"kept": torch.ones_like(run.kept)}, tmp_path / "state")
    with pytest.raises(RunError, match="edges that there are not"):
        restore_from(tmp_path / "state", run.restore)


# What a tensor of a state may be


LIKE = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("rule", "value", "said"),
    [
        (Allowed(like=LIKE), LIKE + math.inf, None),
        (Allowed(like=LIKE), LIKE - math.inf, None),
        (Allowed(like=LIKE), LIKE * math.nan, "not from -inf to inf"),
        (Allowed(like=LIKE), LIKE.double(), "torch.float64 and not torch.float32"),
        (Allowed(like=LIKE), LIKE[:, :2], "of shape [2, 2] and not [2, 3]"),
        (Allowed(like=LIKE), torch.zeros(0), "of shape [0] and not [2, 3]"),
        (Allowed(like=LIKE, or_empty=True), torch.zeros(0), None),
        (Allowed(like=LIKE, or_empty=True), LIKE, None),
        (Allowed(like=LIKE, or_empty=True), torch.zeros(1), "of shape [1] and not [2, 3]"),
        (Allowed(like=LIKE, or_empty=True), torch.zeros(0, 3), "of shape [0, 3] and not [2, 3]"),
        (Allowed(like=LIKE, columns=4), torch.zeros(2, 4), None),
        (Allowed(like=LIKE, columns=4), torch.zeros(2, 0), None),
        (Allowed(like=LIKE, columns=4), torch.zeros(2, 5), "of shape [2, 5] and not [2, 3]"),
        (Allowed(like=LIKE, columns=4), torch.zeros(3, 4), "of shape [3, 4] and not [2, 3]"),
        (Allowed(like=LIKE, columns=2), LIKE, "of shape [2, 3] and not [2, 3]"),
        (Allowed(like=torch.zeros(0), columns=4), torch.zeros(4), None),
        (Allowed(like=torch.zeros(0), columns=4), torch.tensor(0.0), "of shape [] and not [0]"),
        (Allowed(like=LIKE, least=-1, most=2), torch.tensor([[-1.0, 2, 0], [0, 0, 0]]), None),
        (Allowed(like=LIKE, least=-1, most=2), torch.tensor([[-1.1, 0, 0], [0, 0, 0]]), "not from -1 to 2"),
        (Allowed(like=LIKE, least=-1, most=2), torch.tensor([[2.1, 0, 0], [0, 0, 0]]), "not from -1 to 2"),
        (Allowed(like=LIKE, least=0.25, most=1e9), LIKE, "not from 0.25 to 1e+09"),
        (Allowed(like=torch.zeros(0), least=1), torch.zeros(0), None),
    ],
)
def test_a_value_is_what_its_rule_allows(rule, value, said):
    assert rule.fault(value) == said


def test_a_state_has_all_that_it_should_and_nothing_else():
    allowed = {"one": Allowed(like=LIKE), "two": Allowed(like=LIKE, most=1)}
    check_state({"one": LIKE, "two": LIKE}, allowed)
    for state, said in (
        ({"one": LIKE}, "it lacks two"),
        ({}, "it lacks one"),
        ({"one": LIKE, "two": LIKE, "a" * 70: LIKE}, f"it has {'a' * 60} too"),
        ({"one": LIKE, "two": LIKE + 2}, "two is not from -inf to 1"),
    ):
        with pytest.raises(ValueError, match=f"^{said}$"):
            check_state(state, allowed)
    rule = Allowed(like=LIKE)
    assert part("inner", {"key": rule}) == {"inner/key": rule}


def test_what_is_written_is_read_and_what_cannot_be_read_is_said(tmp_path):
    shared = torch.arange(6.0).view(2, 3)
    state = {"one": shared, "same": shared, "turned": shared.T}
    write_state(state, tmp_path / "state")
    found = read_state(tmp_path / "state")
    assert found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())
    (tmp_path / "text").write_text("none")
    for name in ("text", "missing"):
        with pytest.raises(ValueError, match=r"."):
            read_state(tmp_path / name)
        with pytest.raises(RunError, match=f"^Expected a checkpoint of this run in '.*{name}'; it is damaged: ."):
            restore_from(tmp_path / name, lambda state: None)
    with pytest.raises(ValueError, match=r"[Hh]eader"):
        read_state(tmp_path / "text")
    with pytest.raises(ValueError, match=r"No such file"):
        read_state(tmp_path / "missing")
    seen = []
    restore_from(tmp_path / "state", seen.append)
    assert seen[0].keys() == state.keys()
    for kind in (KeyError, RuntimeError, ValueError):

        def refuse(state, kind=kind):
            raise kind("x" * 300)

        with pytest.raises(RunError) as error:
            restore_from(tmp_path / "state", refuse)
        assert str(error.value).count("xxxxxxxxx") == 22 and isinstance(error.value.__cause__, kind)
        assert str(error.value).endswith(". Put a copy in its place, or take it away to begin again")


def test_no_more_is_read_than_a_state_can_be(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "edgeprune.files.checkpoint.read_bytes", lambda path, *, most: asked.append((path, most)) or b""
    )
    with pytest.raises(ValueError, match=r"."):
        read_state(tmp_path / "state")
    assert asked == [(tmp_path / "state", 2**34)]


# Where a run may stand


OURS, ALONE = QUICK[MINIMAX.name], replace(QUICK[MINIMAX.name], final_check=None)
STEPPED = replace(OURS, ending=None)
WITHIN = QUICK["edge-pruning-tolerance"]


@pytest.mark.parametrize(
    ("config", "anew", "place", "right"),
    [
        # Learning, no step is the first and none may be left.
        *((config, False, (step, step, 0), True) for config in (OURS, ALONE, STEPPED, WITHIN) for step in (0, 11)),
        *((config, False, (12, 12, 0), False) for config in (OURS, ALONE, STEPPED, WITHIN)),
        (OURS, False, (3, 4, 0), False),
        (OURS, False, (4, 3, 0), False),
        # After it, all steps, or one at least where it may end before.
        *((config, False, (12, 12, stage), True) for config in (OURS, STEPPED) for stage in (1, 4, 5)),
        *((OURS, False, (1, 1, stage), True) for stage in (1, 4, 5)),
        *((OURS, False, (0, 0, stage), False) for stage in (1, 4, 5)),
        *((STEPPED, False, (11, 11, stage), False) for stage in (1, 4, 5)),
        (OURS, False, (13, 13, 5), False),
        # Stages that come with a final check alone, or with a tolerance.
        *((ALONE, False, (12, 12, stage), stage == 5) for stage in (1, 2, 3, 4, 5)),
        *((WITHIN, False, (12, 12, stage), stage in (4, 5)) for stage in (1, 2, 3, 4, 5)),
        *((OURS, False, (5, 5, stage), False) for stage in (2, 3, 6)),
        # Anew: as many steps before as there may be.
        *((OURS, True, (5, 3, stage), False) for stage in (0, 1)),
        *((OURS, True, (5, 3, stage), True) for stage in (2, 3, 4, 5)),
        *((OURS, True, (done, 3, 2), right) for done, right in ((3, False), (4, True), (15, True), (16, False))),
        (OURS, True, (12, 0, 2), True),
        (OURS, True, (12, 0, 3), False),
        (STEPPED, True, (24, 12, 3), True),
        (STEPPED, True, (23, 11, 3), False),
        (STEPPED, True, (23, 11, 2), True),
    ],
)
def test_a_run_stands_only_where_it_can_have_come_to(config, anew, place, right):
    done, step, stage = place
    if right:
        return _check_place(config, done, step, stage, anew=anew)
    with pytest.raises(ValueError, match=f"^no run of 12 steps stands at step {done}, {step} of its stage {stage}$"):
        _check_place(config, done, step, stage, anew=anew)


def pairs_of(width, number=0):
    return torch.full((2, width), number, dtype=torch.long)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (MINIMAX.name, {"log_alpha": 12.0}, None),
        (MINIMAX.name, {"log_alpha": -12.0}, None),
        (MINIMAX.name, {"log_alpha": 12.1}, "log_alpha is not from -12 to 12"),
        (MINIMAX.name, {"log_alpha": -12.1}, "log_alpha is not from -12 to 12"),
        (PAPER.name, {"log_alpha": 3e38}, None),
        (PAPER.name, {"log_alpha": -3e38}, None),
        (PAPER.name, {"log_alpha": -math.inf}, "log_alpha is not from"),
        (MINIMAX.name, {"against": pairs_of(81, 8)}, None),
        (MINIMAX.name, {"against": pairs_of(82)}, r"against is of shape \[2, 82\] and not \[2, 0\]"),
        (MINIMAX.name, {"against": pairs_of(1, 9)}, "against is not from 0 to 8"),
        (MINIMAX.name, {"against": pairs_of(1, -1)}, "against is not from 0 to 8"),
        (MINIMAX.name, {"against": pairs_of(1).int()}, "against is torch.int32 and not torch.int64"),
        (PAPER.name, {"counterexamples/pairs": pairs_of(1)}, "counterexamples/pairs is of shape"),
        (
            MINIMAX.name,
            {"counterexamples/pairs": pairs_of(2), "counterexamples/merit": torch.ones(1)},
            "^it has another number of counterexamples than of their merits$",
        ),
        (MINIMAX.name, {"counterexamples/pairs": pairs_of(16, 8), "counterexamples/merit": torch.ones(16)}, None),
        (MINIMAX.name, {"counterexamples/pairs": pairs_of(1, 9)}, "counterexamples/pairs is not from 0 to 8"),
        (MINIMAX.name, {"optimizer/log_alpha.count": torch.tensor(0.0)}, None),
        (PAPER.name, {"optimizer/log_alpha.count": torch.tensor(4.0)}, "optimizer/log_alpha.count is not from 5 to 5"),
        (
            MINIMAX.name,
            {"optimizer/log_alpha.count": torch.tensor(6.0)},
            "optimizer/log_alpha.count is not from 0 to 5",
        ),
        (PAPER.name, {"within/edges": torch.tensor(8)}, None),
        (PAPER.name, {"within/edges": torch.tensor(9)}, "within/edges is not from 0 to 8"),
        (PAPER.name, {"within/edges": torch.tensor(-1)}, "within/edges is not from 0 to 8"),
        (MINIMAX.name, {"first_circuit": 0.0}, "no run of 12 steps stands at step 5, 5 of its stage 0"),
        (MINIMAX.name, {"first_circuit": 12.1}, "first_circuit is not from -12 to 12"),
        (MINIMAX.name, {"place": torch.tensor([25, 5, 0])}, "place is not from 0 to 24"),
        (MINIMAX.name, {"place": torch.tensor([24, 5, 0])}, "no run of 12 steps stands at step 24"),
        (MINIMAX.name, {"noise": torch.zeros(3, dtype=torch.uint8)}, "noise is of shape"),
        (PAPER.name, {"multipliers": torch.zeros(3)}, "multipliers is of shape"),
        (PAPER.name, {"engine": torch.tensor([3])}, "engine is of shape"),
    ],
)
def test_a_state_at_its_bounds_is_read_and_beyond_them_is_refused(begin, middle, name, change, said):
    """Nine inputs, eight edges, after five of twelve steps."""
    run = begin(QUICK[name])
    log_alpha = middle[name]["log_alpha"]
    state = middle[name] | {
        key: with_number(torch.zeros_like(log_alpha), value) if isinstance(value, float) else value
        for key, value in change.items()
    }
    if said is None:
        return run.restore(state)
    with pytest.raises(ValueError, match=said):
        run.restore(state)


def test_a_state_of_another_engine_is_said_to_be_of_another_engine(begin, middle):
    run = begin(QUICK[PAPER.name])
    for engine in (1, 2, 4):
        state = middle[PAPER.name] | {"engine": torch.tensor(engine)}
        if engine == 1:
            del state["engine"]
        with pytest.raises(RunError) as error:
            run.restore(state)
        said = f"Expected a checkpoint of engine 3; got one of engine {engine}: begin again elsewhere"
        assert str(error.value) == said


def test_few_steps_have_stages_too(begin):
    """The number of the last stage is above that of two steps."""
    run = begin(with_settings(OURS, {"steps": 1}))
    other = begin(with_settings(OURS, {"steps": 1}))
    while not run.ended:
        run.advance()
        other.restore(copy(run.state()))
    assert other.ended
