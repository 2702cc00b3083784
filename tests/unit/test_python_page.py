"""docs/python.md: its code runs, and it has everything that is public."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edgeprune as ep

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()


@pytest.fixture(scope="module")
def page():
    """What the code of the page leaves behind, a block after the other."""
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), names)
    return names


def test_the_code_of_the_page_runs(page):
    assert page["truth"].circuit.ablation == "zero" and len(page["truth"].circuit) > 5
    assert page["found"].circuit.ablation == "resample" and 0 < len(page["learned"].circuit) < 6


def test_every_public_name_is_on_the_page_and_can_be_had():
    shown = set(re.findall(r"ep\.(\w+)", PAGE)) - {"__all__"}
    assert shown <= set(ep.__all__)
    assert {*ep.__all__} - shown == set()
    assert all(getattr(ep, name) is not None for name in ep.__all__)


def test_nothing_heavy_is_loaded_before_it_is_used():
    heavy = "{'torch', 'numpy', 'jax', 'transformers'}"
    code = f"import sys, edgeprune as ep; ep.Circuit; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'edgeprune' has no attribute 'nothing'"):
        _ = ep.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_the_model_of_the_page_mixes_each_edge(page):
    model, tokens, corrupted = page["model"], page["tokens"], page["corrupted"]
    other, mask = model.sources(corrupted), torch.rand(4, 3, 3)

    def edge(z, row, column, value):
        return z[row, column] * value + (1 - z[row, column]) * other[row]

    for z, outputs in zip(mask, model(tokens, mask, other), strict=True):
        embed = model.embed(tokens)
        first = model.mlps[0](edge(z, 0, 0, embed))
        second = model.mlps[1](edge(z, 0, 1, embed) + edge(z, 1, 1, first))
        read = edge(z, 0, 2, embed) + edge(z, 1, 2, first) + edge(z, 2, 2, second)
        torch.testing.assert_close(outputs, model.unembed(read))
