from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def sort_freq() -> rasp.SOp:
    """The tokens by how often they occur, most frequent first."""
    return lib.make_sort_freq(4)
