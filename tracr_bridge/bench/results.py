"""The results of sweeps: a JSON-lines file with a row for each run, and what can be counted in it."""

import hashlib
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, model_validator

import edgeprune
import tracr_bridge
from edgeprune.errors import EdgePruneError
from edgeprune.files.schemas import checked
from edgeprune.files.store import UnwritableFile, parse_json, read_bytes, read_text
from tracr_bridge.compile.constructs import CONSTRUCTS

Row = dict[str, Any]
"""One run; `Results.append` says what it holds."""

_KEY: Final = ("program", "text", "ablation", "method", "seed", "code")
"""What makes a run the same run: of the same program's text, by the same code."""


class _Written(BaseModel):
    """What a row holds as far as it is read."""

    model_config = ConfigDict(strict=True, extra="allow")

    program: str
    text: str
    ablation: str
    method: str
    seed: int
    code: str
    outcome: Literal["exact", "inexact", "failed", "refused", "broken"]
    seconds: dict[str, float]
    versions: dict[str, str] = {}
    config: dict[str, Any] = {}
    constructs: list[str] = []
    proof: str | None = None
    status: str = ""
    edges: int = 0
    true: int = 0
    # Measures; None is no number.
    precision: float | None = None
    recall: float | None = None
    iou: float | None = None
    node_precision: float | None = None
    node_recall: float | None = None
    node_iou: float | None = None
    auroc: float | None = None
    best_threshold_iou: float | None = None
    best_threshold_exact: float | None = None
    completeness: float | None = None
    minimality: float | None = None
    faithfulness: float | None = None
    cpr: float | None = None
    cmd: float | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "_Written":
        """A run that found a circuit says how large it is, how it fared and how long it took."""
        found = self.outcome in ("exact", "inexact")
        if found and not ({"edges", "auroc"} <= self.model_fields_set and "discover" in self.seconds):
            raise ValueError("a circuit was found, and not measured")
        return self


UNFINISHED: Final = ("failed", "broken")
"""Outcomes of runs that are tried again by a sweep that goes on: what stood in their way may be gone."""

_BEGINNING: Final = b'{"program": '
"""Of every row."""


class ResultsError(EdgePruneError):
    """A results file that cannot be read, or is none of ours."""


def row_key(row: Row) -> tuple[Any, ...]:
    """What makes a run the same run."""
    return tuple(row[name] for name in _KEY)


class Results:
    """A folder with `results.jsonl`: what is in it is read once, what is new is appended line by line.

    A row holds what makes it the same run (`program`, `text`, `ablation`, `method`, `seed`, `code`), its `outcome` and
    `seconds`, the `versions` and the method's `config` that it ran with, and what was measured. Of rows of the same
    run, the last counts. Outcomes are

    - `exact`, `inexact`: the method found a true circuit, or another; `proof` says whether the certificate `listed` it,
      or it was `proved` to be true by itself;
    - `failed`: it raised, ran out of time, or returned what is no circuit;
    - `refused`: there is no such run, as nothing could fail on this program under this ablation;
    - `broken`: the program cannot be compiled, or does not do what RASP says.

    Args:
        folder: is made where there is none.

    Raises:
        ResultsError: there is a file of that name which is none of ours.
        UnwritableFile: the folder or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"
        self.rows: dict[tuple[Any, ...], Row] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self.rows = {row_key(row): row for row in read_rows(self.path)}
            # A line that was cut off would spoil the one after it.
            kept, newline, cut = read_bytes(self.path).rpartition(b"\n")
            if not _BEGINNING.startswith(cut[: len(_BEGINNING)]):
                raise ResultsError(
                    f"Expected results of `edgeprune bench`; {str(self.path)!r} is none: name another folder"
                )
            os.truncate(self.path, len(kept) + len(newline))
        except OSError as error:
            raise UnwritableFile(f"Expected a folder for results; got {str(folder)!r}: {error.strerror}") from error

    def has(self, row: Row) -> bool:
        """Whether the run that begins as `row` was made, with the same versions and settings, and need not be again."""
        found = self.rows.get(row_key(row))
        same = found is not None and all(found.get(name) == row[name] for name in ("versions", "config"))
        return same and found is not None and found["outcome"] not in UNFINISHED

    def append(self, row: Row) -> None:
        """Note a run, on the disk before this returns.

        Raises:
            UnwritableFile: there is no room; the rows before it stand.
        """
        before = self.path.stat().st_size
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, before)
            raise UnwritableFile(f"Expected room for results in {str(self.path)!r}: {error.strerror}") from error
        self.rows[row_key(row)] = row


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file, without a last line that was cut off; none where there is no file.

    Raises:
        ResultsError: another line is no row.
    """
    lines = read_text(path, "a results file", ResultsError).split("\n")[:-1] if os.path.lexists(path) else []
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            checked(_Written, row)
        except ValueError as error:
            raise ResultsError(
                f"Expected a run of `edgeprune bench` a line; got {str(path)!r}, line {number}: {line[:60]!r} "
                f"({error!s:.200}); name another folder"
            ) from error
        rows.append(row)
    return rows


