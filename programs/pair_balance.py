from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("(", ")", "x"), max_seq_len=4)
def pair_balance() -> rasp.SOp:
    """Fraction of "(" minus fraction of ")" among the tokens so far."""
    return lib.make_pair_balance(rasp.tokens, "(", ")")
