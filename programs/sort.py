from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(1, 2, 3), max_seq_len=4)
def sort() -> rasp.SOp:
    """The tokens in ascending order."""
    return lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=4, min_key=1)
