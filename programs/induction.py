from typing import Any

from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


def at_most_twice(tokens: tuple[Any, ...]) -> bool:
    """Whether no token occurs three times."""
    return all(tokens.count(token) <= 2 for token in tokens)


# Where a token occurred twice before, two different tokens may have followed it, and Tracr does not average tokens.
@rasp_program(vocab=("a", "b", "c"), max_seq_len=4, causal=True, valid=at_most_twice)
def induction() -> rasp.SOp:
    """The token that followed the previous occurrence of this one; undefined where there was none."""
    previous = lib.shift_by(1, rasp.tokens).named("previous")
    # `previous` is undefined at the first position, which rasp.Comparison.EQ would refuse.
    after_same = rasp.Select(previous, rasp.tokens, lambda key, query: key == query).named("after_same")
    return rasp.Aggregate(after_same, rasp.tokens).named("induction")
