from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=4)
def step_to_next() -> rasp.SOp:
    """What has to be added to the token to get the next one, modulo 3; undefined at the last position."""
    return rasp.SequenceMap(lambda x, y: (x - y) % 3, lib.shift_by(-1, rasp.tokens), rasp.tokens).named("step_to_next")
