"""The pytest plugin: turns every program in a program file into tests. Imports nothing heavy until one is collected.

A program file imports `rasp_program` from `tracr_bridge` and calls it; its text is checked for this without running it.
It is also one of `programs/*.py`, named by the ini option `edgeprune_programs`, shipped with the toolkit
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
"""Largest size of a program file, in bytes."""
_ABLATIONS: tuple[Literal["zero", "mean", "resample"], ...] = ("zero", "mean", "resample")
_METHOD = "edge-pruning-minimax"
_SUITE = pytest.StashKey["Suite"]()
_FILES = pytest.StashKey[frozenset[Path]]()
_LOADED = pytest.StashKey[dict[Path, "dict[str, Program]"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of the group `edgeprune`, and the ini option."""
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
    """Declare the markers. Add program files to the collected paths if the command line names no path."""
    config.addinivalue_line("markers", "programs(*names): run the test once for each, as its argument `program`")
    config.addinivalue_line(
        "markers", "sweep: minutes long, as is recovery at the seeds above 0 that --circuit-seeds asks for"
    )
    if config.option.circuit_method != _METHOD:
        _suite(config)  # reports an unknown method at once
    source = config.args_source
    whole = source is pytest.Config.ArgsSource.INVOCATION_DIR and config.invocation_params.dir == config.rootpath
    if whole or source is pytest.Config.ArgsSource.TESTPATHS:
        roots = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
        missed = (p for p in _program_files(config) if not any(p.is_relative_to(root) for root in roots))
        config.args += sorted(map(str, missed))


def pytest_report_header(config: pytest.Config) -> str:
    """Return a header line that names the method under test."""
    return f"circuit method: {config.option.circuit_method}"


def _suite(config: pytest.Config) -> "Suite":
    if _SUITE not in config.stash:
        import torch

        from edgeprune.errors import UnknownMethod
        from edgeprune.user_code import told
        from tracr_bridge.recovery.pytest_checks import Suite

        torch.set_num_threads(1)  # compiled models are too small to gain from threads
        try:
            config.stash[_SUITE] = Suite(
                config.option.circuit_method, seconds=config.option.circuit_timeout, load=partial(_find, config)
            )
        except UnknownMethod as error:
            raise pytest.UsageError(told(error)) from error
    return config.stash[_SUITE]


# Programs by name


def _load(config: pytest.Config, path: Path) -> "dict[str, Program]":
    """Return the programs of a file by name, the same objects at every call.

    Raises:
        ProgramFileError: the file holds no program, or cannot be imported.
    """
    from tracr_bridge.compile.catalogue import load_file

    loaded = config.stash.setdefault(_LOADED, {})
    if path.resolve() not in loaded:
        loaded[path.resolve()] = load_file(path)
    return loaded[path.resolve()]


def _find(config: pytest.Config, name: str) -> "Program":
    """Return the program of that name: from the user's program files, else as `load_program` finds it.

    Raises:
        UnknownProgram: there is no such program, or several of the user's files declare it.
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
    """Return the files of `programs/*.py` and of the ini option that declare programs.

    Raises:
        pytest.UsageError: an entry of the ini option names no file, or no file that declares programs.
    """
    if _FILES not in config.stash:
        # `programs` may hold unrelated files, or links out of the root directory. Running those may have side effects.
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
    """Return whether a path is a `.py` file, not a test file or `conftest.py`, whose name does not begin with `_`."""
    tests: list[str] = config.getini("python_files")
    return path.suffix == ".py" and not path.name.startswith("_") and not any(map(path.match, [*tests, "conftest.py"]))


@cache
def _shipped() -> Path | None:
    """Return the folder of the programs that come with the toolkit; None if it is not found."""
    spec = importlib.util.find_spec("tracr_bridge")
    package = Path(spec.origin).resolve().parent if spec is not None and spec.origin else None
    places = [package / "programs", package.parent / "programs"] if package is not None else []  # installed, or not
    return next((place for place in places if place.is_dir()), None)


def _declares_programs(path: Path) -> bool:
    """Return whether a file's text imports `rasp_program` from `tracr_bridge` and calls it. The file is not run.

    A file that cannot be parsed counts if it contains both names: collecting it tells its author what is wrong.
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
    """Return whether an expression is `rasp_program`, as a name or as an attribute of a module."""
    match function:
        case ast.Name(id=name):
            return name in direct
        case ast.Attribute(value=module, attr=attribute):
            return attribute == _DECLARES and ast.unparse(module) in modules
        case _:
            return False


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "ProgramFile | None":
    """Collect a file if it is a program file."""
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
        """Yield one collector for each program."""
        from edgeprune.errors import ProgramFileError
        from edgeprune.user_code import told

        try:
            programs = _load(self.config, self.path)
        except ProgramFileError as error:
            raise self.CollectError(told(error, "\n")) from error
        for name, program in sorted(programs.items()):  # the same order in all processes of xdist
            yield ProgramTests.from_parent(self, name=name, program=program)


