"""A program as a Hugging Face checkpoint with a known circuit: a folder that loads without us.

It holds the model in safetensors, a tokenizer, and `circuit.json`: what the program is, what each logit column stands
for, its whole domain with RASP's own outputs, and under each ablation the true circuit with its certificate. All of it
is checked on the model as it lies in the folder: outputs against RASP, as plain transformers gives them, and circuits
by running masks through the adapter that prunes such models.
"""

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from tqdm import tqdm
from tracr.compiler import compiling
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram, ModelError, UnsupportedProgram
from edgeprune.graph import ABLATIONS, Ablation, Circuit, Edge, compare
from edgeprune.metrics import largest_difference
from edgeprune.models.load import load_model, without_bars
from edgeprune.models.transformer import Transformer
from edgeprune.store import CircuitFileError, UnwritableFile, load_json, versions, write_text
from tracr_bridge.compile import Compiled
from tracr_bridge.judge import Judge
from tracr_bridge.model import structural_mask
from tracr_bridge.program import Program
from tracr_bridge.report import certificate_json
from tracr_bridge.transplant import Family, Transplant, transplant
from tracr_bridge.truth import derive_truth, is_true_circuit
from tracr_bridge.verify import VALUE_ATOL, compile_and_verify

FORMAT: Final = "edgeprune export 1"

_BATCH: Final = 1024
"""Inputs run at a time."""

_BOS: Final = compiling.COMPILER_BOS
_PAD: Final = compiling.COMPILER_PAD


@dataclass(frozen=True)
class Exported:
    """What lies in a folder."""

    folder: Path
    family: Family
    model: Transformer
    """As the adapter gives it."""

    dataset: Dataset
    """The program's domain, with the model's own outputs."""

    circuits: Mapping[Ablation, tuple[Circuit, ...]]
    """The true circuits under each ablation, smallest first; none where nothing could fail under it."""

    content: Mapping[str, Any]
    """`circuit.json`."""

    def is_true(self, found: Circuit) -> bool:
        """Whether a circuit is true: one of those listed, or, where they may not be all, proved to be by running it.

        Raises:
            CircuitMismatch: it is of another graph.
        """
        known = self.circuits[found.ablation]
        for circuit in known:
            if compare(found, circuit).exact:
                return True
        certificate = self.content["circuits"][found.ablation].get("certificate", {"status": "unique"})
        if certificate["status"] == "unique":
            return False
        judge = Judge(self.model, self.dataset, found.ablation, atol=certificate["atol"])
        return is_true_circuit(judge, self.model.graph, found.edges)


