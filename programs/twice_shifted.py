from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def twice_shifted() -> rasp.SOp:
    """The token two positions before, in two steps of one; undefined at the first two."""
    previous = lib.shift_by(1, rasp.tokens).named("previous")
    return lib.shift_by(1, previous).named("twice_shifted")