class ProgramTests(pytest.Collector):
    """The tests of one program."""

    def __init__(self, *, program: "Program", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.program = program
        self.tellers: dict[str, Check] = {}
        """The test that reports a stage's failure, by stage: "" for compiling, an ablation's name for certifying."""

        self._faults: dict[str, EdgePruneError | None] = {}

    def fault(self, stage: str) -> "EdgePruneError | None":
        """Run a stage that several tests begin with, once; return its error, or None."""
        from edgeprune.errors import EdgePruneError

        if stage not in self._faults:
            suite, self._faults[stage] = _suite(self.config), None
            try:
                suite.truth(self.program, stage) if stage else suite.compiled(self.program)  # pyright: ignore
            except EdgePruneError as error:
                self._faults[stage] = error
        return self._faults[stage]

    def collect(self) -> "Iterator[Check]":
        """Yield `verify`, `truth[ablation]` and `recovery[ablation-method-seed]`."""
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
        # The node id is explicit, as pytest does not take text in brackets as part of an item's name.
        return Check.from_parent(self, name=name, nodeid=f"{self.nodeid}::{name}", stages=stages, run=run)

    def _written_path(self) -> Path:
        """Return the file's path, relative to the directory of the run if it lies inside."""
        here = self.config.invocation_params.dir
        return self.path.relative_to(here) if self.path.is_relative_to(here) else self.path


class Check(pytest.Item):
    """One check of one program."""

    def __init__(self, *, stages: Sequence[str], run: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stages, self._run = stages, run

    @property
    def tests(self) -> ProgramTests:
        """The collector of the program's tests."""
        assert isinstance(self.parent, ProgramTests)
        return self.parent

    def runtest(self) -> None:
        """Run the check.

        Skip a program on which nothing could fail under this ablation, with the reason. If a program cannot be compiled
        or certified, the first selected test that needs this fails, and the others are skipped.
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
        """Return the message alone for errors whose message says everything, else the traceback."""
        from edgeprune.errors import EdgePruneError
        from edgeprune.user_code import told
        from tracr_bridge.recovery.pytest_checks import CheckFailed

        if isinstance(excinfo.value, CheckFailed | EdgePruneError):
            return told(excinfo.value, "\n")
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return the program's file, and the check's name."""
        return self.path, None, f"{self.parent.name if self.parent else ''}::{self.name}"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Choose the test that reports a stage's failure: the first selected test of the program that needs the stage."""
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
    """`compiled(program)` returns the `Compiled` of a program, which is given as a `Program` or by name."""
    return _asked(request.config, "compiled", "compiled(program)")


@pytest.fixture(scope="session")
def truth(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`truth(program, ablation)` returns the program's certified `Truth`."""
    return _asked(request.config, "truth", "truth(program, ablation)")


@pytest.fixture(scope="session")
def recover(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`recover(program, ablation, seed=0)` returns the `Assessment` of the circuit that the method under test finds."""
    return _asked(request.config, "recover", "recover(program, ablation, seed=0)")


@pytest.fixture
def program() -> None:
    """The program of a test marked `programs(name, ...)`. The test runs once for each name."""
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
    """List the edges in which two unequal circuits differ."""
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
