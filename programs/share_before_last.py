from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def share_before_last() -> rasp.SOp:
    """The fraction of "a" among all tokens but the last; 0 where there is one alone."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    is_a = rasp.numerical(rasp.Map(lambda token: int(token == "a"), rasp.tokens)).named("is_a")
    earlier = rasp.Select(rasp.indices, length, lambda key, query: key < query - 1).named("earlier")
    return rasp.numerical(rasp.Aggregate(earlier, is_a, default=0)).named("share_before_last")
