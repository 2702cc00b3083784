from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def hist() -> rasp.SOp:
    """How often each token occurs in the input."""
    return lib.make_hist()
