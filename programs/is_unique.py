from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def is_unique() -> rasp.SOp:
    """Whether no other token is the same."""
    return rasp.Map(lambda count: count == 1, lib.make_hist()).named("is_unique")
