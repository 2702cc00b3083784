from tracr.compiler import lib
from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def token_at_count() -> rasp.SOp:
    """The token at the position that is this token's number of occurrences; undefined beyond the end."""
    at_count = rasp.Select(rasp.indices, lib.make_hist().named("count"), rasp.Comparison.EQ).named("at_count")
    return rasp.Aggregate(at_count, rasp.tokens).named("token_at_count")
