from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def share_of_a() -> rasp.SOp:
    """The fraction of "a" in the whole input, at every position."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    is_a = rasp.numerical(rasp.Map(lambda token: int(token == "a"), rasp.tokens)).named("is_a")
    return rasp.numerical(rasp.Aggregate(everywhere, is_a, default=0)).named("share_of_a")
