from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def mirrored() -> rasp.SOp:
    """Whether the token is also found at the mirrored position."""
    backwards = lib.make_reverse(rasp.tokens).named("backwards")
    return rasp.SequenceMap(lambda x, y: x == y, rasp.tokens, backwards).named("mirrored")
