"""The commands of `edgeprune` on programs and their circuits. Heavy modules are imported late."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Group, Parameter

from edgeprune.cli.files import check_outputs, say_where
from edgeprune.cli.options import AnySeed, Count, Flag, Json, NoCheck, Seconds, Seed, strict
from edgeprune.cli.tables import print_json, print_matrix, print_rows, print_table
from edgeprune.errors import EdgePruneError
from edgeprune.graph import ABLATIONS, Ablation, parse_ablation

if TYPE_CHECKING:
    from tracr_bridge.certify.truth import Truth
    from tracr_bridge.compile.program import Program
    from tracr_bridge.recovery.known_models import Asked, Known
    from tracr_bridge.recovery.recover import Recovery


_PROGRAM: Final = "A name, or path/to/file.py:name"

Family = Literal["gpt2", "llama"]

OneProgram = Annotated[str, Parameter(name="PROGRAM", help=f"{_PROGRAM}.")]

Subject = Annotated[
    str,
    Parameter(
        name="PROGRAM",
        help=f"{_PROGRAM}, or the folder of a checkpoint that `export` wrote, or of the truth of a trained model that "
        "`truth --save` wrote.",
    ),
]

_TRAINED: Final = Group(
    "Trained models",
    sort_key=9,
    help="PROGRAM is the folder, or the name on the Hugging Face hub, of a model so small that all subsets of its "
    "edges can be run, and a task says on what; see `train-toy`.",
)


@Parameter(name="*", group=_TRAINED)
@dataclass(frozen=True, kw_only=True)
class TrainedOptions:
    """What is asked of a trained model."""

    task: str | None = None
    """Its task, a file of examples, .jsonl, all of which are run."""

    tolerance: Annotated[float | None, Parameter(converter=strict)] = None
    """Largest divergence of a faithful circuit, nats, such as 0.1."""

    criterion: Annotated[Literal["mean", "worst"] | None, Parameter(converter=strict)] = None
    """Whether in the mean over examples, or on each of them [default: mean]."""

    no_check: NoCheck = False


def programs(*, coverage: Flag = False, json: Json = False) -> bool:
    """List the programs that come with the toolkit.

    Args:
        coverage: Show which constructs of RASP each of them uses.
    """
    from tracr_bridge.compile.catalogue import catalogue

    if coverage:
        return _coverage(json=json)
    listed = catalogue().values()
    if json:
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
        print_json({"programs": entries})
    else:
        rows = [(p.name, p.doc, " ".join(map(str, p.vocab)), f"{p.min_seq_len}-{p.max_seq_len}") for p in listed]
        print_table("Programs", ("name", "computes", "vocabulary", "length"), rows)
    return True


def _coverage(*, json: bool) -> bool:
    from tracr_bridge.compile.catalogue import catalogue
    from tracr_bridge.compile.constructs import CONSTRUCTS, constructs

    used = {name: constructs(program) for name, program in catalogue().items()}
    if json:
        by_construct = {what: [name for name, found in used.items() if what in found] for what in CONSTRUCTS}
        print_json({"constructs": by_construct})
    else:
        print_matrix(used, CONSTRUCTS)
    return True


def verify(program: OneProgram, /, *, seed: AnySeed = 0, json: Json = False) -> bool:
    """Check that RASP, Tracr's model and ours agree on the whole domain."""
    from tracr_bridge.compile import verify as verifying
    from tracr_bridge.compile.catalogue import load_program
    from tracr_bridge.compile.compile import compile_program

    _use_one_thread()
    loaded = load_program(program)
    verification = verifying.verify(compile_program(loaded, seed=seed), progress=True)
    if json:
        print_json(verifying.verification_json(verification, loaded.name))
        return verification.equal
    rows = [
        ("RASP = Tracr = PyTorch", "yes" if verification.equal else "no"),
        ("inputs", f"{verification.inputs}, {'all there are' if verification.exhaustive else 'a seeded sample'}"),
        ("largest difference, Tracr to PyTorch", f"{verification.max_abs_diff:.3g}"),
        *(("mismatch", text) for text in verification.mismatches),
    ]
    print_rows(f"{loaded.name}: {loaded.doc}", rows)
    return verification.equal