def export(program: Program, family: Family, out: Path, *, seed: int = 0, progress: bool = False) -> Exported:
    """Write `program` as a checkpoint of that family.

    Args:
        program: a causal one.
        family: of the model.
        out: the folder to make; it appears when all of it is there.
        seed: of certification.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        EdgePruneError: the program is unusable.
        UnsupportedProgram: it is not causal, or the model does not do what RASP says.
        UnwritableFile: the folder exists, or cannot be made.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UnwritableFile(f"Expected a folder that is empty or does not exist; got {str(out)!r}")
    compiled = compile_and_verify(program, seed=seed)
    ids: dict[Any, int] = compiled.assembled.input_encoder.encoding_map  # pyright: ignore
    occurring = [ids[token] for token in (_BOS, *program.vocab)]
    made = transplant(compiled.model.weights, family, occurring, bos_id=ids[_BOS])
    names = _names(program.vocab)
    unfinished = out.with_name(f".{uuid.uuid4().hex}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with without_bars():
            made.model.save_pretrained(unfinished)
        _tokenizer({_BOS: ids[_BOS], _PAD: ids[_PAD]} | {names[t]: ids[t] for t in program.vocab}).save_pretrained(
            unfinished
        )
        content = _certified(compiled, made, family, unfinished, seed=seed, progress=progress)
        write_text(unfinished / "circuit.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except OSError as error:
        raise UnwritableFile(f"Expected a folder that can be made; got {str(out)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return load_exported(out)


def load_exported(folder: Path) -> Exported:
    """What `export` wrote; nothing is compiled.

    Raises:
        CircuitFileError: there is no such file, or it is none.
        ModelError: the model cannot be loaded, or is not the one that its circuit is of.
    """
    content = load_json(folder / "circuit.json")
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        model, tokenizer = load_model(str(folder))
        if [str(node) for node in model.graph.sources] != content["graph"]["sources"]:
            raise ModelError(f"Expected the model that {str(folder / 'circuit.json')!r} is of; its graph is another")
        dataset = _dataset(model, tokenizer, content)
        circuits: dict[Ablation, tuple[Circuit, ...]] = {
            ablation: tuple(
                Circuit(model.graph, ablation, frozenset(map(Edge.parse, edges)))
                for edges in content["circuits"][ablation].get("certificate", {"circuits": []})["circuits"]
            )
            for ablation in ABLATIONS
        }
        return Exported(folder, content["family"], model, dataset, circuits, content)
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        where = str(folder / "circuit.json")
        raise CircuitFileError(f"Expected what `edgeprune export` writes in {where!r}; {error!r:.200}") from error


def _certified(
    compiled: Compiled, made: Transplant, family: Family, folder: Path, *, seed: int, progress: bool
) -> dict[str, Any]:
    """What `circuit.json` says, all of it found on the model in the folder."""
    adapter, tokenizer = load_model(str(folder))
    program, names = compiled.program, _names(compiled.program.vocab)
    inputs = [[names[token] for token in tokens] for tokens in compiled.domain.inputs]
    content: dict[str, Any] = {
        "format": FORMAT,
        "program": {"name": program.name, "doc": program.doc, "vocabulary": [names[token] for token in program.vocab]},
        "family": family,
        "graph": {
            "sources": [str(node) for node in adapter.graph.sources],
            "destinations": [str(node) for node in adapter.graph.destinations],
        },
        "outputs": {
            "kind": "categorical" if compiled.categorical else "numerical",
            "columns": list(map(_plain, compiled.output_values)) if compiled.categorical else ["the value itself"],
        },
        "domain": {
            "exhaustive": compiled.domain.exhaustive,
            "inputs": [" ".join(tokens) for tokens in inputs],
            "expected": [list(map(_plain, output)) for output in compiled.expected],
        },
    }
    dataset = _dataset(adapter, tokenizer, content)
    content["max_abs_diff"] = _check_outputs(compiled, folder, dataset)
    return content | {
        "circuits": _certify(adapter, dataset, made, compiled, seed=seed, progress=progress),
        "versions": dict(versions()),
    }


def _certify(
    model: Transformer, dataset: Dataset, made: Transplant, compiled: Compiled, *, seed: int, progress: bool
) -> dict[str, Any]:
    """The true circuits under each ablation, or why there are none."""
    circuits, read = dict[str, Any](), list(map(torch.from_numpy, made.read))
    possible = structural_mask(model.graph, made.written, made.read)
    structural = frozenset(edge for edge in model.graph.edges if possible[model.graph.position(edge)])
    for ablation in tqdm(ABLATIONS, desc="certifying", disable=None if progress else True):
        try:
            truth = derive_truth(
                model,
                dataset,
                structural,
                read,
                ablation,
                name=compiled.program.name,
                whole_domain=compiled.domain.exhaustive,
                seed=seed,
            )
        except DegenerateProgram as error:
            circuits[ablation] = {"edges": [], "refused": str(error)}
        else:
            circuits[ablation] = {"edges": truth.circuit.names(), "certificate": certificate_json(truth.certificate)}
    return circuits


def _check_outputs(compiled: Compiled, folder: Path, dataset: Dataset) -> float:
    """The largest difference of outputs from the compiled program's, once plain transformers gives RASP's.

    Raises:
        UnsupportedProgram: it does not, or the adapter gives others.
    """
    with without_bars():
        plain: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens, program = dataset.tokens, compiled.program.name
    with torch.no_grad():
        logits = torch.cat([plain(some, attention_mask=torch.ones_like(some)).logits for some in tokens.split(_BATCH)])
        wanted = torch.cat([compiled.model(some) for some in tokens.split(_BATCH)])
    for row, output in enumerate(compiled.expected):
        for position, value in enumerate(output):
            if value is not None and not _says(compiled, logits[row, position + 1], value):
                raise UnsupportedProgram(
                    f"Expected a model that does what {program} says; on input {compiled.domain.inputs[row]} it "
                    f"differs at position {position}, where RASP gives {value!r}"
                )
    rows = torch.arange(len(tokens))
    beside = float(largest_difference(logits, dataset.target[rows], dataset.scored).max())
    if not beside <= VALUE_ATOL:
        raise UnsupportedProgram(
            f"Expected the outputs of plain transformers from the adapter of {program}; they differ by {beside:.3g}"
        )
    return float(largest_difference(logits[..., : wanted.shape[-1]], wanted, dataset.scored).max())


def _says(compiled: Compiled, logits: Float[Tensor, " column"], value: Any) -> bool:
    """Whether logits stand for a value."""
    if not compiled.categorical:
        return abs(float(logits[0]) - value) <= VALUE_ATOL
    best = int(logits.argmax())
    return best < len(compiled.output_values) and compiled.output_values[best] == value


def _dataset(model: Transformer, tokenizer: Any, content: Mapping[str, Any]) -> Dataset:
    """The domain, as the tokenizer reads it and with the model's own outputs."""
    rows: list[list[int]] = [tokenizer(text)["input_ids"] for text in content["domain"]["inputs"]]
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), tokenizer.pad_token_id)
    scored = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, (row, output) in enumerate(zip(rows, content["domain"]["expected"], strict=True)):
        tokens[number, : len(row)] = torch.tensor(row)
        scored[number, 1 : len(output) + 1] = torch.tensor([value is not None for value in output])
    lengths = torch.tensor(list(map(len, rows)))
    with torch.no_grad():
        target = torch.cat([model(some) for some in tokens.split(_BATCH)])
    return Dataset(
        tokens=tokens,
        scored=scored,
        target=target,
        group=lengths.unique(return_inverse=True)[1],
        logits=content["outputs"]["kind"] == "categorical",
    )


def _names(vocabulary: Sequence[Any]) -> dict[Any, str]:
    """A word for each token of a program, all different and without a space."""
    for words in (list(map(str, vocabulary)), list(map(repr, vocabulary))):
        taken = {_BOS, _PAD}
        if len(set(words) - taken) == len(words) and all(word.split() == [word] for word in words):
            return dict(zip(vocabulary, words, strict=True))
    return {token: f"token{number}" for number, token in enumerate(vocabulary)}


def _plain(value: Any) -> Any:
    """A value as JSON has it, or what it looks like."""
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def _tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """One token a word, BOS first."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, vocabulary[_BOS])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_BOS, pad_token=_PAD, unk_token=_PAD)
