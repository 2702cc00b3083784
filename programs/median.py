from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=3, min_seq_len=3)
def median() -> rasp.SOp:
    """The middle one of three tokens in order."""
    in_order = lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=3, min_key=1).named("in_order")
    middle = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 1).named("middle")
    return rasp.Aggregate(middle, in_order).named("median")
