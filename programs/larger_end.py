from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=3)
def larger_end() -> rasp.SOp:
    """The larger of the first and the last token, at every position."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    last = rasp.Aggregate(at_last, rasp.tokens).named("last")
    at_first = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == 0).named("at_first")
    first = rasp.Aggregate(at_first, rasp.tokens).named("first")
    return rasp.SequenceMap(lambda x, y: max(x, y), first, last).named("larger_end")
