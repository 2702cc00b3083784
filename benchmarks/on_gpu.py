"""All measurements that need a GPU, in one run on one GPU of 80 GB: no download, no section begun after eight minutes.

    python benchmarks/on_gpu.py --out docs/gpu.json              measure; the file is written anew with every figure
    python benchmarks/on_gpu.py --page docs/gpu.json > docs/gpu.md     print the page of what was measured
    python benchmarks/on_gpu.py --rehearse                       the same code on a CPU, on small shapes

Measures masked logits and gradients against a CPU's; a step of Edge Pruning against a plain forward and backward on the
shape of GPT-2 small; steps on the shape of CodeLlama-13B with random weights, against `edgeprune plan`; one process
under NCCL against one without; and the toy, pruned for 3,000 steps. A run that is cut off keeps the figures that it had
written. Exits 2 without a GPU.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from codellama_plan import CODELLAMA_13B
from on_gpu_page import page
from steps import masks_run, measure, random_run
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from edgeprune.files.store import write_text
from edgeprune.methods.edge_pruning.configurations import PAPER
from edgeprune.methods.edge_pruning.engine import Pruning
from edgeprune.models.load import KINDS
from edgeprune.models.sharded import shard
from edgeprune.models.transformer import Transformer
from edgeprune.parallel import ALONE, Ranks
from edgeprune.runs.config import RunConfig
from edgeprune.runs.prune import evaluate_run, prune
from edgeprune.runs.step_cost import step_cost
from edgeprune.tasks import Sizes
from edgeprune.toys import ToyConfig
from edgeprune.toys.train import train_toy

SECONDS = 480.0
"""Seconds of the whole run after which no section begins; sections left out are named in the file."""

GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Device and sizes of everything that is measured."""

    device: str = "cuda"
    backend: str = "cpu:gloo,cuda:nccl"
    memory: int = 80 * GIGABYTE
    """Largest memory in bytes for CodeLlama's shape, even if the GPU has more."""

    gpt2: GPT2Config
    gpt2_batch: tuple[int, int] = (32, 64)
    """Inputs in a batch, and tokens of each input."""

    llama: LlamaConfig
    llama_tokens: int = 72
    llama_inputs: tuple[int, ...] = (1, 4, 8, 11, 16, 32)
    """Numbers of inputs in one batch; tried in order until one does not fit."""

    examples: int = 32
    """Inputs in a step of the paper's run."""

    steps: int = 6000
    """Optimiser steps of the paper's run on CodeLlama-13B."""

    toy: ToyConfig
    toy_steps: int = 3000


FULL = Scale(
    gpt2=GPT2Config(),
    llama=CODELLAMA_13B,
    toy=ToyConfig(),
)
SMALL_GPT2 = GPT2Config(
    n_layer=2, n_head=4, n_embd=64, n_positions=64, vocab_size=101, bos_token_id=None, eos_token_id=None
)
SMALL_LLAMA = LlamaConfig(
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size=64,
    intermediate_size=128,
    vocab_size=101,
)
REHEARSAL = Scale(
    device="cpu",
    backend="gloo",
    gpt2=SMALL_GPT2,
    gpt2_batch=(2, 8),
    llama=SMALL_LLAMA,
    llama_tokens=8,
    llama_inputs=(1, 2),
    examples=4,
    toy=ToyConfig(layers=1, heads=2, width=8, steps=3, batch_size=4),
    toy_steps=4,
)


class Record:
    """The figures measured so far, in a file that is complete at any time."""

    def __init__(self, path: Path, scale: Scale) -> None:
        self.path, self.begun = path, time.perf_counter()
        on_gpu = scale.device == "cuda"
        device = torch.cuda.get_device_properties(0) if on_gpu else None
        self.found: dict[str, Any] = {
            "rehearsal": not on_gpu,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "device": device.name if device else platform.processor() or "a CPU",
            "device_memory_gb": device.total_memory / GIGABYTE if device else None,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "threads": torch.get_num_threads(),
        }
        self.save()

    def note(self, section: str, **figures: Any) -> None:
        """Add a row to a section, and write the file."""
        self.found.setdefault(section, []).append(figures)
        print(f"{time.perf_counter() - self.begun:5.0f} s  {section}: {json.dumps(figures)}", file=sys.stderr)
        self.save()

    def save(self) -> None:
        """Write the file anew."""
        write_text(self.path, json.dumps(self.found, indent=1) + "\n")

    def run(self, section: str, measured: Callable[[], None]) -> None:
        """Run a section and record its seconds; an error is recorded too, and does not stop the sections after it."""
        start = time.perf_counter()
        if start - self.begun > SECONDS:
            self.note("stopped", what=section, why=f"not begun after {SECONDS:.0f} s")
            return
        try:
            measured()
        except Exception as error:
            self.note("stopped", what=section, why=f"{type(error).__name__}: {error!s:.300}")
        self.found.setdefault("seconds", {})[section] = time.perf_counter() - start
        self.save()


