"""The judge: verdicts on either side of the tolerance, in both precisions, on every pair, and what they rest on."""

import pytest
import torch

from edgeprune.data import Dataset
from edgeprune.graph import Edge, Graph
from edgeprune.masks import mask_of
from tracr_bridge.certify.faithfulness import CLOSE, Judge

GRAPH = Graph((Edge.parse("tok->logits").source,), (Edge.parse("tok->logits").destination,))
EDGE = GRAPH.edges[0]
ATOL = 1e-2


class Stub:
    """Outputs are `base`; without its only edge, off by what `off` says for each clean and corrupted token.

    `errs` is what single precision adds to that.
    """

    def __init__(self, off, *, base=0.0, errs=0.0, double=False) -> None:
        self.graph, self._off, self._base, self._errs, self._double = GRAPH, off, base, errs, double

    @property
    def in_double(self) -> "Stub":
        return Stub(self._off, base=self._base, errs=self._errs, double=True)

    def _kind(self):
        return torch.float64 if self._double else torch.float32

    def fingerprints(self, tokens, mask, ablated, relevant, layers):
        raise NotImplementedError

    def sources(self, tokens):
        return tokens[None, ..., None].to(self._kind())

    def __call__(self, tokens, mask=None, ablated=None, positions=None):
        if mask is None:
            return torch.full((*tokens.shape, 1), self._base, dtype=self._kind())
        other = tokens if ablated is None else ablated[0, ..., 0].long()
        off = self._off[tokens, other].double() + (0 if self._double else self._errs)
        change = (1 - mask[..., 0, 0].double())[..., None, None] * off
        return (self._base + change)[..., None].to(self._kind())


def dataset(count: int, base: float = 0.0) -> Dataset:
    """Inputs of one token, 0 to `count - 1`, all of which are scored."""
    tokens = torch.arange(count)[:, None]
    one = torch.ones(count, 1, dtype=torch.bool)
    return Dataset(tokens, one, torch.full((count, 1, 1), base), torch.zeros(count, dtype=torch.long), logits=False)


def judge_of(off, ablation="zero", **how) -> Judge:
    """Of a stub that is off by a number, or by one for each clean and corrupted token."""
    count = 3 if isinstance(off, float) else len(off)
    off = torch.full((count, count), off, dtype=torch.float64) if isinstance(off, float) else off
    return Judge(Stub(off, **how), dataset(count, how.get("base", 0.0)), ablation, atol=ATOL)


EMPTY = mask_of(GRAPH, [])[None]


def kept(judge: Judge) -> bool:
    return bool(judge.reproduces(EMPTY))


@pytest.mark.parametrize("apart", [1e-7, 1e-5, 1e-3, 5e-3])
@pytest.mark.parametrize("double", [False, True])
def test_just_above_the_tolerance_fails_and_just_below_passes(apart, double):
    for off, holds in ((ATOL - apart, True), (ATOL + apart, False)):
        judge = judge_of(off, double=double)
        assert kept(judge) == holds
        assert judge.margin == pytest.approx(apart, rel=1e-4)
        assert bool(judge.reproduces(mask_of(GRAPH, [EDGE])[None]))


@pytest.mark.parametrize("errs", [-6e-4, 6e-4])
def test_a_close_call_is_decided_in_double_precision(errs):
    """Single precision errs by more than the difference is from the tolerance."""
    for off, holds in ((ATOL - 1e-4, True), (ATOL + 1e-4, False)):
        judge = judge_of(off, errs=errs)
        assert kept(judge) == holds
        assert judge.margin == pytest.approx(1e-4, rel=1e-3)
        assert float(judge.differences(EMPTY)) == pytest.approx(off)
    assert not kept(judge_of(ATOL - CLOSE, errs=2.1 * CLOSE))  # no close call, as far as single precision tells


