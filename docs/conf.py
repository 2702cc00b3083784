"""How Sphinx builds these pages: `make docs`, without a network. `index.md` is where they begin."""

import re
from importlib.metadata import version as version_of
from typing import Any

project, author, copyright = "edgeprune", "the edgeprune authors", "the edgeprune authors"
version = release = version_of("edgeprune")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"edgeprune {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # a docstring says what is in a tensor, and pyright checks the types
autodoc_class_signature = "separated"


def _name_files_outside(app: Any, page: str, source: list[str]) -> None:
    """A link to a file that is no page becomes the name of that file: on GitHub it leads there."""
    source[0] = re.sub(r"\[`?([^\]`]*)`?\]\((\.\./)[^)]*\)", r"`\1`", source[0])


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("source-read", _name_files_outside)