def make(config: Any, device: str, precision: str, ranks: Ranks = ALONE) -> tuple[Any, Transformer]:
    """Return Hugging Face's model with random weights, and the adapter over it."""
    torch.manual_seed(0)
    with torch.device(device):
        theirs: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision)).eval()
    kind = KINDS[config.model_type]
    if ranks.several:
        shard(theirs, list(theirs.get_submodule(kind.layers)), ranks, torch.device(device))
    return theirs, kind.adapter(theirs, ranks)


def logits_and_gradient(model: Transformer) -> tuple[Tensor, Tensor]:
    """Return logits and mask gradient of a resample run; inputs and mask are the same for all models of one shape."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(model.vocabulary_size, (2, 4, 16), generator=generator)
    mask = torch.rand(1, len(model.graph.sources), len(model.graph.destinations), generator=generator).requires_grad_()
    logits = model(clean, mask, model.sources(corrupted))
    logits.float().log_softmax(-1)[..., 0].sum().backward()
    assert mask.grad is not None
    return logits.detach().float().cpu(), mask.grad.cpu()


def apart(ours: Tensor, reference: Tensor) -> float:
    """Return the largest difference, as a share of the largest value of `reference`."""
    return float((ours - reference).abs().max() / reference.abs().max())


def agreement(record: Record, scale: Scale) -> None:
    """Compare the same weights, inputs and masks on the device and on the CPU, which runs in single precision."""
    for name, config in (("gpt2", SMALL_GPT2), ("llama", SMALL_LLAMA), ("gpt2 small", scale.gpt2)):
        theirs, model = make(config, "cpu", "float32")
        expected = logits_and_gradient(model)
        for precision in ("float32", "bfloat16"):
            theirs.to(device=scale.device, dtype=getattr(torch, precision))
            found = logits_and_gradient(KINDS[config.model_type].adapter(theirs))
            logits, gradient = (apart(*each) for each in zip(found, expected, strict=True))
            record.note("agreement", model=name, precision=precision, logits=logits, gradient=gradient)


@contextmanager
def peak(device: str) -> Generator[dict[str, float | None]]:
    """Put the peak memory allocated on the GPU inside the context into `peak_gb`, in GB; None without a GPU."""
    found = dict[str, float | None]()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    found["peak_gb"] = torch.cuda.max_memory_allocated() / GIGABYTE if device == "cuda" else None


def gpt2_small(record: Record, scale: Scale) -> None:
    """Time a step against a plain forward and backward, with every position scored."""
    inputs, tokens = scale.gpt2_batch
    for precision in ("float32", "bfloat16"):
        with peak(scale.device) as memory:
            measured = measure(*make(scale.gpt2, scale.device, precision), inputs, tokens)
        figures = {name: measured[name] for name in ("ratio", "step_s", "plain_s")}
        record.note("gpt2_small", precision=precision, inputs=inputs, tokens=tokens, **figures, **memory)


def codellama(record: Record, scale: Scale) -> None:
    """Time steps of more and more inputs while they fit, then masks alone, then steps of the paper's batch in parts."""
    if scale.device == "cuda":
        share = min(1.0, scale.memory / torch.cuda.get_device_properties(0).total_memory)
        torch.cuda.set_per_process_memory_fraction(share)
    _, model = make(scale.llama, scale.device, "bfloat16")
    fitted = 0
    for inputs in scale.llama_inputs:
        planned = step_cost(scale.llama, inputs, scale.llama_tokens, precision="bfloat16", device=scale.device)
        plan_gb = (planned.weights + planned.memory) / GIGABYTE
        try:
            with peak(scale.device) as memory:
                seconds = timed(make_run(model, inputs, scale.llama_tokens, parts=1).advance, rounds=2)
        except torch.OutOfMemoryError:
            record.note("codellama_13b", inputs=inputs, fits=False, plan_gb=plan_gb)
            break
        fitted = inputs
        record.note("codellama_13b", inputs=inputs, fits=True, step_s=seconds, plan_gb=plan_gb, **memory)
    if not fitted:
        return
    record.note("codellama_masks", step_s=timed(masks_run(model.graph).advance, rounds=2))
    parts = -(-scale.examples // fitted)
    whole = timed(make_run(model, scale.examples, scale.llama_tokens, parts=parts).advance, rounds=1)
    hours = whole * scale.steps / 3600
    record.note("codellama_step", inputs=scale.examples, parts=parts, step_s=whole, steps=scale.steps, hours=hours)


def make_run(model: Transformer, inputs: int, tokens: int, *, parts: int) -> Pruning:
    """Return a run of `edgeprune prune` under resample ablation on random inputs, scored at the last token of each."""
    return random_run(model, inputs, tokens, positions=torch.full((inputs, 1), tokens - 1), parts=parts)


def timed(step: Callable[[], object], *, rounds: int) -> float:
    """Return a step's mean seconds after a first one. It ends with numbers on the CPU, so no GPU work is pending."""
    step()
    start = time.perf_counter()
    for _ in range(rounds):
        step()
    return (time.perf_counter() - start) / rounds


def nccl(record: Record, scale: Scale) -> None:
    """Compare one process that shards, gathers and sums as several do with one that does not."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(scale.backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            for config in (SMALL_GPT2, SMALL_LLAMA):
                alone, grouped = (
                    logits_and_gradient(make(config, scale.device, "float32", ranks)[1])
                    for ranks in (ALONE, Ranks(grouped=True))
                )
                logits, gradient = (apart(*each) for each in zip(grouped, alone, strict=True))
                record.note(
                    "one_process", backend=scale.backend, model=config.model_type, logits=logits, gradient=gradient
                )
        finally:
            dist.destroy_process_group()


def toy(record: Record, scale: Scale, folder: Path | None) -> None:
    """Train the toy on the CPU unless a folder is given; prune it as `edgeprune prune` does; measure the test split."""
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        if folder is None:
            trained = train_toy(here / "toy", config=scale.toy)
            record.note("toy_training", accuracy=trained.accuracy, seconds=trained.seconds)
        pruning = replace(PAPER, steps=scale.toy_steps)
        sizes = Sizes() if scale is FULL else Sizes(train=8, validation=4, test=4)
        asked = RunConfig(model=str(folder or here / "toy"), task="ioi", pruning=pruning, sizes=sizes)
        start = time.perf_counter()
        saved = prune(asked, here / "run", device=scale.device).saved
        seconds = time.perf_counter() - start
        measured = evaluate_run(here / "run", device=scale.device)[1]["circuit"]
        record.note("toy", steps=scale.toy_steps, seconds=seconds, total=saved.circuit.graph.total, **asdict(measured))


def main() -> int:
    """Run all sections, or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("on_gpu.json"), help="where figures go (default: on_gpu.json)")
    parser.add_argument("--toy", type=Path, help="a folder that `edgeprune train-toy` wrote (default: train one)")
    parser.add_argument("--rehearse", action="store_true", help="small shapes on the CPU, to see that all of it runs")
    parser.add_argument("--page", type=Path, metavar="JSON", help="print the page of what was measured")
    options = parser.parse_args()
    if options.page:
        print(page(json.loads(options.page.read_text())), end="")
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        print("Expected a GPU; torch sees none here. --rehearse runs the same code on a CPU", file=sys.stderr)
        return 2
    scale = REHEARSAL if options.rehearse else FULL
    record = Record(options.out, scale)
    sections = {
        "agreement": agreement,
        "gpt2_small": gpt2_small,
        "one_process": nccl,
        "codellama_13b": codellama,
        "toy": partial(toy, folder=options.toy),
    }
    for name, section in sections.items():
        record.run(name, partial(section, record, scale))
    return 1 if "stopped" in record.found else 0


if __name__ == "__main__":
    sys.exit(main())
