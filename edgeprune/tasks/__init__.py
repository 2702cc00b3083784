"""Tasks that language models are pruned on: built-in ones by name, and a user's own from a file."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from edgeprune.errors import ConfigError, TaskError
from edgeprune.metrics.answers import Metric
from edgeprune.tasks import boolean_expressions, gendered_pronoun, greater_than, ioi
from edgeprune.tasks.encode import Encoded as Encoded
from edgeprune.tasks.encode import Encoder as Encoder
from edgeprune.tasks.example import Example as Example
from edgeprune.tasks.jsonl import EVERY, SPLITS, read_examples

DrawExample = Callable[[Random], Example]
"""Draws one example."""

TASKS: Final[Mapping[str, tuple[Callable[[Encoder], DrawExample], Metric]]] = {
    "ioi-t1": (partial(ioi.drawer, templates=ioi.TEMPLATES[:1]), "logit difference"),
    "ioi": (partial(ioi.drawer, templates=ioi.TEMPLATES), "logit difference"),
    "gt": (greater_than.drawer, "probability difference"),
    "gp": (gendered_pronoun.drawer, "logit difference"),
    "boolean": (partial(boolean_expressions.drawer, setting="instruction"), "logit difference"),
    "boolean-few-shot": (partial(boolean_expressions.drawer, setting="few-shot"), "logit difference"),
}
"""Built-in tasks by name: the function that makes a task's `DrawExample`, and its metric."""

_TRIES: Final = 20
"""Draws per wanted example, after which a task counts as having too few examples."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Number of examples in each split; for a file, the most that are taken."""

    train: int = 200
    """Examples that circuits are found on."""

    validation: int = 200
    """Examples that circuits are measured on during a run."""

    test: int = 1000
    """Examples that finished circuits are measured on."""

    def __post_init__(self) -> None:
        faults = [f"{split} >= 1, got {getattr(self, split)}" for split in SPLITS if getattr(self, split) < 1]
        if faults:
            raise ConfigError(f"Expected {'; '.join(faults)}")

    @property
    def total(self) -> int:
        """Number of examples in all splits together."""
        return self.train + self.validation + self.test


def make_examples(name: str, encoder: Encoder, sizes: Sizes, *, seed: int = 0) -> dict[str, list[Example]]:
    """Return the examples of a task by split.

    In a built-in task, no clean prompt of one split is a clean or corrupted prompt of another. For files, see `divide`.

    Args:
        name: one of `TASKS`, or a file of examples (see `tasks.jsonl`).
        encoder: the encoder of the model's tokenizer; prompts are fitted to its tokens.
        sizes: the number of examples in each split.
        seed: the same seed gives the same examples.

    Raises:
        TaskError: there is no such task, it has too few examples, or the tokenizer does not fit it.
    """
    if not is_file(name):
        return _draw_apart(name, TASKS[name][0](encoder), sizes, Random(seed))
    return divide(Path(name), read_examples(Path(name)), sizes, seed=seed)


def is_file(name: str) -> bool:
    """Return whether a task is a file of examples, and not one of `TASKS`.

    Raises:
        TaskError: the task is neither.
    """
    if name not in TASKS and not name.endswith((".jsonl", ".json")):
        raise TaskError(f"Expected a task among {', '.join(TASKS)}, or a file of examples (.jsonl); got {name!r}")
    return name not in TASKS


def metric_of(name: str) -> Metric:
    """Return the metric of a task; for a file, the logit difference."""
    return TASKS[name][1] if name in TASKS else "logit difference"


def _draw_apart(name: str, draw: DrawExample, sizes: Sizes, random: Random) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {split: [] for split in SPLITS}
    # For each text: the split in which it is clean, and the first split in which it is corrupted.
    clean, corrupted = dict[str, str](), dict[str, str]()
    # Taken from the end: training comes last, as it may want many examples.
    wanted = [split for split in SPLITS for _ in range(getattr(sizes, split))]
    for _ in range(_TRIES * sizes.total):
        example, split = draw(random), wanted[-1]
        elsewhere = corrupted.get(example.clean, split) != split or clean.get(example.corrupted, split) != split
        if example.clean in clean or elsewhere:
            continue
        clean[example.clean] = split
        corrupted.setdefault(example.corrupted, split)
        found[split].append(example)
        wanted.pop()
        if not wanted:
            return found
    raise TaskError(
        f"Expected {sizes.total} examples of {name!r}, train, validation and test together; it has about {len(clean)} "
        "with this tokenizer: ask for fewer"
    )


def divide(
    path: Path, examples: Sequence[tuple[Example, str | None]], sizes: Sizes, *, seed: int = 0
) -> dict[str, list[Example]]:
    """Return a file's examples by split. Those that name no split go half to train, a quarter to each other split.

    Args:
        path: the file.
        examples: the file's examples, each with the split that it names.
        sizes: the most examples in each split.
        seed: the seed of all that is drawn and shuffled.

    Raises:
        TaskError: a clean text is in several splits, or a split has no examples.
    """
    random = Random(seed)
    splits = {split: [example for example, asked in examples if asked == split] for split in SPLITS}
    for split, size in asdict(sizes).items():
        everywhere = [example for example, asked in examples if asked == EVERY]
        # If a whole domain does not fit into a split, a random sample of it does.
        splits[split] += everywhere if len(everywhere) <= size else random.sample(everywhere, size)
    # Lines with the same clean text stay in one split.
    free = dict[str, list[Example]]()
    for example in (example for example, asked in examples if asked is None):
        free.setdefault(example.clean, []).append(example)
    texts = list(free)
    random.shuffle(texts)
    quarter = len(texts) // 4
    dealt = {"test": texts[:quarter], "validation": texts[quarter : 2 * quarter], "train": texts[2 * quarter :]}
    for split, mine in dealt.items():
        splits[split] += [example for text in mine for example in free[text]]
    of_all = {example.clean for example, asked in examples if asked == EVERY}
    where = [(e.clean, split) for split in SPLITS for e in splits[split] if e.clean not in of_all]
    if both := [text for text, times in Counter(text for text, _ in set(where)).items() if times > 1]:
        raise TaskError(f"Expected every clean text in one split; {path} has {both[0]!r:.200} in more than one")
    if empty := [split for split in SPLITS if not splits[split]]:
        raise TaskError(
            f"Expected examples of every split; {path} leaves none for {', '.join(empty)}: "
            'name it in some lines ("split"), or give at least four that name none'
        )
    return {split: splits[split][: getattr(sizes, split)] for split in SPLITS}
