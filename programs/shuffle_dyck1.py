from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("(", ")"), max_seq_len=4)
def shuffle_dyck1() -> rasp.SOp:
    """Whether the brackets are balanced, at every position."""
    return lib.make_shuffle_dyck(["()"])
