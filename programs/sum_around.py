from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1), max_seq_len=4)
def sum_around() -> rasp.SOp:
    """The token before plus the one after; undefined at both ends."""
    previous = lib.shift_by(1, rasp.tokens).named("previous")
    following = lib.shift_by(-1, rasp.tokens).named("following")
    return rasp.SequenceMap(lambda x, y: x + y, previous, following).named("sum_around")
