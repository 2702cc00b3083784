from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "x"), max_seq_len=4, causal=True)
def any_x() -> rasp.SOp:
    """Whether there is an "x" up to here."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("everywhere")
    is_x = rasp.numerical(rasp.Map(lambda token: int(token == "x"), rasp.tokens)).named("is_x")
    fraction = rasp.numerical(rasp.Aggregate(everywhere, is_x, default=0)).named("fraction")
    return rasp.Map(lambda x: "some" if x > 0 else "none", fraction).named("any_x")
