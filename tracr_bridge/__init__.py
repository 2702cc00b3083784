"""Compiles RASP programs with Tracr into transformers whose true circuits are known."""

from typing import TYPE_CHECKING, Any

from tracr_bridge.compile.optimised import keep_asserts_of_haiku

if TYPE_CHECKING:
    from tracr_bridge.compile.program import Program as Program
    from tracr_bridge.compile.program import rasp_program as rasp_program

__all__ = ["Program", "rasp_program"]

keep_asserts_of_haiku()


def __getattr__(name: str) -> Any:
    # Imported on first use: Tracr imports JAX, and `--help` should not wait for it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tracr_bridge.compile import program

    return getattr(program, name)
