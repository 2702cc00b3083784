from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1), max_seq_len=4)
def product_of_ends() -> rasp.SOp:
    """The first token times the last, at every position: 1 where both are."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    last = rasp.Aggregate(at_last, rasp.tokens).named("last")
    at_first = rasp.Select(rasp.indices, length, lambda key, query: key == 0 and query > 0).named("at_first")
    first = rasp.Aggregate(at_first, rasp.tokens).named("first")
    return rasp.SequenceMap(lambda x, y: x * y, first, last).named("product_of_ends")
