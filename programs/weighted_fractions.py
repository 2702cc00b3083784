from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=3)
def weighted_fractions() -> rasp.SOp:
    """Half the fraction of "a" plus twice the fraction of "b"."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("everywhere")
    is_a = rasp.numerical(rasp.Map(lambda token: int(token == "a"), rasp.tokens)).named("is_a")
    is_b = rasp.numerical(rasp.Map(lambda token: int(token == "b"), rasp.tokens)).named("is_b")
    as_ = rasp.numerical(rasp.Aggregate(everywhere, is_a, default=0)).named("as")
    bs = rasp.numerical(rasp.Aggregate(everywhere, is_b, default=0)).named("bs")
    return rasp.numerical(rasp.LinearSequenceMap(as_, bs, 0.5, 2)).named("weighted_fractions")
