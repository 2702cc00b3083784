"""Results of sweeps: a JSON-lines file with one row for each run, and statistics over its rows."""

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
"""One run; `Results` lists its fields."""

_KEY: Final = ("program", "text", "ablation", "method", "seed", "code")
"""Fields that identify a run; `text` and `code` are digests of the program's text and of the code."""


class _Written(BaseModel):
    """Schema of a row: the fields that are read back."""

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
    # Measures; None stands for a value that is not finite.
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
        """Require `edges`, `auroc` and the seconds of discovery in a row of a run that found a circuit."""
        found = self.outcome in ("exact", "inexact")
        if found and not ({"edges", "auroc"} <= self.model_fields_set and "discover" in self.seconds):
            raise ValueError("a circuit was found, and not measured")
        return self


UNFINISHED: Final = ("failed", "broken")
"""Outcomes of runs that a resumed sweep tries again: the cause may be gone."""

_BEGINNING: Final = b'{"program": '
"""The first bytes of every row."""


class ResultsError(EdgePruneError):
    """A results file cannot be read, or was not written by `edgeprune bench`."""


def row_key(row: Row) -> tuple[Any, ...]:
    """Return the values that identify a run."""
    return tuple(row[name] for name in _KEY)


class Results:
    """A folder with `results.jsonl`: its rows are read once, and new rows are appended line by line.

    A row holds the fields that identify the run (`program`, `text`, `ablation`, `method`, `seed`, `code`), its
    `outcome` and `seconds`, the `versions` and the method's `config` that it ran with, and the measures. If several
    rows are of the same run, the last one counts. The outcomes are

    - `exact`, `inexact`: the method found a true circuit, or one that is not true; `proof` says whether the certificate
      `listed` the true circuit, or whether it was `proved` to be true itself;
    - `failed`: the method raised, ran out of time, or did not return a circuit;
    - `refused`: no method could fail on this program under this ablation, so it was not run;
    - `broken`: the program cannot be compiled, or does not do what RASP says.

    Args:
        folder: created if there is none.

    Raises:
        ResultsError: the folder has a `results.jsonl` that `edgeprune bench` did not write.
        UnwritableFile: the folder or the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"
        self.rows: dict[tuple[Any, ...], Row] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self.rows = {row_key(row): row for row in read_rows(self.path)}
            # Remove a last line that was cut off: the next row would be appended to it.
            kept, newline, cut = read_bytes(self.path).rpartition(b"\n")
            if not _BEGINNING.startswith(cut[: len(_BEGINNING)]):
                raise ResultsError(
                    f"Expected results of `edgeprune bench`; {str(self.path)!r} is none: name another folder"
                )
            os.truncate(self.path, len(kept) + len(newline))
        except OSError as error:
            raise UnwritableFile(f"Expected a folder for results; got {str(folder)!r}: {error.strerror}") from error

    def has(self, row: Row) -> bool:
        """Whether the run of `row` is finished, with the same versions and settings, and need not be repeated."""
        found = self.rows.get(row_key(row))
        same = found is not None and all(found.get(name) == row[name] for name in ("versions", "config"))
        return same and found is not None and found["outcome"] not in UNFINISHED

    def append(self, row: Row) -> None:
        """Append a row; it is on the disk when this returns.

        Raises:
            UnwritableFile: the row cannot be written, for want of room for instance; earlier rows are kept.
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
    """Return the rows of a results file; an incomplete last line is skipped, and a missing file has no rows.

    Raises:
        ResultsError: another line is not a row.
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
    """Return the first 12 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def code_digest(method: str) -> str:
    """Return the first 12 hex digits of the SHA-256 of this toolkit's files, and of a custom method's files."""
    packages = [Path(str(package.__file__)).parent for package in (edgeprune, tracr_bridge)]
    files = sorted(file for package in packages for file in package.rglob("*.py"))
    if ":" in method:
        files += _files_of(method.partition(":")[0])
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _files_of(module: str) -> list[Path]:
    """Return a module's file and those that it may import: its whole package, or the files beside it.

    The module need not be imported: a process that has not run the method yet has not imported it.
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
    """The number of exact runs among some runs."""

    exact: int
    runs: int
    proved: int = 0
    """Exact runs whose circuit no certificate listed: it was proved to be true itself."""

    def interval(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of the rate (Wilson, JASA 22, 1927); (0, 1) without runs."""
        from scipy.stats import binomtest

        if not self.runs:
            return 0.0, 1.0
        interval = binomtest(self.exact, self.runs).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)


def scored(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the runs that found a circuit."""
    return [row for row in rows if row["outcome"] in ("exact", "inexact")]


def rates(rows: Iterable[Row], *by: str) -> dict[tuple[str, ...], Rate]:
    """Return the rate for each combination of the fields `by`; a failed run counts as not exact."""
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
    """Return the mean of a field over the rows in which it is a finite number; None if there are none."""
    values = [row[field] for row in rows if row.get(field) is not None and math.isfinite(row[field])]
    return sum(values) / len(values) if values else None


def distribution(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return lines on the programs of `rows`: how many use each RASP construct, and how many true edges they have."""
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
