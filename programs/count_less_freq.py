from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def count_less_freq() -> rasp.SOp:
    """How many tokens occur at most twice in the input."""
    return lib.make_count_less_freq(2)