def test_large_outputs_are_compared_in_double_precision_too():
    """At two hundred thousand, a step of single precision is .0156."""
    assert not kept(judge_of(1e-3, errs=0.0156))
    assert kept(judge_of(1e-3, errs=0.0156, base=2e5))
    assert not kept(judge_of(0.02, errs=-0.0156, base=2e5))


@pytest.mark.parametrize("offs", [(0.004,), (0.004, 0.0075), (0.004, 0.02), (0.004, 0.02, 0.013), (0.02, 0.5)])
def test_the_margin_is_the_smallest_distance_to_the_tolerance_of_all_verdicts(offs, monkeypatch):
    judge = judge_of(0.0)

    def run(masks, places):
        worst = torch.tensor([offs[round(float(mask.sum()))] for mask in masks]).double()
        return worst, torch.zeros(len(masks), dtype=torch.long)

    monkeypatch.setattr(judge, "_run", run)
    assert judge.reproduces(torch.arange(len(offs)).float()[:, None, None]).tolist() == [off <= ATOL for off in offs]
    assert judge.margin == pytest.approx(min(abs(off - ATOL) for off in offs), rel=1e-4)


def test_a_mask_that_fails_by_little_on_one_pair_is_measured_on_all():
    off = torch.zeros(600, 600)
    judge = judge_of(off)
    first, last = judge.rows_of_pairs[0, 0], judge.rows_of_pairs[0, -1]
    off[first], off[last] = 0.012, 0.5
    assert not kept(judge)
    assert judge.margin == pytest.approx(0.49, rel=1e-3)
    assert float(judge.differences(EMPTY)) == pytest.approx(0.5)


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_a_difference_on_a_single_pair_of_many_is_found_wherever_it_is(ablation):
    count = 300 if ablation == "zero" else 30
    for number in range(0, count * (1 if ablation == "zero" else count), 7):
        off = torch.zeros(count, count)
        pair = (number, number) if ablation == "zero" else divmod(number, count)
        off[pair] = 1.0
        judge = judge_of(off, ablation)
        assert judge.exhaustive and judge.pairs == (count if ablation == "zero" else count**2)
        assert not kept(judge), pair
        (found,) = judge.counterexamples
        assert tuple(judge.rows_of_pairs[:, found].tolist()) == pair
        assert float(judge.differences(EMPTY)) == 1.0


def test_what_one_mask_failed_on_is_run_first_for_the_next():
    off = torch.zeros(5000, 5000)
    off[4321, 4321] = 1.0
    judge = judge_of(off)
    assert not kept(judge)
    before = judge.rows
    assert not kept(judge)
    assert judge.rows - before == 1
    assert judge.counterexamples and bool(~judge.seems_to_reproduce(EMPTY))


def test_more_pairs_than_are_run_are_said_to_be_a_sample(monkeypatch):
    monkeypatch.setattr("tracr_bridge.certify.faithfulness.PAIR_BUDGET", 50)
    off = torch.zeros(20, 20)
    judge = judge_of(off, "resample")
    assert (judge.exhaustive, judge.pairs, judge.total_pairs) == (False, 50, 400)
    assert judge_of(off).exhaustive
    again = judge_of(off, "resample")
    assert torch.equal(judge.rows_of_pairs, again.rows_of_pairs)
    monkeypatch.setattr("tracr_bridge.certify.faithfulness.PAIR_BUDGET", 400)
    all_pairs = judge_of(off, "resample")
    assert all_pairs.exhaustive
    assert len({tuple(pair) for pair in all_pairs.rows_of_pairs.T.tolist()}) == 400


def test_places_are_scored_positions_of_some_pairs(compiled):
    program = compiled("hist")
    judge = Judge(program.model, program.dataset, "zero", atol=ATOL)
    every = judge.places()
    assert len(every.pairs) == judge.pairs
    assert torch.equal(every.scored, program.dataset.scored[judge.rows_of_pairs[0]])
    some = judge.places(torch.tensor([3, 1]))
    masks = torch.stack([mask_of(program.model.graph, []), mask_of(program.model.graph, program.model.structural)])
    one = judge.places(torch.tensor([3]))
    one.scored[:] = False
    assert judge.differences(masks, one).tolist() == [0, 0]
    assert (judge.differences(masks, some) <= judge.differences(masks)).all()


