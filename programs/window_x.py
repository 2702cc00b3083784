from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "x"), max_seq_len=4)
def window_x() -> rasp.SOp:
    """The fraction of "x" among the token and its neighbours."""
    near = rasp.Select(rasp.indices, rasp.indices, lambda key, query: abs(key - query) <= 1).named("near")
    is_x = rasp.numerical(rasp.Map(lambda token: int(token == "x"), rasp.tokens)).named("is_x")
    return rasp.numerical(rasp.Aggregate(near, is_x, default=0)).named("window_x")
