"""Score a list of edges against the known circuit of an exported checkpoint. Needs nothing of edgeprune.

    python score.py CHECKPOINT --ablation resample --edges found.txt    what your tool found, an edge a line
    python score.py TRUTH.json --edges found.txt                        against what `edgeprune truth --save` wrote
    python score.py CHECKPOINT --check                                  run the checkpoint on its whole domain
    python score.py CHECKPOINT --check --lens                           the same as TransformerLens loads it

CHECKPOINT is a folder that `edgeprune export` made; edges may also come in a circuit's file, as `edgeprune recover
--save` and `edgeprune prune` write it. Scoring reads its circuit.json alone; --check loads the model and
its tokenizer with plain transformers, or with TransformerLens 4, and compares what it says with what the program that
it was made from says. Exit status 0: the edges are a true circuit, or the model says what it should; 1: they are not,
or it does not; 3: they are none of the circuits that are listed, which may not be all; 2: bad input.
"""

import argparse
import json
import sys
from pathlib import Path

FORMAT, SAVED = "edgeprune export 3", "edgeprune circuit 1"


def stage(node: str) -> tuple[int, int]:
    """When a node is computed: embeddings, then each layer's heads before its MLP, then logits."""
    name = node.partition(".")[0]
    if name[1:].isdecimal():
        return int(name[1:]), int(name[0] == "m")
    return (10**9, 0) if name == "logits" else (-1, 0)


def of_truth(content: dict) -> tuple[dict, str]:
    """The content of a file of `edgeprune truth --save` as that of a checkpoint, and its ablation."""
    certificate, graph, ablation = content["certificate"], content["graph"], content["ablation"]
    pairs = [(source, reader) for reader in graph["destinations"] for source in graph["sources"]]
    edges = [f"{source}->{reader}" for source, reader in pairs if stage(source) < stage(reader)]
    known = {"edges": certificate["circuits"][0], "certificate": certificate}
    # Where edges that are not structural matter too, as to a norm, a circuit that has some may be true and not listed.
    return {"graph": {"edges": edges}, "structural": certificate["structural"], "circuits": {ablation: known}}, ablation


def read_edges(path: Path) -> set[str]:
    """Edges in a text, one a line, or in a circuit's file."""
    text = path.read_text(encoding="utf-8-sig")
    return set(json.loads(text)["edges"] if text.lstrip().startswith("{") else text.split())


def score(content: dict, ablation: str, found: set[str]) -> int:
    """Print how `found` differs from the nearest true circuit; the exit status."""
    known = content["circuits"][ablation]
    if "refused" in known:
        print(f"No circuit under {ablation}: {known['refused']}", file=sys.stderr)
        return 2
    if unknown := found - set(content["graph"]["edges"]):
        print(f"Expected edges such as {known['edges'][0]}; the model has no {min(unknown)!r}", file=sys.stderr)
        return 2
    certificate = known["certificate"]
    nearest = min(map(set, certificate["circuits"]), key=lambda circuit: len(circuit ^ found))
    for name, edges in (("missing", nearest - found), ("extra", found - nearest)):
        print(f"{name}: {' '.join(sorted(edges)) or 'none'}")
    precision, recall = (len(nearest & found) / max(1, len(edges)) for edges in (found, nearest))
    print(f"precision {precision:.3f}, recall {recall:.3f}; {len(nearest)} true edges")
    print(f"certificate: {certificate['status']}, {certificate['pairs']} runs", end="")
    print(", all there are" if certificate["exhaustive"] else ", a sample")
    if found == nearest:
        return 0
    if certificate["status"] in ("unique", "ambiguous") and found <= set(content["structural"]):
        return 1
    print("Another circuit than those listed may be true: only running it would tell.")
    return 3


def check(folder: Path, content: dict, *, lens: bool) -> bool:
    """Whether plain transformers, or TransformerLens, says what the program does, on every input."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if lens:
        from transformer_lens.model_bridge import TransformerBridge

        model = TransformerBridge.boot_transformers(str(folder), device="cpu")
    else:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    outputs, wrong = content["outputs"], 0
    domain = content["domain"]
    for text, expected in zip(domain["inputs"], domain["expected"], strict=True):
        with torch.no_grad():
            said = model(tokenizer(text, return_tensors="pt").input_ids)
        logits = (said if lens else said.logits)[0, 1:]  # nothing is asked of BOS
        for row, value in zip(logits, expected, strict=True):
            if value is None:  # the program is undefined there
                continue
            if outputs["kind"] == "categorical":
                wrong += outputs["columns"][int(row.argmax())] != value
            else:
                wrong += abs(float(row[0]) - value) > 0.01
    print(f"{content['program']['name']}: {len(domain['inputs'])} inputs, {wrong} wrong outputs")
    return wrong == 0


def main() -> int:
    """Score edges, or check the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "--ablation", choices=("zero", "mean", "resample"), help="(default: resample, or that of TRUTH.json)"
    )
    parser.add_argument("--edges", type=Path, metavar="FILE", help="an edge a line, such as embed->a0.h0.v, or JSON")
    parser.add_argument("--check", action="store_true", help="run the model on its whole domain")
    parser.add_argument("--lens", action="store_true", help="with --check: load it with TransformerLens")
    options = parser.parse_args()
    if options.check == (options.edges is not None) or (options.lens and not options.check):
        parser.error("expected --edges FILE, or --check, and --lens with the latter alone")
    try:
        file = options.checkpoint if options.checkpoint.is_file() else options.checkpoint / "circuit.json"
        content, ablation = json.loads(file.read_text(encoding="utf-8")), options.ablation or "resample"
        if content["format"] == SAVED and "certificate" in content and not options.check:
            content, ablation = of_truth(content)
            if options.ablation not in (None, ablation):
                parser.error(f"expected --ablation {ablation}, as {str(file)!r} has it; got {options.ablation}")
        elif content["format"] != FORMAT:
            parser.error(f"expected a file of format {FORMAT!r}, or of `edgeprune truth --save FILE.json`")
        if options.check:
            return 0 if check(options.checkpoint, content, lens=options.lens) else 1
        found = read_edges(options.edges)
        if not found:
            parser.error(f"expected edges in {str(options.edges)!r}, one a line, such as embed->a0.h0.v; it has none")
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        said = f"{type(error).__name__}: {error}"
        parser.error(f"expected a folder that `edgeprune export` made, and a text file in UTF-8; {said}")
    return score(content, ablation, found)


if __name__ == "__main__":
    sys.exit(main())
