"""`edgeprune draw`, `convert` and `circuits`, on saved circuits alone. Heavy modules are imported late."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from edgeprune.cli.options import Json
from edgeprune.cli.tables import print_json, print_rows
from edgeprune.errors import EdgePruneError
from edgeprune.graph import parse_ablation

if TYPE_CHECKING:
    from edgeprune.files.store import SavedCircuit

Format = Literal["circuit", "edge-pruning", "eap-ig"]
"""Files that hold circuits: ours, edges.json of the paper's code, and the graph of EAP-IG and MIB."""


def check_outputs(*paths: Path | None, picture: Path | None = None) -> None:
    """Refuse what could not be written, before the work begins."""
    from edgeprune.files.store import check_writable

    given = [path.resolve() for path in paths if path is not None]
    for path in given:
        if given.count(path) > 1:
            raise EdgePruneError(f"Expected a file of its own for each result; got {str(path)!r} twice")
        check_writable(path)
    if picture is not None:
        from edgeprune.pictures.draw import check_format

        check_format(picture)


def say_where(what: str, path: Path) -> None:
    """Print where a result is."""
    print(f"{what}: {path.resolve()}")


def draw(
    circuit: Path,
    /,
    *,
    out: Annotated[Path, Parameter(name=("--out", "-o"))],
    against: Path | None = None,
    json: Json = False,
) -> bool:
    """Draw a saved circuit, alone or against another.

    Args:
        circuit: What --save wrote, or the folder of a run.
        out: The file to draw: .svg, .png or .pdf, or .html, a page with filters by score, node and path.
        against: What counts as true: what truth --save wrote, or recover --save (its truth, not what was found), or an
            exported checkpoint, of whose true circuits the nearest counts; or any other circuit's file.
    """
    from edgeprune.files.folders import circuit_file
    from edgeprune.files.store import load_saved
    from edgeprune.files.true_circuits import load_true, nearest
    from edgeprune.graph import edge_names
    from edgeprune.pictures.draw import draw_comparison, save_figure, title_of

    as_page = out.suffix.lower() == ".html"
    check_outputs(out, picture=None if as_page else out)
    saved = load_saved(circuit_file(circuit))
    found = saved.circuit
    true = () if against is None else load_true(against, found.ablation)
    comparison, title = nearest(found, true) if true else None, title_of(saved, len(true))
    if as_page:
        from edgeprune.pictures.page import facts_of, write_circuit_page

        write_circuit_page(saved, out, title=title, true=true, facts=facts_of(circuit))
    else:
        save_figure(draw_comparison(found.graph, found.edges, comparison, title), out)
    if json:
        drawn: dict[str, Any] = {"picture": str(out.resolve()), "edges": found.names()}
        drawn["exact"] = None if comparison is None else comparison.exact
        if comparison is not None:
            drawn |= {name: edge_names(found.graph, getattr(comparison, name)) for name in ("missing", "extra")}
            drawn["true_circuits"] = len(true)
        print_json(drawn)
    say_where("page" if as_page else "picture", out)
    return comparison is None or comparison.exact


def convert(
    file: Path,
    out: Path,
    /,
    *,
    source: Annotated[Format, Parameter(name="--from")] = "circuit",
    target: Annotated[Format, Parameter(name="--to")] = "circuit",
    like: Path | None = None,
    family: Literal["gpt2", "llama"] | None = None,
    ablation: str | None = None,
    json: Json = False,
) -> bool:
    """Turn a circuit's file into another tool's, or back.

    Args:
        file: What to read.
        out: The file to write.
        source: Format of the file that is read: circuit (ours), edge-pruning (edges.json of the paper's code) or eap-ig
            (the graph of EAP-IG and MIB).
        target: Format of the file that is written.
        like: A circuit of the same model, for the graph and the ablation that the other formats leave out.
        family: The kind of model, for --to edge-pruning: GPT-2 has two embeddings there, others one [default: as the
            circuit's file or the model's config.json says].
        ablation: What removed edges carry, where no file says [default: as --like].
    """
    from edgeprune.files import other_tools
    from edgeprune.files.store import save_circuit
    from edgeprune.metrics.conventions import ZERO

    check_outputs(out)
    saved, losses = _read_circuit(file, source, like, ablation)
    if target == "circuit":
        save_circuit(saved, out)
    elif target == "edge-pruning":
        kind: str | None = family or other_tools.family_of(saved)
        losses += other_tools.write_edge_pruning(saved.circuit, out, family=kind)
        losses += [other_tools.ANY_FAMILY] if kind is None and other_tools.needs_family(saved.circuit) else []
    else:
        losses += other_tools.write_eap_ig(saved.circuit, out, scores=saved.scores or None)
    differs = saved.circuit.ablation == "zero" and {source, target} != {"circuit"}
    if target != "circuit" and (saved.model or saved.method or saved.versions):
        losses.append(other_tools.NO_ORIGIN)
    if target != "circuit" and saved.certificate:
        losses.append(other_tools.NO_CERTIFICATE)
        if not saved.method and len(saved.true) > 1:
            losses.append(other_tools.ONE_CIRCUIT)
    losses = list(dict.fromkeys(losses))
    if json:
        said = {"circuit": str(out.resolve()), "losses": losses} | ({"note": ZERO} if differs else {})
        print_json(said)
    for loss in [*losses, *([ZERO] if differs else [])]:
        print(f"note: {loss}")
    say_where("circuit", out)
    return True


