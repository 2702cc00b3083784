"""The rows of a sweep as a table and as pictures: each method's exact runs, how well it ranks edges, what it costs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from matplotlib.figure import Figure

from edgeprune.files.store import write_text
from edgeprune.metrics.conventions import noted
from edgeprune.pictures.draw import save_figure
from tracr_bridge.bench.results import Row, distribution, mean, rates, scored

__all__ = ["as_json", "distribution", "outcomes", "table", "write"]

COLUMNS: Final = {
    "precision": "precision",
    "recall": "recall",
    "iou": "IoU",
    "node_iou": "node IoU",
    "auroc": "AUROC",
    "best_threshold_exact": "best threshold: exact",
    "best_threshold_iou": "best threshold: IoU",
    "faithfulness": "faithfulness",
    "completeness": "completeness",
    "minimality": "minimality",
    "cpr": "CPR",
    "cmd": "CMD",
}
"""Measures that are averaged over runs, each with its heading; `edgeprune/evaluation/measures.py` defines them."""

FEW: Final = ("iou", "auroc")
"""The measures that fit into a terminal."""


_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Leaderboard</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1.5rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
td, th { border: 1px solid #d8d8dc; padding: .2rem .6rem; text-align: left; white-space: nowrap; }
svg { max-width: 100%; height: auto; margin: 1.5rem 0; }
</style>
<h1>Leaderboard</h1>
<p>{{ says }}</p>
<table><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for line in lines %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for picture in pictures %}<svg{{ picture | safe }}{% endfor %}
</html>
"""


def outcomes(rows: Iterable[Row]) -> Counter[str]:
    """Return the number of runs with each outcome; `results.Results` lists the outcomes."""
    return Counter(row["outcome"] for row in rows)


