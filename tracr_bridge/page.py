"""A recovery as a picture, and as a page that opens offline."""

import io
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from edgeprune.draw import draw_comparison
from edgeprune.store import write_atomically
from tracr_bridge.recover import Recovery
from tracr_bridge.report import edge_rows, summary_rows


def recovery_figure(recovery: Recovery) -> Figure:
    """The circuit found, drawn beside the truth."""
    graph = recovery.assessment.reference.graph
    title = f"{recovery.program.name}, {recovery.assessment.reference.ablation} ablation, {recovery.method}"
    return draw_comparison(graph, recovery.discovery.circuit.edges, recovery.assessment.comparison, title)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left; }
td:first-child { font-family: ui-monospace, monospace; }
svg { max-width: 100%; height: auto; }
</style>
<h1>{{ title }}</h1>
<p>{{ doc }}</p>
<table>{% for fact, value in summary %}<tr><td>{{ fact }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
{{ picture | safe }}
<table><tr><th>edge</th><th>true</th><th>found</th><th>score</th></tr>
{% for row in edges %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
</html>
"""


def write_page(recovery: Recovery, path: Path) -> None:
    """One self-contained HTML page that opens offline: summary, picture and edges.

    Raises:
        UnwritableFile: it cannot be written there.
    """
    picture = io.StringIO()
    recovery_figure(recovery).savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    page = (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            title=f"{recovery.program.name}, {recovery.assessment.reference.ablation} ablation",
            doc=recovery.program.doc,
            summary=summary_rows(recovery),
            picture=svg[svg.index("<svg") :],
            edges=edge_rows(recovery),
        )
    )
    write_atomically(path, lambda file: file.write(page.encode()))