def truth(
    program: Subject,
    /,
    *,
    ablation: str | None = None,
    save: Path | None = None,
    trained: TrainedOptions | None = None,
    seed: AnySeed = 0,
    json: Json = False,
) -> bool:
    """Derive and certify a program's true circuits.

    Args:
        ablation: What a removed edge carries: zero, mean, resample [default: zero; of a saved truth, its own].
        save: Write all true circuits and their certificate in one file, .json, which draw, convert and score.py take;
            any other name makes a folder, which check_certificate.py checks, unless it is of a trained model.
    """
    from tracr_bridge.certify.summary import saved_truth, truth_json

    asked = None if ablation is None else parse_ablation(ablation)
    from tracr_bridge.recovery.known_models import known, usual_ablation

    _use_one_thread()
    folder = None if save is None or save.suffix == ".json" else save
    if folder is not None and os.path.lexists(folder):
        raise EdgePruneError(f"Expected a folder that does not exist yet; got {str(folder)!r}")
    check_outputs(save)
    subject = _subject(program, trained)
    given = known(subject, seed=seed, progress=True)
    found = given.truth(asked or usual_ablation(subject))
    said = truth_json(found, given.name)
    if json:
        print_json(said)
    else:
        _print_truth(found, given.name, given.doc)
    if folder is not None:
        _save_truth(found, given, said, folder)
    elif save is not None:
        from edgeprune.files.store import save_circuit

        save_circuit(saved_truth(found, given.name), save)
    if save is not None:
        say_where("certificate", save)
    return True


def _print_truth(truth: "Truth", name: str, doc: str) -> None:
    """A truth as two tables: its edges, then the certificate."""
    from tracr_bridge.certify.summary import certificate_rows

    rows = [(edge,) for edge in truth.circuit.names()]
    print_table(f"{name}, {truth.circuit.ablation} ablation", ("true edge",), rows)
    print_rows(doc, certificate_rows(truth))


