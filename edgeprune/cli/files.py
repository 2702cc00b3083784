"""What `edgeprune draw` and `edgeprune convert` do, on files of circuits alone. Nothing heavy comes until one runs."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgeprune.errors import EdgePruneError
from edgeprune.graph import parse_ablation

if TYPE_CHECKING:
    from edgeprune.files.store import SavedCircuit

FORMATS: Final = ("circuit", "edge-pruning", "eap-ig")
"""Files that hold circuits: ours, and those of other tools."""


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


def say_where(what: str, path: Path, options: argparse.Namespace) -> None:
    """Say where a result is."""
    print(f"{what}: {path.resolve()}", file=sys.stderr if options.json else sys.stdout)


def draw(options: argparse.Namespace) -> bool:
    """`edgeprune draw`."""
    from edgeprune.cli.tables import as_json
    from edgeprune.files.folders import circuit_file
    from edgeprune.files.store import load_saved
    from edgeprune.files.true_circuits import load_true, nearest
    from edgeprune.graph import edge_names
    from edgeprune.pictures.draw import draw_comparison, save_figure, title_of

    as_page = options.out.suffix.lower() == ".html"
    check_outputs(options.out, picture=None if as_page else options.out)
    saved = load_saved(circuit_file(options.circuit))
    found = saved.circuit
    true = () if options.against is None else load_true(options.against, found.ablation)
    comparison, title = nearest(found, true) if true else None, title_of(saved, len(true))
    if as_page:
        from edgeprune.pictures.page import facts_of, write_circuit_page

        write_circuit_page(saved, options.out, title=title, true=true, facts=facts_of(options.circuit))
    else:
        save_figure(draw_comparison(found.graph, found.edges, comparison, title), options.out)
    if options.json:
        drawn: dict[str, Any] = {"picture": str(options.out.resolve()), "edges": found.names()}
        drawn["exact"] = None if comparison is None else comparison.exact
        if comparison is not None:
            drawn |= {name: edge_names(found.graph, getattr(comparison, name)) for name in ("missing", "extra")}
            drawn["true_circuits"] = len(true)
        print(as_json(drawn), file=options.output)
    say_where("page" if as_page else "picture", options.out, options)
    return comparison is None or comparison.exact


def convert(options: argparse.Namespace) -> bool:
    """`edgeprune convert`."""
    from edgeprune.cli.tables import as_json
    from edgeprune.files import other_tools
    from edgeprune.files.store import save_circuit
    from edgeprune.metrics.conventions import ZERO

    check_outputs(options.out)
    saved, losses = _read_circuit(options)
    if options.target == "circuit":
        save_circuit(saved, options.out)
    elif options.target == "edge-pruning":
        family: str | None = options.family or other_tools.family_of(saved)
        losses += other_tools.write_edge_pruning(saved.circuit, options.out, family=family)
        losses += [other_tools.ANY_FAMILY] if family is None and other_tools.needs_family(saved.circuit) else []
    else:
        losses += other_tools.write_eap_ig(saved.circuit, options.out, scores=saved.scores or None)
    differs = saved.circuit.ablation == "zero" and {options.source, options.target} != {"circuit"}
    if options.target != "circuit" and (saved.model or saved.method or saved.versions):
        losses.append(other_tools.NO_ORIGIN)
    if options.target != "circuit" and saved.certificate:
        losses.append(other_tools.NO_CERTIFICATE)
        if not saved.method and len(saved.true) > 1:
            losses.append(other_tools.ONE_CIRCUIT)
    losses = list(dict.fromkeys(losses))
    if options.json:
        said = {"circuit": str(options.out.resolve()), "losses": losses} | ({"note": ZERO} if differs else {})
        print(as_json(said), file=options.output)
    for loss in [*losses, *([ZERO] if differs else [])]:
        print(f"note: {loss}", file=sys.stderr if options.json else sys.stdout)
    say_where("circuit", options.out, options)
    return True


def _read_circuit(options: argparse.Namespace) -> "tuple[SavedCircuit, list[str]]":
    """The circuit to convert, and what its file does not hold."""
    from edgeprune.files import other_tools
    from edgeprune.files.folders import circuit_file
    from edgeprune.files.store import SavedCircuit, load_saved

    if options.source == "circuit":
        if options.like is not None or options.ablation is not None:
            raise EdgePruneError("Expected neither --like nor --ablation: a circuit of ours says what both would say")
        return load_saved(circuit_file(options.file)), []
    like = load_saved(circuit_file(options.like)).circuit if options.like is not None else None
    named: str | None = options.ablation or (like.ablation if like is not None else None)
    if named is None:
        raise EdgePruneError(f"Expected --ablation or --like: a file of {options.source} does not say what edges carry")
    ablation = parse_ablation(named)
    if options.source == "eap-ig":
        imported = other_tools.read_eap_ig(options.file, ablation, graph=None if like is None else like.graph)
        scores = other_tools.scores_by_edge(imported.scores, imported.circuit.graph)
        # EAP-IG chooses edges by the sizes of scores; whose they are, its files do not say.
        method = {"name": "unknown", "signed": True} if any(score < 0 for score in scores.values()) else {}
        return SavedCircuit(imported.circuit, scores, method=method), list(imported.losses)
    if like is None:
        raise EdgePruneError("Expected --like CIRCUIT.json: edges.json does not say which edges its model has")
    imported = other_tools.read_edge_pruning(options.file, like.graph, ablation)
    return SavedCircuit(imported.circuit), list(imported.losses)
