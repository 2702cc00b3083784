"""The pytest plugin: every program in a program file becomes tests. Imports nothing heavy until one is collected.

A program file imports `rasp_program` from `tracr_bridge` and calls it, which is found out without running it; and it is
one of `programs/*.py` or one that the ini option `edgeprune_programs` names, one of those that come with the toolkit
(`pytest --pyargs tracr_bridge.programs`), or named on the command line. No other file is run.
"""

import argparse
import ast
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from edgeprune.errors import EdgePruneError
    from edgeprune.graph import Ablation
    from tracr_bridge.compile.program import Program
    from tracr_bridge.recovery.pytest_checks import Suite

_DECLARES = "rasp_program"
_LARGEST = 2**22
"""Bytes of a program file, at the most."""
_ABLATIONS: tuple[Literal["zero", "mean", "resample"], ...] = ("zero", "mean", "resample")
_METHOD = "edge-pruning-minimax"
_SUITE = pytest.StashKey["Suite"]()
_FILES = pytest.StashKey[frozenset[Path]]()
_LOADED = pytest.StashKey[dict[Path, "dict[str, Program]"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the group `edgeprune`."""
    group = parser.getgroup("edgeprune", "circuit discovery on compiled programs")
    group.addoption(
        "--circuit-method",
        default=_METHOD,
        metavar="METHOD",
        help="the discovery method that recovers circuits: a name of ours, or package.module:function of your own, "
        "called as function(model, dataset, ablation, seed=...) (default: %(default)s)",
    )
    group.addoption(
        "--circuit-ablation",
        action="append",
        choices=_ABLATIONS,
        help="what removed edges carry; may be repeated (default: zero and resample)",
    )
    group.addoption(
        "--circuit-seeds",
        type=_count,
        default=1,
        metavar="N",
        help="recover at seeds 0 to N - 1; those above 0 are marked sweep (default: %(default)s)",
    )
    group.addoption(
        "--circuit-timeout",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long one discovery may take (default: %(default)s)",
    )
    parser.addini(
        "edgeprune_programs",
        type="linelist",
        default=[],
        help="files, folders and globs, from the root directory, whose programs become tests beside programs/*.py",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0 seconds, got {text}")
    return seconds


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and see to it that programs are collected where no path was named."""
    config.addinivalue_line("markers", "programs(*names): run the test once for each, as its argument `program`")
    config.addinivalue_line(
        "markers", "sweep: minutes long, as is recovery at the seeds above 0 that --circuit-seeds asks for"
    )
    if config.option.circuit_method != _METHOD:
        _suite(config)  # says at once that there is no such method
    source = config.args_source
    whole = source is pytest.Config.ArgsSource.INVOCATION_DIR and config.invocation_params.dir == config.rootpath
    if whole or source is pytest.Config.ArgsSource.TESTPATHS:
        roots = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
        missed = (p for p in _program_files(config) if not any(p.is_relative_to(root) for root in roots))
        config.args += sorted(map(str, missed))


def pytest_report_header(config: pytest.Config) -> str:
    """Which method is under test."""
    return f"circuit method: {config.option.circuit_method}"


def _suite(config: pytest.Config) -> "Suite":
    if _SUITE not in config.stash:
        import torch

        from edgeprune.errors import UnknownMethod
        from edgeprune.user_code import told
        from tracr_bridge.recovery.pytest_checks import Suite

        torch.set_num_threads(1)  # compiled models are too small for threads to pay
        try:
            config.stash[_SUITE] = Suite(
                config.option.circuit_method, seconds=config.option.circuit_timeout, load=partial(_find, config)
            )
        except UnknownMethod as error:
            raise pytest.UsageError(told(error)) from error
    return config.stash[_SUITE]


# Programs by name


def _load(config: pytest.Config, path: Path) -> "dict[str, Program]":
    """The programs of a file, the same ones at every call.

    Raises:
        ProgramFileError: it holds none, or cannot be imported.
    """
    from tracr_bridge.compile.catalogue import load_file

    loaded = config.stash.setdefault(_LOADED, {})
    if path.resolve() not in loaded:
        loaded[path.resolve()] = load_file(path)
    return loaded[path.resolve()]


def _find(config: pytest.Config, name: str) -> "Program":
    """The program of that name: one that is collected here, else as the command line has it.

    Raises:
        UnknownProgram: there is none, or more than one here.
        ProgramFileError: a file that may declare it cannot be imported.
    """
    from edgeprune.errors import UnknownProgram
    from tracr_bridge.compile.catalogue import load_program

    own = sorted(file for file in _program_files(config) if file.parent != _shipped())
    if ".py" in name:
        return load_program(name)
    naming = [file for file in own if name in file.read_text(errors="replace")]
    found = {file: programs[name] for file in naming if name in (programs := _load(config, file))}
    if len(found) > 1:
        raise UnknownProgram(f"Expected one program {name!r}; it is declared in {' and '.join(map(str, found))}")
    try:
        return next(iter(found.values())) if found else load_program(name)
    except UnknownProgram as error:
        searched = ", ".join(
            str(file.relative_to(config.rootpath)) for file in own if file.is_relative_to(config.rootpath)
        )
        raise UnknownProgram(f"{error}; nor is there one in {searched or 'programs/*.py here'}") from None


# Collection


def _program_files(config: pytest.Config) -> frozenset[Path]:
    """Those of `programs/*.py`, and of what the ini option names, that declare programs.

    Raises:
        pytest.UsageError: it names nothing that there is, or nothing that declares programs.
    """
    if _FILES not in config.stash:
        # A folder of that name may hold what has nothing to do with us, and running it would do what it does.
        inside = config.rootpath.resolve()
        found = {file for file in config.rootpath.glob("programs/*.py") if file.resolve().is_relative_to(inside)}
        for entry in config.getini("edgeprune_programs"):
            matched = [config.rootpath / path for path in glob(entry, root_dir=config.rootpath, recursive=True)]
            if not matched:
                raise pytest.UsageError(f"Expected edgeprune_programs to name files or folders; {entry!r} names none")
            named = {file for path in matched for file in (path.glob("*.py") if path.is_dir() else [path])}
            if not any(map(_declares_programs, named)):
                raise pytest.UsageError(
                    "Expected edgeprune_programs to name files that import rasp_program from tracr_bridge and call it; "
                    f"{entry!r} names none"
                )
            found |= named
        config.stash[_FILES] = frozenset(
            file.resolve() for file in found if _may_hold_programs(file, config) and _declares_programs(file)
        )
    return config.stash[_FILES]


def _may_hold_programs(path: Path, config: pytest.Config) -> bool:
    """Whether a file is one of Python's, and none of pytest's own."""
    tests: list[str] = config.getini("python_files")
    return path.suffix == ".py" and not path.name.startswith("_") and not any(map(path.match, [*tests, "conftest.py"]))


@cache
def _shipped() -> Path | None:
    """The folder of the programs that come with the toolkit."""
    spec = importlib.util.find_spec("tracr_bridge")
    package = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
    places = [package / "programs", package.parent / "programs"] if package is not None else []  # installed, or not
    return next((place for place in places if place.is_dir()), None)


def _declares_programs(path: Path) -> bool:
    """Whether a file imports `rasp_program` from `tracr_bridge` and calls it, as its text alone says.

    So does one that is no Python as long as it names both: it is not run either, and its author is told.
    """
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return False
    text = path.read_bytes()
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return b"rasp_program" in text and b"tracr_bridge" in text
    nodes = list(ast.walk(tree))
    direct, modules = set[str](), set[str]()
    for node in nodes:
        match node:
            case ast.ImportFrom(module="tracr_bridge" | "tracr_bridge.compile.program", names=names, level=0):
                direct |= {each.asname or _DECLARES for each in names if each.name in (_DECLARES, "*")}
            case ast.ImportFrom(module="tracr_bridge.compile", names=names, level=0):
                modules |= {each.asname or each.name for each in names if each.name == "program"}
            case ast.Import(names=names):
                ours = [each for each in names if each.name in ("tracr_bridge", "tracr_bridge.compile.program")]
                modules |= {each.asname or each.name for each in ours} | ({"tracr_bridge"} if ours else set())
            case _:
                pass
    return any(isinstance(node, ast.Call) and _is_named(node.func, direct, modules) for node in nodes)


def _is_named(function: ast.expr, direct: set[str], modules: set[str]) -> bool:
    """Whether an expression is `rasp_program`, by a name of its own or as part of a module."""
    match function:
        case ast.Name(id=name):
            return name in direct
        case ast.Attribute(value=module, attr=attribute):
            return attribute == _DECLARES and ast.unparse(module) in modules
        case _:
            return False


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "ProgramFile | None":
    """Collect a program file."""
    if not _may_hold_programs(file_path, parent.config):
        return None
    named = parent.session.isinitpath(file_path)
    if file_path.resolve() in _program_files(parent.config) or (
        (file_path.parent == _shipped() or named) and _declares_programs(file_path)
    ):
        return ProgramFile.from_parent(parent, path=file_path)
    return None


class ProgramFile(pytest.File):
    """A Python file with programs."""

    def collect(self) -> "Iterator[ProgramTests]":
        """One collector a program."""
        from edgeprune.errors import ProgramFileError
        from edgeprune.user_code import told

        try:
            programs = _load(self.config, self.path)
        except ProgramFileError as error:
            raise self.CollectError(told(error, "\n")) from error
        for name, program in sorted(programs.items()):  # the processes of xdist agree, whatever a set is walked in
            yield ProgramTests.from_parent(self, name=name, program=program)


class ProgramTests(pytest.Collector):
    """A program's tests."""

    def __init__(self, *, program: "Program", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.program = program
        self.tellers: dict[str, Check] = {}
        """The test that fails where a stage does: compiling (no name), or certifying under an ablation (its name)."""

        self._faults: dict[str, EdgePruneError | None] = {}

    def fault(self, stage: str) -> "EdgePruneError | None":
        """What is wrong with a stage that several tests begin with."""
        from edgeprune.errors import EdgePruneError

        if stage not in self._faults:
            suite, self._faults[stage] = _suite(self.config), None
            try:
                suite.truth(self.program, stage) if stage else suite.compiled(self.program)  # pyright: ignore
            except EdgePruneError as error:
                self._faults[stage] = error
        return self._faults[stage]

    def collect(self) -> "Iterator[Check]":
        """`verify`, `truth[ablation]` and `recovery[ablation-method-seed]`."""
        suite, program = _suite(self.config), self.program
        spec = f"{self._written_path()}:{program.name}"
        yield self._check("verify", [""], partial(suite.check_verify, program))
        ablations: list[Ablation] = self.config.option.circuit_ablation or ["zero", "resample"]
        for ablation in dict.fromkeys(ablations):
            stages = ["", ablation]
            yield self._check(f"truth[{ablation}]", stages, partial(suite.check_truth, program, ablation))
            for seed in range(self.config.option.circuit_seeds):
                run = partial(suite.check_recovery, program, ablation, seed=seed, spec=spec)
                item = self._check(f"recovery[{ablation}-{suite.method}-seed{seed}]", stages, run)
                if seed > 0:
                    item.add_marker("sweep")
                yield item

    def _check(self, name: str, stages: Sequence[str], run: Callable[[], None]) -> "Check":
        # Spelt out, for pytest itself takes what stands in brackets for no part of an item's name.
        return Check.from_parent(self, name=name, nodeid=f"{self.nodeid}::{name}", stages=stages, run=run)

    def _written_path(self) -> Path:
        """The file as a user in the directory of the run would write it."""
        here = self.config.invocation_params.dir
        return self.path.relative_to(here) if self.path.is_relative_to(here) else self.path


class Check(pytest.Item):
    """One check of one program."""

    def __init__(self, *, stages: Sequence[str], run: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stages, self._run = stages, run

    @property
    def tests(self) -> ProgramTests:
        """Those of its program."""
        assert isinstance(self.parent, ProgramTests)
        return self.parent

    def runtest(self) -> None:
        """Run it.

        A program on which nothing could fail under this ablation is skipped, with the reason. One that cannot be
        compiled, or certified, fails in the first test of a run that would, and is skipped in the others.
        """
        from edgeprune.errors import DegenerateProgram

        for stage in self.stages:
            error = self.tests.fault(stage)
            if isinstance(error, DegenerateProgram) and self.name != "verify":
                pytest.skip(str(error))
            if error is not None:
                teller = self.tests.tellers[stage]
                if teller is self:
                    raise error
                pytest.skip(f"{self.tests.name} is broken, as {self.tests.name}::{teller.name} says")
        self._run()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The message alone where it says everything, else the traceback."""
        from edgeprune.errors import EdgePruneError
        from edgeprune.user_code import told
        from tracr_bridge.recovery.pytest_checks import CheckFailed

        if isinstance(excinfo.value, CheckFailed | EdgePruneError):
            return told(excinfo.value, "\n")
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The program's file, and the check by name."""
        return self.path, None, f"{self.parent.name if self.parent else ''}::{self.name}"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Choose, of the tests that run, those that say what is wrong with a program."""
    for item in session.items:
        if isinstance(item, Check):
            for stage in item.stages:
                item.tests.tellers.setdefault(stage, item)


# For hand-written tests


def _asked(config: pytest.Config, what: str, usage: str) -> Callable[..., Any]:
    from tracr_bridge.recovery.fixtures import Asked

    return Asked(getattr(_suite(config), what), usage)


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`compiled(program)`: the `Compiled` of a program, given as such or by name."""
    return _asked(request.config, "compiled", "compiled(program)")


@pytest.fixture(scope="session")
def truth(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`truth(program, ablation)`: its certified `Truth`."""
    return _asked(request.config, "truth", "truth(program, ablation)")


@pytest.fixture(scope="session")
def recover(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`recover(program, ablation, seed=0)`: the `Assessment` of what the method under test finds."""
    return _asked(request.config, "recover", "recover(program, ablation, seed=0)")


@pytest.fixture
def program() -> None:
    """The program of a test that is marked `programs(name, ...)`, which runs once for each name."""
    from tracr_bridge.recovery.fixtures import USAGE

    pytest.fail(f"Expected {USAGE}; the test has no such mark", pytrace=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `programs(*names)` once for each of them."""
    marker = metafunc.definition.get_closest_marker("programs")
    if marker is None:
        return
    from tracr_bridge.recovery.fixtures import USAGE, misuse

    if fault := misuse(marker, metafunc, partial(_find, metafunc.config)):
        pytest.fail(f"{metafunc.definition.nodeid}: Expected {USAGE}; {fault}", pytrace=False)
    named = dict.fromkeys(marker.args)
    metafunc.parametrize("program", named, ids=[each if isinstance(each, str) else each.name for each in named])


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Say which edges two unequal circuits differ in."""
    if op != "==" or type(left).__name__ != "Circuit" or type(right).__name__ != "Circuit":
        return None
    from edgeprune.graph import Circuit, edge_names

    if not isinstance(left, Circuit) or not isinstance(right, Circuit) or left.graph != right.graph:
        return None
    lines = [f"circuits of {len(left)} and {len(right)} edges differ"]
    if left.ablation != right.ablation:
        lines.append(f"ablations: {left.ablation} and {right.ablation}")
    lines += [f"only left:  {edge}" for edge in edge_names(left.graph, left.edges - right.edges)]
    lines += [f"only right: {edge}" for edge in edge_names(right.graph, right.edges - left.edges)]
    return lines
