from typing import Any

from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


def distinct(tokens: tuple[Any, ...]) -> bool:
    """Whether no token occurs twice."""
    return len(set(tokens)) == len(tokens)


# Equal keys have equal target positions, of which the program fills one: it is defined on distinct tokens alone.
@rasp_program(vocab=(1, 2, 3, 4), max_seq_len=4, valid=distinct)
def sort_unique() -> rasp.SOp:
    """Distinct tokens in ascending order."""
    return lib.make_sort_unique(rasp.tokens, rasp.tokens)
