from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def shift_by() -> rasp.SOp:
    """The token before; undefined at the first position."""
    return lib.shift_by(1, rasp.tokens)
