from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def often_mostly_a() -> rasp.SOp:
    """The fraction of positions so far up to which at least half of the tokens were "a"."""
    is_a = rasp.Map(lambda token: token == "a", rasp.tokens).named("is_a")
    share = lib.make_frac_prevs(is_a).named("share")
    mostly = rasp.numerical(rasp.Map(lambda x: int(x >= 0.5), share)).named("mostly")
    return lib.make_frac_prevs(mostly).named("often_mostly_a")
