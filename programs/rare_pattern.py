from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c", "d", "e"), max_seq_len=3)
def rare_pattern() -> rasp.SOp:
    """Whether the input ends in "abc" here: true on one input of 155."""
    return lib.detect_pattern(rasp.tokens, "abc")
