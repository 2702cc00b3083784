from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def middle_token() -> rasp.SOp:
    """The token in the middle, at every position; of an even number, the earlier of two."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_middle = rasp.Select(rasp.indices, length, lambda key, query: key == (query - 1) // 2).named("at_middle")
    return rasp.Aggregate(at_middle, rasp.tokens).named("middle_token")
