from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b", "c"), max_seq_len=4)
def last_token() -> rasp.SOp:
    """The last token, at every position."""
    everywhere = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("last")
    return rasp.Aggregate(last, rasp.tokens).named("last_token")
