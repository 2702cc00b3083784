"""Writes a program as a Hugging Face checkpoint with a known circuit: a folder that loads without this toolkit.

The folder holds the model in safetensors, a tokenizer, a task for `edgeprune prune`, and `circuit.json`: the program,
the meaning of each logit column, the domain with RASP's own outputs, and under each ablation the true circuit with its
certificate. Everything is checked on the model loaded from the folder. Outputs are those of plain transformers,
compared with RASP's. Circuits are certified by running masks through the adapter that also prunes such models, in
single precision and again in double.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from tqdm import tqdm
from tracr.compiler import compiling
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from edgeprune.data import Dataset
from edgeprune.errors import DegenerateProgram, InterpreterError, UnsupportedProgram
from edgeprune.files.folders import new_folder
from edgeprune.files.store import UnwritableFile, versions, write_json, write_text
from edgeprune.graph import ABLATIONS, Ablation, Edge, edge_names
from edgeprune.metrics.distances import largest_difference
from edgeprune.models.load import load_model, without_bars
from edgeprune.models.transformer import Transformer
from tracr_bridge.certify.faithfulness import Judge
from tracr_bridge.certify.summary import certificate_json
from tracr_bridge.certify.truth import derive_truth, is_true
from tracr_bridge.checkpoints.read_back import (
    BATCH,
    FORMAT,
    Exported,
    dataset_of,
    digest_of,
    digest_of_file,
    graph_json,
    load_exported,
)
from tracr_bridge.checkpoints.task_file import TASK, task_text
from tracr_bridge.checkpoints.transplant import LARGE, Family, Transplant, transplant
from tracr_bridge.compile.catalogue import catalogue
from tracr_bridge.compile.compile import INPUT_BUDGET, Compiled
from tracr_bridge.compile.model import structural_mask
from tracr_bridge.compile.program import Program, check_interpreter
from tracr_bridge.compile.verify import VALUE_ATOL, compile_and_verify

_CLOSE: Final = 1e-3
"""Largest allowed difference of logits from the compiled program's: a tenth of a certificate's tolerance."""

_BOS: Final = compiling.COMPILER_BOS
_PAD: Final = compiling.COMPILER_PAD


def export(program: Program, family: Family, out: Path, *, seed: int = 0, progress: bool = False) -> Exported:
    """Write `program` as a checkpoint of that family.

    Args:
        program: a causal program.
        family: the kind of model.
        out: the folder to create, inside an existing one; it appears once it is complete.
        seed: seed of certification.
        progress: show a progress bar on standard error, if that is a terminal.

    Raises:
        EdgePruneError: the program is unusable.
        UnsupportedProgram: it is not causal, its numbers are too large, or a value of it cannot be written as JSON.
        UnwritableFile: `out` exists already, or cannot be created.
    """
    if not program.causal:
        raise UnsupportedProgram(
            f"Expected a causal program, as {family} sees no later token; {program.name} attends both ways"
            + _variant(program)
        )
    with new_folder(out) as folder:
        exported = _export(program, family, folder, seed=seed, progress=progress)
    return replace(exported, folder=out)


def _export(program: Program, family: Family, folder: Path, *, seed: int, progress: bool) -> Exported:
    """Write the whole checkpoint to a folder, and read it back."""
    compiled = compile_and_verify(program, seed=seed)
    ids: dict[Any, int] = compiled.assembled.input_encoder.encoding_map  # pyright: ignore
    occurring = [ids[token] for token in (_BOS, *program.vocab)]
    made = transplant(compiled.model.weights, family, occurring, bos_id=ids[_BOS])
    words = words_of(program.vocab)
    vocabulary = {_BOS: ids[_BOS], _PAD: ids[_PAD]} | {words[token]: ids[token] for token in program.vocab}
    try:
        with without_bars():
            made.model.save_pretrained(folder)
    except SafetensorError as error:  # raised on a full disk, too
        raise UnwritableFile(f"Expected room for a model; {error!s:.200}") from error
    _tokenizer(vocabulary).save_pretrained(folder)
    _speak_to_older_versions(folder)
    content = _describe(compiled, made, family, folder, seed=seed, progress=progress)
    dataset = dataset_of(*load_model(str(folder), device="cpu"), content)
    write_text(folder / TASK, task_text(dataset, content, seed=seed))
    content["files"][TASK] = digest_of_file(folder / TASK)
    content["digest"] = digest_of(content)
    write_json(folder / "circuit.json", content)
    for file in folder.iterdir():  # some files are created for their owner only
        file.chmod((folder / "config.json").stat().st_mode)
    return load_exported(folder)


def _variant(program: Program) -> str:
    """Return in words which causal program does the same and can be exported instead; empty if none is known."""
    program.check()
    domain = program.domain(budget=INPUT_BUDGET, seed=0)
    wanted = check_interpreter(program, domain)
    if check_interpreter(replace(program, causal=True), domain) == wanted:
        return ": declared with causal=True it does the same"
    for name, other in catalogue().items():
        if other.causal and set(other.vocab) >= set(program.vocab) and other.max_seq_len >= program.max_seq_len:
            try:
                if check_interpreter(other, domain) == wanted:
                    return f": {name!r} does the same, and is causal"
            except InterpreterError:  # it does not take these inputs
                continue
    return ""


def _describe(
    compiled: Compiled, made: Transplant, family: Family, folder: Path, *, seed: int, progress: bool
) -> dict[str, Any]:
    """Return the content of `circuit.json`, measured on the model in the folder.

    Raises:
        UnsupportedProgram: the model does not do what RASP says, or a value cannot be written.
    """
    model, tokenizer = load_model(str(folder), device="cpu")
    program, words = compiled.program, words_of(compiled.program.vocab)
    columns = [_plain(value) for value in compiled.output_values] if compiled.categorical else ["the value itself"]
    if len({json.dumps(value) for value in columns}) < len(columns):
        raise UnsupportedProgram(f"Expected output values that differ as JSON; those of {program.name} do not")
    possible = structural_mask(model.graph, made.written, made.read)
    structural = frozenset(edge for edge in model.graph.edges if possible[model.graph.position(edge)])
    content: dict[str, Any] = {
        "format": FORMAT,
        "program": {
            "name": program.name,
            "doc": program.doc,
            "vocabulary": {words[token]: _plain(token) for token in program.vocab},
        },
        "family": family,
        "seed": seed,
        "files": {file.name: digest_of_file(file) for file in sorted(folder.iterdir())},
        "graph": graph_json(model.graph),
        "structural": edge_names(model.graph, structural),
        "outputs": {"kind": "categorical" if compiled.categorical else "numerical", "columns": columns},
        "domain": {
            "exhaustive": compiled.domain.exhaustive,
            "inputs": [" ".join(words[token] for token in tokens) for tokens in compiled.domain.inputs],
            "expected": [[_number(v) if not compiled.categorical else _plain(v) for v in o] for o in compiled.expected],
        },
    }
    dataset = dataset_of(model, tokenizer, content)
    if not torch.equal(dataset.tokens, compiled.dataset.tokens):
        raise UnsupportedProgram(f"Expected tokens that are words to a tokenizer; those of {program.name} are not")
    content["max_abs_diff"] = _check_outputs(compiled, family, folder, dataset)
    bar = tqdm(ABLATIONS, desc="certifying", disable=None if progress else True)
    circuits = {a: _certify(a, model, dataset, structural, made, compiled, seed=seed) for a in bar}
    return content | {"circuits": circuits, "versions": dict(versions())}


def _certify(
    ablation: Ablation,
    model: Transformer,
    dataset: Dataset,
    structural: frozenset[Edge],
    made: Transplant,
    compiled: Compiled,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return the true circuit under one ablation with its certificate, or the reason why there is none.

    Raises:
        UnsupportedProgram: edges that are not structural matter, or a circuit is not true in double precision.
    """
    name = compiled.program.name
    read, whole_domain = list(map(torch.from_numpy, made.read)), compiled.domain.exhaustive
    try:
        truth = derive_truth(
            model, dataset, structural, read, ablation, name=name, whole_domain=whole_domain, seed=seed
        )
    except DegenerateProgram as error:
        return {"edges": [], "refused": str(error)}
    judge = Judge(model.in_double, dataset, ablation, atol=truth.certificate.atol, seed=seed)
    if any(is_true(judge, circuit.edges) is False for circuit in truth.certificate.circuits):
        raise UnsupportedProgram(
            f"Expected circuits that are true in double precision too; one of {name} under {ablation} ablation is not"
        )
    return {"edges": truth.circuit.names(), "certificate": certificate_json(truth.certificate)}


