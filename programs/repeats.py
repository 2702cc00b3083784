from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def repeats() -> rasp.SOp:
    """Whether the token is the one before it; undefined at the first position."""
    previous = lib.shift_by(1, rasp.tokens).named("previous")
    return rasp.SequenceMap(lambda x, y: x == y, previous, rasp.tokens).named("repeats")