def _read_circuit(
    file: Path, source: Format, like_file: Path | None, named: str | None
) -> "tuple[SavedCircuit, list[str]]":
    """Return the circuit to convert, and what its file does not hold."""
    from edgeprune.files import other_tools
    from edgeprune.files.folders import circuit_file
    from edgeprune.files.store import SavedCircuit, load_saved

    if source == "circuit":
        if like_file is not None or named is not None:
            raise EdgePruneError("Expected neither --like nor --ablation: a circuit of ours says what both would say")
        return load_saved(circuit_file(file)), []
    like = load_saved(circuit_file(like_file)).circuit if like_file is not None else None
    named = named or (like.ablation if like is not None else None)
    if named is None:
        raise EdgePruneError(f"Expected --ablation or --like: a file of {source} does not say what edges carry")
    ablation = parse_ablation(named)
    if source == "eap-ig":
        imported = other_tools.read_eap_ig(file, ablation, graph=None if like is None else like.graph)
        scores = other_tools.scores_by_edge(imported.scores, imported.circuit.graph)
        # EAP-IG chooses edges by the sizes of scores; whose they are, its files do not say.
        method = {"name": "unknown", "signed": True} if any(score < 0 for score in scores.values()) else {}
        return SavedCircuit(imported.circuit, scores, method=method), list(imported.losses)
    if like is None:
        raise EdgePruneError("Expected --like CIRCUIT.json: edges.json does not say which edges its model has")
    imported = other_tools.read_edge_pruning(file, like.graph, ablation)
    return SavedCircuit(imported.circuit), list(imported.losses)


def circuits(
    operation: Literal["intersect", "union"],
    /,
    *circuit: Path,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> bool:
    """Intersect circuits of one model, or take their union.

    Args:
        operation: Edges of all, or edges of any.
        circuit: Circuits' files, or folders of runs; two or more.
        out: Write the circuit that results, .json.
    """
    from dataclasses import replace
    from functools import reduce

    from edgeprune.errors import CircuitMismatch
    from edgeprune.files.folders import circuit_file
    from edgeprune.files.store import load_saved, save_circuit, versions
    from edgeprune.metrics.overlap import overlap

    files = list(map(circuit_file, circuit))
    if len(files) < 2:
        raise CircuitMismatch(f"Expected two circuits or more; got {len(files)}")
    saved = [load_saved(file) for file in files]
    first, *others = found = [each.circuit for each in saved]
    models = {each.model for each in saved if each.model}
    if len(models) > 1:
        raise CircuitMismatch(f"Expected circuits of one model; got those of {', '.join(sorted(models))}")
    for file, other in zip(files[1:], others, strict=True):
        if (other.graph, other.ablation) != (first.graph, first.ablation):
            raise CircuitMismatch(
                f"Expected circuits of one model under one ablation; {str(files[0])!r} is of a graph of "
                f"{first.graph.total} edges under {first.ablation}, and {str(file)!r} of {other.graph.total} under "
                f"{other.ablation}"
            )
    operator = frozenset.intersection if operation == "intersect" else frozenset.union
    result = replace(first, edges=reduce(operator, (each.edges for each in found)))
    if out is not None:
        how = {"name": operation, "config": {"of": [str(file.resolve()) for file in files]}}
        about = next((each for each in saved if each.model), saved[0])
        about = replace(about, circuit=result, scores={}, method=how, versions=versions(), certificate={})
        save_circuit(about, out)
    shared = [overlap(first.edges, other.edges).iou for other in others]
    if json:
        print_json({"edges": result.names(), "of": [len(e) for e in found], "iou": shared})
        return True
    rows = [(str(file), f"{len(each)} edges") for file, each in zip(files, found, strict=True)]
    rows += [("IoU with the first", ", ".join(f"{iou:.3f}" for iou in shared))]
    print_rows(operation, [*rows, ("result", f"{len(result)} of {result.graph.total} edges")])
    return True
