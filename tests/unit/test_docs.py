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


@pytest.mark.parametrize("package", ["edgeprune", "tracr_bridge"])
def test_the_page_of_the_architecture_has_every_folder_and_names_files_that_are_there(package):
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.partition(f"## {package}\n")[2].partition("\n## ")[0]
    rows = [row for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE) if row.startswith("`")]
    named = [re.findall(r"`([\w/]+\.py|\w+/)`", row) for row in rows]
    for first, *others in named:
        folder = ROOT / package / first if first.endswith("/") else ROOT / package
        assert folder.is_dir()
        for file in [*others, *([] if first.endswith("/") else [first])]:
            assert (folder / file).is_file() or (folder / "edge_pruning" / file).is_file(), (first, file)
    there = {f"{each.parent.name}/" for each in (ROOT / package).glob("*/__init__.py")}
    assert {first for first, *_ in named if first.endswith("/")} == there
