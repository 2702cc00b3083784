from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def second_last() -> rasp.SOp:
    """The token before the last, at every position; undefined where there is one alone."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at = rasp.Select(rasp.indices, length, lambda key, query: key == query - 2).named("at")
    return rasp.Aggregate(at, rasp.tokens).named("second_last")
