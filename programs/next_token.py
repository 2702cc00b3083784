from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def next_token() -> rasp.SOp:
    """The token after this one; undefined at the last position."""
    return lib.shift_by(-1, rasp.tokens).named("next_token")
