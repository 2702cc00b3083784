from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def detect_pattern() -> rasp.SOp:
    """Whether "abc" ends here; undefined at the first two positions."""
    return lib.detect_pattern(rasp.tokens, "abc")
