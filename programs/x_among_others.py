from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "x"), max_seq_len=4)
def x_among_others() -> rasp.SOp:
    """The fraction of "x" among the tokens that differ from this one; 0 if none does."""
    unlike = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.NEQ).named("unlike")
    is_x = rasp.numerical(rasp.Map(lambda token: int(token == "x"), rasp.tokens)).named("is_x")
    return rasp.numerical(rasp.Aggregate(unlike, is_x, default=0)).named("x_among_others")