def _plain_model(folder: Path) -> Any:
    with without_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return model.eval()


def _check_outputs(compiled: Compiled, family: Family, folder: Path, dataset: Dataset) -> float:
    """Check that plain transformers gives RASP's outputs; return the largest difference from the compiled program's.

    Raises:
        UnsupportedProgram: they differ from RASP's or from the adapter's, or the difference is too large.
    """
    plain, program, tokens = _plain_model(folder), compiled.program.name, dataset.tokens
    with torch.no_grad():
        logits = torch.cat([plain(some, attention_mask=torch.ones_like(some)).logits for some in tokens.split(BATCH)])
        wanted = torch.cat([compiled.model(some) for some in tokens.split(BATCH)])
    apart = float(largest_difference(logits[..., : wanted.shape[-1]], wanted, dataset.scored).max())
    if not apart <= _CLOSE:
        raise UnsupportedProgram(
            f"Expected a program whose numbers are small beside {LARGE[family]:,g}, which pins norms; logits of "
            f"{program} differ from the compiled program's by {apart:.2g}, more than {_CLOSE:g}"
        )
    for row, output in enumerate(compiled.expected):
        for position, value in enumerate(output):
            if value is not None and not _says(compiled, logits[row, position + 1], value):
                raise UnsupportedProgram(
                    f"Expected a model that does what {program} says; on input {compiled.domain.inputs[row]} it "
                    f"differs at position {position}, where RASP gives {value!r}"
                )
    beside = float(largest_difference(logits, dataset.target[torch.arange(len(tokens))], dataset.scored).max())
    if not beside <= _CLOSE:
        raise UnsupportedProgram(
            f"Expected the outputs of plain transformers from the adapter of {program}; they differ by {beside:.2g}"
        )
    return apart


