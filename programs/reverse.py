from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def reverse() -> rasp.SOp:
    """The input backwards."""
    return lib.make_reverse(rasp.tokens)
