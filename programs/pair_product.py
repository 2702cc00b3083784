from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=3)
def pair_product() -> rasp.SOp:
    """The token times the mirrored one."""
    return rasp.SequenceMap(lambda x, y: x * y, rasp.tokens, lib.make_reverse(rasp.tokens).named("backwards")).named(
        "pair_product"
    )
