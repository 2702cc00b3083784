from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def count() -> rasp.SOp:
    """How often "a" occurs in the input, at every position."""
    return lib.make_count(rasp.tokens, "a")
