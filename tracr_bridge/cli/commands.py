"""What each command of `edgeprune` does. Nothing heavy is imported until one runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.cli.files import check_outputs, say_where
from edgeprune.errors import EdgePruneError
from edgeprune.graph import ABLATIONS, Ablation, parse_ablation

if TYPE_CHECKING:
    from tracr_bridge.certify.truth import Truth
    from tracr_bridge.recovery.known_models import Asked, Known
    from tracr_bridge.recovery.recover import Recovery


def programs(options: argparse.Namespace) -> bool:
    """`edgeprune programs`."""
    from edgeprune.cli.tables import as_json, print_table
    from tracr_bridge.compile.catalogue import catalogue

    if options.coverage:
        return _coverage(options)
    listed = catalogue().values()
    if options.json:
        entries = [
            {
                "name": p.name,
                "doc": p.doc,
                "vocab": list(p.vocab),
                "min_seq_len": p.min_seq_len,
                "max_seq_len": p.max_seq_len,
                "causal": p.causal,
            }
            for p in listed
        ]
        print(as_json({"programs": entries}), file=options.output)
    else:
        rows = [(p.name, p.doc, " ".join(map(str, p.vocab)), f"{p.min_seq_len}-{p.max_seq_len}") for p in listed]
        print_table("Programs", ("name", "computes", "vocabulary", "length"), rows)
    return True


def _coverage(options: argparse.Namespace) -> bool:
    from edgeprune.cli.tables import as_json, print_matrix
    from tracr_bridge.compile.catalogue import catalogue
    from tracr_bridge.compile.constructs import CONSTRUCTS, constructs

    used = {name: constructs(program) for name, program in catalogue().items()}
    if options.json:
        by_construct = {what: [name for name, found in used.items() if what in found] for what in CONSTRUCTS}
        print(as_json({"constructs": by_construct}), file=options.output)
    else:
        print_matrix(used, CONSTRUCTS)
    return True


def verify(options: argparse.Namespace) -> bool:
    """`edgeprune verify`."""
    from edgeprune.cli.tables import as_json, print_rows
    from tracr_bridge.compile import verify as verifying
    from tracr_bridge.compile.catalogue import load_program
    from tracr_bridge.compile.compile import compile_program

    _use_one_thread()
    program = load_program(options.program)
    verification = verifying.verify(compile_program(program, seed=options.seed), progress=True)
    if options.json:
        print(as_json(verifying.verification_json(verification, program.name)), file=options.output)
        return verification.equal
    rows = [
        ("RASP = Tracr = PyTorch", "yes" if verification.equal else "no"),
        ("inputs", f"{verification.inputs}, {'all there are' if verification.exhaustive else 'a seeded sample'}"),
        ("largest difference, Tracr to PyTorch", f"{verification.max_abs_diff:.3g}"),
        *(("mismatch", text) for text in verification.mismatches),
    ]
    print_rows(f"{program.name}: {program.doc}", rows)
    return verification.equal


def truth(options: argparse.Namespace) -> bool:
    """`edgeprune truth`."""
    from edgeprune.cli.tables import as_json
    from tracr_bridge.certify.summary import saved_truth, truth_json

    ablation = parse_ablation(options.ablation)
    from tracr_bridge.recovery.known_models import known

    _use_one_thread()
    save: Path | None = options.save
    folder = None if save is None or save.suffix == ".json" else save
    if folder is not None and os.path.lexists(folder):
        raise EdgePruneError(f"Expected a folder that does not exist yet; got {str(folder)!r}")
    check_outputs(save)
    given = known(_subject(options), seed=options.seed, progress=True)
    found = given.truth(ablation)
    said = truth_json(found, given.name)
    if options.json:
        print(as_json(said), file=options.output)
    else:
        _print_truth(found, given.name, given.doc)
    if folder is not None:
        _save_truth(found, given, said, folder)
    elif save is not None:
        from edgeprune.files.store import save_circuit

        save_circuit(saved_truth(found, given.name), save)
    if save is not None:
        say_where("certificate", save, options)
    return True


def _print_truth(truth: "Truth", name: str, doc: str) -> None:
    from edgeprune.cli.tables import print_rows, print_table

    """A truth as two tables: its edges, then the certificate."""
    from tracr_bridge.certify.summary import certificate_rows

    rows = [(edge,) for edge in truth.circuit.names()]
    print_table(f"{name}, {truth.circuit.ablation} ablation", ("true edge",), rows)
    print_rows(doc, certificate_rows(truth))


def _subject(options: argparse.Namespace) -> "Asked":
    """What PROGRAM is: a program, a checkpoint with a known circuit, or, with task and tolerance, a trained model."""
    if options.task is None and options.tolerance is None:
        from tracr_bridge.recovery.known_models import find

        if options.criterion is not None:
            raise EdgePruneError(f"Expected --task and --tolerance too; got --criterion {options.criterion} alone")
        return find(_told(options.program))
    if options.task is None or options.tolerance is None:
        given = "--tolerance" if options.task is None else "--task"
        raise EdgePruneError(f"Expected --task and --tolerance together, as of a trained model; got {given} alone")
    from tracr_bridge.certify.trained_models import Trained

    criterion = options.criterion or "mean"
    return Trained(
        model=options.program,
        task=options.task,
        tolerance=options.tolerance,
        criterion=criterion,
        check=not options.no_check,
    )


def _save_truth(found: "Truth", given: "Known", said: dict[str, Any], folder: Path) -> None:
    subject = given.subject
    if hasattr(subject, "asked"):  # whose module would bring transformers with it
        from tracr_bridge.certify.trained_models import Loaded, save_truth

        assert isinstance(subject, Loaded)
        save_truth(found, subject, said, folder)
        return
    from tracr_bridge.certify.certificate_folder import save_certificate

    save_certificate(found, subject, folder)  # pyright: ignore[reportArgumentType]  # the one that was loaded is none


def recover(options: argparse.Namespace) -> bool:
    """`edgeprune recover`."""
    from edgeprune.cli.tables import as_json
    from tracr_bridge.recovery.summary import recovery_json

    named: list[str] = options.ablation or ["zero"]
    ablations: list[Ablation] = [parse_ablation(text) for text in dict.fromkeys(named)]
    from edgeprune.methods import find_method
    from tracr_bridge.recovery import recover as recovering

    _use_one_thread()
    subject = _subject(options)
    find_method(options.method, recovering.methods_for(subject))
    for option in ("picture", "save"):
        if getattr(options, option) is not None and len(ablations) > 1:
            raise EdgePruneError(f"Expected one --ablation, as a --{option} holds one circuit; got {len(ablations)}")
    check_outputs(options.picture, options.report, options.save, picture=options.picture)
    recoveries = recovering.recover_under(
        subject, ablations, method=options.method, seed=options.seed, seconds=options.timeout, progress=True
    )
    if options.json:
        found = [recovery_json(recovery) for recovery in recoveries]
        print(as_json(found[0] if len(found) == 1 else {"recoveries": found}), file=options.output)
    else:
        for recovery in recoveries:
            _print_recovery(recovery)
    _write_outputs(options, recoveries)
    return all(recovery.exact for recovery in recoveries)


def _print_recovery(recovery: "Recovery") -> None:
    from edgeprune.cli.tables import print_rows, print_table

    """A recovery as two tables: its edges, then the verdict and the certificate."""
    from tracr_bridge.recovery.summary import edge_rows, summary_rows

    name, ablation = recovery.name, recovery.assessment.reference.ablation
    print_table(f"{name}, {ablation} ablation", ("edge", "true", "found", "score"), edge_rows(recovery))
    print_rows(recovery.doc, summary_rows(recovery))


def bench(options: argparse.Namespace) -> bool:
    """`edgeprune bench`."""
    from edgeprune.cli.tables import as_json, print_table
    from edgeprune.files.folders import locked
    from edgeprune.methods import METHODS, find_method
    from edgeprune.metrics.conventions import noted
    from tracr_bridge.bench import leaderboard
    from tracr_bridge.bench.run import Run, drawn_subject, named_subject, run_all
    from tracr_bridge.compile.catalogue import catalogue
    from tracr_bridge.random_programs.draw import draw_programs

    chosen: list[str] = options.ablation or ["zero", "resample"]
    ablations: list[Ablation] = [parse_ablation(text) for text in chosen]
    named: list[str] = options.method or ["edge-pruning-minimax"]
    methods = [method for name in named for method in (METHODS if name == "all" else [name])]
    for method in methods:
        find_method(method)
    if options.random is None:
        asked = map(_told, options.program) if options.program else catalogue()
        subjects = list(dict.fromkeys(map(named_subject, asked)))
    elif options.program:
        raise EdgePruneError(f"Expected either programs or --random; got both, {options.program[0]!r} and more")
    else:
        subjects = [drawn_subject(p) for p in draw_programs(options.random, seed=options.seed, progress=True)]
    runs = [
        Run(a, m, s) for a in dict.fromkeys(ablations) for m in dict.fromkeys(methods) for s in range(options.seeds)
    ]
    rows = run_all(
        subjects, runs, options.out, jobs=options.jobs, seconds=options.timeout, progress=True, ray=options.ray
    )
    with locked(options.out, "results"):
        leaderboard.write(rows, options.out)
    if options.json:
        print(as_json(leaderboard.as_json(rows)), file=options.output)
    else:
        if options.random is not None:
            print_table("What was drawn", ("", "programs"), leaderboard.distribution(rows))
        print_table(f"{len(subjects)} programs", *leaderboard.table(rows, leaderboard.FEW))
        counts = leaderboard.outcomes(rows)
        print(
            f"refused, as nothing could fail on them: {counts['refused']}; failed: {counts['failed']}; "
            f"broken programs: {counts['broken']}"
        )
        for note in noted(*(row["ablation"] for row in rows)).values():
            print(f"note: {note}")
        print(f"results: {(options.out / 'leaderboard.md').resolve()}")
    return all(row["outcome"] in ("exact", "refused") for row in rows)


def _told(spec: str) -> str:
    """The same; where it names a program, and there is a checkpoint of that name too, which of them it is is said."""
    from tracr_bridge.compile.catalogue import catalogue

    if (Path(spec) / "circuit.json").is_file() and spec in catalogue():
        print(f"note: {spec} is the program; the folder is ./{spec}", file=sys.stderr)
    return spec


def _use_one_thread() -> None:
    """Compiled models are so small that threads wait for each other longer than they work."""
    import torch

    torch.set_num_threads(1)


def _write_outputs(options: argparse.Namespace, recoveries: "Sequence[Recovery]") -> None:
    """Write the picture, the circuit and the page that were asked for, and say where they are."""
    first = recoveries[0]
    if options.picture is not None:
        from edgeprune.pictures.draw import save_figure
        from tracr_bridge.recovery.page import recovery_figure

        save_figure(recovery_figure(first), options.picture)
        say_where("picture", options.picture, options)
    if options.save is not None:
        from edgeprune.files.store import save_circuit
        from tracr_bridge.recovery.summary import saved_circuit

        save_circuit(saved_circuit(first), options.save)
        say_where("circuit", options.save, options)
    if options.report is not None:
        from tracr_bridge.recovery.page import write_page

        write_page(recoveries, options.report)
        say_where("report", options.report, options)


def export(options: argparse.Namespace) -> bool:
    """`edgeprune export`."""
    from edgeprune.cli.tables import as_json, print_table
    from edgeprune.files.store import check_writable
    from tracr_bridge.checkpoints.export import export as write
    from tracr_bridge.compile.catalogue import catalogue, load_program

    asked = options.program or [program.name for program in catalogue().values() if program.causal]
    programs = list(map(load_program, dict.fromkeys(asked)))
    wanted = [(program, family) for family in dict.fromkeys(options.family) for program in programs]
    if len(wanted) > 1 and not options.out.is_dir():
        check_writable(options.out)
        options.out.mkdir()
    rows, found = list[tuple[str, ...]](), list[dict[str, object]]()
    for program, family in wanted:
        folder = options.out if len(wanted) == 1 else options.out / f"{program.name}-{family}"
        made = write(program, family, folder, seed=options.seed, progress=True)
        sizes = {ablation: [len(circuit) for circuit in circuits] for ablation, circuits in made.circuits.items()}
        error = made.content["max_abs_diff"]
        told: dict[str, object] = {
            "program": program.name,
            "as": family,
            "folder": str(folder),
            "max_abs_diff": error,
            "edges": sizes,
        }
        found.append(told)
        edges = [" or ".join(map(str, counts)) or "nothing could fail" for counts in sizes.values()]
        rows.append((made.name, str(made.model.graph.total), *edges, f"{error:.1g}"))
    if options.json:
        print(as_json({"exported": found}), file=options.output)
        return True
    head = ("checkpoint", "edges in all", *(f"true, {ablation}" for ablation in ABLATIONS), "largest error")
    print_table(f"in {options.out}", head, rows)
    print("load one: AutoModelForCausalLM.from_pretrained(folder); its circuits: circuit.json")
    return True
