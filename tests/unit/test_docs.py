"""Pages lead where they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")})


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            where, _, anchor = target.partition("#")
            file = (page.parent / where).resolve() if where else page
            assert file.exists() and file.is_relative_to(ROOT), target
            assert not anchor or anchor in anchors(file), target


def test_every_page_is_reached_from_the_readme():
    reached, left = set[Path](), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
            left += [(page.parent / t).resolve() for t in targets if not t.startswith("http") and t.endswith(".md")]
    assert {page for page in PAGES if page.parent.name == "docs"} <= reached


def test_every_change_that_counts_as_equivalent_stands_in_the_docs_with_its_reason():
    command = [sys.executable, ROOT / "tests" / "mutants" / "mutation.py", "--equivalents"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(said.splitlines()) > 40 and (ROOT / "docs" / "mutation.md").read_text().endswith(said)
