from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def final_token() -> rasp.SOp:
    """The last token, at every position, by a length that is counted on positions."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    return rasp.Aggregate(at_last, rasp.tokens).named("final_token")
