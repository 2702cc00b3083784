"""What a run is about: which settings are refused, which model and which examples are had, and what they are named."""

import hashlib
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from edgeprune.data import check_counterparts
from edgeprune.errors import ConfigError, ModelError, RunError, TaskError
from edgeprune.evaluation.evaluate import Evaluation
from edgeprune.methods.edge_pruning.configurations import COMPILED, MINIMAX, PAPER, TOLERANCE
from edgeprune.methods.edge_pruning.gradient import LikelihoodRatio
from edgeprune.methods.settings import with_settings
from edgeprune.runs import config as subjects
from edgeprune.runs.config import ModelOnTask, RunConfig, digest_of_tensors, load_model_on_task
from edgeprune.tasks import Sizes

pytestmark = pytest.mark.fakes

ASKED = RunConfig(model="some/model", task="ioi")

# Settings


def test_a_run_is_named_by_its_method():
    assert ASKED.method == "edge-pruning" and replace(ASKED, polish=True).method == "edge-pruning-polished"


@pytest.mark.parametrize("parts", [0, 33])
def test_a_batch_has_parts_of_one_input_at_least(parts):
    replace(ASKED, parts=1)
    replace(ASKED, parts=32)
    with pytest.raises(ConfigError, match=f"^Expected parts from 1 to batch_size, 32; got {parts}$"):
        replace(ASKED, parts=parts)


@pytest.mark.parametrize("worst", [{"loss": "worst"}, {"criterion": "worst"}])
def test_a_worst_loss_through_z_is_not_run_in_parts(worst):
    config = with_settings(PAPER, worst)
    replace(ASKED, pruning=config)
    with pytest.raises(
        ConfigError, match=r"^Expected a loss that is a mean over inputs, as a batch runs in parts; got the worst$"
    ):
        replace(ASKED, pruning=config, parts=2)
    replace(ASKED, pruning=MINIMAX, parts=2)  # the likelihood ratio has all losses before it goes back
    replace(ASKED, parts=2)


def test_half_precision_rounds_by_more_than_the_worst_loss_lets_pass():
    replace(ASKED, precision="bfloat16")
    replace(ASKED, precision="float32", pruning=MINIMAX)
    with pytest.raises(ConfigError) as error:
        replace(ASKED, precision="bfloat16", pruning=MINIMAX)
    assert str(error.value) == (
        "Expected float32 for edge-pruning-minimax: bfloat16 rounds by more than outputs may differ, 0.01"
    )


def test_what_asks_for_neither_a_sparsity_nor_a_tolerance_is_not_polished():
    replace(ASKED, pruning=TOLERANCE, polish=True)
    with pytest.raises(ConfigError, match="is asked for neither"):
        replace(ASKED, pruning=MINIMAX, polish=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(PAPER, name="another"),
        lambda: replace(PAPER, gradient=LikelihoodRatio(), pressure=MINIMAX.pressure),
        lambda: replace(TOLERANCE, gradient=LikelihoodRatio()),
        lambda: replace(PAPER, ending=MINIMAX.ending),
        lambda: replace(PAPER, optimizer=replace(PAPER.optimizer, betas=(0.9, {1}))),
        lambda: replace(PAPER, batch_size=32.0),
    ],
    ids=range(6),
)
def test_what_could_not_be_read_back_from_a_folder_is_refused(make):
    pruning = make()
    with pytest.raises(ConfigError) as error:
        replace(ASKED, pruning=pruning)
    assert str(error.value) == (
        "Expected settings of edge-pruning or edge-pruning-tolerance or edge-pruning-minimax, with all of its parts; "
        f"got {pruning.name!r}"
    )


def test_other_settings_of_a_configuration_are_taken():
    for pruning in (COMPILED, MINIMAX, TOLERANCE):
        assert replace(ASKED, pruning=pruning).pruning is pruning


# Models and examples


class Split:
    """Examples of given lengths, with rows for tokens."""

    def __init__(self, length, tokens=None, counterparts=None, asked=None):
        self.length = torch.tensor(length)
        self.tokens = torch.arange(len(length)) if tokens is None else tokens
        self.counterparts = self.tokens + 1 if counterparts is None else counterparts
        self.answers, self.note, self.asked = SimpleNamespace(right=self.tokens * 3, none=None), "no tensor", asked

    def __getitem__(self, rows):
        return Split(self.length[rows].tolist(), self.tokens[rows], self.counterparts[rows], self.asked)

    def dataset(self, model, *, progress):
        self.asked.append((self.tokens.tolist(), model, progress))
        return SimpleNamespace(target=self.tokens.float())


