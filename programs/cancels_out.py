from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=3, causal=True)
def cancels_out() -> rasp.SOp:
    """The fraction of "a", plus the fraction of "b" so far, minus the same: work that cancels out."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("everywhere")
    is_a = rasp.numerical(rasp.Map(lambda token: int(token == "a"), rasp.tokens)).named("is_a")
    is_b = rasp.numerical(rasp.Map(lambda token: int(token == "b"), rasp.tokens)).named("is_b")
    as_ = rasp.numerical(rasp.Aggregate(everywhere, is_a, default=0)).named("as")
    bs = rasp.numerical(rasp.Aggregate(everywhere, is_b, default=0)).named("bs")
    more = rasp.numerical(rasp.LinearSequenceMap(as_, bs, 1, 1)).named("more")
    return rasp.numerical(rasp.LinearSequenceMap(more, bs, 1, -1)).named("cancels_out")
