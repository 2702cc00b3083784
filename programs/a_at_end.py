from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3)
def a_at_end() -> rasp.SOp:
    """Whether the last token is "a", by the fraction of "a" among the keys found in its place."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    is_a = rasp.numerical(rasp.Map(lambda token: int(token == "a"), rasp.tokens)).named("is_a")
    share = rasp.numerical(rasp.Aggregate(at_last, is_a, default=0)).named("share")
    return rasp.Map(lambda x: x > 0.5, share).named("a_at_end")
