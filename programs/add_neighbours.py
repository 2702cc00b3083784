from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=4)
def add_neighbours() -> rasp.SOp:
    """The token plus the one before it; undefined at the first position."""
    return rasp.SequenceMap(lambda x, y: x + y, lib.shift_by(1, rasp.tokens), rasp.tokens).named("add_neighbours")
