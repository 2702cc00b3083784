"""Load programs: the shipped ones, and those in a user's own file."""

import difflib
import importlib.util
import sys
import tokenize
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Final

from edgeprune.errors import ProgramFileError, UnknownProgram
from edgeprune.user_code import at, place_of
from tracr_bridge.compile.program import Program

_PACKAGE: Final = Path(__file__).resolve().parents[1]

SHIPPED: Final = next(folder for folder in (_PACKAGE / "programs", _PACKAGE.parent / "programs") if folder.is_dir())
"""The folder of the shipped programs: inside the package if that is installed, else at the top of the repository."""


@cache
def catalogue() -> Mapping[str, Program]:
    """Return every shipped program by name, sorted."""
    found: dict[str, Program] = {}
    for file in sorted(SHIPPED.glob("[!_]*.py")):
        programs = load_file(file)
        for name in found.keys() & programs.keys():
            raise ProgramFileError(f"Expected each name once; {name!r} is declared in {file.name} and elsewhere")
        found |= programs
    return MappingProxyType(dict(sorted(found.items())))


def load_program(spec: str) -> Program:
    """Return the program that `spec` names: a name in the catalogue, or `path/to/file.py:name`.

    The name may be omitted if the file holds one program.

    Raises:
        UnknownProgram: no program has that name, or the name is omitted and the file holds several programs.
        ProgramFileError: the file is missing, holds no program, or cannot be imported.
    """
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        held = load_file(Path(path))
        return _choose(held, name, path, f"it has {', '.join(held)}")
    if spec.endswith(".py"):
        programs = load_file(Path(spec))
        if len(programs) > 1:
            raise UnknownProgram(f"Expected {spec}:NAME, as {spec} holds several programs: {', '.join(programs)}")
        return next(iter(programs.values()))
    listed = "`edgeprune programs` lists what it has, and a Python file's programs go by path/to/file.py:name"
    return _choose(catalogue(), spec, "the catalogue", listed)


def load_file(path: Path) -> dict[str, Program]:
    """Return every program that the Python file at `path` declares, by name.

    Raises:
        ProgramFileError: the file is missing, holds no program, or cannot be imported.
    """
    if not path.is_file():
        raise ProgramFileError(f"Expected a Python file with programs; there is no file {str(path)!r}")
    location = importlib.util.spec_from_file_location(f"_program_file_{path.stem}", path)
    assert location is not None and location.loader is not None, "a path ending in .py has a loader"
    module = importlib.util.module_from_spec(location)
    sys.modules[location.name] = module  # dataclasses, for example, look up their module here
    sys.path.insert(0, str(path.parent.resolve()))  # as `python path` does, so that files can import siblings
    try:
        location.loader.exec_module(module)
    except SyntaxError as error:
        message = f"{path} is not Python: line {error.lineno}: {error.msg}"
        raise at(ProgramFileError(message), place_of(error)) from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        message = f"{path} cannot be imported: {type(error).__name__}: {error}"
        raise at(ProgramFileError(message), place_of(error)) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    with tokenize.open(path) as file:  # in the encoding that the file declares
        text = file.read()
    programs = {name: replace(program, name=name, source=text) for name, program in _programs_in(module).items()}
    if not programs:
        raise ProgramFileError(f"{path} holds no program; declare one with @rasp_program(vocab=..., max_seq_len=...)")
    return programs


def _programs_in(module: ModuleType) -> dict[str, Program]:
    """Return the programs that the module declares, by variable name; imported programs are excluded."""
    found: dict[str, Program] = {}
    for name, value in vars(module).items():
        if isinstance(value, Program):
            home = sys.modules.get(getattr(value.build, "__module__", module.__name__), module)
            # `build` may come from another module; if that module holds the program too, the program was imported.
            if home is module or not any(value is other for other in vars(home).values()):
                found[name] = value
    return found


def _choose(programs: Mapping[str, Program], name: str, where: str, listed: str) -> Program:
    if name in programs:
        return programs[name]
    close = difflib.get_close_matches(name, programs, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else listed
    raise UnknownProgram(f"There is no program {name!r} in {where}; {hint}")
