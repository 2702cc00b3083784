from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def two_ahead() -> rasp.SOp:
    """The token two positions on; undefined at the last two."""
    return lib.shift_by(-2, rasp.tokens).named("two_ahead")
