from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def neighbours_agree() -> rasp.SOp:
    """Whether both neighbours are the same; undefined at both ends."""
    previous, following = lib.shift_by(1, rasp.tokens), lib.shift_by(-1, rasp.tokens)
    return rasp.SequenceMap(lambda x, y: x == y, previous, following).named("neighbours_agree")
