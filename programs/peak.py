from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=4)
def peak() -> rasp.SOp:
    """Whether the token is larger than both its neighbours; undefined at both ends."""
    previous, following = lib.shift_by(1, rasp.tokens), lib.shift_by(-1, rasp.tokens)
    higher = rasp.SequenceMap(lambda x, y: max(x, y), previous, following).named("higher")
    return rasp.SequenceMap(lambda x, y: x > y, rasp.tokens, higher).named("peak")
