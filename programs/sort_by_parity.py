from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(1, 2, 3), max_seq_len=3)
def sort_by_parity() -> rasp.SOp:
    """Odd tokens first, then even ones, otherwise in their order."""
    keys = rasp.Map(lambda token: 1 + (token + 1) % 2, rasp.tokens).named("keys")
    return lib.make_sort(rasp.tokens, keys, max_seq_len=3, min_key=1).named("sort_by_parity")
