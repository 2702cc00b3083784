from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def first_token() -> rasp.SOp:
    """The first token, at every position."""
    first = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0).named("first")
    return rasp.Aggregate(first, rasp.tokens).named("first_token")