WEIGHTS = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture
def given(monkeypatch):
    """What is asked of everything that a subject is made of, and a way to change what comes of it."""
    model = SimpleNamespace(
        context_length=7, vocabulary_size=9, weights=SimpleNamespace(state_dict=lambda: WEIGHTS), name="model"
    )
    seen = SimpleNamespace(
        model=model, encoded=[], datasets=[], lengths=[3, 4, 3, 3, 4, 3], ranks=None, counterparts=None
    )
    examples = {"train": ["a", "b"], "validation": ["c"], "test": ["d", "e", "f"]}

    def encode(texts, metric):
        seen.encoded.append((texts, metric))
        return Split(seen.lengths, asked=seen.datasets, counterparts=seen.counterparts)

    def encoder(tokenizer, *, context_length, vocabulary_size):
        seen.encoder = (tokenizer, context_length, vocabulary_size)
        return SimpleNamespace(encode=encode)

    def load(*asked, **more):
        seen.loaded = (asked, more)
        return model, "tokenizer"

    def make(*asked, seed):
        seen.made = (asked[0], asked[2], seed)
        assert asked[1].encode is encode
        return examples

    for name, value in {"Encoder": encoder, "load_model": load, "make_examples": make}.items():
        monkeypatch.setattr(subjects, name, value)
    return seen


def test_a_subject_is_a_model_and_splits_that_are_padded_alike(given):
    sizes = Sizes(train=2, validation=1, test=3)
    config = replace(ASKED, precision="bfloat16", sizes=sizes, data_seed=5, seed=6, parts=3)
    found = load_model_on_task(config, ["test", "train"], device="cpu", check=False, progress=True)
    (asked, more) = given.loaded
    assert asked == ("some/model",)
    assert more == {"precision": "bfloat16", "device": "cpu", "ranks": subjects.join(), "check": False}
    assert given.encoder == ("tokenizer", 7, 9) and given.made == ("ioi", config.sizes, 5)
    assert given.encoded == [(["a", "b", "c", "d", "e", "f"], subjects.metric_of("ioi"))]
    assert given.datasets == [([3, 4, 5], given.model, True), ([0, 1], given.model, True)]
    assert list(found.splits) == ["test", "train"] and found.model is given.model and found.parts == 3
    assert found.digests["weights"] == digest_of_tensors(WEIGHTS)
    parts = {"train": slice(0, 2), "validation": slice(2, 3), "test": slice(3, 6)}
    rows, length = torch.arange(6), torch.tensor(given.lengths)
    tensors = {}
    for split, some in parts.items():
        tensors |= {f"{split}.length": length[some], f"{split}.tokens": rows[some]}
        tensors |= {f"{split}.counterparts": rows[some] + 1, f"{split}.right": 3 * rows[some]}
    assert found.digests["task"] == digest_of_tensors(tensors)
    assert found.digests.keys() == {"weights", "task"}


def test_nothing_is_shown_and_all_is_checked_unless_asked_for(given):
    load_model_on_task(replace(ASKED, task="gt"), ["test"])
    assert given.encoded[0][1] == subjects.metric_of("gt") != subjects.metric_of("ioi")
    assert given.loaded[1] | {"ranks": None} == {"precision": "float32", "device": "auto", "ranks": None, "check": True}
    assert given.datasets == [([3, 4, 5], given.model, False)] and given.made[2] == 0


def test_a_process_that_is_not_the_first_shows_nothing(given, monkeypatch):
    monkeypatch.setattr(subjects, "join", lambda: SimpleNamespace(first=False))
    load_model_on_task(ASKED, ["test"], progress=True)
    assert given.datasets[0][2] is False


def test_mean_ablation_asks_for_training_examples_of_every_length(given):
    given.lengths = [3, 4, 3, 6, 4, 5]
    load_model_on_task(ASKED, ["train"])
    with pytest.raises(TaskError) as error:
        load_model_on_task(replace(ASKED, ablation="mean"), ["train"])
    assert str(error.value) == (
        "Expected training examples of every length, which mean ablation averages over; the test split has one of 5 "
        "tokens, and the training split none: ask for more training examples"
    )
    given.lengths = [3, 4, 3, 3, 4, 3]
    load_model_on_task(replace(ASKED, ablation="mean"), ["train"])


