from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1, 2), max_seq_len=3)
def difference_to_last() -> rasp.SOp:
    """The token minus the last one."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    last = rasp.Aggregate(at_last, rasp.tokens).named("last")
    return rasp.SequenceMap(lambda x, y: x - y, rasp.tokens, last).named("difference_to_last")
