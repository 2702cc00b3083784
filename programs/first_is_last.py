from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=("a", "b"), max_seq_len=4)
def first_is_last() -> rasp.SOp:
    """Whether the first token is the same as the last, at every position."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    last = rasp.Aggregate(at_last, rasp.tokens).named("last")
    at_first = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0).named("at_first")
    first = rasp.Aggregate(at_first, rasp.tokens).named("first")
    return rasp.SequenceMap(lambda x, y: x == y, first, last).named("first_is_last")