def digest(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def code_digest(method: str) -> str:
    """A short name for what this toolkit's files hold, and those of a method of one's own."""
    packages = [Path(str(package.__file__)).parent for package in (edgeprune, tracr_bridge)]
    files = sorted(file for package in packages for file in package.rglob("*.py"))
    if ":" in method:
        files += _files_of(method.partition(":")[0])
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _files_of(module: str) -> list[Path]:
    """The file of a module and all that it may use: its whole package, or the files beside it.

    A process of a sweep that has yet to run a method has not imported it, and need not.
    """
    package = module.partition(".")[0]
    if package in sys.modules:
        origin = getattr(sys.modules[package], "__file__", None)
    else:
        spec = find_spec(package)
        origin = spec.origin if spec is not None and spec.has_location else None
    if origin is None:
        return []
    folder = Path(origin).parent
    return sorted(folder.rglob("*.py") if Path(origin).name == "__init__.py" else folder.glob("*.py"))


@dataclass(frozen=True)
class Rate:
    """How many of some runs were exact."""

    exact: int
    runs: int
    proved: int = 0
    """Of the exact ones, those that no certificate listed: they were proved to be true by themselves."""

    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the rate (Wilson, JASA 22, 1927); 0 to 1 where nothing was run."""
        from scipy.stats import binomtest

        if not self.runs:
            return 0.0, 1.0
        interval = binomtest(self.exact, self.runs).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


def scored(rows: Iterable[Row]) -> list[Row]:
    """The rows of runs that found a circuit."""
    return [row for row in rows if row["outcome"] in ("exact", "inexact")]


def rates(rows: Iterable[Row], *by: str) -> dict[tuple[str, ...], Rate]:
    """The rate of each combination of the fields `by`; a run that failed is one that is not exact."""
    found: dict[tuple[str, ...], Rate] = {}
    for row in rows:
        if row["outcome"] not in ("exact", "inexact", "failed"):
            continue
        key = tuple(row.get(name, "") for name in by)
        before = found.get(key, Rate(0, 0))
        proved = before.proved + (row.get("proof") == "proved")
        found[key] = Rate(before.exact + (row["outcome"] == "exact"), before.runs + 1, proved)
    return found


def mean(rows: Sequence[Row], field: str) -> float | None:
    """The mean of a number over the rows that have it; None where none does."""
    values = [row[field] for row in rows if row.get(field) is not None and math.isfinite(row[field])]
    return sum(values) / len(values) if values else None


def distribution(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What the programs of `rows` are made of: how many have each construct, and how many true edges they have."""
    by_program = {(row["program"], row["text"]): row.get("constructs", []) for row in rows}
    counts = Counter(name for found in by_program.values() for name in found)
    lines = [(name, f"{counts[name]} of {len(by_program)}") for name in CONSTRUCTS]
    for ablation in dict.fromkeys(row["ablation"] for row in rows):
        true = {
            (row["program"], row["text"]): row["true"] for row in rows if row["ablation"] == ablation and "true" in row
        }
        if len(true) > 1:
            edges = sorted(true.values())
            low, _, high = quantiles(edges, n=4, method="inclusive")
            lines.append((f"true edges, {ablation}", f"{edges[0]} to {edges[-1]}, half of them {low:g} to {high:g}"))
    return lines
