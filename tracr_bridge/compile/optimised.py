"""Keep Haiku working under `python -O`: Haiku pops its stacks inside `assert` statements, which -O removes."""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from edgeprune.errors import UnsupportedProgram


class _WithAsserts(SourceFileLoader):
    """A loader that compiles a module as if Python had been started without -O."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return compile(self.get_data(path), path, "exec", dont_inherit=True, optimize=0)


class _Haiku:
    """An import finder that makes Haiku's modules keep their asserts."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "haiku":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _WithAsserts(name, spec.loader.path)
        return spec


def keep_asserts_of_haiku() -> None:
    """Make Haiku keep its asserts under `python -O`; has no effect once Haiku is imported."""
    if sys.flags.optimize:
        sys.meta_path.insert(0, _Haiku)


def check_haiku() -> None:
    """Raise if Haiku was imported without its asserts.

    Raises:
        UnsupportedProgram: Haiku was imported before this package, under `python -O`.
    """
    loader = getattr(sys.modules.get("haiku"), "__loader__", None)
    if sys.flags.optimize and loader is not None and not isinstance(loader, _WithAsserts):
        raise UnsupportedProgram(
            "Expected tracr_bridge to be imported before Haiku under python -O, as Haiku works only with its asserts; "
            "it was imported after: import tracr_bridge first, or leave out -O"
        )
