from tracr.rasp import rasp

from tracr_bridge import rasp_program


@rasp_program(vocab=(0, 1), max_seq_len=3)
def end_sum() -> rasp.SOp:
    """The sum of the last two tokens, each found by a length of its own."""
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE).named("everywhere")
    length = rasp.SelectorWidth(everywhere).named("length")
    at_last = rasp.Select(rasp.indices, length, lambda key, query: key == query - 1).named("at_last")
    last = rasp.Aggregate(at_last, rasp.tokens).named("last")
    from_start = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key >= 0).named("from_start")
    again = rasp.SelectorWidth(from_start).named("again")
    at_second_last = rasp.Select(rasp.indices, again, lambda key, query: key == query - 2).named("at_second_last")
    second_last = rasp.Aggregate(at_second_last, rasp.tokens).named("second_last")
    return rasp.SequenceMap(lambda x, y: x + y, last, second_last).named("end_sum")
