"""Makes docs/gpu.md from what `on_gpu.py` measured."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

_INTRODUCTION = """# On a GPU

```
python benchmarks/on_gpu.py --out docs/gpu.json
python benchmarks/on_gpu.py --page docs/gpu.json > docs/gpu.md
```

The first measures all that is on this page, and downloads nothing; it is meant for one GPU of 80 GB and begins nothing
after eight minutes. The second makes the page of its file.
"""

_NOTHING = """
**Nothing was measured yet: no GPU has been at hand.** That the script runs from end to end is tested on a CPU, on small
shapes and with gloo in place of NCCL (`python benchmarks/on_gpu.py --rehearse`, `tests/unit/test_on_gpu.py`).
"""

_SECTIONS: Sequence[tuple[str, str, str]] = (
    (
        "agreement",
        "Beside a CPU",
        "A masked run of 4 x 16 tokens under resample ablation, and its gradient by the mask: the largest difference "
        "from single precision on a CPU, as a share of the largest value. Weights are random.",
    ),
    (
        "gpt2_small",
        "A step on the shape of GPT-2 small",
        "`step_s` is all of a step of Edge Pruning, `plain_s` a forward and backward of Hugging Face's model, in "
        "turns. Every position is scored. `peak_gb` is of both.",
    ),
    (
        "one_process",
        "One process, run as several are",
        "Weights sharded, inputs split and outputs gathered over a group of one process, beside a process without one.",
    ),
    (
        "codellama_13b",
        "The shape of CodeLlama-13B",
        "Random weights in bfloat16, 72 tokens, the last one scored, at most 80 GB; `plan_gb` is what `edgeprune plan` "
        "says of weights and a step.",
    ),
    (
        "codellama_masks",
        "Its masks alone",
        "Drawing and optimising all masks, on the CPU: in each step, whatever its inputs.",
    ),
    ("codellama_step", "Whole steps of the paper's", "A batch in so many parts, and the hours of the paper's steps."),
    ("toy_training", "Training the toy", "On the CPU of the same machine."),
    ("toy", "The toy, pruned", "`edgeprune prune` on indirect object identification, measured on the test split."),
    ("stopped", "What was stopped", "These were not measured, or not to the end."),
)


def page(found: Mapping[str, Any]) -> str:
    """Return the page, in Markdown.

    Args:
        found: what `on_gpu.py` wrote; empty if it never ran.
    """
    if not found:
        return _INTRODUCTION + _NOTHING
    memory = f" of {found['device_memory_gb']:.0f} GB" if found["device_memory_gb"] else ""
    what = f"{found['device']}{memory}, torch {found['torch']}, CUDA {found['cuda']}, {found['threads']} CPU threads"
    parts = [_INTRODUCTION, f"\nMeasured on {found['date']}: {what}.\n"]
    if found["rehearsal"]:
        parts.append("\n**A rehearsal on a CPU, on small shapes: no figure here is of a GPU.**\n")
    for section, title, text in _SECTIONS:
        if section in found:
            parts.append(f"\n## {title}\n\n{fill(text, 120)}\n\n{_table(found[section])}")
    return "".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