def test_nothing_that_is_infinite_or_no_number_reproduces():
    for value in (float("nan"), float("inf")):
        off = torch.full((2, 2), value).double()
        assert not kept(judge_of(off))


def test_fingerprints_tell_apart_what_differs_in_a_bit(compiled):
    program = compiled("hist")
    graph = program.model.graph
    judge = Judge(program.model, program.dataset, "zero", atol=ATOL)
    every = torch.ones(len(graph.sources), dtype=torch.bool)
    masks = torch.stack([mask_of(graph, kept) for kept in (program.model.structural, program.model.structural, [])])
    first, same, other = judge.fingerprints(masks, judge.places(), every, 1)
    assert torch.equal(first, same)
    embeddings = [graph.source_index[node] for node in graph.sources if node.kind in ("tok", "pos")]
    assert torch.equal(first[embeddings], other[embeddings])
    assert not torch.equal(first, other)
    assert torch.equal(*judge.fingerprints(masks[1:], judge.places(), every, 0))  # nothing that masks touch is run


class OffOnOne(Stub):
    """Off under the mask of a number, on the one pair of that number, and right under a mask of -1.

    By how much, single precision says, and double precision after it.
    """

    def __init__(self, count: int, *, many: bool, off=(1.0, 1.0), double: bool = False) -> None:
        super().__init__(torch.zeros(1, 1), double=double)
        self._count, self._many, self._offs = count, many, off

    @property
    def in_double(self) -> "OffOnOne":
        return OffOnOne(self._count, many=self._many, off=self._offs, double=True)

    def __call__(self, tokens, mask=None, ablated=None, positions=None):
        outputs = torch.zeros(*tokens.shape, 1, dtype=self._kind())
        if mask is None:
            return outputs
        other = tokens if ablated is None else ablated[0, ..., 0].long()
        number = self._count * tokens + other if self._many else tokens
        return (self._offs[self._double] * (number == mask[..., 0, 0][..., None, None]).to(self._kind()))[..., None]


SIZES = {"as they are": {}, "odd ones": {"_PAIRS": 100, "_ROWS": 9000}, "many": {"_FIRST": 10, "_PAIRS": 300}}