def _subject(program: str, trained: TrainedOptions | None) -> "Asked":
    """Return what PROGRAM is: a program, a checkpoint with a known circuit, or a trained model."""
    trained = trained or TrainedOptions()
    if trained.task is None and trained.tolerance is None:
        from tracr_bridge.recovery.known_models import find

        if trained.criterion is not None:
            raise EdgePruneError(f"Expected --task and --tolerance too; got --criterion {trained.criterion} alone")
        return find(_told(program))
    if trained.task is None or trained.tolerance is None:
        given = "--tolerance" if trained.task is None else "--task"
        raise EdgePruneError(f"Expected --task and --tolerance together, as of a trained model; got {given} alone")
    from tracr_bridge.certify.trained_models import Trained

    return Trained(
        model=program,
        task=trained.task,
        tolerance=trained.tolerance,
        criterion=trained.criterion or "mean",
        check=not trained.no_check,
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


def recover(
    program: Subject,
    /,
    *,
    ablation: list[str] | None = None,
    method: str = "edge-pruning-minimax",
    timeout: Seconds = 600.0,
    picture: Path | None = None,
    report: Path | None = None,
    save: Path | None = None,
    trained: TrainedOptions | None = None,
    seed: AnySeed = 0,
    json: Json = False,
) -> bool:
    """Discover a program's circuit and compare it with the truth.

    Args:
        ablation: What a removed edge carries: zero, mean, resample; may be repeated, for a report of both [default:
            zero; of a saved truth, its own].
        method: The discovery method; of a trained model edge-pruning-tolerance and edge-pruning-tolerance-polished too,
            which are told the tolerance.
        timeout: How long one discovery may take, seconds.
        picture: Draw the circuit, .svg, .png or .pdf.
        report: Write a page, .html, that opens offline, to look at every edge.
        save: Write the circuit that was found, and all true ones, .json.
    """
    from tracr_bridge.recovery.summary import recovery_json

    ablations: list[Ablation] = [parse_ablation(text) for text in dict.fromkeys(ablation or [])]
    from edgeprune.methods import find_method
    from tracr_bridge.recovery import recover as recovering
    from tracr_bridge.recovery.known_models import usual_ablation

    _use_one_thread()
    subject = _subject(program, trained)
    ablations = ablations or [usual_ablation(subject)]
    find_method(method, recovering.methods_for(subject))
    for option, file in (("picture", picture), ("save", save)):
        if file is not None and len(ablations) > 1:
            raise EdgePruneError(f"Expected one --ablation, as a --{option} holds one circuit; got {len(ablations)}")
    check_outputs(picture, report, save, picture=picture)
    recoveries = recovering.recover_under(subject, ablations, method=method, seed=seed, seconds=timeout, progress=True)
    if json:
        found = [recovery_json(recovery) for recovery in recoveries]
        print_json(found[0] if len(found) == 1 else {"recoveries": found})
    else:
        for recovery in recoveries:
            _print_recovery(recovery)
    _write_outputs(recoveries, picture=picture, report=report, save=save)
    return all(recovery.exact for recovery in recoveries)


def _print_recovery(recovery: "Recovery") -> None:
    """A recovery as two tables: its edges, then the verdict and the certificate."""
    from tracr_bridge.recovery.summary import edge_rows, summary_rows

    name, ablation = recovery.name, recovery.assessment.reference.ablation
    print_table(f"{name}, {ablation} ablation", ("edge", "true", "found", "score"), edge_rows(recovery))
    print_rows(recovery.doc, summary_rows(recovery))


def bench(
    *program: Subject,
    random: Count | None = None,
    out: Path = Path("bench"),
    seeds: Count = 1,
    method: list[str] | None = None,
    ablation: list[str] | None = None,
    timeout: Seconds = 600.0,
    jobs: Count = 2,
    ray: str | None = None,
    seed: Annotated[Seed, Parameter(help="By which --random draws programs; methods have --seeds.")] = 0,
    json: Json = False,
) -> bool:
    """Run methods on many programs, and compare how well they recover circuits.

    Args:
        program: What to recover [default: all].
        random: Run on so many random programs instead, drawn by --seed.
        out: The folder: results.jsonl, leaderboard.md, pictures, and every random program not recovered; a second run
            goes on there.
        seeds: Run methods at seeds 0 to N - 1.
        method: A discovery method, or all; may be repeated; one that is none lists them
            [default: edge-pruning-minimax].
        ablation: What a removed edge carries: zero, mean, resample; may be repeated [default: zero and resample].
        timeout: How long one discovery may take, seconds.
        jobs: Processes.
        ray: Run on the Ray cluster at this address, on as many processes as it has CPUs: auto (the one that this
            machine belongs to), HOST:6379, ray://HOST:10001 (from outside of it) or local (one started here, for this
            run); its machines need the versions of edgeprune and of what it depends on that are here, and files of your
            own at the same path; comes with pip install 'edgeprune[ray]'.
    """
    from edgeprune.files.folders import locked
    from edgeprune.methods import METHODS, find_method
    from edgeprune.metrics.conventions import noted
    from tracr_bridge.bench import leaderboard
    from tracr_bridge.bench.run import Run, drawn_subject, named_subject, run_all
    from tracr_bridge.compile.catalogue import catalogue
    from tracr_bridge.random_programs.draw import draw_programs

    ablations: list[Ablation] = [parse_ablation(text) for text in ablation or ["zero", "resample"]]
    named = method or ["edge-pruning-minimax"]
    methods = [each for name in named for each in (METHODS if name == "all" else [name])]
    for each in methods:
        find_method(each)
    if random is None:
        asked = map(_told, program) if program else catalogue()
        subjects = list(dict.fromkeys(map(named_subject, asked)))
    elif program:
        raise EdgePruneError(f"Expected either programs or --random; got both, {program[0]!r} and more")
    else:
        subjects = [drawn_subject(p) for p in draw_programs(random, seed=seed, progress=True)]
    runs = [Run(a, m, s) for a in dict.fromkeys(ablations) for m in dict.fromkeys(methods) for s in range(seeds)]
    rows = run_all(subjects, runs, out, jobs=jobs, seconds=timeout, progress=True, ray=ray)
    with locked(out, "results"):
        leaderboard.write(rows, out)
    if json:
        print_json(leaderboard.as_json(rows))
    else:
        if random is not None:
            print_table("What was drawn", ("", "programs"), leaderboard.distribution(rows))
        print_table(f"{len(subjects)} programs", *leaderboard.table(rows, leaderboard.FEW))
        counts = leaderboard.outcomes(rows)
        print(
            f"refused, as nothing could fail on them: {counts['refused']}; failed: {counts['failed']}; "
            f"broken programs: {counts['broken']}"
        )
        for note in noted(*(row["ablation"] for row in rows)).values():
            print(f"note: {note}")
        print(f"results: {(out / 'leaderboard.md').resolve()}")
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


def _write_outputs(
    recoveries: "Sequence[Recovery]", *, picture: Path | None, report: Path | None, save: Path | None
) -> None:
    """Write the picture, the circuit and the page that were asked for, and say where they are."""
    first = recoveries[0]
    if picture is not None:
        from edgeprune.pictures.draw import save_figure
        from tracr_bridge.recovery.page import recovery_figure

        save_figure(recovery_figure(first), picture)
        say_where("picture", picture)
    if save is not None:
        from edgeprune.files.store import save_circuit
        from tracr_bridge.recovery.summary import saved_circuit

        save_circuit(saved_circuit(first), save)
        say_where("circuit", save)
    if report is not None:
        from tracr_bridge.recovery.page import write_page

        write_page(recoveries, report)
        say_where("report", report)


def export(
    *program: OneProgram,
    family: Annotated[list[Family], Parameter(name="--as")],
    out: Path,
    seed: AnySeed = 0,
    json: Json = False,
) -> bool:
    """Write causal programs as checkpoints of Hugging Face with known circuits.

    Args:
        program: What to write [default: all causal ones].
        family: The architecture of the checkpoint; may be repeated, for checkpoints of both.
        out: The folder to make: model.safetensors, a tokenizer, circuit.json; of several checkpoints, a folder for each
            in it, PROGRAM-gpt2 or PROGRAM-llama.
    """
    from edgeprune.files.store import check_writable
    from tracr_bridge.checkpoints.export import export as write
    from tracr_bridge.compile.catalogue import catalogue, load_program

    asked = program or [each.name for each in catalogue().values() if each.causal]
    programs = list(map(load_program, dict.fromkeys(asked)))
    wanted: list[tuple[Program, Family]] = [(each, kind) for kind in dict.fromkeys(family) for each in programs]
    if len(wanted) > 1 and not out.is_dir():
        check_writable(out)
        out.mkdir()
    rows, found = list[tuple[str, ...]](), list[dict[str, object]]()
    for each, kind in wanted:
        folder = out if len(wanted) == 1 else out / f"{each.name}-{kind}"
        made = write(each, kind, folder, seed=seed, progress=True)
        sizes = {ablation: [len(circuit) for circuit in circuits] for ablation, circuits in made.circuits.items()}
        error = made.content["max_abs_diff"]
        told: dict[str, object] = {
            "program": each.name,
            "as": kind,
            "folder": str(folder),
            "max_abs_diff": error,
            "edges": sizes,
        }
        found.append(told)
        edges = [" or ".join(map(str, counts)) or "nothing could fail" for counts in sizes.values()]
        rows.append((made.name, str(made.model.graph.total), *edges, f"{error:.1g}"))
    if json:
        print_json({"exported": found})
        return True
    head = ("checkpoint", "edges in all", *(f"true, {ablation}" for ablation in ABLATIONS), "largest error")
    print_table(f"in {out}", head, rows)
    print("load one: AutoModelForCausalLM.from_pretrained(folder); its circuits: circuit.json")
    return True
