from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("(", ")", "{", "}"), max_seq_len=3)
def shuffle_dyck2() -> rasp.SOp:
    """Whether two kinds of brackets are balanced, each kind by itself."""
    return lib.make_shuffle_dyck(["()", "{}"])