def _says(compiled: Compiled, logits: Float[Tensor, " column"], value: Any) -> bool:
    """Whether logits decode to a value."""
    if not compiled.categorical:
        return abs(float(logits[0]) - value) <= VALUE_ATOL
    best = int(logits.argmax())
    return best < len(compiled.output_values) and compiled.output_values[best] == value


def words_of(vocabulary: Sequence[Any]) -> dict[Any, str]:
    """Return distinct printable words for tokens, without whitespace, BOS or PAD: str, else repr, else `token0` etc."""
    for words in (list(map(str, vocabulary)), list(map(repr, vocabulary))):
        usable = all(word.split() == [word] and word.isprintable() for word in words)
        if usable and len(set(words)) == len(words) and not any(s in word for word in words for s in (_BOS, _PAD)):
            return dict(zip(vocabulary, words, strict=True))
    return {token: f"token{number}" for number, token in enumerate(vocabulary)}


def _plain(value: Any) -> Any:
    """Return a value as JSON represents it; its repr if JSON has no such type."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value if value is None or isinstance(value, int | float) else repr(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word; it puts BOS first."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, vocabulary[_BOS])]
    )
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_BOS, pad_token=_PAD, unk_token=_PAD, model_input_names=inputs
    )


def _speak_to_older_versions(folder: Path) -> None:
    """Add entries to the configurations under the names of transformers 4, which ignores those of version 5."""
    for name, change in (("config.json", _rotations), ("tokenizer_config.json", _class)):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        write_json(folder / name, content | change(content))


def _rotations(config: dict[str, Any]) -> dict[str, Any]:
    return {"rope_theta": config["rope_parameters"]["rope_theta"]} if "rope_parameters" in config else {}


def _class(_tokenizer: dict[str, Any]) -> dict[str, Any]:
    return {"tokenizer_class": "PreTrainedTokenizerFast"}
