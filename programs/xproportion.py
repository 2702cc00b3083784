from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "x"), max_seq_len=4)
def xproportion() -> rasp.SOp:
    """Fraction of tokens so far that are "x"."""
    return lib.make_frac_prevs(rasp.tokens == "x")