@pytest.mark.parametrize(("same", "refused"), [("train", True), ("test", False)])
def test_resample_ablation_alone_asks_the_training_split_for_texts_that_differ(given, same, refused):
    rows = torch.arange(6)
    within = rows < 2 if same == "train" else rows >= 3
    given.counterparts = torch.where(within, rows, rows + 1)
    for ablation in ("zero", "mean"):
        given.lengths = [3] * 6
        load_model_on_task(replace(ASKED, ablation=ablation), ["train"])
    if refused:
        with pytest.raises(TaskError, match="Expected corrupted texts that differ from clean ones"):
            load_model_on_task(ASKED, ["train"])
    else:
        load_model_on_task(ASKED, ["train"])


def test_resample_ablation_asks_for_texts_that_differ():
    same = torch.ones(2, 3, dtype=torch.long)
    other = same.clone()
    other[1, 2] = 0
    check_counterparts(same, other)
    with pytest.raises(TaskError) as error:
        check_counterparts(same, same.clone())
    assert str(error.value) == (
        "Expected corrupted texts that differ from clean ones, which resample ablation puts in their place; all that "
        "circuits are found on are the same: give others, or ablate by zero or mean"
    )


def test_texts_that_are_all_the_same_are_found_when_a_subject_is_made(given, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda one, other: True)
    with pytest.raises(TaskError, match=r"^Expected corrupted texts that differ"):
        load_model_on_task(ASKED, ["train"])


def test_a_full_model_that_gives_no_numbers_is_refused():
    fine = SimpleNamespace(target=torch.zeros(3))
    lazy = SimpleNamespace(target="logits that are made as they are asked for")
    subjects._check_numbers(ASKED, {"train": fine, "test": lazy})
    for value in (math.nan, math.inf):
        wrong = SimpleNamespace(target=torch.tensor([0.0, value]))
        with pytest.raises(ModelError) as error:
            subjects._check_numbers(ASKED, {"train": fine, "test": wrong})
        assert str(error.value) == (
            "Expected a model whose logits are numbers; 'some/model' itself gives NaN or infinity on the test split of "
            "'ioi', with nothing pruned: its weights are damaged, or float32 is too narrow"
        )


def test_what_a_full_model_gives_is_looked_at(given, monkeypatch):
    monkeypatch.setattr(Split, "dataset", lambda *given, **more: SimpleNamespace(target=torch.tensor([math.nan])))
    with pytest.raises(ModelError, match="on the test split of 'ioi'"):
        load_model_on_task(ASKED, ["test"])


def test_tensors_are_named_by_what_they_hold_and_in_which_shape():
    expected = hashlib.sha256()
    for name, value in (("bias", WEIGHTS["bias"]), ("weight", WEIGHTS["weight"])):
        expected.update(f"{name} {tuple(value.shape)}".encode())
        expected.update(bytes(value.reshape(-1).view(torch.uint8).tolist()))
    assert digest_of_tensors(WEIGHTS) == expected.hexdigest()[:16]
    assert digest_of_tensors(dict(reversed(WEIGHTS.items()))) == expected.hexdigest()[:16]
    turned = {"weight": WEIGHTS["weight"].T.contiguous().T.requires_grad_(), "bias": WEIGHTS["bias"]}
    assert digest_of_tensors(turned) == expected.hexdigest()[:16]
    assert digest_of_tensors(WEIGHTS | {"weight": torch.arange(6.0).view(3, 2)}) != expected.hexdigest()[:16]


# What a circuit does


@pytest.mark.parametrize(("parts", "at_once"), [(1, 32), (3, 11), (64, 1)])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_a_circuit_is_measured_on_its_split_against_means_of_the_training_split(monkeypatch, parts, at_once, ablation):
    asked = []
    found = Evaluation(0.1, 0.2, 0.3, 0.4, 5, 0.6)

    def evaluate(*given, **more):
        asked.append((given, more))
        return found

    monkeypatch.setattr(subjects, "evaluate", evaluate)
    subject = ModelOnTask("model", {"train": "train rows", "test": "test rows"}, {}, parts)
    assert subject.evaluate("test", ablation, "mask", progress=True) is found
    subject.evaluate("test", ablation, "mask")
    means = "train rows" if ablation == "mean" else None
    for (given, more), progress in zip(asked, (True, False), strict=True):
        assert given == ("model", "test rows", ablation, "mask")
        assert more == {"means_of": means, "batch_size": at_once, "progress": progress}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_cannot_be_measured_is_refused(monkeypatch, value):
    found = Evaluation(0.1, value, 0.3, 0.4, 5, 0.6)
    monkeypatch.setattr(subjects, "evaluate", lambda *given, **more: found)
    with pytest.raises(RunError) as error:
        ModelOnTask("model", {"test": "rows"}, {}).evaluate("test", "zero", "mask")
    assert str(error.value) == (f"Expected a circuit whose outputs can be measured; got {asdict(found)}: try float32")