@pytest.mark.parametrize("ablation", ["zero", "resample"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_each_of_1024_pairs_is_run_however_they_are_cut_into_chunks(monkeypatch, ablation, sizes):
    """A mask for each pair, which is wrong there and nowhere else."""
    for name, size in sizes.items():
        monkeypatch.setattr(f"tracr_bridge.certify.faithfulness.{name}", size)
    count = 32 if ablation == "resample" else 1024
    judge = Judge(OffOnOne(count, many=ablation == "resample"), dataset(count), ablation, atol=ATOL)
    assert (judge.pairs, judge.exhaustive) == (1024, True)
    masks = torch.arange(-1, 1024).float()[:, None, None]
    assert judge.reproduces(masks).tolist() == [True] + [False] * 1024
    # Each is remembered, as the pair that it is.
    clean, corrupted = judge.rows_of_pairs[:, judge.counterexamples]
    found = count * clean + corrupted if ablation == "resample" else clean
    assert sorted(found.tolist()) == list(range(1024))
    assert judge.seems_to_reproduce(masks).tolist() == [True] + [False] * 1024
    assert judge.differences(masks).tolist() == [0.0] + [1.0] * 1024


@pytest.mark.parametrize("number", [0, 7, 8, 39, 40, 167, 168, 169, 839, 840, 841, 1022, 1023])
def test_a_mask_alone_is_run_on_the_pair_at_each_end_of_a_chunk(number):
    judge = Judge(OffOnOne(1024, many=False), dataset(1024), "zero", atol=ATOL)
    row = float(judge.rows_of_pairs[0, number])
    assert judge.reproduces(torch.full((1, 1, 1), row)).tolist() == [False]
    assert judge.counterexamples == [number]


@pytest.mark.parametrize(("over", "exhaustive"), [(-1, True), (0, True), (1, False)])
def test_pairs_at_the_budget_are_all_run_and_one_more_is_a_sample(monkeypatch, over, exhaustive):
    monkeypatch.setattr("tracr_bridge.certify.faithfulness.PAIR_BUDGET", 20**2 - over)
    judge = judge_of(torch.zeros(20, 20), "resample")
    assert judge.exhaustive == exhaustive and judge.pairs == (400 if exhaustive else 399)


def test_a_sample_of_pairs_has_no_two_inputs_of_different_lengths(monkeypatch):
    monkeypatch.setattr("tracr_bridge.certify.faithfulness.PAIR_BUDGET", 40)
    of_two = dataset(20)
    of_two.group[1::2] = 1
    judge = Judge(Stub(torch.zeros(20, 20)), of_two, "resample", atol=ATOL)
    assert judge.total_pairs == 200 and not judge.exhaustive
    clean, corrupted = judge.rows_of_pairs
    assert torch.equal(clean % 2, corrupted % 2)


@pytest.mark.parametrize("side", [-1, 1])
def test_what_is_within_a_thousandth_of_the_tolerance_and_nothing_else_is_run_in_double_precision(side):
    """Single precision errs by as much as takes it to where double precision is asked, or is not."""
    off = ATOL - side * 1e-3  # in double precision on the other side
    assert kept(judge_of(off, errs=side * 1.95e-3)) == (side > 0)
    assert kept(judge_of(off, errs=side * 2.05e-3)) == (side < 0)


def test_double_precision_is_compared_with_the_full_model_in_double_precision():
    """Outputs of a million, of which single precision has every sixteenth: a target of singles would be off."""
    base = 1e6 + 1 / 64
    assert kept(judge_of(0.005, base=base)) and not kept(judge_of(0.015, base=base))


def test_in_double_precision_too_a_clean_input_is_run_with_its_corrupted_one():
    off = torch.zeros(3, 3, dtype=torch.float64)
    off[0, 2] = ATOL + 1e-5
    off[2, 0] = ATOL - 1e-5
    judge = judge_of(off, "resample")
    assert not kept(judge)
    (found,) = judge.counterexamples
    assert judge.rows_of_pairs[:, found].tolist() == [0, 2]


@pytest.mark.parametrize(("carried", "agree"), [(0.0, True), (1e-6, False), (ATOL / 2, False)])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_an_edge_agrees_only_where_it_carries_the_very_same(carried, agree, ablation):
    class Carries(Stub):
        def sources(self, tokens):
            return carried * tokens[None, ..., None].float()

    judge = Judge(Carries(torch.zeros(4, 4)), dataset(4), ablation, atol=ATOL)
    assert bool(judge.edges_agree([torch.ones(1, 1)], torch.ones(1, 1, dtype=torch.bool))) == agree


def test_under_resampling_inputs_are_compared_with_those_of_their_own_length():
    """What is the same for all inputs of a length carries nothing, however lengths differ."""

    class OfLength(Stub):
        def sources(self, tokens):
            return (tokens // 2)[None, ..., None].float()

    of_two = dataset(4)
    of_two.group[2:] = 1
    judge = Judge(OfLength(torch.zeros(4, 4)), of_two, "resample", atol=ATOL)
    assert bool(judge.edges_agree([torch.ones(1, 1)], torch.ones(1, 1, dtype=torch.bool)))


@pytest.mark.parametrize("chunk", [1024, 300, 7])
def test_each_pair_that_is_close_is_run_again_in_double_precision(monkeypatch, chunk):
    monkeypatch.setattr("tracr_bridge.certify.faithfulness._PAIRS", chunk)
    masks = torch.arange(-1, 256).float()[:, None, None]
    for single, double in ((ATOL - 1e-4, ATOL + 1e-4), (ATOL + 1e-4, ATOL - 1e-4)):
        judge = Judge(OffOnOne(16, many=True, off=(single, double)), dataset(16), "resample", atol=ATOL)
        assert judge.reproduces(masks).tolist() == [True] + [double <= ATOL] * 256
        assert judge.differences(masks).tolist() == pytest.approx([0.0] + [double] * 256)


def test_close_calls_of_several_masks_on_more_pairs_than_a_chunk_holds_are_all_decided(monkeypatch):
    monkeypatch.setattr("tracr_bridge.certify.faithfulness._PAIRS", 7)
    for wrong in range(16):
        off = torch.full((16, 16), ATOL - 1e-4, dtype=torch.float64)
        off[wrong, wrong] = ATOL + 1e-4
        judge = judge_of(off, errs=-6e-4)
        assert judge.differences(EMPTY.repeat(3, 1, 1)).tolist() == pytest.approx([ATOL + 1e-4] * 3, abs=1e-6)
        assert not judge.reproduces(EMPTY.repeat(3, 1, 1)).any()


@pytest.mark.parametrize("ablation", ["zero", "resample"])
@pytest.mark.parametrize("budget", [10**6, 50])
def test_pairs_come_in_an_order_of_the_seed_whatever_else_is_drawn(monkeypatch, ablation, budget):
    monkeypatch.setattr("tracr_bridge.certify.faithfulness.PAIR_BUDGET", budget)

    def order(seed: int | None) -> list[list[int]]:
        more = {} if seed is None else {"seed": seed}
        return Judge(Stub(torch.zeros(20, 20)), dataset(20), ablation, atol=ATOL, **more).rows_of_pairs.tolist()

    torch.manual_seed(1)
    first = order(3)
    torch.manual_seed(2)
    assert order(3) == first != order(4)
    assert order(None) == order(0)


@pytest.mark.parametrize("count", [5, 8, 168, 169, 840, 5000])
def test_a_mask_that_holds_is_run_once_on_each_pair(count):
    judge = judge_of(torch.zeros(count, count))
    assert kept(judge) and judge.rows == count and judge.counterexamples == []


@pytest.mark.parametrize(
    ("number", "rows"),
    [(0, 8), (7, 8), (8, 40), (39, 40), (40, 168), (167, 168), (168, 840), (840, 3528), (3999, 4000)],
)
def test_a_mask_that_fails_by_much_is_run_no_further_than_where_it_does(number, rows):
    off = torch.zeros(4000, 4000)
    judge = judge_of(off)
    row = int(judge.rows_of_pairs[0, number])
    off[row, row] = 1.0
    assert not kept(judge) and judge.rows == rows and judge.counterexamples == [number]
    assert judge.margin == pytest.approx(0.99)


@pytest.mark.parametrize(("first", "rows"), [(10, 10), (3, 3), (168, 168), (1000, 300)])
def test_a_few_pairs_are_those_of_the_first_chunks(monkeypatch, first, rows):
    monkeypatch.setattr("tracr_bridge.certify.faithfulness._FIRST", first)
    judge = judge_of(torch.zeros(300, 300))
    assert judge.seems_to_reproduce(EMPTY).tolist() == [True] and judge.rows == rows


def test_what_fails_by_no_less_than_the_margin_is_not_measured_everywhere():
    off = torch.zeros(600, 600)
    judge = judge_of(off)
    first = int(judge.rows_of_pairs[0, 0])
    off[first, first] = 0.013
    assert not kept(judge)
    assert judge.rows == 8 + 600 and judge.margin == pytest.approx(0.003, rel=1e-4)
    off[first, first] = 0.0135
    assert not kept(judge)
    assert judge.rows == 8 + 600 + 1 and judge.margin == pytest.approx(0.003, rel=1e-4)
