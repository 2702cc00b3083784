from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def ignored_input() -> rasp.SOp:
    """The previous token, or the letter that a map gives whatever it reads if that is later; undefined at the first."""
    constant = rasp.Map(lambda token: "b", rasp.tokens).named("constant")
    previous = lib.shift_by(1, rasp.tokens).named("previous")
    return rasp.SequenceMap(lambda x, y: max(x, y), previous, constant).named("ignored_input")