def table(
    rows: Sequence[Row], columns: Sequence[str] = tuple(COLUMNS)
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the headings, and one line for each method and ablation; the most exact method comes first."""
    headings = ("method", "ablation", "exact", "proved", "95 % interval", "failed")
    headings = (*headings, *(COLUMNS[name] for name in columns), "seconds")
    lines: list[tuple[str, ...]] = []
    overall = rates(rows, "method")
    by_both = rates(rows, "method", "ablation")
    order = sorted(overall, key=lambda key: (-overall[key].exact / overall[key].runs, key))
    for method, ablation in sorted(by_both, key=lambda key: (order.index(key[:1]), key[1])):
        rate = by_both[method, ablation]
        low, high = rate.interval()
        mine = [row for row in scored(rows) if row["method"] == method and row["ablation"] == ablation]
        averages = [mean(mine, field) for field in columns]
        seconds = mean([row["seconds"] for row in mine], "discover")
        lines.append(
            (
                method,
                ablation,
                f"{rate.exact}/{rate.runs}",
                str(rate.proved),
                f"{low:.1%} to {high:.1%}",
                str(outcomes(row for row in rows if (row["method"], row["ablation"]) == (method, ablation))["failed"]),
                *("" if value is None else f"{value:.3f}" for value in averages),
                "" if seconds is None else f"{seconds:.2f}",
            )
        )
    return headings, lines


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the rates by method, ablation and certificate status, the programs' constructs, and all runs not exact."""
    listed = [
        {
            "method": method,
            "ablation": ablation,
            "status": status,
            "exact": rate.exact,
            "proved": rate.proved,
            "runs": rate.runs,
            "interval": rate.interval(),
        }
        for (method, ablation, status), rate in sorted(rates(rows, "method", "ablation", "status").items())
    ]
    counts = outcomes(rows)
    return {
        "rates": listed,
        "refused": counts["refused"],
        "broken": counts["broken"],
        "failed": counts["failed"],
        "failures": [row for row in rows if row["outcome"] in ("inexact", "failed", "broken")],
        "distribution": dict(distribution(rows)),
    } | noted(*_ablations(rows))


def _ablations(rows: Iterable[Row]) -> set[str]:
    return {row["ablation"] for row in rows}


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write `leaderboard.md` with its pictures, and `leaderboard.html`, which embeds the pictures and opens offline.

    Raises:
        UnwritableFile: the folder cannot be written.
    """
    headings, lines = table(rows)
    counts = outcomes(rows)
    programs = len({(row["program"], row["text"]) for row in rows})
    text = [
        f"{len(rows)} runs on {programs} programs; {counts['refused']} refused, as nothing could fail on them, "
        f"{counts['broken']} broken, as their program was. A run that failed is one that is not exact. Exact runs "
        "found a circuit that the certificate lists; as many as are proved found another one, which was proved to be "
        "true itself. Means are over runs that found a circuit and have the measure (nothing has no minimality); "
        "`edgeprune/evaluation/measures.py` defines each column.",
        "",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(line)} |" for line in lines),
        "",
        *(f"{note}\n" for note in noted(*_ablations(rows)).values()),
    ]
    pictures: list[str] = []
    for name, draw in {"exact": _exact, "auroc": _auroc, "seconds": _seconds}.items() if lines else ():
        save_figure(draw(rows), folder / f"{name}.svg")
        text.append(f"![{name}]({name}.svg)")
        pictures.append((folder / f"{name}.svg").read_text(encoding="utf-8").partition("<svg")[2])
    write_text(folder / "leaderboard.md", "\n".join(text) + "\n")
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    says = " ".join([text[0], *noted(*_ablations(rows)).values()])
    write_text(folder / "leaderboard.html", page.render(says=says, head=headings, lines=lines, pictures=pictures))


def _methods(rows: Sequence[Row]) -> list[str]:
    """Return the methods, the most exact first."""
    return list(dict.fromkeys(line[0] for line in table(rows)[1]))


def _exact(rows: Sequence[Row]) -> Figure:
    """Draw the share of exact runs of each method, with its 95 % interval."""
    methods, found = _methods(rows), rates(rows, "method", "ablation")
    figure, axes = _axes("share of runs exact", len(methods))
    ablations = sorted({ablation for _, ablation in found})
    for number, ablation in enumerate(ablations):
        shown = [(place, found[m, ablation]) for place, m in enumerate(methods) if (m, ablation) in found]
        height = 0.8 / len(ablations)
        shares = [rate.exact / rate.runs for _, rate in shown]
        spans = [rate.interval() for _, rate in shown]
        errors = [
            [max(0, share - low) for share, (low, _) in zip(shares, spans, strict=True)],
            [max(0, high - share) for share, (_, high) in zip(shares, spans, strict=True)],
        ]
        places = [place - 0.4 + height * (number + 0.5) for place, _ in shown]
        axes.barh(places, shares, height, xerr=errors, label=ablation, hatch=("", "//", "..")[number % 3], alpha=0.8)
    _name_methods(axes, methods)
    axes.set_xlim(0, 1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _auroc(rows: Sequence[Row]) -> Figure:
    """Draw the distribution of AUROC over the runs of each method."""
    methods = _methods(rows)
    figure, axes = _axes("AUROC, half of runs in the box", len(methods))
    for place, method in enumerate(methods):
        values = [row["auroc"] for row in scored(rows) if row["method"] == method and row["auroc"] is not None]
        if values:
            axes.boxplot(values, positions=[place], orientation="horizontal", widths=0.6, flierprops={"markersize": 3})
    _name_methods(axes, methods)
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    return figure


def _seconds(rows: Sequence[Row]) -> Figure:
    """Draw the seconds of each discovery against the number of edges of the graph."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(_methods(rows)):
        mine = [row for row in scored(rows) if row["method"] == method]
        places = [row["edges"] for row in mine]
        marker = "osv^D*Pxph<>"[number % 12]
        axes.scatter(places, [row["seconds"]["discover"] for row in mine], s=14, marker=marker, label=method, alpha=0.7)
    if scored(rows):  # an empty plot has no logarithmic scale
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel("edges of the graph")
    axes.set_ylabel("seconds")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    return figure


def _axes(label: str, methods: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 1 + 0.4 * methods), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(label)
    return figure, axes


def _name_methods(axes: Any, methods: Sequence[str]) -> None:
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
