from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def length() -> rasp.SOp:
    """Length of the input, at every position."""
    return lib.make_length()
